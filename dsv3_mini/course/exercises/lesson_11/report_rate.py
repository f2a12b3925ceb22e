"""Exercise 11.3: the learning rate of the report."""

from __future__ import annotations

import math

from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_11.inputs import between, whole


def report_rate(step, trillions):
    if step < 2000:
        return 2.2e-4 * step / 2000
    if trillions < 10:
        return 2.2e-4
    if trillions < 14.3:
        share = (trillions - 10) / 4.3
        return 2.2e-5 + (2.2e-4 - 2.2e-5) * (1 + math.cos(math.pi * share)) / 2
    return 2.2e-5 if trillions < 14.633 else 7.3e-6


def _rate(
    warmup=lambda step: min(1.0, step / 2000), fall=lambda share: (1 + math.cos(math.pi * share)) / 2, low=2.2e-5,
    begin=10.0, end=14.3, last=14.633, final=7.3e-6,
):  # fmt: skip
    """The schedule above with one of its parts changed."""

    def wrong(step, trillions):
        if trillions < begin:
            rate = 2.2e-4
        elif trillions < end:
            rate = low + (2.2e-4 - low) * fall((trillions - begin) / (end - begin))
        else:
            rate = 2.2e-5 if trillions < last else final
        return warmup(step) * rate

    return wrong


def _cases(generator: Generator) -> list[Case]:
    late = whole(generator, 200_000, 240_000)
    return [
        Case((whole(generator, 1, 1999), 0.001), note="in the warm-up"),
        Case((2000, 0.026), note="at the end of the warm-up"),
        Case((whole(generator, 20_000, 150_000), between(generator, 2.0, 9.9)), note="before 10T tokens"),
        Case((late, between(generator, 10.3, 11.8)), note="in the first half of the fall"),
        Case((late, between(generator, 12.5, 14.0)), note="in the second half of the fall"),
        Case((late, between(generator, 14.35, 14.45)), note="after the fall"),
        # 333B and 167B swapped would change at 14.467T: one draw before that, one after.
        Case((late, between(generator, 14.5, 14.6)), note="late in the 333B tokens after the fall"),
        Case((243_000, between(generator, 14.64, 14.8)), note="in the last 167B tokens"),
    ]


REPORT_RATE = Exercise(
    id="11.3",
    idea="pretraining",
    title="the learning rate of the report",
    minutes=10,
    answer="report_rate",
    reference=report_rate,
    cases=_cases,
    tolerance=1e-9,
    mistakes=(
        Mistake(
            "straight line",
            _rate(fall=lambda share: 1 - share),
            "From 10T on the rate falls along a straight line. The report says cosine: slow at both ends.",
        ),
        Mistake(
            "quarter cosine",
            _rate(fall=lambda share: math.cos(math.pi / 2 * share)),
            "The cosine stops at a quarter of its period, where it is steepest. Use half a period, from 1 to -1, "
            "moved and scaled.",
        ),
        Mistake(
            "whole cosine",
            _rate(fall=lambda share: (1 + math.cos(2 * math.pi * share)) / 2),
            "The rate comes back up in the second half of the fall: that is a whole period of the cosine. "
            "Use half of one.",
        ),
        Mistake(
            "cosine to zero",
            _rate(low=0.0),
            "The cosine falls to 0. It ends at 2.2e-5, and there the constant part begins without a jump.",
        ),
        Mistake(
            "cosine to the last rate",
            _rate(low=7.3e-6),
            "The cosine falls to the last of the rates. It ends at 2.2e-5; 7.3e-6 comes later, with a jump.",
        ),
        Mistake(
            "cosine over everything",
            _rate(begin=0.0),
            "The fall begins with the first token, as in many recipes. The report holds the peak for 10T tokens.",
        ),
        Mistake(
            "cosine to the end",
            _rate(end=14.8, last=14.8),
            "The fall goes on to the last token. It takes 4.3T tokens and ends at 14.3T.",
        ),
        Mistake(
            "fall from above the peak",
            lambda step, trillions: (
                _rate()(step, trillions)
                + (2.2e-5 * (1 + math.cos(math.pi * (trillions - 10) / 4.3)) / 2 if 10 <= trillions < 14.3 else 0.0)
            ),
            "At 10T tokens the rate jumps up, above its peak: the low end is added to a cosine that is as high as the "
            "peak alone. Only the difference of the two ends falls.",
        ),
        Mistake(
            "units",
            lambda step, trillions: 2.2e-4 * min(1.0, step / 2000),
            "After the warm-up the rate never changes. The tokens come in trillions: compare them with 10, not with "
            "10e12.",
        ),
        Mistake("no warm-up", _rate(warmup=lambda step: 1.0), "The warm-up over the first 2K steps is missing."),
        Mistake(
            "warm-up of one step less",
            _rate(warmup=lambda step: min(1.0, (step - 1) / 2000)),
            "The warm-up is one step late: with steps that count from 1, the rate at step 2000 is the peak.",
        ),
        Mistake(
            "no last part",
            _rate(final=2.2e-5),
            "In the last 167B tokens the rate is lower once more.",
        ),
        Mistake(
            "last part for 500B",
            _rate(last=14.3),
            "The last 500B tokens have two rates, the higher one for the first 333B of them.",
        ),
        Mistake(
            "parts of the last 500B swapped",
            _rate(last=14.467),
            "The higher of the last two rates lasts for 333B tokens and the lower one for 167B, not the other way "
            "round.",
        ),
    ),
    hints=(
        "Five parts, one after the other: four of them are told apart by the tokens, the first one by the step.",
        "In the fall, let a share go from 0 at 10T to 1 at 14.3T. The cosine of pi times the share goes from 1 to -1; "
        "move and scale that to go from 1 to 0.",
        "The rate in the fall is the low end plus (high end minus low end) times that.",
    ),
    after="The same function with one number, the length of the run, is what dsv3_mini.train.schedule has.",
)
