"""The balance laboratory on the preset nano: four ways to balance, several seeds, equal steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv3_mini.train.balance_lab import NANO_STEPS, run_lab

STRONGER = 0.1  # a second strength of the two losses, ten times the usual one: at one alone the bias might flatter


def run(cache: Path, steps: int | None = None, seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """Nano balanced in four ways: MaxVio and held-out bits per byte, with the spread over seeds."""
    lab = run_lab(cache, steps=steps or NANO_STEPS, seeds=seeds)
    summary = lab["summary"]
    ratios = {
        measure: round(summary["bias"][measure]["mean"] / summary["none"][measure]["mean"], 3)
        for measure in ("maxvio_last_fifth", "maxvio_of_last_fifth_together")
    }
    bits = {(run["way"], run["seed"]): run["bits_per_byte"]["all"] for run in lab["runs"]}
    return {
        "compared": "the same nano, data and steps; no balancing, sequence-wise loss, batch-wise loss, routing bias",
        "bias_over_none": ratios,
        # Paired by seed: both runs of a pair begin with the same weights and see the same batches.
        "bits_per_byte_bias_minus_none": [round(bits["bias", seed] - bits["none", seed], 4) for seed in seeds],
        "target": "bias_over_none at most 0.1, and bits per byte no worse",
        **lab,
        "stronger": run_lab(cache, steps=steps or NANO_STEPS, seeds=seeds, ways=("sequence", "batch"), alpha=STRONGER),
    }
