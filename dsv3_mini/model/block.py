"""One pre-norm Transformer block (Figure 2): x + attention(norm(x)), then x + feed-forward(norm(x)).

Eq. 12 as printed takes the same u_t as input of the experts and as residual; Figure 2 and the released code put the
norm in between, and so do we (D17).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from dsv3_mini.config import ModelConfig
from dsv3_mini.model.mla import MLA, Path
from dsv3_mini.model.moe import MLP, MoE
from dsv3_mini.model.norm import RMSNorm
from dsv3_mini.model.router import Routing

if TYPE_CHECKING:
    from dsv3_mini.generate.cache import LatentCache


class Block(nn.Module):
    """x [B, T, D] -> ([B, T, D], the routing of an MoE layer or None). The first layers of a model are dense."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.self_attn = MLA(cfg, layer)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        is_dense = layer < cfg.first_k_dense_replace
        self.mlp = MLP(cfg.hidden_size, cfg.intermediate_size) if is_dense else MoE(cfg)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: LatentCache | None = None, path: Path = "auto"
    ) -> tuple[Tensor, Routing | None]:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, path)
        normed = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MoE):
            y, routing = self.mlp(normed)
            return x + y, routing
        return x + self.mlp(normed), None
