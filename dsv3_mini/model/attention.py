"""Plain multi-head attention, the starting point that MLA changes (lessons 01-03).

The model itself uses it only where its config asks for it, to compare MLA with it (`ModelConfig.plain_kv_heads`).

One class covers the three classic schemes: as many key/value heads as query heads (MHA), fewer (grouped-query
attention, GQA) or a single one (multi-query attention, MQA). What they differ in is the size of the cache, `2 * G *
K` numbers per token and layer.

Shapes: B batch, T new tokens, S tokens seen so far (cache included), H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsv3_mini.errors import InputError
from dsv3_mini.model.mla import scaled_dot_product
from dsv3_mini.model.rope import apply_rope


def attention_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention as it is written down: softmax(q k^T / sqrt(K) + mask) v.

    q [B, H, T, K], k and v [B, H, S, K] -> [B, H, T, K]. The T queries are the last T of the S positions.
    """
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # [B, H, T, S]
    return scores.masked_fill(~causal_mask(q.shape[-2], k.shape[-2], q.device), float("-inf")).softmax(-1) @ v


def causal_mask(new: int, total: int, device: torch.device | str = "cpu") -> Tensor:
    """[new, total], True where query i, which stands at position total - new + i, may look at key j."""
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)


class MultiHeadAttention(nn.Module):
    """x [B, T, D] -> [B, T, D], causal, with rotary positions when cos and sin [T, K/2] are given.

    `num_kv_heads` G: equal to `num_heads` for MHA (the default), 1 for MQA, in between for GQA.
    """

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int, num_kv_heads: int | None = None) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads % self.num_kv_heads:
            raise InputError(f"num_kv_heads = {num_kv_heads} cannot be: it must divide num_heads = {num_heads}")
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, self.num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, self.num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor | None = None,
        sin: Tensor | None = None,
        cache: list[Tensor] | None = None,
    ) -> Tensor:
        """`cache` is a list that this call fills: empty at first, then [keys, values], each [B, S, G, K].

        Keys are cached after their rotation, so a later step never touches them again.
        """
        q = self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim))  # [B, T, H, K]
        k = self.k_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))  # [B, T, G, K]
        v = self.v_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        if cos is not None and sin is not None:
            q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], dim=1), torch.cat([cache[1], v], dim=1)
            cache[:] = [k, v]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, heads, tokens, K]
        shared_by = self.num_heads // self.num_kv_heads  # query heads that read one key/value head
        k, v = k.repeat_interleave(shared_by, dim=1), v.repeat_interleave(shared_by, dim=1)
        alone = q.shape[-2] == k.shape[-2]  # no past: torch knows that mask by itself
        mask = None if alone else causal_mask(q.shape[-2], k.shape[-2], q.device)[None]
        out = scaled_dot_product(q, k, v, mask, causal=alone, scale=self.head_dim**-0.5)
        return self.o_proj(out.transpose(1, 2).flatten(-2))
