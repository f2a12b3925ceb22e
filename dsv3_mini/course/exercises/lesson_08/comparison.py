"""Exercise 8.5: the first layer in which two models part.

Shapes: T tokens, D model width.
"""

from __future__ import annotations

import math

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_08.inputs import _randn, _whole


def first_difference(ours, theirs, x, tolerance):
    a = b = x
    for number, (our_layer, their_layer) in enumerate(zip(ours, theirs, strict=True)):
        a, b = our_layer(a), their_layer(b)
        if not (a - b).abs().max() <= tolerance:  # a NaN is a difference, too
            return number
    return -1


def _differences(measure=lambda a, b: (a - b).abs().max(), pick="first", nan_passes=False, shift=0):
    """The search above with one of its parts changed."""

    def wrong(ours, theirs, x, tolerance):
        a = b = x
        found = []
        for number, (our_layer, their_layer) in enumerate(zip(ours, theirs, strict=True)):
            a, b = our_layer(a), their_layer(b)
            gap = measure(a, b)
            if (gap > tolerance) if nan_passes else not (gap <= tolerance):
                found.append(number + shift)
        if pick == "end":
            found = found if found and found[-1] == len(ours) - 1 + shift else []
        return -1 if not found else found[0] if pick == "first" else found[-1]

    return wrong


def _same_input(ours, theirs, x, tolerance):
    for number, (our_layer, their_layer) in enumerate(zip(ours, theirs, strict=True)):
        if not (our_layer(x) - their_layer(x)).abs().max() <= tolerance:
            return number
    return -1


def _before(ours, theirs, x, tolerance):
    a = b = x
    for number, (our_layer, their_layer) in enumerate(zip(ours, theirs, strict=True)):
        if not (a - b).abs().max() <= tolerance:
            return number
        a, b = our_layer(a), their_layer(b)
    return -1


def _two_models(generator: Generator) -> list[Case]:
    width, tokens, count = _whole(generator, 8, 11), _whole(generator, 4, 6), _whole(generator, 5, 7)
    weights = [_randn(generator, width, width) / width**0.5 for _ in range(count)]
    x = _randn(generator, tokens, width)
    place = _whole(generator, 1, count - 3)
    even = torch.ones(tokens, width)
    even[: tokens // 2], even[tokens // 2 : tokens // 2 * 2] = 0.1, -0.1
    even[tokens // 2 * 2 :] = 0.0  # adds up to zero
    single = torch.zeros(tokens, width)
    single[-1, 0] = 0.2  # behind it nobody mixes tokens, so the others stay as they are

    def layer(weight, dtype=torch.float32, add=0.0, fades=False, later=False):
        def run(state):
            said = torch.tanh(state.to(dtype) @ weight.to(dtype)).float()
            fault = 0.0 if later and torch.equal(state, x) else add
            return torch.zeros_like(state) if fades else state + said + fault

        return run

    def case(changed, note, fades=False, later=False):
        ours = [
            layer(w, add=changed.get(i, 0.0), fades=fades and i == count - 1, later=later)
            for i, w in enumerate(weights)
        ]
        theirs = [layer(w, torch.float64, fades=fades and i == count - 1) for i, w in enumerate(weights)]
        return Case((ours, theirs, x, 1e-3), note=note)

    return [
        case({place: 0.2}, "a layer in the middle that gives too much"),
        case({place: -0.2}, "a layer in the middle that gives too little"),
        case({}, "two models that differ by rounding only"),
        case({place: single}, "one number that differs"),
        case({place: even}, "a layer in which differences up and down cancel"),
        case({place: math.nan}, "a layer that gives NaN"),
        case({place: 0.2}, "a difference that is gone at the end", fades=True),
        case({place: 0.1, count - 1: 0.3}, "two layers that differ"),
        case({place: 0.2}, "a layer that is right on x and wrong on what reaches it", later=True),
        case({count - 1: 0.2}, "a last layer that differs"),
    ]


FIRST_DIFFERENCE = Exercise(
    id="8.5",
    idea="transformer_block",
    title="the first layer in which two models part",
    minutes=10,
    answer="first_difference",
    reference=first_difference,
    cases=_two_models,
    mistakes=(
        Mistake(
            "NaN passes",
            _differences(nan_passes=True),
            "A layer that gives NaN passes: NaN > tolerance is False, as every comparison with NaN is. Ask for what "
            "must hold, and turn that round.",
        ),
        Mistake(
            "mean of differences",
            _differences(measure=lambda a, b: (a - b).mean().abs()),
            "Differences up and down cancel in the mean. Take absolute values first.",
        ),
        Mistake(
            "signed",
            _differences(measure=lambda a, b: (a - b).max()),
            "You look at differences in one direction only: a number that is too small passes. Take absolute values.",
        ),
        Mistake(
            "everywhere",
            _differences(measure=lambda a, b: (a - b).abs().min(), nan_passes=True),
            "You ask whether the states differ everywhere (all). One wrong number is enough (any, or the maximum).",
        ),
        Mistake(
            "same input for every layer",
            _same_input,
            "Every layer gets x itself. It should get what the layer before it gives: a layer may be wrong only on "
            "states that really occur.",
        ),
        Mistake(
            "compared before",
            _before,
            "You compare before each layer runs, so the blame falls on the one behind, and the last layer is never "
            "looked at.",
        ),
        Mistake(
            "last",
            _differences(pick="last"),
            "You give the last layer that differs. Behind the first one everything is off; that one is to blame.",
        ),
        Mistake(
            "counted from one",
            _differences(shift=1),
            "The layers are counted from 1. In the names of a checkpoint the first is 0.",
        ),
        Mistake(
            "only the end",
            _differences(pick="end"),
            "You look at the end only: the answer is the last layer, or none. Compare after each layer.",
        ),
        Mistake(
            "exact",
            lambda ours, theirs, x, tolerance: first_difference(ours, theirs, x, 0.0),
            "Two correct models differ by rounding. A difference counts from `tolerance` on.",
        ),
    ),
    hints=(
        "Two states, both x at first. Send each through its own model, one layer at a time, and compare after each.",
        "The largest absolute difference is a good measure. What does max() give when a NaN is among the numbers, and "
        "what is NaN > 0.001?",
        "`not (gap <= tolerance)` is True for a gap that is too large and for NaN.",
    ),
    after="When logits disagree, this says where to look first.",
)
