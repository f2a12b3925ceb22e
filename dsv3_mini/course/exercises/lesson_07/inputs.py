"""Random inputs of lesson 07."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def _whole(generator: Generator, low: int, high: int) -> int:
    """A whole number from low to high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _scores(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator).sigmoid()
