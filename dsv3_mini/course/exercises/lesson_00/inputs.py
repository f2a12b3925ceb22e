"""Random inputs that several exercises of lesson 00 need."""

from __future__ import annotations

import torch


def _between(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
