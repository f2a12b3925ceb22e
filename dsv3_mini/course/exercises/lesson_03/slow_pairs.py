"""Exercise 3.1: count the pairs that never finish a turn."""

from __future__ import annotations

import math

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_03.by_hand import one_of, speeds


def slow_pairs(R, theta, context):
    """-> how many of the R / 2 pairs make less than one full turn in `context` positions."""
    angle_at_the_end = context * speeds(R, theta)  # [R / 2]
    return int((angle_at_the_end < 2 * math.pi).sum())


def slow_pairs_cases(generator: Generator) -> list[Case]:
    cases = []
    for R in (24, 48, 64):
        theta = one_of(generator, 500.0, 10_000.0, 500_000.0)
        turns = 2 * math.pi / speeds(R, theta)  # positions per full turn
        pair = one_of(generator, *range(2, R // 2 - 2))
        context = int((turns[pair] * turns[pair + 1]).sqrt())  # well between two pairs: rounding decides nothing
        cases.append(Case((R, theta, context), note=f"R = {R}, theta = {theta:g}, context = {context:,}"))
    context = int(2 * turns[-1])
    words = f"R = {R}, theta = {theta:g}, context = {context:,} (so long that every pair makes a full turn)"
    return [*cases, Case((R, theta, context), note=words)]


def slow_pairs__full_circle_is(angle: float):
    return lambda R, theta, context: int((context * speeds(R, theta) < angle).sum())


def slow_pairs__speed_without_the_two(R, theta, context):
    return int((context * theta ** (-torch.arange(R // 2) / R) < 2 * math.pi).sum())


def slow_pairs__all_channels(R, theta, context):
    return int((context * theta ** (-2.0 * torch.arange(R) / R) < 2 * math.pi).sum())


SLOW_PAIRS = Exercise(
    id="3.1",
    idea="rope_yarn",
    title="Count the pairs that never finish a turn",
    minutes=5,
    answer="slow_pairs",
    reference=slow_pairs,
    cases=slow_pairs_cases,
    mistakes=(
        Mistake(
            "fast ones",
            lambda R, theta, context: int((context * speeds(R, theta) >= 2 * math.pi).sum()),
            "You count the pairs that do make a full turn. The question is about the others.",
        ),
        Mistake(
            "one radian",
            slow_pairs__full_circle_is(1.0),
            "You compare the angle with 1. The angles are in radians, and a full turn is a larger angle than that.",
        ),
        Mistake(
            "half a turn",
            slow_pairs__full_circle_is(math.pi),
            "You compare the angle with pi. That is half a turn: the hand points the other way.",
        ),
        Mistake(
            "degrees",
            slow_pairs__full_circle_is(360.0),
            "You compare the angle with 360. `speeds` gives radians per position, not degrees.",
        ),
        Mistake(
            "numbers instead of pairs",
            lambda R, theta, context: 2 * slow_pairs(R, theta, context),
            "You count the numbers of the vector. Two of them make one pair: count the pairs.",
        ),
        Mistake(
            "speed of single channels",
            slow_pairs__all_channels,
            "You go through R speeds, one for each number of the vector. There is one speed for each pair, so R / 2.",
        ),
        Mistake(
            "exponent without the 2",
            slow_pairs__speed_without_the_two,
            "Your speeds fall too slowly from pair to pair: the exponent of theta is too small. `speeds` has it right.",
        ),
        Mistake(
            "half of the half",
            lambda R, theta, context: int((context * speeds(R // 2, theta) < 2 * math.pi).sum()),
            "You hand R // 2 to `speeds`. It wants the width R of the whole vector and halves it itself.",
        ),
        Mistake(
            "place of the first",
            lambda R, theta, context: (context * speeds(R, theta) < 2 * math.pi).nonzero()[0].item(),
            "This is the place of the first slow pair, and there is none when all pairs make a full turn. Count the "
            "slow pairs.",
        ),
        Mistake(
            "theta ignored",
            lambda R, theta, context: slow_pairs(R, 10_000.0, context),
            "Your count does not change with theta: the function gets one, and uses 10000 whatever it is.",
        ),
        Mistake(
            "all pairs",
            lambda R, theta, context: int((speeds(R, theta) < 2 * math.pi).sum()),
            "This is R / 2, the number of all pairs. Compare the angle that each has reached after `context` positions "
            "with a full turn, and count those that fall short.",
        ),
        Mistake(
            "the example",
            lambda R, theta, context: 9,
            "9 is the count for one width, one theta and one context. Compute it from what the function is given.",
        ),
    ),
    hints=(
        "`speeds(R, theta)` gives the angle per position of each pair. Which angle has a pair reached after `context` "
        "positions?",
        "A full turn is 2 * math.pi radians. Compare all R / 2 angles with it at once: that is True or False a pair.",
        "The sum of a tensor of True and False counts the True ones; int(...) makes a plain number of it.",
    ),
    after="These are the pairs that YaRN slows down when the context grows.",
)
