"""What lesson 03 has built by hand (`speeds`, `rope`, `rope_half_split`), and a random choice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from dsv3_mini.model.rope import apply_rope, apply_rope_half_split


def speeds(R: int, theta: float = 10_000.0) -> Tensor:
    """Angle per position of each pair, [R / 2]."""
    return theta ** (-2.0 * torch.arange(R // 2) / R)


def rope(x: Tensor, positions: Tensor, theta: float = 10_000.0) -> Tensor:
    """Turn neighbours: x [..., T, R], positions [T] -> [..., T, R]."""
    angles = positions[:, None] * speeds(x.shape[-1], theta)
    return apply_rope(x.unsqueeze(-2), angles.cos(), angles.sin()).squeeze(-2)


def rope_half_split(x: Tensor, positions: Tensor, theta: float = 10_000.0) -> Tensor:
    """Turn (x_j, x_{j + R/2}): x [..., T, R], positions [T] -> [..., T, R]."""
    angles = positions[:, None] * speeds(x.shape[-1], theta)
    return apply_rope_half_split(x.unsqueeze(-2), angles.cos(), angles.sin()).squeeze(-2)


def one_of(generator: Generator, *choices: Any) -> Any:
    return choices[int(torch.randint(len(choices), (1,), generator=generator))]
