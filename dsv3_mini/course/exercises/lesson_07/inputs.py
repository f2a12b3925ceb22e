"""Random inputs that several exercises of lesson 07 need."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def whole(generator: Generator, low: int, high: int) -> int:
    """A whole number from low to high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def random_scores(generator: Generator, *shape: int) -> Tensor:
    """Affinities between 0 and 1, as they come out of the sigmoid."""
    return torch.randn(*shape, generator=generator).sigmoid()
