"""One exhibit of the bug museum: a mistake that runs without an error, and what it looks like from outside.

    bug = exhibit("3.A")
    bug.show()        the plausible code
    bug.predict()     "what will you see?"
    bug.run()         the symptom
    bug.diagnose()    your guess, the cause, what the exercise's checker says to it, the test that catches it

The code of an exhibit is one of the usual mistakes of an exercise, so the checker of that exercise must object to it;
tests hold that. Definitions are in `museum/lesson_NN.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dsv3_mini.course import progress
from dsv3_mini.course.checking import source
from dsv3_mini.course.exercises import exercise
from dsv3_mini.course.panel import Panel
from dsv3_mini.course.prediction import Prediction, predict


@dataclass(frozen=True)
class Exhibit:
    """One mistake.

    Attributes:
        id: lesson and letter, "3.A".
        title: its name, in a few words.
        exercise: the exercise whose checker must object.
        mistake: name of that exercise's `Mistake` (a function) whose code is shown.
        story: how somebody comes to write this, in one or two sentences.
        question: "what will you see?", asked before the run.
        choices: what one could expect.
        seen: the choice that is right.
        symptom: runs the mistake beside the right code; prints the numbers in words and gives a picture, or None.
        diagnosis: the cause, and how to recognise it; one string a paragraph.
        caught_by: the test of the suite that fails on it, "tests/model/test_mla.py::test_name".
    """

    id: str
    title: str
    exercise: str
    mistake: str
    story: str
    question: str
    choices: Mapping[str, str]
    seen: str
    symptom: Callable[[], Any]
    diagnosis: tuple[str, ...]
    caught_by: str
    _asked: dict[str, Prediction] = field(default_factory=dict, repr=False, compare=False)

    def code(self) -> str:
        """The plausible code, under the name that it has in the exercise."""
        owner = exercise(self.exercise)
        return source(owner.mistake(self.mistake).wrong, owner.answer)

    def show(self) -> Panel:
        """The plausible code."""
        return Panel("note", f"Exhibit {self.id}: {self.title}", (self.story,), self.code())

    def predict(self) -> Prediction:
        """Asks what will be seen. The guess is kept here too, for `diagnose`, should the progress file be unusable."""
        if self.id not in self._asked:
            self._asked[self.id] = predict(self.id, self.question, choices=self.choices)
        return self._asked[self.id]

    def run(self) -> Any:
        """Run it, and see the symptom."""
        return self.symptom()

    def diagnose(self) -> Panel:
        """The guess and the cause; what the checker says to this code; the test that would have caught it."""
        owner = exercise(self.exercise)
        verdict = owner.judge(owner.mistake(self.mistake).wrong)
        said = self.predict().reveal(self.seen)
        assert isinstance(said, Panel)  # of a choice, not of a sketch
        if self.predict().guess is not None:  # a run of all cells is not a visit
            progress.record_exhibit(self.id)
        return Panel(
            "note",
            f"Exhibit {self.id}: diagnosis",
            (
                *said.paragraphs,
                *self.diagnosis,
                f"Handed in as exercise {self.exercise}, it meets: {verdict.reason}",
                f"The test that catches it: {self.caught_by}",
            ),
        )
