"""The exercises of all lessons: `lesson_NN.py` holds those of lesson NN, in their order, as `EXERCISES`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from dsv3_mini.course.checking import Exercise
from dsv3_mini.errors import InputError


@cache
def _modules() -> dict[str, str]:
    """Number of a lesson -> name of its module."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name.startswith("lesson_"))
    return {name.removeprefix("lesson_"): f"{__name__}.{name}" for name in names}


def exercises_of(lesson: str) -> tuple[Exercise, ...]:
    """The exercises of a lesson ("03"); none for a lesson that is not written yet. Other lessons are not imported."""
    if lesson not in _modules():
        return ()
    return tuple(importlib.import_module(_modules()[lesson]).EXERCISES)


def all_exercises() -> tuple[Exercise, ...]:
    """Every exercise of the course, in the order of the lessons."""
    return tuple(entry for lesson in _modules() for entry in exercises_of(lesson))


def exercise(number: str) -> Exercise:
    """One exercise by its id, such as "3.2". Raises `InputError` that lists what its lesson has."""
    there = exercises_of(str(number).split(".")[0].zfill(2))
    for entry in there:
        if entry.id == number:
            return entry
    known = [f"its lesson has {', '.join(entry.id for entry in there)}"] if there else []
    raise InputError("; ".join([f'there is no exercise {number!r} (an id is a text such as "1.2")', *known]))
