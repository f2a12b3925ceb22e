"""Multi-head latent attention (§2.1.1, Eq. 1-11).

Keys and values of all heads are compressed together into one latent vector per token; only that latent and one small
rotary key, shared by all heads, are cached. There are two ways to attend, equal to rounding:

* *expanded*: rebuild every head's keys and values from the latents, then ordinary attention. Fewer operations when many
  queries share the expansion: training and prefill.
* *absorbed*: move W^UK onto the query and W^UV onto the output, so that all heads attend to the latents themselves
  (D10). More operations per query-key pair, but the past is read as 576 instead of 40,960 numbers a token: decoding.

Deviations of the released code from Eq. 1-11, followed here: RMSNorm on both latents (D8), fused projections (D9), and
YaRN's factor in the softmax scale (D11).

Shapes: B batch, T new tokens, S tokens in reach, D model width, H heads, N = qk_nope_head_dim, R = qk_rope_head_dim,
V = v_head_dim, C = kv_lora_rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.model.causal import MAX_TOKENS, causal_attention
from dsv3_mini.model.norm import RMSNorm
from dsv3_mini.model.recompute import norm_then, recomputed
from dsv3_mini.model.rope import apply_rope, softmax_scale

if TYPE_CHECKING:
    from dsv3_mini.generate.cache import LatentCache

Path = Literal["auto", "expanded", "absorbed"]


class MLA(nn.Module):
    """x [B, T, D] -> [B, T, D]; `layer` is this layer's place in the cache."""

    recompute = False  # `DeepSeekV3.set_recompute`

    def __init__(self, cfg: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        self.layer = layer
        self.heads = cfg.num_attention_heads
        self.nope_dim, self.rope_dim, self.v_dim = cfg.qk_nope_head_dim, cfg.qk_rope_head_dim, cfg.v_head_dim
        self.latent_dim = cfg.kv_lora_rank
        self.scale = softmax_scale(cfg)

        q_width = self.heads * cfg.qk_head_dim
        if cfg.q_lora_rank is None:
            self.q_proj = nn.Linear(cfg.hidden_size, q_width, bias=False)
        else:
            self.q_a_proj = nn.Linear(cfg.hidden_size, cfg.q_lora_rank, bias=False)  # W^DQ
            self.q_a_layernorm = RMSNorm(cfg.q_lora_rank, eps=1e-6)
            self.q_b_proj = nn.Linear(cfg.q_lora_rank, q_width, bias=False)  # per head [W^UQ; W^QR]
        self.kv_a_proj_with_mqa = nn.Linear(cfg.hidden_size, cfg.cache_width, bias=False)  # [W^DKV; W^KR]
        self.kv_a_layernorm = RMSNorm(cfg.kv_lora_rank, eps=1e-6)  # 1e-6 whatever cfg.rms_norm_eps says
        self.kv_b_proj = nn.Linear(cfg.kv_lora_rank, self.heads * (self.nope_dim + self.v_dim), bias=False)
        #                                                          per head [W^UK; W^UV]
        self.o_proj = nn.Linear(self.heads * self.v_dim, cfg.hidden_size, bias=False)  # W^O

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: LatentCache | None = None, path: Path = "auto"
    ) -> Tensor:
        """cos, sin [(B,) T, R/2] of the tokens' positions. With a cache (after its `begin`) the past is seen too."""
        if self.recompute and torch.is_grad_enabled() and cache is None and path in ("auto", "expanded"):
            return self._attend_recomputing(x, cos, sin)
        q_nope, q_pe = self.queries(x, cos, sin)
        latent, k_pe = self.compress(x, cos, sin)
        alone = cache is None or cache.is_empty  # no past: the tokens attend to each other only
        mask = None if cache is None else cache.mask
        if cache is not None:
            past = cache.write(self.layer, latent, k_pe)
            if not alone:
                latent, k_pe = past[..., : self.latent_dim], past[..., self.latent_dim :]
        if path == "auto":
            path = "expanded" if alone or self.expanding_pays(x.shape[1], latent.shape[1]) else "absorbed"
        if path == "expanded":
            out = self.attend_expanded(q_nope, q_pe, latent, k_pe, mask, causal=alone)
        elif path == "absorbed":
            memory = torch.cat((latent, k_pe), dim=-1) if alone else past
            if alone:
                mask = _causal(x.shape[1], x.device)
            out = self.attend_absorbed(q_nope, q_pe, memory, mask)
        else:
            raise InputError(f"attention path {path!r} cannot be: it must be auto, expanded or absorbed")
        return self.o_proj(out.flatten(-2))  # Eq. 11

    def expanding_pays(self, new: int, context: int) -> bool:
        """Whether `new` tokens a row attend to `context` with fewer operations expanded (`decode_cost`, per head)."""
        per_pair = self.latent_dim - self.nope_dim + self.latent_dim - self.v_dim  # what a pair costs more absorbed
        up = self.latent_dim * (self.nope_dim + self.v_dim)  # for each token of the context, or for each new one
        return new * context * per_pair > (context - new) * up

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 6-9. x [B, T, D] -> content part [B, T, H, N] and rotated part [B, T, H, R]."""
        return self._expand_queries(self._compress_queries(x), cos, sin)

    def _compress_queries(self, x: Tensor) -> Tensor:
        return self.q_proj(x) if hasattr(self, "q_proj") else self.q_a_proj(x)

    def _expand_queries(self, q: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        if not hasattr(self, "q_proj"):
            q = norm_then(self.q_a_layernorm, self.q_b_proj, q, self.recompute)
        q = q.unflatten(-1, (self.heads, self.nope_dim + self.rope_dim))
        q_nope, q_pe = q.split((self.nope_dim, self.rope_dim), dim=-1)
        return q_nope, apply_rope(q_pe, cos, sin)

    def compress(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 1 and 3: what is cached. x [B, T, D] -> normalised latent [B, T, C], rotated shared key [B, T, R].

        The rotary key comes from x and not from the latent: were it inside the latent, a rotation that depends on the
        position would stand between W^UK and the query, and nothing could be absorbed.
        """
        latent, k_pe = self._split_latent(self.kv_a_proj_with_mqa(x), cos, sin)
        return self.kv_a_layernorm(latent), k_pe

    def _split_latent(self, kv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        latent, k_pe = kv.split((self.latent_dim, self.rope_dim), dim=-1)
        return latent, apply_rope(k_pe.unsqueeze(-2), cos, sin).squeeze(-2)  # one key for all heads

    def attend_expanded(
        self, q_nope: Tensor, q_pe: Tensor, latent: Tensor, k_pe: Tensor, mask: Tensor | None, causal: bool
    ) -> Tensor:
        """Eq. 2, 4, 5, 10 as they stand. latent [B, S, C], k_pe [B, S, R], mask [B, T, S] or None -> [B, T, H, V]."""
        q, k, v = self._join_heads(q_nope, q_pe, self.kv_b_proj(latent), k_pe)
        out = scaled_dot_product(q, k, v, None if causal else mask, causal, self.scale)
        return out.transpose(1, 2)

    def _join_heads(self, q_nope: Tensor, q_pe: Tensor, kv: Tensor, k_pe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, H, T, N + R], k [B, H, S, N + R], v [B, H, S, V]; kv [B, S, H * (N + V)] comes from the latents."""
        k_nope, v = kv.unflatten(-1, (self.heads, -1)).split((self.nope_dim, self.v_dim), dim=-1)  # [B, S, H, N | V]
        # Heads before tokens while joining, so that no copy is needed to bring them there afterwards.
        q = torch.cat((q_nope.transpose(1, 2), q_pe.transpose(1, 2)), dim=-1)
        k_pe = k_pe.unsqueeze(1).expand(-1, self.heads, -1, -1)
        return q, torch.cat((k_nope.transpose(1, 2), k_pe), dim=-1), v.transpose(1, 2)

    def _attend_recomputing(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`forward` in training, keeping the compressed vectors only: what they expand to is made again (§3.2.3)."""

        def expand(q: Tensor, kv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            latent, k_pe = self._split_latent(kv, cos, sin)
            kv = norm_then(self.kv_a_layernorm, self.kv_b_proj, latent, self.recompute)
            q, k, v = self._join_heads(*self._expand_queries(q, cos, sin), kv, k_pe)
            return q, k, F.pad(v, (0, max(0, q.shape[-1] - self.v_dim)))  # see `scaled_dot_product`

        (q, k, v), not_kept = recomputed(expand, self._compress_queries(x), self.kv_a_proj_with_mqa(x))
        with not_kept:
            out = scaled_dot_product(q, k, v, None, True, self.scale, keep_weights=False)
        return self.o_proj(out[..., : self.v_dim].transpose(1, 2).flatten(-2))

    def attend_absorbed(self, q_nope: Tensor, q_pe: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """The same without expanding: memory [B, S, C + R], mask [B, T, S] or None -> [B, T, H, V].

        q^T (W^UK c) = (W^UK^T q)^T c, and W^UV is linear, so it can wait until after the weighted sum.
        """
        batch, new = q_nope.shape[:2]
        w_uk, w_uv = self.absorbed_weights()
        q_latent = by_head(q_nope, w_uk)
        q = torch.cat((q_latent, q_pe), dim=-1).flatten(1, 2)  # [B, T * H, C + R]: all heads read one memory
        scores = (q @ memory.transpose(1, 2)).unflatten(1, (new, self.heads)) * self.scale  # [B, T, H, S]
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(-2), float("-inf"))
        weights = scores.softmax(-1, dtype=torch.float32).to(memory.dtype).flatten(1, 2)
        seen = (weights @ memory[..., : self.latent_dim]).view(batch, new, self.heads, self.latent_dim)
        return by_head(seen, w_uv.transpose(1, 2))

    def absorbed_weights(self) -> tuple[Tensor, Tensor]:
        """Views of kv_b_proj by head: W^UK [H, N, C] and W^UV [H, V, C]."""
        by_head = self.kv_b_proj.weight.unflatten(0, (self.heads, self.nope_dim + self.v_dim))
        return by_head[:, : self.nope_dim], by_head[:, self.nope_dim :]


def by_head(x: Tensor, weights: Tensor) -> Tensor:
    """Every head its own matrix: x [B, T, H, A] and weights [H, A, C] -> [B, T, H, C]. (einsum "btha,hac->bthc".)"""
    batch, tokens = x.shape[:2]
    out = torch.bmm(x.flatten(0, 1).transpose(0, 1), weights)  # [H, B * T, C]
    return out.transpose(0, 1).unflatten(0, (batch, tokens))


def _causal(tokens: int, device: torch.device) -> Tensor:
    return torch.ones(1, tokens, tokens, dtype=torch.bool, device=device).tril()


def scaled_dot_product(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, keep_weights: bool = True
) -> Tensor:
    """torch's attention for values narrower than keys. q, k [B, H, T|S, N + R], v [B, H, S, V] -> [B, H, T, V].

    The fused kernels want one width for all three and otherwise fall back to the plain formula, which writes the whole
    [T, S] matrix to memory; zeros appended to v and cut off again cost less than that.
    """
    width, dtype = v.shape[-1], v.dtype
    # §3.3.1 keeps attention in higher precision; on a CPU it is also the faster way, so autocast ends here.
    upcast = torch.is_autocast_enabled("cpu") and not q.is_cuda
    with torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu") and not upcast):
        if upcast:
            q, k, v = q.float(), k.float(), v.float()
        # A training step on a CPU; without gradients nothing is kept, and torch's kernel is as good.
        short = causal and q.device.type == "cpu" and q.shape[-2] <= MAX_TOKENS
        if short and keep_weights and torch.is_grad_enabled():
            return causal_attention(q, k, v, scale).to(dtype)
        v = F.pad(v, (0, max(0, q.shape[-1] - width)))
        mask = None if mask is None else mask.unsqueeze(1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    return out[..., :width].to(dtype)
