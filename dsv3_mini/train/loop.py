"""A whole training run (§4.2): steps (`step`), their settings (`schedule`), `report`, checkpoints, and the way back in.

Everything that varies over a run comes from the schedule, and the batch is a function of how many sequences were
consumed: so a run that was killed continues from its checkpoint to the losses it would have had, on a CPU bit for bit.
A run can also be watched and stopped while it goes (`on_step`, `should_stop`, Ctrl-C: see `interrupt`).
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
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.parallel.mesh import check_sizes
from dsv3_mini.parallel.processes import joined
from dsv3_mini.train import run_folder
from dsv3_mini.train.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    little_room,
    prune_checkpoints,
    remove_later_checkpoints,
    remove_leftovers,
    write_json,
)
from dsv3_mini.train.config import ResolvedConfig, TrainConfig
from dsv3_mini.train.data import RunData, open_data
from dsv3_mini.train.disk import full_disk_explained
from dsv3_mini.train.distributed import Sharing
from dsv3_mini.train.evaluate import bits_per_byte, evaluate_model, select_documents
from dsv3_mini.train.extend import load_start
from dsv3_mini.train.interrupt import Interrupted, StopSignals
from dsv3_mini.train.memory import keep_freed_memory
from dsv3_mini.train.optimizer import build_optimizer
from dsv3_mini.train.report import RunReport
from dsv3_mini.train.schedule import ExtensionSchedule, Schedule, warmup_steps
from dsv3_mini.train.step import TrainingDiverged, train_step

__all__ = ["Interrupted", "TrainResult", "TrainingDiverged", "train", "train_step"]


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind."""

    folder: Path  # the run
    checkpoint: Path  # the last one
    steps: int
    tokens: int  # trained on
    seconds: float  # of training, all its parts together, without the evaluation at the end
    bits_per_byte: dict[str, float]  # on held-out text, by domain and "all"; empty if stopped
    evaluation: dict[str, Any]  # with the baselines beside it: what `evaluate_model` gives; empty if stopped
    resumed_from: int | None = None  # steps that were there already
    stopped: bool = False  # `should_stop` said so: the run waits to be continued, and was not evaluated


def train(
    cfg: TrainConfig,
    *,
    progress: bool = True,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train a model into the folder `cfg.out`, or continue the run there with `cfg.resume`.

    After each step `on_step` gets its record, which is the line of `metrics.jsonl`, and `should_stop` is asked: if it
    says True, a checkpoint is saved and the result has `stopped`. Ctrl-C and SIGTERM stop the same way, but raise.
    With `progress`, a bar and remarks go to standard error.

    Raises `InputError` for what the person can put right (a folder that holds another run, no such device, an empty
    corpus), before anything is written, or for a disk that is full; `TrainingDiverged` when the loss is no number any
    more; and `Interrupted`, which is a `KeyboardInterrupt`.
    """
    with joined() as processes:
        progress = progress and processes.first
        say: Callable[[str], None] = (
            (lambda text: tqdm.write(text, file=sys.stderr)) if progress else (lambda text: None)
        )
        with processes.agreed():
            settings = run_folder.enter(cfg)
            device = processes.device(settings.device)
            full_batch = settings.batch_tokens // settings.seq_len
            check_sizes(settings.model, processes.world, settings.expert_parallel, full_batch)
        data = processes.first_then_others(lambda: open_data(settings, say))
        processes.check_same("training data (the embedded corpus: the same Python on every host)", data.fingerprint)
        if device.type == "cpu":
            keep_freed_memory()
        with full_disk_explained(settings.out), contextlib.ExitStack() as stack:
            with processes.agreed():
                if processes.first:
                    stack.enter_context(run_folder.locked(settings.out))
                    run_folder.begin(settings, data, say)
            sharing = Sharing(processes, settings.expert_parallel)
            return _Run(settings, data, device, say, sharing).go(progress, on_step, should_stop)


class _Run:
    """One run, with everything it holds."""

    def __init__(
        self, cfg: ResolvedConfig, data: RunData, device: torch.device, say: Callable[[str], None], sharing: Sharing
    ) -> None:
        self.cfg, self.data, self.device, self.say = cfg, data, device, say
        self.sharing, self.processes = sharing, sharing.processes
        kind = Schedule if cfg.init_from is None else ExtensionSchedule
        self.schedule = kind(
            steps=cfg.steps,
            full_batch=cfg.batch_tokens // cfg.seq_len,
            peak_rate=cfg.lr,
            peak_bias_speed=cfg.bias_update_speed,
            warmup=cfg.warmup_steps or warmup_steps(cfg.steps),
        )
        torch.manual_seed(cfg.seed)
        self.model = DeepSeekV3(data.model_config)
        self.model.set_recompute(cfg.recompute)
        # Drawn on the CPU: the same seed gives the same weights on every device.
        self.model.reset_parameters(torch.Generator().manual_seed(cfg.seed))
        self.checkpoint: Path | None = self.processes.from_first(self._find_checkpoint)
        if self.checkpoint is not None:
            self.model.load_state_dict(load_pretrained(self.checkpoint, dtype=torch.float32).state_dict())
        elif cfg.init_from is not None:
            load_start(self.model, cfg.init_from)
        self.parallel = sharing.place(self.model.train(), device)
        self.optimizer = build_optimizer(self.model, cfg.lr)
        self.done, self.seconds = 0, 0.0
        if self.checkpoint is not None:
            numbers = sharing.load_state(self.checkpoint, self.model, self.optimizer)
            self.done, self.seconds = numbers["step"], numbers["seconds"]
        self.resumed_from = self.done if cfg.resume else None

    def _find_checkpoint(self) -> Path | None:
        """The checkpoint to continue from; None at the beginning of a run."""
        remove_leftovers(self.cfg.out)
        if not self.cfg.resume or not list_checkpoints(self.cfg.out):
            return None
        checkpoint = latest_checkpoint(self.cfg.out)
        for reason in remove_later_checkpoints(checkpoint):
            self.say(reason)
        return checkpoint

    def go(
        self,
        progress: bool,
        on_step: Callable[[dict[str, Any]], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> TrainResult:
        cfg = self.cfg
        with StopSignals(announce=progress) as signals:
            stopped = False
            if self.done == cfg.steps:
                self.say(f"{cfg.out} has all of its {cfg.steps} steps already; nothing to train")
            else:
                if cfg.resume:
                    self.say(f"continuing after step {self.done} of {cfg.steps}")
                warning = little_room(cfg.out, self.model, cfg.keep_checkpoints)
                if warning:
                    self.say(warning)

                def stop() -> bool:
                    # Signals and answers may differ between processes; what is made of them must not.
                    noted = self.processes.largest(signals.number or 0)
                    if noted:  # else left alone: a signal may have come meanwhile, and counts after the next step
                        signals.number = noted
                    return noted > 0 or (should_stop is not None and self.processes.any(should_stop()))

                with (
                    self.sharing.notes(cfg) as notes,
                    RunReport(
                        notes, self.model, self.schedule, self.done,
                        progress=progress, say=self.say, on_step=on_step, devices=self.processes.world,
                    ) as report,
                ):  # fmt: skip
                    stopped = self._train(report, stop)
            signals.at_once = True  # from here on there is nothing left to save
            if signals.number is not None:
                raise Interrupted(signals.number, f"stopped after step {self.done} of {cfg.steps}, which is saved")
            return self._result({} if stopped else self._evaluate(), stopped)

    def _evaluate(self) -> dict[str, Any]:
        cfg = self.cfg
        self.say("measuring on held-out text")
        model = self.sharing.whole(self.model, self.device)

        def evaluate() -> dict[str, Any]:
            evaluation = evaluate_model(
                model,
                self.data.tokenizer,
                self.data.corpus,
                seq_len=cfg.seq_len,
                max_bytes=cfg.eval_bytes,
                baselines=cfg.baselines,
            )
            write_json(cfg.out / "evaluation.json", {"step": self.done, **evaluation})
            return evaluation

        return self.processes.from_first(evaluate)

    def _result(self, evaluation: dict[str, Any], stopped: bool) -> TrainResult:
        assert self.checkpoint is not None  # the last step leaves one, and so does stopping
        return TrainResult(
            folder=self.cfg.out,
            checkpoint=self.checkpoint,
            steps=self.done,
            tokens=self.schedule.starts[self.done] * self.cfg.seq_len,
            seconds=self.seconds,
            bits_per_byte=evaluation.get("bits_per_byte", {}),
            evaluation=evaluation,
            resumed_from=self.resumed_from,
            stopped=stopped,
        )

    def _train(self, report: RunReport, should_stop: Callable[[], bool]) -> bool:
        """Do the steps that are left; gives whether it was told to stop."""
        cfg, schedule = self.cfg, self.schedule
        while self.done < cfg.steps:
            started = time.perf_counter()
            settings, step = schedule[self.done], self.done + 1
            settings = dataclasses.replace(settings, mtp_weight=settings.mtp_weight * cfg.mtp_scale)
            last = settings.start + settings.sequences - 1
            report.before(step)
            result = train_step(
                self.model,
                self.optimizer,
                *self.data.windows.batch(settings.start, settings.sequences),
                settings,
                micro_sequences=max(1, cfg.micro_batch_tokens // cfg.seq_len),
                precision=cfg.precision,
                where=f"step {step} (sequences {settings.start} to {last} of the run)",
                parallel=self.parallel,
            )
            self.done = step
            step_seconds = time.perf_counter() - started
            self.seconds += step_seconds
            measured = self._bits_per_byte() if cfg.eval_every and step % cfg.eval_every == 0 else None
            report.after(
                step, settings, result, step_seconds=step_seconds, seconds=self.seconds, bits_per_byte=measured
            )
            stopping = should_stop()
            if step % cfg.checkpoint_every == 0 or step == cfg.steps or stopping:
                report.sync()  # before the checkpoint: continuing from it must find the lines of all its steps
                self._save()
            if stopping:
                return True
        return False

    def _save(self) -> None:
        started = time.perf_counter()
        sequences = self.schedule.starts[self.done]
        numbers = {"sequences": sequences, "tokens": sequences * self.cfg.seq_len, "seconds": self.seconds}
        self.checkpoint = self.sharing.save(
            self.cfg.out, self.done, self.model, self.data.tokenizer, self.optimizer, numbers
        )
        if self.processes.first:
            prune_checkpoints(self.cfg.out, self.cfg.keep_checkpoints)
        self.seconds += time.perf_counter() - started

    def _bits_per_byte(self) -> dict[str, float]:
        documents = select_documents(self.data.corpus.heldout, self.cfg.eval_bytes)
        model = self.sharing.whole(self.model, self.device)
        return self.processes.from_first(lambda: bits_per_byte(model, self.data.tokenizer, documents, self.cfg.seq_len))
