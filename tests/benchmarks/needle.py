"""Two phases of context extension and the needle maps around them; see `dsv3_mini.train.context_lab`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv3_mini.train.context_lab import run_context


def run(cache: Path, steps: int | None = None, seeds: Sequence[int] = (0,)) -> dict[str, Any]:
    """A needle in a haystack before YaRN, with it, and after each of two phases at 4 and 16 times the length."""
    return {
        "compared": "share of planted lines found in held-out code, by depth and length; 10 needles a cell and seed",
        **run_context(cache, steps=steps, seeds=seeds),
    }
