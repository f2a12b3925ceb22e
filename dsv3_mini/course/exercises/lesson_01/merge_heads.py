"""Exercise 1.2: put the heads back into the rows.

Shapes: B rows, T tokens, H heads, K width of a head.
"""

from __future__ import annotations

from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_01.inputs import _randn, _whole


def merge_heads(x):
    B, H, T, K = x.shape
    return x.transpose(1, 2).reshape(B, T, H * K)  # [B, T, H, K] -> [B, T, H * K]


def merge_heads__reshape_alone(x):
    B, H, T, K = x.shape
    return x.reshape(B, T, H * K)  # the shape is right


def _heads(generator: Generator) -> list[Case]:
    H, K = _whole(generator, 2, 4), _whole(generator, 5, 7)
    return [
        Case((_randn(generator, _whole(generator, 2, 3), H, 8, K),)),
        Case((_randn(generator, 1, H, _whole(generator, 9, 11), K),), note="one row"),
        Case((_randn(generator, 2, H, 1, K),), note="one token"),
    ]


MERGE_HEADS = Exercise(
    id="1.2",
    idea="transformer_block",
    title="put the heads back into the rows",
    minutes=5,
    answer="merge_heads",
    reference=merge_heads,
    cases=_heads,
    dims=("B", "T", "H * K"),
    mistakes=(
        Mistake(
            "reshape alone",
            merge_heads__reshape_alone,
            "The shape is right and the numbers are in the wrong places: reshape alone goes on counting in memory, "
            "where head 0 of all tokens comes first, so that one row gets several tokens.",
        ),
        Mistake(
            "channels first",
            lambda x: x.permute(0, 2, 3, 1).flatten(-2),
            "Each row holds the right token, with the heads dealt out like cards: channel 0 of every head, then "
            "channel 1 of every head. Head 0 should come first as a whole.",
        ),
        Mistake(
            "view after transpose",
            lambda x: x.transpose(1, 2).view(x.shape[0], x.shape[2], -1),
            "The order of the axes is right, but view raises RuntimeError: a transpose moves no number in memory, and "
            "view cannot join axes that do not lie next to each other there.",
        ),
        Mistake(
            "sum of the heads",
            lambda x: x.sum(1),
            "The heads are added up, and a row has K channels. They should stand side by side: H * K channels.",
        ),
        Mistake(
            "mean of the heads",
            lambda x: x.mean(1),
            "The heads are averaged, and a row has K channels. They should stand side by side: H * K channels.",
        ),
    ),
    hints=(
        "In the result a row belongs to one token. In what order must the axes stand before the last two are joined?",
        "Undo the two steps of the lesson from the back: first the transpose, then the view.",
        "After x.transpose(1, 2) the shape is [B, T, H, K]. Now the last two axes can become one; where view "
        "refuses, reshape copies.",
    ),
    after="The bug museum shows what the same function does when one of the two steps is forgotten.",
)
