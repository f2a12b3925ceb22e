"""Multi-token prediction (§2.2, Eq. 21-25): a module that predicts the token after the next.

Module k looks at position i with the state h_i of the depth before (k = 1: of the main model) and the embedding of
token t_{i+k}, and predicts t_{i+k+1}. It sees no token that the main model would not have seen by then, so the
causal chain holds. Worked example, T = 7 input tokens t_1..t_7 with targets t_2..t_8, depth k = 1:

    position i          1    2    3    4    5    6    7
    main predicts       t_2  t_3  t_4  t_5  t_6  t_7  t_8
    module 1 is given   t_2  t_3  t_4  t_5  t_6  t_7  -      with h_1 .. h_6
    module 1 predicts   t_3  t_4  t_5  t_6  t_7  t_8  -

Two choices where report and practice part. The projection takes [Emb; h], the order of the released weights, while
Eq. 21 prints [h; Emb] (D13). And h is the main model's state *after* its final norm, as the Hugging Face code feeds it
(D14); from depth to depth it is the state after `shared_head.norm`.

Shapes: B batch, T' = T - k positions, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dsv3_mini.config import ModelConfig
from dsv3_mini.model.block import Block
from dsv3_mini.model.norm import RMSNorm
from dsv3_mini.model.router import Routing

if TYPE_CHECKING:
    from dsv3_mini.generate.cache import LatentCache


class SharedHead(nn.Module):
    """The norm in front of the output head. The head itself is the main model's and is passed around, not owned."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)


class MTPModule(Block):
    """A whole block with a projection in front (Eq. 21 and 22). Always an MoE block if the model has any MoE layer."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__(cfg, layer)
        self.enorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.hnorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * cfg.hidden_size, cfg.hidden_size, bias=False)  # M_k
        self.shared_head = SharedHead(cfg)

    def join(self, embedded: Tensor, previous: Tensor) -> Tensor:
        """Eq. 21: embedding of t_{i+k} and state h_i^{k-1}, both [..., D] -> what the block reads [..., D]."""
        return self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(previous)), dim=-1))

    def predict(
        self, embedded: Tensor, previous: Tensor, cos: Tensor, sin: Tensor, cache: LatentCache | None = None
    ) -> tuple[Tensor, Routing | None]:
        """Embedding of t_{i+k} and state h_i^{k-1}, both [B, T', D] -> state for the head [B, T', D], routing."""
        hidden, routing = self(self.join(embedded, previous), cos, sin, cache)
        return self.shared_head.norm(hidden), routing
