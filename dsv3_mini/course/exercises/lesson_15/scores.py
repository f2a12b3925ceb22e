"""Exercise 15.3: scores of one head of MLA with YaRN's temperature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_15.inputs import between, whole


def scores(q_nope, q_pe, k_nope, k_pe, s):
    temperature = (0.1 * math.log(s) + 1) ** 2
    scale = temperature / math.sqrt(q_nope.shape[-1] + q_pe.shape[-1])
    return (q_nope @ k_nope.T + q_pe @ k_pe.T) * scale


def scores__on_cos_and_sin(q_nope, q_pe, k_nope, k_pe, s):
    m = 0.1 * math.log(s) + 1
    q_pe, k_pe = m * q_pe, m * k_pe  # as if cos and sin had been multiplied
    return (q_nope @ k_nope.T + q_pe @ k_pe.T) / math.sqrt(q_nope.shape[-1] + q_pe.shape[-1])


def _scores(
    temperature: Callable[[float], float] = lambda s: (0.1 * math.log(s) + 1) ** 2,
    width: Callable[[int, int], float] = lambda nope, rope: nope + rope,
    content: float = 1,
    position: float = 1,
) -> Callable[..., Any]:
    """The scores above with one of their parts changed."""

    def wrong(q_nope, q_pe, k_nope, k_pe, s):
        scale = temperature(s) / math.sqrt(width(q_nope.shape[-1], q_pe.shape[-1]))
        return (content * (q_nope @ k_nope.T) + position * (q_pe @ k_pe.T)) * scale

    return wrong


def scores__in_both_places(q_nope, q_pe, k_nope, k_pe, s):
    return scores__on_cos_and_sin(q_nope, q_pe, k_nope, k_pe, s) * (0.1 * math.log(s) + 1) ** 2


def _cases(generator: Generator) -> list[Case]:
    queries, keys = whole(generator, 2, 4), whole(generator, 5, 9)
    nope, rope = whole(generator, 18, 40), 2 * whole(generator, 3, 7)
    q_nope, k_nope = torch.randn(queries, nope, generator=generator), torch.randn(keys, nope, generator=generator)
    q_pe, k_pe = torch.randn(queries, rope, generator=generator), torch.randn(keys, rope, generator=generator)
    return [
        Case((q_nope, q_pe, k_nope, k_pe, between(generator, 4.0, 60.0))),
        Case((q_nope, q_pe, k_nope, k_pe, 40.0), note="the report's s"),
        Case((q_nope, q_pe, k_nope, k_pe, 1.0), note="s = 1: nothing changes"),
    ]


SCORES = Exercise(
    id="15.3",
    idea="rope_yarn",
    title="scores with YaRN's temperature",
    minutes=8,
    answer="scores",
    reference=scores,
    cases=_cases,
    dims="query key",
    tolerance=1e-5,
    mistakes=(
        Mistake(
            "on cos and sin",
            scores__on_cos_and_sin,
            "Only the part with position became larger, as if cos and sin had been multiplied. Where whole heads turn "
            "that is the same; in MLA the content part of the score does not pass through cos and sin, and is missed.",
        ),
        Mistake(
            "in both places",
            scores__in_both_places,
            "The factor is there twice: on the scale, and on the turned vectors too.",
        ),
        Mistake(
            "not squared",
            _scores(lambda s: 0.1 * math.log(s) + 1),
            "The factor is not squared. It stands for one on the query and one on the key, and their product counts.",
        ),
        Mistake(
            "no temperature",
            _scores(lambda s: 1.0),
            "These are the scores without YaRN: s changes nothing in them.",
        ),
        Mistake(
            "divided",
            _scores(lambda s: (0.1 * math.log(s) + 1) ** -2),
            "You divide by the factor. With more tokens to choose from, attention has to be sharper: scores grow.",
        ),
        Mistake(
            "logarithm of base 10",
            _scores(lambda s: (0.1 * math.log10(s) + 1) ** 2),
            "Your logarithm is that of base 10. The report's is the natural one.",
        ),
        Mistake(
            "logarithm of base 2",
            _scores(lambda s: (0.1 * math.log2(s) + 1) ** 2),
            "Your logarithm is that of base 2. The report's is the natural one.",
        ),
        Mistake(
            "no one added",
            _scores(lambda s: (0.1 * math.log(s)) ** 2),
            "The 1 is missing in 0.1 ln s + 1: with s = 1 all your scores are 0.",
        ),
        Mistake(
            "width of the content part",
            _scores(width=lambda nope, rope: nope),
            "The square root is that of the content part's width. A score adds up both parts, so both widths count.",
        ),
        Mistake(
            "width of the part with position",
            _scores(width=lambda nope, rope: rope),
            "The square root is that of the turned part's width. A score adds up both parts, so both widths count.",
        ),
        Mistake(
            "content alone",
            _scores(position=0),
            "The part with position is missing: queries and keys have two parts, and the score is the sum of both.",
        ),
        Mistake(
            "position alone",
            _scores(content=0),
            "The content part is missing: queries and keys have two parts, and the score is the sum of both.",
        ),
    ),
    hints=(
        "Two products, q with k for each part, are added up; then one scale for the sum.",
        "The scale is one over the square root of the width of a whole key, times the square of 0.1 ln s + 1.",
    ),
    after="With s = 40 the scale of DeepSeek-V3 grows from 0.0722 to 0.1352.",
)
