"""The bug museum: `lesson_NN.py` holds the exhibits of lesson NN, in their order, as `EXHIBITS`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.errors import InputError


@cache
def _modules() -> dict[str, str]:
    """Number of a lesson -> name of its module."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name.startswith("lesson_"))
    return {name.removeprefix("lesson_"): f"{__name__}.{name}" for name in names}


def exhibits_of(lesson: str) -> tuple[Exhibit, ...]:
    """The exhibits of a lesson ("03"); none for a lesson that is not written yet. Other lessons are not imported."""
    if lesson not in _modules():
        return ()
    return tuple(importlib.import_module(_modules()[lesson]).EXHIBITS)


def all_exhibits() -> tuple[Exhibit, ...]:
    """Every exhibit, in the order of the lessons."""
    return tuple(entry for lesson in _modules() for entry in exhibits_of(lesson))


def exhibit(name: str) -> Exhibit:
    """One exhibit by its id, such as "3.A". Raises `InputError` that lists what its lesson has."""
    there = exhibits_of(str(name).split(".")[0].zfill(2))
    for entry in there:
        if entry.id == name:
            return entry
    known = [f"its lesson has {', '.join(entry.id for entry in there)}"] if there else []
    raise InputError("; ".join([f'the bug museum has no exhibit {name!r} (an id is a text such as "1.A")', *known]))
