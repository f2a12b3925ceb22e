"""The feed-forward half of a block: a dense SwiGLU network, or DeepSeekMoE (§2.1.2, Eq. 12).

Shapes: B batch, T tokens, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from dsv3_mini.config import ModelConfig
from dsv3_mini.model.experts import Experts
from dsv3_mini.model.router import Router, Routing
from dsv3_mini.model.swiglu import swiglu


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), [..., D] -> [..., D]. The dense layers, and the shared experts."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class MoE(nn.Module):
    """x [B, T, D] -> ([B, T, D], `Routing` of its B * T tokens). The residual of Eq. 12 is added by the block (D17).

    The routing is handed back instead of being counted in here: under activation recomputation a forward pass runs
    twice, and a counter inside it would count every token twice.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(cfg)
        self.experts = Experts(cfg)
        # N_s shared experts side by side are one network N_s times as wide.
        self.shared_experts = MLP(cfg.hidden_size, cfg.n_shared_experts * cfg.moe_intermediate_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        tokens = x.flatten(0, 1)
        routing = self.gate(tokens)
        return self.experts(tokens, routing).view_as(x) + self.shared_experts(x), routing
