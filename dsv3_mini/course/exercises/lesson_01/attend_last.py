"""Exercise 1.3: what the last token receives.

Shapes: T tokens, H heads, K width of a head.
"""

from __future__ import annotations

import math

from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_01.inputs import _randn, _whole


def attend_last(q_last, k, v):
    scores = (k @ q_last[:, :, None]).squeeze(-1) / math.sqrt(q_last.shape[-1])  # [H, T]
    shares = scores.softmax(-1)  # [H, T]; no mask: the last token may see everything
    return (shares[:, None, :] @ v).squeeze(1)  # [H, 1, T] @ [H, T, K] -> [H, K]


def _scores(q_last: Tensor, k: Tensor) -> Tensor:
    return (k @ q_last[:, :, None]).squeeze(-1)  # [H, T]


def _mean_of(shares: Tensor, v: Tensor) -> Tensor:
    return (shares[:, :, None] * v).sum(1)


def _last_tokens(generator: Generator) -> list[Case]:
    H, T, K = _whole(generator, 2, 3), _whole(generator, 5, 7), _whole(generator, 9, 12)
    return [
        Case(tuple(_randn(generator, *shape) for shape in ((H, K), (H, T, K), (H, T, K)))),
        Case(tuple(_randn(generator, *shape) for shape in ((4, 8), (4, 1, 8), (4, 1, 8))), note="one token"),
    ]


ATTEND_LAST = Exercise(
    id="1.3",
    idea="transformer_block",
    title="what the last token receives",
    minutes=10,
    answer="attend_last",
    reference=attend_last,
    cases=_last_tokens,
    dims="H K",
    mistakes=(
        Mistake(
            "no scale",
            lambda q_last, k, v: _mean_of(_scores(q_last, k).softmax(-1), v),
            "The scores are not divided by the square root of K.",
        ),
        Mistake(
            "divided by K",
            lambda q_last, k, v: _mean_of((_scores(q_last, k) / k.shape[-1]).softmax(-1), v),
            "The scores are divided by K itself; it should be its square root.",
        ),
        Mistake(
            "square root of T",
            lambda q_last, k, v: _mean_of((_scores(q_last, k) / math.sqrt(k.shape[-2])).softmax(-1), v),
            "The scores are divided by the square root of T, the number of tokens. What makes dot products grow is the "
            "width of a head.",
        ),
        Mistake(
            "times the root",
            lambda q_last, k, v: _mean_of((_scores(q_last, k) * math.sqrt(k.shape[-1])).softmax(-1), v),
            "The scores are multiplied by the square root of K; they should be divided by it.",
        ),
        Mistake(
            "divided behind the softmax",
            lambda q_last, k, v: _mean_of(_scores(q_last, k).softmax(-1), v) / math.sqrt(k.shape[-1]),
            "You divide by the square root of K behind the softmax, so that the shares do not sum to one. The scores "
            "must be divided before it.",
        ),
        Mistake(
            "average of the keys",
            lambda q_last, k, v: attend_last(q_last, k, k),
            "The shares are right, but you average the keys with them. Keys are to be found by; what is handed over "
            "are the values.",
        ),
        Mistake(
            "not itself",
            lambda q_last, k, v: attend_last(q_last, k[:, :-1], v[:, :-1]),
            "The last token leaves itself out. It may see everything up to itself, and itself.",
        ),
        Mistake(
            "softmax over the heads",
            lambda q_last, k, v: _mean_of((_scores(q_last, k) / math.sqrt(k.shape[-1])).softmax(0), v),
            "The softmax runs over the heads. Within each head the shares of the tokens should sum to one.",
        ),
        Mistake(
            "no softmax",
            lambda q_last, k, v: _mean_of(_scores(q_last, k) / math.sqrt(k.shape[-1]), v),
            "The scores themselves are the weights: a softmax is missing between the scores and the average.",
        ),
        Mistake(
            "softmax over one number",
            lambda q_last, k, v: v.sum(1),
            "Your output is the plain sum of all values, so every share is 1: the softmax runs over a dimension of "
            "size 1. Look at the shape of your scores.",
        ),
        Mistake(
            "even shares",
            lambda q_last, k, v: v.mean(1),
            "Your output is the even average of all values: query and keys have no say in it.",
        ),
        Mistake(
            "a mask for one token",
            lambda q_last, k, v: v[:, 0],
            "Your output is the value of the first token alone: a causal mask (or is_causal=True) for one query counts "
            "that query as position 0. It stands at the end, and may see everything.",
        ),
    ),
    hints=(
        "Which mask does the last token need?",
        "Scores first: a dot product of q_last with each key, [H, T]. With q_last[:, :, None], of shape [H, K, 1], the "
        "product k @ ... gives [H, T, 1].",
        "Divide by the square root of K, take the softmax over the tokens, and average the values with these shares: "
        "[H, 1, T] @ [H, T, K].",
    ),
    after="Look at what you did not need: the queries of the earlier tokens. Lesson 02 lives on that.",
)
