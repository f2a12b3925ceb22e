"""How fast should the routing bias move? The preset nano at several speeds gamma, several seeds, equal steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv3_mini.train.balance_lab import NANO_STEPS, run_speeds


def run(cache: Path, steps: int | None = None, seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """Nano with routing bias at five speeds: MaxVio and held-out bits per byte, with the spread over seeds."""
    return {
        "compared": "the same nano, data and steps; the speed gamma of the routing bias",
        **run_speeds(cache, steps=steps or NANO_STEPS, seeds=seeds),
    }
