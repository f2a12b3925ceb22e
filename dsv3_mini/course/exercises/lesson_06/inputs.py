"""Random inputs that several exercises of lesson 06 need."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def _whole(generator: Generator, low: int, high: int) -> int:
    """A whole number from low to high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _randn(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _choices(generator: Generator, tokens: int, experts: int, top_k: int) -> Tensor:
    """ids [N, K]: for every token K different experts."""
    return torch.rand(tokens, experts, generator=generator).topk(top_k).indices


def _expert(generator: Generator, width: int):
    """A small network, [n, D] -> [n, D]."""
    inner, outer = _randn(generator, width, width) / width**0.5, _randn(generator, width, width) / width**0.5
    return lambda x: torch.tanh(x @ inner) @ outer
