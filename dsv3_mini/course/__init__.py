"""The course: lessons that ask, exercises that answer back, mistakes to learn from, and the graph of ideas.

What a lesson uses, looked up on first use so that importing the package stays cheap:

    exercise("3.2").check(answer)   one exercise; also .hint() and .solution()
    predict("3.p1", ...)            a guess, recorded before the result is shown
    exhibit("3.A")                  one mistake of the bug museum
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "exercise": "dsv3_mini.course.exercises",
    "exercises_of": "dsv3_mini.course.exercises",
    "all_exercises": "dsv3_mini.course.exercises",
    "exhibit": "dsv3_mini.course.museum",
    "exhibits_of": "dsv3_mini.course.museum",
    "all_exhibits": "dsv3_mini.course.museum",
    "predict": "dsv3_mini.course.prediction",
}

__all__ = ["all_exercises", "all_exhibits", "exercise", "exercises_of", "exhibit", "exhibits_of", "predict"]

if TYPE_CHECKING:
    from dsv3_mini.course.exercises import all_exercises, exercise, exercises_of
    from dsv3_mini.course.museum import all_exhibits, exhibit, exhibits_of
    from dsv3_mini.course.prediction import predict


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'dsv3_mini.course' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
