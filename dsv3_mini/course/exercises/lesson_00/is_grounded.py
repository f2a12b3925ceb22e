"""Exercise 0.4: are all numbers of a statement in the source?"""

from __future__ import annotations

import re

import torch

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_00.inputs import _between

NUMBER = r"\d+(?:\.\d+)?"  # digits, perhaps with a decimal part: 671 or 14.8


def is_grounded(statement, source):
    numbers = re.findall(NUMBER, statement)
    in_source = re.findall(NUMBER, source)
    return len(numbers) > 0 and all(number in in_source for number in numbers)


def is_grounded__bare_digits(statement, source):
    numbers = re.findall(NUMBER, statement)
    return len(numbers) > 0 and all(number in source for number in numbers)


def is_grounded__bare_digits_or_none(statement, source):
    return all(number in source for number in re.findall(NUMBER, statement))


def is_grounded__one_is_enough(statement, source):
    in_source = re.findall(NUMBER, source)
    return any(number in in_source for number in re.findall(NUMBER, statement))


def is_grounded__none_is_fine(statement, source):
    in_source = re.findall(NUMBER, source)
    return all(number in in_source for number in re.findall(NUMBER, statement))


def is_grounded__first_number(statement, source):
    numbers = re.findall(NUMBER, statement)
    return len(numbers) > 0 and numbers[0] in re.findall(NUMBER, source)


def is_grounded__without_decimals(statement, source):
    numbers = re.findall(r"\d+", statement)
    in_source = re.findall(r"\d+", source)
    return len(numbers) > 0 and all(number in in_source for number in numbers)


def is_grounded__between_spaces(statement, source):
    numbers = re.findall(NUMBER, statement)
    return len(numbers) > 0 and all(number in source.split() for number in numbers)


def is_grounded__word_borders(statement, source):
    numbers = re.findall(NUMBER, statement)
    return len(numbers) > 0 and all(re.search(rf"\b{number}\b", source) is not None for number in numbers)


def is_grounded__other_way_round(statement, source):
    numbers = re.findall(NUMBER, statement)
    return len(numbers) > 0 and all(number in numbers for number in re.findall(NUMBER, source))


def is_grounded__word_for_word(statement, source):
    return statement in source


def is_grounded__empty_list(statement, source):
    numbers = re.findall(NUMBER, statement)
    in_source = re.findall(NUMBER, source)
    return numbers and all(number in in_source for number in numbers)


def _statements(generator: torch.Generator) -> list[Case]:
    total, active = _between(300, 900, generator), _between(21, 89, generator)
    whole, decimal = _between(11, 19, generator), _between(1, 9, generator)
    machines = _between(1000, 1999, generator)
    source = (
        f"It has {total}B parameters, {active}B of them active. It read {whole}.{decimal} trillion tokens. "
        f"The machines number {machines}."
    )
    return [
        Case((f"{total}B parameters, {active}B at work", source), note="two numbers that are both in the source"),
        Case((f"{whole}.{decimal} trillion tokens", source), note="a number with a decimal part that is there"),
        Case((f"{machines} machines", source), note="a number at the end of a sentence of the source"),
        Case((f"${str(total)[0]}M of cost", source), note="a digit that occurs only inside other numbers"),
        Case((f"{decimal} trillion tokens", source), note="digits that occur only behind a decimal point"),
        Case((f"{total}B parameters on {machines + 1000} machines", source), note="a number that is there, one not"),
        Case((f"{machines + 1000} machines for {total}B parameters", source), note="a number that is not there first"),
        Case(("very many parameters", source), note="a statement without a number"),
        Case((f"{source} There are {machines + 1000} more.", source), note="all numbers of the source and one more"),
    ]


IS_GROUNDED = Exercise(
    id="0.4",
    idea="cost",
    title="Are all numbers of a statement in the source?",
    minutes=6,
    answer="is_grounded",
    reference=is_grounded,
    cases=_statements,
    mistakes=(
        Mistake(
            "bare_digits",
            is_grounded__bare_digits,
            'Digits inside another number count for you: `in` finds the text "6" in the text "671". A number must '
            "stand in the source as a number of its own.",
        ),
        Mistake(
            "bare_digits_or_none",
            is_grounded__bare_digits_or_none,
            'Two things. Digits inside another number count for you: `in` finds the text "6" in the text "671". '
            "And a statement without a number passes, as `all` of nothing is True.",
        ),
        Mistake("one_is_enough", is_grounded__one_is_enough, "For you one number is enough. All must be there."),
        Mistake(
            "none_is_fine",
            is_grounded__none_is_fine,
            "A statement without any number passes: `all` of nothing is True. Nothing is grounded there.",
        ),
        Mistake("first_number", is_grounded__first_number, "You look at the first number only. Check all of them."),
        Mistake(
            "without_decimals",
            is_grounded__without_decimals,
            "You cut numbers at the decimal point, so that 14.8 becomes 14 and 8. Find them with NUMBER.",
        ),
        Mistake(
            "between_spaces",
            is_grounded__between_spaces,
            'split() cuts at spaces only, and "671B" or "2048." stay in one piece. Find the numbers of the source '
            "as you found those of the statement.",
        ),
        Mistake(
            "word_borders",
            is_grounded__word_borders,
            'Between 671 and the B of "671B" there is no word border for a regular expression. Find the numbers of '
            "the source as you found those of the statement.",
        ),
        Mistake(
            "other_way_round",
            is_grounded__other_way_round,
            "The wrong way round: you ask whether every number of the source is in the statement.",
        ),
        Mistake(
            "word_for_word",
            is_grounded__word_for_word,
            "You look for the whole statement, word for word. Only its numbers need to be in the source.",
        ),
        Mistake(
            "empty_list",
            is_grounded__empty_list,
            "For a statement without a number you give the empty list itself: `x and y` is x when x is empty. "
            "Ask for `len(numbers) > 0`.",
        ),
    ),
    hints=(
        "`re.findall(NUMBER, text)` gives the numbers of a text as a list of strings.",
        "Make such a list of the statement and one of the source. `in` means something else for a list than for a "
        "string: an equal element.",
        "Every number of the first list must be in the second; `all(... for number in numbers)` says so. And what "
        "does `all` say about an empty list?",
    ),
    after='And still "37B parameters in total" passes. Numbers that match prove little.',
)
