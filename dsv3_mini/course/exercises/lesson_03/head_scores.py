"""Exercise 3.2: scores of one head with the weights of DeepSeek-V3, in their layout.

Shapes: T tokens, D width of a token, R width of a head.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_03.by_hand import one_of, rope, speeds


def head_scores(x, w_q, w_k, positions):
    """x [T, D], w_q and w_k [R, D], positions [T] -> scores [T, T], a row for each query."""
    q = rope(x @ w_q.T, positions)  # [T, D] @ [D, R] -> [T, R]
    k = rope(x @ w_k.T, positions)
    return q @ k.T / q.shape[-1] ** 0.5  # [T, T]


def head_scores__half_split(x, w_q, w_k, positions):
    """x [T, D], w_q and w_k [R, D], positions [T] -> scores [T, T], a row for each query."""

    def turned(vectors):
        angles = positions[:, None] * speeds(vectors.shape[-1])  # [T, R / 2]
        first, second = vectors.chunk(2, dim=-1)  # [T, R / 2] each
        return torch.cat(
            [first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()], dim=-1
        )

    q, k = turned(x @ w_q.T), turned(x @ w_k.T)  # [T, R] each
    return q @ k.T / q.shape[-1] ** 0.5


def head_scores_cases(generator: Generator) -> list[Case]:
    T, R, D = one_of(generator, 5, 7, 9), one_of(generator, 6, 8, 12), one_of(generator, 10, 14)
    gaps = torch.randint(1, 6, (T,), generator=generator)  # a text with holes: positions are not 0, 1, 2, ...
    x = torch.randn(T, D, generator=generator)
    w_q, w_k = torch.randn(2, R, D, generator=generator)
    return [
        Case((x, w_q, w_k, gaps.cumsum(0))),
        Case((x[:1], w_q, w_k, gaps[:1]), note="a text of one token"),
    ]


def scored(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.T / q.shape[-1] ** 0.5


def head_scores__turned_before(x, w_q, w_k, positions):
    x = rope(x, positions)
    return scored(x @ w_q.T, x @ w_k.T)


def head_scores__masked(x, w_q, w_k, positions):
    future = torch.ones(len(x), len(x)).triu(1).bool()
    return head_scores(x, w_q, w_k, positions).masked_fill(future, -torch.inf)


HEAD_SCORES = Exercise(
    id="3.2",
    idea="rope_yarn",
    title="Scores of one head with DeepSeek-V3's weights",
    minutes=10,
    answer="head_scores",
    reference=head_scores,
    cases=head_scores_cases,
    dims="query key",
    tolerance=1e-4,
    mistakes=(
        Mistake(
            "half-split",
            head_scores__half_split,
            "You turn half-split pairs, (x_j, x_{j + R/2}). These weights were trained in the layout of DeepSeek-V3, "
            "which takes neighbours: they know which two numbers make a pair.",
        ),
        Mistake(
            "half-split, no scale",
            lambda x, w_q, w_k, positions: head_scores__half_split(x, w_q, w_k, positions) * w_q.shape[0] ** 0.5,
            "Two things. You turn half-split pairs, and the weights of DeepSeek-V3 were trained with neighbours. And "
            "the scores are not divided by the square root of the width of the head.",
        ),
        Mistake(
            "positions ignored",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_k, torch.arange(len(x))),
            "You turn by 0, 1, 2, ... The tokens stand at `positions`, and here these have gaps. (A shift of all "
            "of them would not matter; gaps do.)",
        ),
        Mistake(
            "query only",
            lambda x, w_q, w_k, positions: scored(rope(x @ w_q.T, positions), x @ w_k.T),
            "The queries are turned, the keys are not: the score then depends on where the query stands and not on "
            "the distance.",
        ),
        Mistake(
            "key only",
            lambda x, w_q, w_k, positions: scored(x @ w_q.T, rope(x @ w_k.T, positions)),
            "The keys are turned, the queries are not: the score then depends on where the key stands and not on the "
            "distance.",
        ),
        Mistake(
            "not turned",
            lambda x, w_q, w_k, positions: scored(x @ w_q.T, x @ w_k.T),
            "Nothing is turned: these are the scores of a head that is blind to order.",
        ),
        Mistake(
            "other way round",
            lambda x, w_q, w_k, positions: scored(rope(x @ w_q.T, positions), rope(x @ w_k.T, -positions)),
            "Query and key are turned in opposite directions, so their positions add up instead of dropping out. Turn "
            "both the same way.",
        ),
        Mistake(
            "both backwards",
            lambda x, w_q, w_k, positions: scored(rope(x @ w_q.T, -positions), rope(x @ w_k.T, -positions)),
            "Both are turned backwards: a key five tokens earlier gets the score of one five tokens later.",
        ),
        Mistake(
            "turned before the projection",
            head_scores__turned_before,
            "You turn x, and project it afterwards. RoPE turns queries and keys, so it comes after the projections: a "
            "matrix in between mixes the pairs again.",
        ),
        Mistake(
            "keys in rows",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_k, positions).T,
            "Rows and columns are swapped: a row should hold the scores of one query with all keys.",
        ),
        Mistake(
            "no scale",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_k, positions) * w_q.shape[0] ** 0.5,
            "The turning is right. The scores are not divided by the square root of the width of the head, as in "
            "lesson 01.",
        ),
        Mistake(
            "scale of the model width",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_k, positions) * (w_q.shape[0] / w_q.shape[1]) ** 0.5,
            "The turning is right, the scale is not: divide by the square root of the width of a query (R), not of a "
            "token (D).",
        ),
        Mistake(
            "scale of the text",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_k, positions) * (w_q.shape[0] / len(x)) ** 0.5,
            "The turning is right, the scale is not: you divide by the square root of the number of tokens. len(q) "
            "is T; the width of a query is q.shape[-1].",
        ),
        Mistake(
            "query against query",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_q, positions),
            "The keys come from w_q, too: each query is compared with the other queries.",
        ),
        Mistake(
            "key not transposed",
            lambda x, w_q, w_k, positions: (x @ w_q.T) @ (x @ w_k.T),
            "A product of [T, R] with [T, R] does not exist. Each query should meet each key, so one of the two must "
            "be transposed.",
        ),
        Mistake(
            "weights not transposed",
            lambda x, w_q, w_k, positions: x @ w_q,
            "A product of [T, D] with [R, D] does not exist. The weights lie as in nn.Linear, a row for each output: "
            "q = x @ w_q.T.",
        ),
        Mistake(
            "divided by the width",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_k, positions) / w_q.shape[0] ** 0.5,
            "The turning is right. You divide by the width itself: it should be its square root.",
        ),
        Mistake(
            "masked",
            head_scores__masked,
            "Right so far, and then masked. Leave the future in: only the scores are asked for, mask and softmax "
            "come later.",
        ),
        Mistake(
            "masked with zeros",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_k, positions).tril(),
            "Right so far, and then the scores of the future are set to 0. Leave them as they are: no mask is asked "
            "for. (And a mask of scores is -inf; a score of 0 still gets a share.)",
        ),
        Mistake(
            "softmax",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_k, positions).softmax(-1),
            "Right so far, and then through a softmax. Only the scores are asked for.",
        ),
    ),
    hints=(
        "Three steps: project (q = x @ w_q.T and the key likewise), turn both, compare each query with each key.",
        "The lesson has two functions that turn, `rope` and `rope_half_split`. In which layout were the weights of "
        "DeepSeek-V3 trained?",
        "`rope(vectors, positions)` wants [T, R] and [T]. A matrix product of [T, R] with [R, T] gives all scores; "
        "divide them by the square root of R.",
    ),
    after="With the released weights this is what a head computes for the part of its key that knows the position.",
)
