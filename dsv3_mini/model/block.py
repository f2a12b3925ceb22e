"""One pre-norm Transformer block (Figure 2): x + attention(norm(x)), then x + feed-forward(norm(x)).

A config may ask for plain attention instead of MLA, to compare the two. Such a model trains and is measured like any
other, but has no latent cache, so it cannot generate.

Eq. 12 as printed takes the same u_t as input of the experts and as residual; Figure 2 and the released code put the
norm in between, and so do we (D17).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.model.attention import MultiHeadAttention
from dsv3_mini.model.mla import MLA, Path
from dsv3_mini.model.moe import MLP, MoE
from dsv3_mini.model.norm import RMSNorm
from dsv3_mini.model.recompute import norm_then
from dsv3_mini.model.router import Routing

if TYPE_CHECKING:
    from dsv3_mini.generate.cache import LatentCache


class Block(nn.Module):
    """x [B, T, D] -> ([B, T, D], the routing of an MoE layer or None). The first layers of a model are dense."""

    recompute = False  # `DeepSeekV3.set_recompute`

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.self_attn = MLA(cfg, layer) if cfg.plain_kv_heads is None else _plain_attention(cfg)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        is_dense = layer < cfg.first_k_dense_replace
        self.mlp = MLP(cfg.hidden_size, cfg.intermediate_size) if is_dense else MoE(cfg)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: LatentCache | None = None, path: Path = "auto"
    ) -> tuple[Tensor, Routing | None]:
        def attend(normed: Tensor) -> Tensor:
            return self._attend(normed, cos, sin, cache, path)

        x = x + norm_then(self.input_layernorm, attend, x, self.recompute)
        y = norm_then(self.post_attention_layernorm, self.mlp, x, self.recompute)
        if isinstance(self.mlp, MoE):
            y, routing = y
            return x + y, routing
        return x + y, None

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor, cache: LatentCache | None, path: Path) -> Tensor:
        if isinstance(self.self_attn, MLA):
            return self.self_attn(x, cos, sin, cache, path)
        if cache is not None:
            raise InputError(
                f"plain_kv_heads = {self.self_attn.num_kv_heads}: a model with plain attention has no latent cache and "
                "cannot generate; it is there to be trained and compared"
            )
        return self.self_attn(x, cos, sin)


def _plain_attention(cfg: ModelConfig) -> MultiHeadAttention:
    return MultiHeadAttention(cfg.hidden_size, cfg.num_attention_heads, cfg.v_head_dim, cfg.plain_kv_heads)
