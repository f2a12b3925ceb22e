"""Random inputs that several exercises of lesson 05 need."""

from __future__ import annotations

import torch


def _size(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
