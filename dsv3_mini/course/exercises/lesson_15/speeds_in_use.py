"""Exercise 15.4: when YaRN is on."""

from __future__ import annotations

from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_15.inputs import between, speeds, whole
from dsv3_mini.course.exercises.lesson_15.yarn_speeds import yarn_speeds


def speeds_in_use(plain, slowed, original, buffer, extended):
    return slowed if extended else plain


def speeds_in_use__by_buffer(plain, slowed, original, buffer, extended):
    return slowed if buffer > original else plain


def _cases(generator: Generator) -> list[Case]:
    width, original = 2 * whole(generator, 6, 20), 2 ** whole(generator, 7, 12)
    plain = speeds(width)
    slowed = yarn_speeds(plain, 1, width // 2 - 1, between(generator, 4, 50))
    return [
        Case((plain, slowed, original, buffer, extended), note=f"buffer {buffer}, original {original}, {extended=}")
        for extended in (True, False)
        for buffer in (original // 2, original, original * whole(generator, 2, 40))
    ]


SPEEDS_IN_USE = Exercise(
    id="15.4",
    idea="rope_yarn",
    title="when YaRN is on",
    minutes=5,
    answer="speeds_in_use",
    reference=speeds_in_use,
    cases=_cases,
    dims="pair",
    mistakes=(
        Mistake(
            "by the length of the buffer",
            speeds_in_use__by_buffer,
            "You look at the buffer. How many positions somebody allocates says nothing about how the weights were "
            "trained, and the same text would get other angles on a machine with more memory.",
        ),
        Mistake(
            "extended and a long buffer",
            lambda plain, slowed, original, buffer, extended: slowed if extended and buffer > original else plain,
            "You ask for a long buffer as well. Extended weights were trained with the slowed speeds, on short texts "
            "too.",
        ),
        Mistake(
            "extended or a long buffer",
            lambda plain, slowed, original, buffer, extended: slowed if extended or buffer > original else plain,
            "A long buffer alone switches YaRN on for you. Weights that were never extended keep their plain speeds.",
        ),
        Mistake(
            "the other way round",
            lambda plain, slowed, original, buffer, extended: plain if extended else slowed,
            "The other way round: extended weights use the slowed speeds.",
        ),
        Mistake(
            "always",
            lambda plain, slowed, original, buffer, extended: slowed,
            "YaRN is always on for you. Weights that were never extended keep their plain speeds.",
        ),
        Mistake(
            "never",
            lambda plain, slowed, original, buffer, extended: plain,
            "YaRN is never on for you. Extended weights were trained with the slowed speeds.",
        ),
    ),
    hints=(
        "Four numbers are given. Which of them is about the weights?",
        "How the weights were trained decides. One argument says that.",
    ),
    after="In this package that argument is a field of the config: `rope_scaling`, there or not.",
)
