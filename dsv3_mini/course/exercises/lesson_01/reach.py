"""Exercise 1.4: find out who sees whom in any attention.

Shapes: T tokens, D width of a token.
"""

from __future__ import annotations

import math

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_01.inputs import _randn, _whole


def reach(attention, x):
    T = x.shape[1]
    before = attention(x)
    table = torch.zeros(T, T, dtype=torch.bool)
    for token in range(T):
        other = x.clone()
        other[:, token] = torch.randn(x.shape[-1])
        table[:, token] = (attention(other) - before).abs().amax(dim=(0, 2)) > 1e-6
    return table


def _accumulates(attention, x):
    table, other = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool), x.clone()
    for token in range(x.shape[1]):
        other[:, token] = torch.randn(x.shape[-1])
        table[:, token] = (attention(other) - attention(x)).abs().amax(dim=(0, 2)) > 1e-6
    return table


def _mixing(shares_of):
    """A layer that averages its inputs by shares_of(scores [T, T], distance from asking to asked token)."""

    def attention(x):
        position = torch.arange(x.shape[1])
        scores = x @ x.transpose(1, 2) / x.shape[-1]  # small, so that no share is lost in rounding
        return shares_of(scores, position[:, None] - position[None, :]) @ x

    return attention


_LAYERS = (
    (_mixing(lambda s, ago: s.masked_fill(ago < 0, -math.inf).softmax(-1)), "causal attention"),
    (_mixing(lambda s, ago: s.softmax(-1)), "attention without a mask"),
    (_mixing(lambda s, ago: s.softmax(-1) * (ago >= 0)), "a mask behind the softmax"),
    (_mixing(lambda s, ago: s.masked_fill(ago < -1, -math.inf).softmax(-1)), "a mask that is off by one"),
    (
        _mixing(lambda s, ago: s.masked_fill((ago < 0) | (ago > 2), -math.inf).softmax(-1)),
        "attention to three tokens at most",
    ),
)


def _layers(generator: Generator) -> list[Case]:
    return [Case((layer, _randn(generator, 1, _whole(generator, 4, 7), 9)), note=note) for layer, note in _LAYERS]


REACH = Exercise(
    id="1.4",
    idea="transformer_block",
    title="find out who sees whom in any attention",
    minutes=10,
    answer="reach",
    reference=reach,
    cases=_layers,
    dims="output token",
    mistakes=(
        Mistake(
            "axes swapped",
            lambda attention, x: reach(attention, x).T,
            "The table is mirrored: the row should be the output that moves, the column the token that was replaced.",
        ),
        Mistake(
            "replaced tokens stay replaced",
            _accumulates,
            "The tokens are replaced one after the other in the same copy, so that a column also shows what the "
            "earlier ones moved. Start each time from the untouched x.",
        ),
        Mistake(
            "what stays",
            lambda attention, x: ~reach(attention, x),
            "The table is the wrong way round: True where an output stays as it was.",
        ),
        Mistake(
            "only the tokens themselves",
            lambda attention, x: torch.eye(x.shape[1], dtype=torch.bool),
            "The table says that a token moves its own output only. Compare the outputs of the layer, not its inputs.",
        ),
        Mistake(
            "not measured",
            lambda attention, x: torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(),
            "This is the causal mask, whatever the layer does. Run the layer and look.",
        ),
    ),
    hints=(
        "outputs_that_change, in the section Reveal, does it for one token. You need it for all of them.",
        "For each token: copy x, replace that token by random numbers, run the layer, and note which of the T outputs "
        "differ from those of x. That is one column of the table.",
        "An output has moved when one of its channels has: (a - b).abs() has the shape [1, T, D], and "
        ".amax(dim=(0, 2)) > 1e-6 makes [T] of it.",
    ),
    after="Run it on every attention that you ever write: a True above the diagonal is a leak from the future.",
)
