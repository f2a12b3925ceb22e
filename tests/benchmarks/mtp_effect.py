"""With and without the MTP loss, on the preset nano, at equal steps and at equal time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dsv3_mini import DeepSeekV3, ModelConfig
from dsv3_mini.train.balance_lab import NANO_STEPS
from dsv3_mini.train.mtp_effect import run_mtp_effect
from dsv3_mini.train.optimizer import build_optimizer
from dsv3_mini.train.schedule import StepSettings
from dsv3_mini.train.step import train_step
from tests.benchmarks.run import Timed, alternate, timed

ROUNDS, SEQUENCES, LENGTH = 15, 4, 256
SETTINGS = StepSettings(progress=0.5, start=0, sequences=SEQUENCES, lr=1e-3, mtp_weight=0.3, bias_speed=0.01)


def run(cache: Path, steps: int | None = None, seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """Nano with the MTP loss, with weight 0, without the module: bits per byte of the main head, draft agreement."""
    found = run_mtp_effect(cache, time_ratio, steps=steps or NANO_STEPS, seeds=seeds)
    bits = {(run["arm"], run["seed"]): run["bits_per_byte"]["all"] for run in found["runs"]}
    return {
        "compared": "held-out bits per byte of the main head; equal steps, and equal time for the last arm",
        "bits_per_byte_mtp_minus": {  # paired by seed, below 0: the MTP loss helps
            arm: [round(bits["mtp", seed] - bits[arm, seed], 4) for seed in seeds]
            for arm in ("weight 0", "no module", "no module, equal time")
        },
        **found,
    }


def time_ratio() -> float:
    """Seconds of a training step with the module over seconds without."""
    return alternate(_step(modules=0), _step(modules=1), ROUNDS)["ratio"]


def _step(modules: int) -> Timed:
    torch.manual_seed(0)
    model = DeepSeekV3(ModelConfig.preset("nano", num_nextn_predict_layers=modules)).train()
    optimizer = build_optimizer(model, SETTINGS.lr)
    tokens = torch.randint(0, model.cfg.vocab_size, (SEQUENCES, LENGTH + 1))
    return timed(
        lambda: train_step(model, optimizer, tokens[:, :-1], tokens[:, 1:], SETTINGS, micro_sequences=SEQUENCES)
    )
