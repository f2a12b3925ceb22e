"""The router: which experts a token goes to, and with what weight (§2.1.2, Eq. 13, 15, 16; node-limited routing).

Two numbers per expert, with two jobs. The *score* s = sigmoid(u . e_i) says how well expert i fits the token, and is
what the gate weights are made of. The *routing bias* b_i is added to the score for the choice only: it steers how many
tokens an expert gets without touching what the token gets out of it, and no gradient ever reaches it
(`balance.update_routing_bias`).

Shapes: N tokens (batch and time in one), D model width, E experts, G groups, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv3_mini.config import ModelConfig


class Routing(NamedTuple):
    """Where N tokens go."""

    ids: Tensor  # [N, K] chosen experts, in no particular order
    weights: Tensor  # [N, K] fp32 gate weights
    scores: Tensor  # [N, E] fp32 sigmoid affinities, without the bias
    counts: Tensor  # [E] tokens that each expert received


class Router(nn.Module):
    """x [N, D] -> `Routing`. In fp32 whatever the model's dtype: near-ties decide, and bf16 makes many more."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.top_k, self.groups, self.kept_groups = cfg.num_experts_per_tok, cfg.n_group, cfg.topk_group
        self.normalise, self.scaling = cfg.norm_topk_prob, cfg.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(cfg.n_routed_experts, cfg.hidden_size))  # the centroids e_i
        self.register_buffer("e_score_correction_bias", torch.zeros(cfg.n_routed_experts, dtype=torch.float32))

    e_score_correction_bias: Tensor

    def forward(self, x: Tensor) -> Routing:
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.weight.float()).sigmoid()  # Eq. 15, [N, E]
        with torch.no_grad():  # a choice has no gradient
            ids = self.choose(scores)
        return self.routing(scores, ids)

    def routing(self, scores: Tensor, ids: Tensor) -> Routing:
        """scores [N, E] and the choice ids [N, K], completed."""
        counts = torch.zeros_like(self.e_score_correction_bias, dtype=torch.long)
        counts.scatter_add_(0, ids.flatten(), torch.ones_like(ids).flatten())
        return Routing(ids, self.gate_weights(scores, ids), scores, counts)

    def choose(self, scores: Tensor) -> Tensor:
        """Eq. 16 with the node limit: the K best by biased score within the best groups. [N, E] -> ids [N, K]."""
        biased = scores + self.e_score_correction_bias
        if self.groups > 1:
            by_group = biased.unflatten(-1, (self.groups, -1))  # [N, G, E/G]
            group_scores = by_group.topk(2, dim=-1).values.sum(-1)  # a group is as good as its two best experts (D2)
            kept = group_scores.topk(self.kept_groups, dim=-1).indices
            allowed = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(-1, kept, True)
            # -inf and not 0: biased scores may be negative, and then a 0 would win (D3).
            biased = by_group.masked_fill(~allowed.unsqueeze(-1), float("-inf")).flatten(-2)
        return biased.topk(self.top_k, dim=-1).indices

    def gate_weights(self, scores: Tensor, ids: Tensor) -> Tensor:
        """Eq. 13 on the *unbiased* scores of the chosen experts, times the released scaling factor (D1). -> [N, K]."""
        weights = scores.gather(-1, ids)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.scaling

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        # `model.to(bfloat16)` must not round the bias: its steps are about 0.001, which bf16 loses next to values
        # near 1.
        exact = self.e_score_correction_bias
        super()._apply(fn, recurse)
        moved = self.e_score_correction_bias
        if moved.dtype != torch.float32:
            self.e_score_correction_bias = exact.to(moved.device)
        return self
