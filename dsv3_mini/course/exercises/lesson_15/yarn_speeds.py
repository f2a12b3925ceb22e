"""Exercise 15.2: the speeds of the pairs with YaRN."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_15.inputs import between, speeds, whole


def yarn_speeds(plain, low, high, s):
    pair = torch.arange(len(plain))
    slow = ((pair - low) / (high - low)).clamp(0, 1)
    return plain * (1 - slow) + plain / s * slow


def _share(plain: Tensor, low: int, high: int) -> Tensor:
    return ((torch.arange(len(plain)) - low) / (high - low)).clamp(0, 1)


def yarn_speeds__not_clamped(plain, low, high, s):
    slow = (torch.arange(len(plain)) - low) / (high - low)
    return plain * (1 - slow) + plain / s * slow


def yarn_speeds__backwards(plain, low, high, s):
    slow = 1 - _share(plain, low, high)
    return plain * (1 - slow) + plain / s * slow


def yarn_speeds__no_ramp(plain, low, high, s):
    return torch.where(torch.arange(len(plain)) < high, plain, plain / s)


def yarn_speeds__early_step(plain, low, high, s):
    return torch.where(torch.arange(len(plain)) <= low, plain, plain / s)


def yarn_speeds__factor_blended(plain, low, high, s):
    return plain / (1 + (s - 1) * _share(plain, low, high))


def yarn_speeds__log_blend(plain, low, high, s):
    return plain / s ** _share(plain, low, high)


def yarn_speeds__faster(plain, low, high, s):
    slow = _share(plain, low, high)
    return plain * (1 - slow) + plain * s * slow


def _cases(generator: Generator) -> list[Case]:
    width = 2 * whole(generator, 8, 40)
    pairs = width // 2
    low = whole(generator, 1, pairs // 3)
    high = whole(generator, low + 3, pairs - 2)
    s = between(generator, 3.0, 50.0)
    theta = 10 ** between(generator, 3.5, 5.5)
    return [
        Case((speeds(width, theta), low, high, s)),
        Case((speeds(64), 10, 23, 40.0), note="DeepSeek-V3"),
        Case((speeds(16), 0, 4, 20.0), note="the ramp begins at the first pair"),
    ]


YARN_SPEEDS = Exercise(
    id="15.2",
    idea="rope_yarn",
    title="the speeds with YaRN",
    minutes=8,
    answer="yarn_speeds",
    reference=yarn_speeds,
    cases=_cases,
    dims="pair",
    tolerance=1e-6,
    mistakes=(
        Mistake(
            "all slowed down",
            lambda plain, low, high, s: plain / s,
            "Every pair is slowed down. That is position interpolation, the idea before YaRN: neighbours then differ "
            "by so little that the fast pairs can no longer tell them apart.",
        ),
        Mistake(
            "the other end of the ramp",
            yarn_speeds__backwards,
            "The ramp runs backwards: you slow down the fast pairs and leave the slow ones. The slow ones are those "
            "that would reach new angles.",
        ),
        Mistake(
            "not clamped",
            yarn_speeds__not_clamped,
            "Outside the ramp your share goes on, below 0 and above 1. There are two flat parts: below `low` nothing "
            "changes, above `high` everything is divided by s.",
        ),
        Mistake(
            "a step at the end",
            yarn_speeds__no_ramp,
            "There is no ramp: every pair before `high` stays as it is. In between, blend the two speeds.",
        ),
        Mistake(
            "a step at the beginning",
            yarn_speeds__early_step,
            "There is no ramp: every pair after `low` is divided by s. In between, blend the two speeds.",
        ),
        Mistake(
            "the divisor blended",
            yarn_speeds__factor_blended,
            "You blend the divisor, from 1 to s, and then divide. Blend the two speeds, the plain one and the divided "
            "one; in the middle of the ramp that is something else.",
        ),
        Mistake(
            "blended in logarithms",
            yarn_speeds__log_blend,
            "You blend the logarithms of the speeds (a power of s). YaRN blends the speeds themselves.",
        ),
        Mistake(
            "faster",
            yarn_speeds__faster,
            "The slow pairs became faster: you multiply by s. A longer context needs slower hands, so divide.",
        ),
    ),
    hints=(
        "For each pair a share between 0 (as before) and 1 (divided by s), growing along a straight line from `low` to "
        "`high`.",
        "`.clamp(0, 1)` makes the flat parts. Then the two speeds are blended with that share.",
    ),
    after="A pair that turned often in training has seen every angle. Only those that have not are slowed down.",
)
