"""Exercise 15.1: between which pairs YaRN blends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_15.inputs import between, whole


def ramp_bounds(width, theta, original, fast=32, slow=1):
    def pair(turns):
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    return max(math.floor(pair(fast)), 0), min(math.ceil(pair(slow)), width - 1)


def _bounds(
    per_turn: float = 2 * math.pi,
    halves: float = 2,
    down: Callable[[float], int] = math.floor,
    up: Callable[[float], int] = math.ceil,
    least: float = 0,
    swapped: bool = False,
) -> Callable[..., Any]:
    """The bounds above with one of their parts changed."""

    def wrong(width, theta, original, fast=32, slow=1):
        def pair(turns):
            return width * math.log(original / (turns * per_turn)) / (halves * math.log(theta))

        if swapped:
            fast, slow = slow, fast
        return max(down(pair(fast)), least), min(up(pair(slow)), width - 1)

    return wrong


def _cases(generator: Generator) -> list[Case]:
    width, theta = 2 * whole(generator, 16, 48), 10 ** between(generator, 3.5, 5.5)
    original = 2 ** whole(generator, 9, 13)
    return [
        Case((64, 10_000.0, 4096), note="DeepSeek-V3"),
        Case((width, theta, original)),
        Case((width, theta, original, whole(generator, 12, 24), 2)),
        # 3.22 turns into 4 and not 3; and below 0 there is no pair.
        Case((16, 10_000.0, 256), note="the models of this course"),
        Case((16, 10_000.0, 128), note="a short training: no pair turns 32 times"),
    ]


RAMP_BOUNDS = Exercise(
    id="15.1",
    idea="rope_yarn",
    title="between which pairs YaRN blends",
    minutes=8,
    answer="ramp_bounds",
    reference=ramp_bounds,
    cases=_cases,
    dims=("low", "high"),
    mistakes=(
        Mistake(
            "a turn is one radian",
            _bounds(per_turn=1),
            "You count radians, not turns: a full turn is 2 pi of them.",
        ),
        Mistake(
            "pairs counted twice",
            _bounds(halves=1),
            "Your pairs come out twice as far up: the speed of pair j has an exponent of 2 j / width, with the 2.",
        ),
        Mistake(
            "half as many pairs",
            _bounds(halves=4),
            "Your pairs come out half as far up: `width` counts numbers, and 2 j / width already makes pairs of them.",
        ),
        Mistake(
            "fast and slow swapped",
            _bounds(swapped=True),
            "The two bounds are swapped. The fast pairs have the low indices, so `fast` gives the lower bound.",
        ),
        Mistake(
            "rounded to the nearest",
            _bounds(down=round, up=round),
            "You round both to the nearest. Round outwards, the lower bound down and the upper one up: the ramp covers "
            "every pair that is in between.",
        ),
        Mistake(
            "both rounded down",
            _bounds(up=math.floor),
            "You round both down. The upper bound goes up, so that the ramp covers every pair that is in between.",
        ),
        Mistake(
            "rounded inwards",
            _bounds(down=math.ceil, up=math.floor),
            "You round inwards, the lower bound up and the upper one down. It is the other way round: the ramp covers "
            "every pair that is in between.",
        ),
        Mistake(
            "below the first pair",
            _bounds(least=-math.inf),
            "A lower bound below 0 came out. When no pair turns that often, the ramp begins with pair 0.",
        ),
    ),
    hints=(
        "A pair of speed f turns `original * f / (2 pi)` times over the original length. For which j is that `turns`?",
        "Put theta^(-2 j / width) in for f and take the logarithm on both sides. j need not be whole.",
        "Then round outwards, and keep the lower bound at 0 or above and the upper one below `width`.",
    ),
    after="10 and 23 of 32 pairs for DeepSeek-V3: 11 pairs stay as they are, 9 are slowed down all the way.",
)
