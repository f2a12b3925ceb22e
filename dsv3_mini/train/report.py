"""What a run tells about each of its steps: a metrics line, a routing snapshot, a warning of a spike, a progress bar.

The line of a step in `metrics.jsonl`, which `on_step` of `train` gets as well:

    step, losses {main, mtp, balance, total, ..}, lr, grad_norm (before clipping), maxvio [by MoE layer],
    mtp_weight, bias_speed, batch_sequences, tokens (so far), tokens_per_s, mfu, seconds (so far)
    bits_per_byte {by domain, all}      after the steps that `eval_every` names
    spike {sequences [first, last], loss, loss_before, grad_norm, grad_norm_before, largest_weight, weight_norm}
                                        where there is one, see `spikes`
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from dsv3_mini.model.balance import max_violation
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.config import ResolvedConfig
from dsv3_mini.train.device import matrix_dtype
from dsv3_mini.train.metrics import MetricsLog, peak_flops, read_metrics, training_flops_per_token
from dsv3_mini.train.routing_log import RoutingRecorder
from dsv3_mini.train.schedule import Schedule, StepSettings
from dsv3_mini.train.spikes import SpikeDetector, describe_spike, largest_weight
from dsv3_mini.train.step import StepResult


class RunReport:
    """Open for one run from its step `done` on: `before(step)`, the step, `after(..)`. A context manager."""

    def __init__(
        self,
        cfg: ResolvedConfig,
        model: DeepSeekV3,
        schedule: Schedule,
        done: int,
        *,
        progress: bool,
        say: Callable[[str], None],
        on_step: Callable[[dict[str, Any]], None] | None = None,
        devices: int = 1,  # that share the work, all like this one
    ) -> None:
        self.cfg, self.model, self.say, self.on_step = cfg, model, say, on_step
        device = model.lm_head.weight.device
        self.peak = devices * peak_flops(device, matrix_dtype(device, cfg.precision))
        self.flops_per_token = training_flops_per_token(model.cfg, cfg.seq_len)
        self.metrics = MetricsLog(cfg.out / "metrics.jsonl", keep_steps=done)
        self.routing = RoutingRecorder(cfg.out, model, every=cfg.routing_every, last_step=cfg.steps, keep_steps=done)
        self.spikes = SpikeDetector(read_metrics(cfg.out))
        # Counted in tokens, not steps: batches grow at the beginning, so time left follows the tokens.
        self.bar = tqdm(
            total=schedule.total_sequences * cfg.seq_len,
            initial=schedule.starts[done] * cfg.seq_len,
            unit="tok",
            unit_scale=True,
            disable=not progress,
            desc=f"step {done}/{cfg.steps}",
            smoothing=0.1,
            dynamic_ncols=True,
        )

    def before(self, step: int) -> None:
        """Keep what the step is about to change."""
        self.routing.before(step)

    def after(
        self,
        step: int,
        settings: StepSettings,
        result: StepResult,
        *,
        step_seconds: float,
        seconds: float,
        bits_per_byte: dict[str, float] | None = None,
    ) -> None:
        """Write and show what the step found. `seconds`: of the run so far."""
        tokens = settings.sequences * self.cfg.seq_len
        record: dict[str, Any] = dict(
            step=step,
            losses=result.losses,
            lr=settings.lr,
            grad_norm=result.grad_norm,
            maxvio=max_violation(result.expert_counts).tolist(),
            mtp_weight=settings.mtp_weight,
            bias_speed=settings.bias_speed,
            batch_sequences=settings.sequences,
            tokens=(settings.start + settings.sequences) * self.cfg.seq_len,
            tokens_per_s=tokens / step_seconds,
            mfu=tokens / step_seconds * self.flops_per_token / self.peak,
            seconds=seconds,
        )
        if bits_per_byte is not None:
            record["bits_per_byte"] = bits_per_byte
        spike = self.spikes.look(result.losses["main"], result.grad_norm)
        if spike:
            sequences = [settings.start, settings.start + settings.sequences - 1]
            record["spike"] = {"sequences": sequences, **spike, **largest_weight(self.model)}
            self.say(describe_spike(step, record["spike"]))
        self.routing.after(result.expert_counts)
        self.metrics.write(**record)
        if self.on_step is not None:
            self.on_step(record)
        self.bar.set_description(f"step {step}/{self.cfg.steps}", refresh=False)
        self.bar.set_postfix(loss=f"{result.losses['main']:.3f}", refresh=False)
        self.bar.update(tokens)

    def sync(self) -> None:
        """Make the lines survive the death of the machine: a checkpoint that knows of them comes next."""
        self.metrics.sync()
        self.routing.sync()

    def __enter__(self) -> RunReport:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.closing(self.metrics), contextlib.closing(self.routing):
            self.bar.close()
