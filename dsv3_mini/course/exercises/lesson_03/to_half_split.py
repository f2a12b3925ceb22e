"""Exercise 3.3: convert a projection to the other layout.

Shapes: D width of a token, R width of a head.
"""

from __future__ import annotations

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_03.by_hand import one_of, rope


def to_half_split(weight):
    """weight [R, D] of one head (q = x @ weight.T) -> the same rows in another order, [R, D]."""
    return torch.cat([weight[0::2], weight[1::2]])  # rows 0, 2, 4, ..., then 1, 3, 5, ...


def to_half_split_cases(generator: Generator) -> list[Case]:
    R, D = one_of(generator, 6, 8, 10, 14), one_of(generator, 12, 16, 18)
    return [
        Case((torch.randn(R, D, generator=generator),)),
        Case((torch.randn(2, D, generator=generator),), note="a single pair (R = 2)"),
    ]


def to_half_split__way_back(weight):
    R, D = weight.shape
    return weight.view(2, R // 2, D).transpose(0, 1).reshape(R, D)


def to_half_split__columns(weight):
    return torch.cat([weight[:, 0::2], weight[:, 1::2]], dim=1)


def to_half_split__through_a_view(weight):
    R, D = weight.shape
    return weight.reshape(D, R).T


TO_HALF_SPLIT = Exercise(
    id="3.3",
    idea="rope_yarn",
    title="Convert a projection to the other layout",
    minutes=10,
    answer="to_half_split",
    reference=to_half_split,
    cases=to_half_split_cases,
    dims="R D",
    mistakes=(
        Mistake(
            "unchanged",
            lambda weight: weight.clone(),
            "The order did not change. Half-split RoPE pairs row 0 with row R/2: which row must stand there, so that "
            "this is the pair that was trained?",
        ),
        Mistake(
            "way back",
            to_half_split__way_back,
            "This is the way back, from half-split to interleaved: the first half and the second half are dealt out "
            "like cards. You need to gather the cards again.",
        ),
        Mistake(
            "odd rows first",
            lambda weight: torch.cat([weight[1::2], weight[0::2]]),
            "The right rows are together, but in each pair first and second are swapped: the odd rows come first. Such "
            "a pair turns the other way round.",
        ),
        Mistake(
            "columns",
            to_half_split__columns,
            "You reordered the columns, which belong to the token x. The channels of the query are the rows "
            "(q = x @ weight.T).",
        ),
        Mistake(
            "last pair first",
            lambda weight: torch.cat([weight[0::2].flip(0), weight[1::2].flip(0)]),
            "The pairs are right, but they stand in reverse: the fast pair now has the place of the slowest.",
        ),
        Mistake(
            "halves swapped",
            lambda weight: torch.cat(weight.chunk(2)[::-1]),
            "You swapped the two halves, and row 0 is still not paired with row 1: it is with row R/2 again.",
        ),
        Mistake(
            "neighbours swapped",
            lambda weight: weight.unflatten(0, (-1, 2)).flip(1).flatten(0, 1),
            "You swapped the two rows of each pair. They are neighbours still, and half-split RoPE needs them half a "
            "head apart.",
        ),
        Mistake(
            "every second row, twice",
            lambda weight: torch.cat([weight[0::2], weight[0::2]]),
            "The even rows are there twice, and the odd ones are missing.",
        ),
        Mistake(
            "view",
            to_half_split__through_a_view,
            "The shape is right, but rows are torn apart: a reshape to [D, R] does not exchange rows and columns. "
            "Every row should stay whole.",
        ),
        Mistake(
            "turned",
            lambda weight: rope(weight.T, torch.arange(weight.shape[1])).T,
            "You turned the weights themselves. Nothing is computed here: the same rows, in another order.",
        ),
    ),
    hints=(
        "Write down for R = 6 which rows make a pair in each layout. Interleaved: (0, 1), (2, 3), (4, 5). Half-split: "
        "(0, 3), (1, 4), (2, 5).",
        "In the new order row 0 must stay first, and its partner, row 1, must come to place R/2.",
        "weight[0::2] takes every second row, beginning with row 0. The lesson printed the order of the channels.",
    ),
    after="The transformers library reorders queries and keys of DeepSeek-V3 in this way, anew at every step.",
)
