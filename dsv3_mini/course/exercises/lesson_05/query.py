"""Exercise 5.1: the query absorbs the up-projection of the keys.

Shapes: B batch, T new tokens, H heads, N content width of a key, V width of a value, C width of the latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_05.inputs import _size


def absorb_query(q_c, kv_b):
    heads, nope_dim = q_c.shape[-2:]
    w_uk = kv_b.unflatten(0, (heads, -1))[:, :nope_dim]  # [H, N + V, C] -> [H, N, C]
    return torch.einsum("bthn,hnc->bthc", q_c, w_uk)


def absorb_query__value_rows(q_c, kv_b):
    heads, nope_dim = q_c.shape[-2:]
    w_uk = kv_b.unflatten(0, (heads, -1))[:, nope_dim:]  # [H, N + V, C] -> [H, N, C]
    return torch.einsum("bthn,hnc->bthc", q_c, w_uk)


def absorb_query__cut_once(q_c, kv_b):
    heads, nope_dim = q_c.shape[-2:]
    w_uk = kv_b[: heads * nope_dim].unflatten(0, (heads, nope_dim))  # [H, N, C]
    return torch.einsum("bthn,hnc->bthc", q_c, w_uk)


def absorb_query__heads_inside(q_c, kv_b):
    heads, nope_dim = q_c.shape[-2:]
    w_uk = kv_b.unflatten(0, (-1, heads))[:nope_dim]  # [N, H, C]
    return torch.einsum("bthn,nhc->bthc", q_c, w_uk)


def _query_cases(generator: torch.Generator) -> Sequence[Case]:
    B, T, H, N = _size(generator, 2, 3), _size(generator, 4, 5), _size(generator, 6, 7), _size(generator, 8, 11)
    C = _size(generator, 13, 19)
    q_c, kv_b = torch.randn(B, T, H, N, generator=generator), torch.randn(H * 2 * N, C, generator=generator)
    return Case((q_c, kv_b)), Case((q_c[:1, :1], kv_b), note="one new token")


ABSORB_QUERY = Exercise(
    id="5.1",
    idea="mla",
    title="let the query absorb the up-projection",
    minutes=5,
    answer="absorb_query",
    reference=absorb_query,
    cases=_query_cases,
    dims="B T H C",
    mistakes=(
        Mistake(
            "value rows",
            absorb_query__value_rows,
            "You multiplied with W^UV, the rows of the values. Which rows of a head come first in kv_b_proj? In V3 "
            "keys and values are equally wide, so no shape tells you.",
        ),
        Mistake(
            "cut once",
            absorb_query__cut_once,
            "You cut kv_b_proj once through the middle. Its rows lie head by head: keys of head 0, values of head "
            "0, keys of head 1, ... (lesson 04).",
        ),
        Mistake(
            "heads inside",
            absorb_query__heads_inside,
            "You read the rows as if the heads alternated from row to row. All rows of a head lie together, so the "
            "head is the outer of the two dimensions that you unfold.",
        ),
        Mistake(
            "one matrix",
            lambda q_c, kv_b: q_c @ kv_b[: q_c.shape[-1]],
            "Every head went through the matrix of head 0. Each head has a W^UK of its own.",
        ),
        Mistake(
            "summed",
            lambda q_c, kv_b: absorb_query(q_c, kv_b).sum(2),
            "The heads were added up: their letter is missing behind the arrow. Each head asks its own question, in "
            "the latent as before.",
        ),
        Mistake(
            "scaled",
            lambda q_c, kv_b: absorb_query(q_c, kv_b) / q_c.shape[-1] ** 0.5,
            "That is right, and then divided by a square root. The scale belongs to the scores, once.",
        ),
    ),
    hints=(
        "Lesson 04 has taken kv_b_proj apart: unfold its rows into heads first, [H, N + V, C].",
        "The first N rows of a head are its W^UK. N is the last size of q_c, H the one before it.",
        "For head h: q [N] times W^UK_h [N, C] gives [C]. In an einsum h stands on both inputs and in the result, n "
        "on both inputs only.",
    ),
    after="This product costs the same however long the text is.",
)
