"""From logits to the next token: greedy, temperature, top-p.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3_mini.errors import InputError


def check_sampling(temperature: float, top_p: float) -> None:
    """Raises `InputError` for values that no distribution has."""
    if not temperature >= 0:
        raise InputError(f"temperature = {temperature} cannot be: it must be 0 (greedy) or above")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p = {top_p} cannot be: it must be above 0 and at most 1")


def next_token_distribution(logits: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    """logits [B, V] -> probabilities [B, V], fp32. temperature above 0.

    top_p keeps the smallest set of most likely tokens whose probabilities reach top_p, and rescales them.
    """
    probabilities = (logits.float() / temperature).softmax(-1)
    if top_p >= 1:
        return probabilities
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    before = (
        ordered.cumsum(-1) - ordered
    )  # mass of the more likely tokens: 0 for the first, which therefore always stays
    ordered = ordered.masked_fill(before >= top_p, 0.0)
    kept = torch.zeros_like(probabilities).scatter_(-1, ids, ordered)
    return kept / kept.sum(-1, keepdim=True)


def sample(
    logits: Tensor, temperature: float = 0.0, top_p: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """logits [B, V] -> tokens [B]. Temperature 0 takes the most likely token."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(next_token_distribution(logits, temperature, top_p), 1, generator=generator).squeeze(-1)
