"""The optimizer of the report (§4.2): AdamW with betas 0.9 and 0.95, weight decay 0.1, gradients clipped to norm 1.

Three things the report does not say, chosen here: epsilon is 1e-8, AdamW's usual value; decay applies to matrices
(embedding, projections, experts, which are stacked to three dimensions, and router centroids) and not to norm
weights, whose natural value is one, not zero; and clipping uses the norm over all parameters together.

The routing bias is a buffer, not a parameter: no optimizer moves it, `update_routing_bias` does, once after each step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
EPSILON = 1e-8
CLIP_NORM = 1.0


def build_optimizer(model: nn.Module, lr: float) -> torch.optim.AdamW:
    """AdamW over the trainable parameters in two groups: with decay (two or more dimensions), and without."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    # One pass over all numbers of a tensor instead of ten: on a CPU the update is limited by memory.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=lr, betas=BETAS, eps=EPSILON, fused=fused, foreach=not fused
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """One rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def norm_of(tensor: Tensor) -> float:
    """The norm of a parameter or gradient; of the whole one where processes hold shards, who then all have to ask."""
    tensor = tensor.detach()
    if not hasattr(tensor, "to_local"):  # no DTensor
        return tensor.norm().item()
    square = tensor.to_local().norm().square()
    torch.distributed.all_reduce(square)
    return square.sqrt().item()


def clip_gradients(model: nn.Module) -> Tensor:
    """Scale all gradients down together to norm 1 where it is above; returns the norm from before, a scalar tensor."""
    return nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
