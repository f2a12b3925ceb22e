"""Exercise 9.5: how many tokens a step of decoding gives when the modules write drafts."""

from __future__ import annotations

import math

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake


def tokens_per_step(acceptance):
    expected, reached = 1.0, 1.0  # the main model's own token comes for certain
    for p in acceptance:
        reached = reached * p  # this draft counts only when all before it were right
        expected = expected + reached
    return expected


def _accepted(generator: Generator) -> list[Case]:
    def chances(number: int) -> list[float]:
        return (0.2 + 0.7 * torch.rand(number, generator=generator)).tolist()

    return [
        Case((chances(1),), note="one draft"),
        Case((chances(2),), note="two drafts"),
        Case((chances(4),), note="four drafts"),
        Case(([1.0, 1.0, 1.0],), note="three drafts that are always right"),
        Case(([0.0, *chances(1)],), note="a first draft that is never right"),
        Case(([],), note="no draft at all"),
    ]


DRAFTS = Exercise(
    id="9.5",
    idea="specdec",
    title="expected tokens of one step",
    minutes=6,
    answer="tokens_per_step",
    reference=tokens_per_step,
    cases=_accepted,
    mistakes=(
        Mistake(
            "drafts on their own",
            lambda acceptance: 1.0 + sum(acceptance),
            "For one draft that is right. A later draft is worth nothing when an earlier one was wrong: it continues a "
            "text that is not written.",
        ),
        Mistake(
            "main model forgotten",
            lambda acceptance: tokens_per_step(acceptance) - 1,
            "You count the drafts only. The main model's own token comes in every step.",
        ),
        Mistake(
            "main model forgotten, drafts on their own",
            lambda acceptance: float(sum(acceptance)),
            "Two things: the main model's own token is not counted, and a later draft counts for you even when an "
            "earlier one was wrong.",
        ),
        Mistake(
            "all or nothing",
            lambda acceptance: 1.0 + len(acceptance) * math.prod(acceptance),
            "You count the drafts only when all of them are right. The ones before the first wrong draft count, too.",
        ),
        Mistake(
            "all accepted",
            lambda acceptance: 1.0 + math.prod(acceptance),
            "You add the chance that all drafts are right. The first draft counts also when the second one is wrong.",
        ),
        Mistake(
            "first draft only",
            lambda acceptance: 1.0 + (acceptance[0] if acceptance else 0.0),
            "Only the first draft counts for you.",
        ),
        Mistake(
            "mean of the drafts",
            lambda acceptance: 1.0 + sum(acceptance) / max(len(acceptance), 1),
            "You add the mean of the chances, which is one draft's worth. Each draft adds something of its own.",
        ),
        Mistake(
            "compound",
            lambda acceptance: math.prod(1.0 + p for p in acceptance),
            "Multiplying 1 + p lets drafts multiply, too. A draft adds one token at most; only the chances multiply.",
        ),
        Mistake(
            "every draft",
            lambda acceptance: 1.0 + len(acceptance),
            "That is the most that a step can give: every draft accepted.",
        ),
        Mistake(
            "endless drafts",
            lambda acceptance: 1 / (1 - acceptance[0]),
            "That is the sum for drafts without end, all with the same chance. The number of drafts is given.",
        ),
    ),
    hints=(
        "Two drafts: with which chance does the step give one token, two, three?",
        "A token of a draft counts when its draft and all before it are right. How likely is that?",
        "Keep a running product of the chances, and add it up draft by draft; the sum begins with the main model's own "
        "token.",
    ),
    after="Lesson 12 measures this, and what a step with drafts costs.",
)
