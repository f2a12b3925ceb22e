"""Every exhibit of the bug museum: it runs, its symptom shows, and the checker of its exercise objects to it."""

from __future__ import annotations

import ast
import re

import pytest

from dsv3_mini.course import museum
from dsv3_mini.course.checking import Mistake
from dsv3_mini.course.exercises import exercise
from dsv3_mini.course.lessons import LESSONS
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.errors import InputError
from dsv3_mini.paths import repo_root

NUMBERS = list(museum._modules())


def found() -> list[Exhibit]:
    """The exhibits of every module that can be imported; one that cannot is a failure of its own below."""
    there: list[Exhibit] = []
    for number in NUMBERS:
        try:
            there += museum.exhibits_of(number)
        except Exception:
            continue
    return there


EXHIBITS = found()
each_exhibit = pytest.mark.parametrize("exhibit", EXHIBITS, ids=[exhibit.id for exhibit in EXHIBITS])


def mistake_of(exhibit: Exhibit) -> Mistake:
    return exercise(exhibit.exercise).mistake(exhibit.mistake)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_lesson_has_its_exhibits_in_order(number: str) -> None:
    assert number in {lesson.number for lesson in LESSONS}
    ids = [exhibit.id for exhibit in museum.exhibits_of(number)]
    assert ids and ids == [f"{int(number)}.{letter}" for letter in "ABCDE"[: len(ids)]]


@each_exhibit
def test_definition_is_complete(exhibit: Exhibit) -> None:
    assert exhibit.exercise.split(".")[0] == exhibit.id.split(".")[0], "the exercise is of another lesson"
    assert exhibit.seen in exhibit.choices and len(exhibit.choices) >= 2
    assert len(set(exhibit.choices.values())) == len(exhibit.choices)
    for text in (exhibit.story, exhibit.question, *exhibit.diagnosis):
        assert text == text.strip() and text[-1] in ".?!)", f"not a sentence: {text!r}"
    assert exhibit.diagnosis


@each_exhibit
def test_its_code_is_a_function_of_the_exercise_that_reads_like_an_answer(exhibit: Exhibit) -> None:
    owner = exercise(exhibit.exercise)
    wrong = mistake_of(exhibit).wrong
    assert wrong.__name__.startswith(f"{owner.answer}__"), "named NAME__something, where NAME is the answer's name"
    code = exhibit.code()
    assert "__" not in re.sub(r"__(init|call)__", "", code), "the shown code gives away that it is wrong"
    (top,) = ast.parse(code).body
    assert isinstance(top, (ast.FunctionDef, ast.ClassDef))
    assert top.name == owner.answer
    assert code in str(exhibit.show()).replace("\n    ", "\n") or code.splitlines()[0] in str(exhibit.show())


@each_exhibit
def test_the_checker_objects_by_name(exhibit: Exhibit) -> None:
    verdict = exercise(exhibit.exercise).judge(mistake_of(exhibit).wrong)
    assert (verdict.status, verdict.mistake) == ("wrong", exhibit.mistake)


@each_exhibit
def test_the_symptom_shows(exhibit: Exhibit, capsys: pytest.CaptureFixture[str]) -> None:
    seen = exhibit.run()
    printed = capsys.readouterr()
    assert re.search(r"\d", printed.out), "the symptom prints no number"
    assert printed.err == ""
    assert seen is None or seen._repr_png_().startswith(b"\x89PNG")


@each_exhibit
def test_the_diagnosis_tells_all(exhibit: Exhibit, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3_PROGRESS", str(tmp_path / "progress.json"))
    said = " ".join(str(exhibit.diagnose()).split())
    for text in (mistake_of(exhibit).message, *exhibit.diagnosis, exhibit.caught_by, exhibit.choices[exhibit.seen]):
        assert " ".join(text.split()) in said


@each_exhibit
def test_the_test_that_catches_it_exists(exhibit: Exhibit) -> None:
    file, _, name = exhibit.caught_by.partition("::")
    path = repo_root() / file
    assert path.is_file(), f"{file} does not exist"
    names = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
    assert name.startswith("test_") and name in names, f"{file} has no {name}"


def test_exhibits_are_found_by_id() -> None:
    for exhibit in EXHIBITS:
        assert museum.exhibit(exhibit.id) is exhibit
    with pytest.raises(InputError, match=r"no exhibit '99\.A'"):
        museum.exhibit("99.A")
    assert museum.exhibits_of("99") == ()
