"""The list of lessons, and what it knows of a lesson without running it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dsv3_mini.course import exercises_of, exhibits_of
from dsv3_mini.course.lessons import LESSONS, Asked, Lesson, lesson
from dsv3_mini.errors import InputError
from dsv3_mini.paths import repo_root

WRITTEN = [entry for entry in LESSONS if exercises_of(entry.number)]


def test_lessons_are_numbered_in_order() -> None:
    assert [entry.number for entry in LESSONS] == [f"{n:02}" for n in range(19)]
    assert len({entry.slug for entry in LESSONS}) == len({entry.title for entry in LESSONS}) == 19


def test_every_notebook_is_that_of_a_lesson() -> None:
    planned = {entry.file for entry in LESSONS}
    assert {path.name for path in (repo_root() / "notebooks").glob("*.ipynb")} <= planned
    for entry in LESSONS:
        assert entry.notebook is None or entry.notebook.name == entry.file


def test_a_lesson_is_found_by_its_number() -> None:
    assert lesson("03").file == "03_positions.ipynb"
    for number in ("3", "19", ""):
        with pytest.raises(InputError, match=r"no lesson .*00 to 18"):
            lesson(number)


@pytest.mark.parametrize("entry", WRITTEN, ids=[entry.number for entry in WRITTEN])
def test_what_a_lesson_asks_is_what_its_definitions_say(entry: Lesson) -> None:
    asked = entry.asks()
    assert asked.exercises == {exercise.id: exercise.title for exercise in exercises_of(entry.number)}
    assert asked.exhibits == {exhibit.id: exhibit.title for exhibit in exhibits_of(entry.number)}
    assert list(asked.predictions) == [f"{int(entry.number)}.p{n + 1}" for n in range(len(asked.predictions))]


def test_a_lesson_that_is_not_written_asks_nothing() -> None:
    assert Lesson("99", "nothing", "Nothing", "nothing").asks() == Asked({}, (), {})


def test_asking_needs_no_torch() -> None:
    code = (
        "import sys; from dsv3_mini.course.lessons import LESSONS; [lesson.asks() for lesson in LESSONS]; "
        "assert not {'torch', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=repo_root()).returncode == 0
