"""A whole training run (§4.2): steps (`step`), their settings (`schedule`), metrics, checkpoints, and the way back in.

Everything that varies over a run comes from the schedule, and the batch is a function of how many sequences were
consumed: so a run that was killed continues from its checkpoint to the losses it would have had, on a CPU bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.model.balance import max_violation
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train import run_folder
from dsv3_mini.train.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    load_training_state,
    prune_checkpoints,
    remove_later_checkpoints,
    remove_leftovers,
    save_checkpoint,
    write_json,
)
from dsv3_mini.train.config import ResolvedConfig, TrainConfig
from dsv3_mini.train.data import RunData, open_data
from dsv3_mini.train.device import matrix_dtype, pick_device
from dsv3_mini.train.evaluate import bits_per_byte, evaluate_model, select_documents
from dsv3_mini.train.memory import keep_freed_memory
from dsv3_mini.train.metrics import MetricsLog, peak_flops, training_flops_per_token
from dsv3_mini.train.optimizer import build_optimizer
from dsv3_mini.train.routing_log import RoutingRecorder
from dsv3_mini.train.schedule import Schedule, warmup_steps
from dsv3_mini.train.step import TrainingDiverged, train_step

__all__ = ["TrainResult", "TrainingDiverged", "train", "train_step"]


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind."""

    folder: Path  # the run
    checkpoint: Path  # the last one
    steps: int
    tokens: int  # trained on
    seconds: float  # of training, all its parts together, without the evaluation at the end
    bits_per_byte: dict[str, float]  # on held-out text, by domain and "all"
    evaluation: dict[str, Any]  # with the baselines beside it: what `evaluate_model` gives
    resumed_from: int | None = None  # steps that were there already


def train(cfg: TrainConfig, *, progress: bool = True) -> TrainResult:
    """Train a model into the folder `cfg.out`, or continue the run there with `cfg.resume`.

    Raises `InputError` for what the person can put right (a folder that holds another run, no such device, an empty
    corpus), before anything is written, and `TrainingDiverged` when the loss is no number any more.
    """
    say: Callable[[str], None] = (lambda text: tqdm.write(text, file=sys.stderr)) if progress else (lambda text: None)
    settings = run_folder.enter(cfg)
    device = pick_device(settings.device)
    data = open_data(settings, say)
    if device.type == "cpu":
        keep_freed_memory()
    with run_folder.locked(settings.out):
        run_folder.begin(settings, data)
        return _Run(settings, data, device, say).go(progress)


class _Run:
    """One run, with everything it holds."""

    def __init__(self, cfg: ResolvedConfig, data: RunData, device: torch.device, say: Callable[[str], None]) -> None:
        self.cfg, self.data, self.device, self.say = cfg, data, device, say
        self.schedule = Schedule(
            steps=cfg.steps,
            full_batch=cfg.batch_tokens // cfg.seq_len,
            peak_rate=cfg.lr,
            peak_bias_speed=cfg.bias_update_speed,
            warmup=cfg.warmup_steps or warmup_steps(cfg.steps),
        )
        torch.manual_seed(cfg.seed)
        self.model = DeepSeekV3(data.model_config)
        # Drawn on the CPU: the same seed gives the same weights on every device.
        self.model.reset_parameters(torch.Generator().manual_seed(cfg.seed))
        self.model.to(device).train()
        self.optimizer = build_optimizer(self.model, cfg.lr)
        self.done, self.seconds = 0, 0.0
        self.checkpoint: Path | None = None
        remove_leftovers(cfg.out)
        if cfg.resume and list_checkpoints(cfg.out):
            self.checkpoint = latest_checkpoint(cfg.out)
            for reason in remove_later_checkpoints(self.checkpoint):
                say(reason)
            self.model.load_state_dict(load_pretrained(self.checkpoint, dtype=torch.float32).state_dict())
            numbers = load_training_state(self.checkpoint, self.model, self.optimizer)
            self.done, self.seconds = numbers["step"], numbers["seconds"]
        self.resumed_from = self.done if cfg.resume else None

    def go(self, progress: bool) -> TrainResult:
        cfg = self.cfg
        if self.done == cfg.steps:
            self.say(f"{cfg.out} has all of its {cfg.steps} steps already; nothing to train")
        else:
            if cfg.resume:
                self.say(f"continuing after step {self.done} of {cfg.steps}")
            self._train(progress)
        assert self.checkpoint is not None  # the last step leaves one
        self.say("measuring on held-out text")
        evaluation = evaluate_model(
            self.model,
            self.data.tokenizer,
            self.data.corpus,
            seq_len=cfg.seq_len,
            max_bytes=cfg.eval_bytes,
            baselines=cfg.baselines,
        )
        write_json(cfg.out / "evaluation.json", {"step": self.done, **evaluation})
        return TrainResult(
            folder=cfg.out,
            checkpoint=self.checkpoint,
            steps=self.done,
            tokens=self.schedule.total_sequences * cfg.seq_len,
            seconds=self.seconds,
            bits_per_byte=evaluation["bits_per_byte"],
            evaluation=evaluation,
            resumed_from=self.resumed_from,
        )

    def _train(self, progress: bool) -> None:
        cfg, schedule, seq_len = self.cfg, self.schedule, self.cfg.seq_len
        peak = peak_flops(self.device, matrix_dtype(self.device, cfg.precision))
        flops_per_token = training_flops_per_token(self.model.cfg, seq_len)
        metrics = MetricsLog(cfg.out / "metrics.jsonl", keep_steps=self.done)
        routing = RoutingRecorder(
            cfg.out, self.model, every=cfg.routing_every, last_step=cfg.steps, keep_steps=self.done
        )
        # Counted in tokens, not steps: batches grow at the beginning, so time left follows the tokens.
        bar = tqdm(
            total=schedule.total_sequences * seq_len,
            initial=schedule.starts[self.done] * seq_len,
            unit="tok",
            unit_scale=True,
            disable=not progress,
            desc=f"step {self.done}/{cfg.steps}",
            smoothing=0.1,
            dynamic_ncols=True,
        )
        with contextlib.closing(metrics), contextlib.closing(routing), bar:
            while self.done < cfg.steps:
                started = time.perf_counter()
                settings, step = schedule[self.done], self.done + 1
                settings = dataclasses.replace(settings, mtp_weight=settings.mtp_weight * cfg.mtp_scale)
                routing.before(step)
                where = (
                    f"step {step} (sequences {settings.start} to {settings.start + settings.sequences - 1} of the run)"
                )
                result = train_step(
                    self.model,
                    self.optimizer,
                    *self.data.windows.batch(settings.start, settings.sequences),
                    settings,
                    micro_sequences=max(1, cfg.micro_batch_tokens // seq_len),
                    precision=cfg.precision,
                    where=where,
                )
                self.done = step
                routing.after(result.expert_counts)
                tokens = settings.sequences * seq_len
                seconds = time.perf_counter() - started
                self.seconds += seconds
                measured = {}
                if cfg.eval_every and step % cfg.eval_every == 0:
                    measured["bits_per_byte"] = self._bits_per_byte()
                metrics.write(
                    step=step,
                    losses=result.losses,
                    lr=settings.lr,
                    grad_norm=result.grad_norm,
                    maxvio=max_violation(result.expert_counts).tolist(),
                    mtp_weight=settings.mtp_weight,
                    bias_speed=settings.bias_speed,
                    batch_sequences=settings.sequences,
                    tokens=(settings.start + settings.sequences) * seq_len,
                    tokens_per_s=tokens / seconds,
                    mfu=tokens / seconds * flops_per_token / peak,
                    seconds=self.seconds,
                    **measured,
                )
                bar.set_description(f"step {step}/{cfg.steps}", refresh=False)
                bar.set_postfix(loss=f"{result.losses['main']:.3f}", refresh=False)
                bar.update(tokens)
                if step % cfg.checkpoint_every == 0 or step == cfg.steps:
                    metrics.sync()  # before the checkpoint: continuing from it must find the lines of all its steps
                    routing.sync()
                    self._save()

    def _save(self) -> None:
        started = time.perf_counter()
        sequences = self.schedule.starts[self.done]
        numbers = {"sequences": sequences, "tokens": sequences * self.cfg.seq_len, "seconds": self.seconds}
        self.checkpoint = save_checkpoint(
            self.cfg.out, self.done, self.model, self.data.tokenizer, self.optimizer, numbers
        )
        prune_checkpoints(self.cfg.out, self.cfg.keep_checkpoints)
        self.seconds += time.perf_counter() - started

    def _bits_per_byte(self) -> dict[str, float]:
        documents = select_documents(self.data.corpus.heldout, self.cfg.eval_bytes)
        return bits_per_byte(self.model, self.data.tokenizer, documents, self.cfg.seq_len)
