"""One exhibit of the bug museum: shown, guessed, run, diagnosed. (Those of the course: test_museum.py.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsv3_mini.course import progress, showcase
from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.showcase import Exhibit


def double(x):
    return 2 * x


def double__squared(x):
    # looks as if double(x) had been meant
    return x**2


OWNER = Exercise(
    id="1.1", idea="mla", title="double", minutes=1, answer="double", reference=double, hints=("a.", "b."),
    cases=lambda generator: [Case((torch.randn(3, generator=generator),))],
    mistakes=(Mistake("squared", double__squared, "You squared it."),),
)  # fmt: skip


@pytest.fixture
def exhibit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exhibit:
    monkeypatch.setenv("DSV3_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setattr(showcase, "exercise", {"1.1": OWNER}.__getitem__)
    return new()


def new(**more: Any) -> Exhibit:
    fields = dict(
        id="1.A", title="<b>twice</b>", exercise="1.1", mistake="squared", story="A slip.", question="What is seen?",
        choices={"a": "nothing", "b": "other numbers"}, seen="b", symptom=lambda: print("4 is not 9"),
        diagnosis=("Two times two hides it.",), caught_by="tests/x.py::test_y",
    )  # fmt: skip
    return Exhibit(**{**fields, **more})


def test_it_shows_the_mistake_under_the_name_of_the_answer(exhibit: Exhibit) -> None:
    panel = exhibit.show()
    assert panel.code == "def double(x):\n    # looks as if double(x) had been meant\n    return x**2\n"
    assert "A slip." in str(panel)
    assert "&lt;b&gt;twice" in panel._repr_mimebundle_()["text/html"]


def test_it_runs_its_symptom(exhibit: Exhibit, capsys: pytest.CaptureFixture[str]) -> None:
    assert exhibit.run() is None
    assert capsys.readouterr().out == "4 is not 9\n"


@pytest.mark.parametrize(("guess", "said"), [(None, "You made no guess"), ("b", "You said (b)"), ("a", "You said (a)")])
def test_the_diagnosis_takes_up_the_guess_and_what_the_checker_says(
    exhibit: Exhibit, guess: str | None, said: str
) -> None:
    exhibit.predict().guess = guess
    panel = exhibit.diagnose()
    assert any(paragraph.startswith(said) for paragraph in panel.paragraphs)
    assert panel.paragraphs[-3:] == (
        "Two times two hides it.",
        "Handed in as exercise 1.1, it meets: You squared it.",
        "The test that catches it: tests/x.py::test_y",
    )
    done = progress.read()
    assert done.exhibits == ({} if guess is None else {"1.A": {"seen": True}})  # a run of all cells is not a visit
    assert done.exercises == {}, "the museum's try counted as one of the learner's"
    assert done.predictions == ({} if guess is None else {"1.A": {"guess": guess, "right": guess == "b"}})


def test_a_guess_is_kept_for_the_next_time_and_within_a_session_without_a_file(
    exhibit: Exhibit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exhibit.predict().guess = "a"
    assert new().predict().guess == "a"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DSV3_PROGRESS", str(tmp_path / "file" / "progress.json"))
    other = new(id="1.B")
    other.predict().guess = "a"
    assert "You said (a) nothing." in other.diagnose().paragraphs
