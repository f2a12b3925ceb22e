"""Random inputs that several exercises of lesson 09 need."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def whole(generator: Generator, low: int, high: int) -> int:
    """A whole number from low to high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def ids(generator: Generator, *shape: int, below: int) -> Tensor:
    """Token ids from 0 to below - 1."""
    return torch.randint(below, shape, generator=generator)
