"""Keeping the experts equally busy (§2.1.2): the routing-bias update, the losses, and how to measure load.

Two losses with one formula: over each sequence (Eq. 17-20), or over the batch as a whole (§4.5.3, where the report
asks whether it is the loss that costs quality, or having to be even within every single sequence).

Shapes: B sequences, T tokens, E experts, L MoE layers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dsv3_mini.model.router import Router


def update_routing_bias(routers: Iterable[Router], counts: Tensor, speed: float) -> None:
    """Auxiliary-loss-free balancing: b_i goes down by `speed` if expert i got more tokens than the mean, up if fewer.

    counts [L, E]: tokens per expert over the *whole* batch of the step, micro-batches summed. To be called once per
    step, after the optimizer. An expert exactly at the mean keeps its bias.
    """
    load = counts.to(torch.float32)
    direction = torch.sign(load.mean(-1, keepdim=True) - load)  # +1: too few tokens
    with torch.no_grad():
        for router, step in zip(routers, direction, strict=True):
            router.e_score_correction_bias.add_(step.to(router.e_score_correction_bias.device), alpha=speed)


def sequence_balance_loss(scores: Tensor, top_k: int) -> Tensor:
    """Eq. 17-20 without alpha: sum_i f_i P_i per sequence, averaged over the batch. scores [B, T, E] -> scalar.

    1 when choices and affinities are perfectly even; up to E / K_r when everything goes to the same experts. Counts the
    top-K of the unbiased scores, as Eq. 18 is printed (D7); the gradient flows through P_i only.
    """
    _, tokens, experts = scores.shape
    if tokens == 0:
        return scores.sum()  # 0, and still part of the graph
    with torch.no_grad():
        chosen = torch.zeros_like(scores).scatter_(-1, scores.topk(top_k, dim=-1).indices, 1.0)
        f = chosen.sum(1) * (experts / (top_k * tokens))  # Eq. 18, [B, E]
    p = (scores / scores.sum(-1, keepdim=True)).mean(1)  # Eq. 19 and 20, [B, E]
    return (f * p).sum(-1).mean()


def batch_balance_loss(scores: Tensor, top_k: int) -> Tensor:
    """The same loss with f and P over all tokens of the batch at once (§4.5.3). scores [B, T, E] -> scalar.

    A sequence may prefer some experts as long as another one prefers others. The report names this loss but prints no
    formula: here it is Eq. 17-20 with the batch read as one long sequence.
    """
    return sequence_balance_loss(scores.flatten(0, 1).unsqueeze(0), top_k)


def max_violation(counts: Tensor) -> Tensor:
    """MaxVio = (most loaded expert - mean) / mean, by layer. counts [L, E] -> [L]; 0 is perfect balance."""
    load = counts.to(torch.float32)
    mean = load.mean(-1)
    return torch.where(mean > 0, load.amax(-1) / mean.clamp_min(1e-20) - 1, torch.zeros_like(mean))
