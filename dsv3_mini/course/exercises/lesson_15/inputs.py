"""Random inputs of lesson 15."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def whole(generator: Generator, low: int, high: int) -> int:
    """A whole number from low to high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def between(generator: Generator, low: float, high: float) -> float:
    """A number from low to high."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def speeds(width: int, theta: float = 10_000.0) -> Tensor:
    """Angle per position of each pair, [width / 2]: lesson 03."""
    return theta ** (-2.0 * torch.arange(width // 2) / width)
