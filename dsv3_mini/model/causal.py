"""Causal attention for training on a CPU, where torch's fused kernel leaves half of the processor's rate unused.

Queries are taken a block at a time. A block looks at no key after its last token, so almost half of the [T, T] matrix
is never computed; and its products are large enough for the matrix library. The attention weights are kept for the
backward pass: T * T / 2 numbers per head, which is why this is for short sequences only (`MAX_TOKENS`). Values may be
narrower than keys, as in MLA.

Shapes: B batch, H heads, G = B * H, T tokens, A width of queries and keys, V width of values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MAX_TOKENS = 512  # beyond, keeping the weights costs more memory than computing them again costs time
BLOCK = 64  # queries at a time


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """q, k [B, H, T, A], v [B, H, T, V] -> [B, H, T, V]: softmax(q k^T * scale + causal mask) v."""
    q, k, v = (t.contiguous() for t in (q, k, v))
    return _CausalAttention.apply(*(t.flatten(0, 1) for t in (q, k, v)), scale).unflatten(0, q.shape[:2])


def blocks(tokens: int) -> list[slice]:
    """The queries of each block. Its keys are all tokens up to the block's end."""
    return [slice(start, min(start + BLOCK, tokens)) for start in range(0, tokens, BLOCK)]


class _CausalAttention(torch.autograd.Function):
    """With P = softmax(S), S = scale * q k^T and out = P v: dv = P^T g, dP = g v^T, dS = P * (dP - rows . g)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        out = v.new_empty(v.shape)  # [G, T, V]
        future = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=q.device).triu(1)
        weights = []
        for rows in blocks(q.shape[1]):
            size, end = rows.stop - rows.start, rows.stop
            scores = torch.bmm(q[:, rows] * scale, k[:, :end].transpose(1, 2))  # [G, size, end]
            scores[:, :, rows].masked_fill_(future[:size, :size], float("-inf"))
            weights.append(torch.softmax(scores, -1, out=scores))
            out[:, rows] = torch.bmm(scores, v[:, :end])
        ctx.save_for_backward(q, k, v, out, *weights)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *weights = ctx.saved_tensors
        grad = grads[0].contiguous()
        inner = (grad * out).sum(-1, keepdim=True)  # [G, T, 1]: what the softmax takes off every row of dP
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for rows, p in zip(blocks(q.shape[1]), weights, strict=True):
            end = rows.stop
            grad_v[:, :end] += torch.bmm(p.transpose(1, 2), grad[:, rows])
            grad_scores = torch.bmm(grad[:, rows], v[:, :end].transpose(1, 2)).sub_(inner[:, rows]).mul_(p)
            grad_q[:, rows] = torch.bmm(grad_scores, k[:, :end])
            grad_k[:, :end] += torch.bmm(grad_scores.transpose(1, 2), q[:, rows])
        return grad_q.mul_(ctx.scale), grad_k.mul_(ctx.scale), grad_v, None
