"""MoE against dense twins, and MLA against plain attention, on the preset nano; see `dsv3_mini.train.twins`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dsv3_mini import DeepSeekV3, ModelConfig
from dsv3_mini.train.balance_lab import NANO_STEPS
from dsv3_mini.train.memory import keep_freed_memory
from dsv3_mini.train.optimizer import build_optimizer
from dsv3_mini.train.schedule import StepSettings
from dsv3_mini.train.step import train_step
from dsv3_mini.train.twins import run_attention, run_crossing, run_twins
from tests.benchmarks.run import Timed, alternate

ROUNDS, STEPS, SEQUENCES, LENGTH = 9, 3, 4, 256
SETTINGS = StepSettings(progress=0.5, start=0, sequences=SEQUENCES, lr=1e-3, mtp_weight=0.3, bias_speed=0.01)


def run(cache: Path, steps: int | None = None, seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """Nano against its dense twin and a dense model of equal total: equal steps and equal time."""
    return {
        "compared": "held-out bits per byte; a step's time is CPU time of one thread, over that of the MoE's step",
        **run_twins(cache, time_ratio, steps=steps or NANO_STEPS, seeds=seeds),
    }


def run_sizes(cache: Path, steps: int | None = None, seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """MoE and dense twin with more experts, and at half the width: equal steps and equal time."""
    return {
        "compared": "held-out bits per byte of MoE and dense twin at several sizes",
        **run_crossing(cache, time_ratio, steps=steps or NANO_STEPS, seeds=seeds),
    }


def run_kinds_of_attention(cache: Path, steps: int | None = None, seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """Nano with MLA, MHA and GQA of equal parameters, at equal steps."""
    return {
        "compared": "held-out bits per byte of the same MoE with three kinds of attention",
        **run_attention(cache, steps=steps or NANO_STEPS, seeds=seeds),
    }


def time_ratio(one: ModelConfig, other: ModelConfig) -> float:
    """CPU time of a training step of `one` over that of `other`, one thread, in alternation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        return alternate(_steps(other), _steps(one), ROUNDS)["ratio"]
    finally:
        torch.set_num_threads(threads)


def _steps(cfg: ModelConfig) -> Timed:
    """A few steps in the precision of a run. CPU time of this process: on a shared machine the clock also counts
    waiting."""
    torch.manual_seed(0)
    model = DeepSeekV3(cfg).train()
    optimizer = build_optimizer(model, SETTINGS.lr)
    tokens = torch.randint(0, cfg.vocab_size, (SEQUENCES, LENGTH + 1))

    def work() -> float:
        started = time.process_time()
        for _ in range(STEPS):
            train_step(
                model, optimizer, tokens[:, :-1], tokens[:, 1:], SETTINGS, micro_sequences=SEQUENCES, precision="auto"
            )
        return time.process_time() - started

    return work
