"""A router that nobody trained, for the exhibits of lesson 07: some experts are more popular than others."""

from __future__ import annotations

import torch
from torch import Tensor

TOKENS, EXPERTS, TOP_K = 512, 16, 4
GROUPS, KEPT = 4, 2


def tokens_and_popularity(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scores [N, E] of one step before the sigmoid, and how popular each expert is [E]."""
    return torch.randn(TOKENS, EXPERTS, generator=generator), torch.randn(EXPERTS, generator=generator)
