"""Random inputs of lesson 11, and AdamW as the lesson builds it by hand."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

BETA1, BETA2, EPSILON, DECAY = 0.9, 0.95, 1e-8, 0.1


def adamw(weight, gradient, m, v, step, lr, decay=DECAY):
    """One step of AdamW for one tensor; step counts from 1. Gives the new weight, m and v."""
    m = BETA1 * m + (1 - BETA1) * gradient
    v = BETA2 * v + (1 - BETA2) * gradient**2
    update = (m / (1 - BETA1**step)) / ((v / (1 - BETA2**step)).sqrt() + EPSILON)
    return weight * (1 - lr * decay) - lr * update, m, v


def whole(generator: Generator, low: int, high: int) -> int:
    """A whole number from low to high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def between(generator: Generator, low: float, high: float) -> float:
    """A number from low to high."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def parameters(generator: Generator) -> list[Tensor]:
    """Shapes as a model has them: matrices, a norm's weights, a stack of experts; all sizes different."""
    a, b, c = whole(generator, 3, 5), whole(generator, 6, 8), whole(generator, 9, 11)
    shapes = ((a, b), (b,), (2, c, a), (c,))
    return [torch.randn(shape, generator=generator) for shape in shapes]
