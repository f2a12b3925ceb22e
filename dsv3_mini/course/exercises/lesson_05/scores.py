"""Exercise 5.2: scores in the latent.

Shapes: B batch, T new tokens, S tokens in the memory, H heads, N and R content and positional width of a key, C width
of the latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_05.inputs import _size


def latent_scores(q_latent, q_r, memory, nope_dim):
    query = torch.cat([q_latent, q_r], dim=-1)  # [B, T, H, C + R]
    scores = torch.einsum("bthc,bsc->bhts", query, memory)
    return scores / (nope_dim + q_r.shape[-1]) ** 0.5


def latent_scores__scale_of_the_memory(q_latent, q_r, memory, nope_dim):
    query = torch.cat([q_latent, q_r], dim=-1)  # [B, T, H, C + R]
    scores = torch.einsum("bthc,bsc->bhts", query, memory)
    return scores / query.shape[-1] ** 0.5


def _scores_over(divisor):
    """The right products with another scale; `divisor` of C, N and R."""

    def scores(q_latent, q_r, memory, nope_dim):
        products = torch.einsum("bthc,bsc->bhts", torch.cat([q_latent, q_r], dim=-1), memory)
        return products / divisor(q_latent.shape[-1], nope_dim, q_r.shape[-1])

    return scores


def latent_scores__no_position(q_latent, q_r, memory, nope_dim):
    latent = memory[..., : q_latent.shape[-1]]  # [B, S, C]
    scores = torch.einsum("bthc,bsc->bhts", q_latent, latent)
    return scores / (nope_dim + q_r.shape[-1]) ** 0.5


def latent_scores__one_part_scaled(q_latent, q_r, memory, nope_dim):
    latent, k_r = memory.split((q_latent.shape[-1], q_r.shape[-1]), dim=-1)
    content = torch.einsum("bthc,bsc->bhts", q_latent, latent) / (nope_dim + q_r.shape[-1]) ** 0.5
    return content + torch.einsum("bthr,bsr->bhts", q_r, k_r)


def latent_scores__each_part_its_scale(q_latent, q_r, memory, nope_dim):
    latent, k_r = memory.split((q_latent.shape[-1], q_r.shape[-1]), dim=-1)
    content = torch.einsum("bthc,bsc->bhts", q_latent, latent) / nope_dim**0.5
    return content + torch.einsum("bthr,bsr->bhts", q_r, k_r) / q_r.shape[-1] ** 0.5


def latent_scores__position_first(q_latent, q_r, memory, nope_dim):
    query = torch.cat([q_r, q_latent], dim=-1)
    return torch.einsum("bthc,bsc->bhts", query, memory) / (nope_dim + q_r.shape[-1]) ** 0.5


def _score_cases(generator: torch.Generator) -> Sequence[Case]:
    B, T, H, R = _size(generator, 2, 3), _size(generator, 4, 5), _size(generator, 6, 7), 2 * _size(generator, 4, 5)
    N, S, C = _size(generator, 11, 13), _size(generator, 14, 17), _size(generator, 18, 23)
    q_latent, q_r = torch.randn(B, T, H, C, generator=generator), torch.randn(B, T, H, R, generator=generator)
    memory = torch.randn(B, S, C + R, generator=generator)
    return (
        Case((q_latent, q_r, memory, N)),
        Case((q_latent[:, :1], q_r[:, :1], memory[:, :1], N), note="one token that sees itself"),
    )


LATENT_SCORES = Exercise(
    id="5.2",
    idea="mla",
    title="scores in the latent",
    minutes=5,
    answer="latent_scores",
    reference=latent_scores,
    cases=_score_cases,
    dims="B H T S",
    mistakes=(
        Mistake(
            "scale of the memory",
            latent_scores__scale_of_the_memory,
            "You divided by the square root of the width that is multiplied now. The number itself is that of the "
            "expanded path, so its scale is that one, too: how wide were query and key there?",
        ),
        Mistake(
            "scale of the latent",
            _scores_over(lambda C, N, R: C**0.5),
            "You divided by the square root of the latent's width. The scores are those of the expanded path: their "
            "scale does not know the latent.",
        ),
        Mistake(
            "scale of the content",
            _scores_over(lambda C, N, R: N**0.5),
            "The scale forgets the positional part: a whole key of the expanded path has two parts.",
        ),
        Mistake(
            "no scale",
            _scores_over(lambda C, N, R: 1),
            "The scores are right up to their scale (Eq. 10), which is missing.",
        ),
        Mistake(
            "scaled twice",
            _scores_over(lambda C, N, R: N + R),
            "Divided by the width of a key, not by its square root: that scales twice.",
        ),
        Mistake(
            "no position",
            latent_scores__no_position,
            "The positional part is missing: with these scores the model does not know the order of the words.",
        ),
        Mistake(
            "one part scaled",
            latent_scores__one_part_scaled,
            "Only the content part is scaled. Add the two parts first, then scale the sum.",
        ),
        Mistake(
            "each part its scale",
            latent_scores__each_part_its_scale,
            "Each part is scaled by its own width. It is one score of one key: add the parts, then scale once.",
        ),
        Mistake(
            "position first",
            latent_scores__position_first,
            "Query and memory have their parts in different order: in the memory the latent comes first.",
        ),
        Mistake(
            "shares",
            lambda *inputs: latent_scores(*inputs).softmax(-1),
            "That is already the softmax. Scores are asked for; the mask comes between the two.",
        ),
    ),
    hints=(
        "In the memory the latent and the positional key lie side by side. Lay the two parts of the query side by "
        "side in the same order.",
        "There is one memory for all heads, so s and the width are its only letters besides b.",
        "The scale is that of Eq. 10: one over the square root of N + R, whatever is multiplied here.",
    ),
    after="One memory, many heads: to the device this is multi-query attention with wide keys.",
)
