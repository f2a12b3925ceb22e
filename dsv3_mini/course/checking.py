"""An exercise that answers back.

    exercise("1.1").check(document_mask)    not attempted / right / wrong, and why
    exercise("1.1").hint()                  one step further, each time
    exercise("1.1").solution()              only when asked for

A checker runs the answer on fresh random inputs beside the reference solution. Where they differ, it first asks the
exercise's own list of mistakes (each is a wrong solution with its message: whoever gets the same numbers has made that
mistake), then the general diagnosis of compare.py. Definitions are in `exercises/lesson_NN.py`.
"""

from __future__ import annotations

import inspect
import random
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dsv3_mini.course import guard, progress
from dsv3_mini.course.compare import close, difference
from dsv3_mini.course.panel import Panel

ROUNDS = 4  # fresh inputs for one check


@dataclass(frozen=True)
class Case:
    """One call of the answer: its arguments, and words for the message when it fails there ("a text of one token")."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Mistake:
    """A usual mistake: a wrong solution (or value), and what to tell whoever makes it.

    A function named NAME__something, where NAME is the answer's name, can be shown in the bug museum.
    """

    name: str
    wrong: Any
    message: str


@dataclass(frozen=True)
class Verdict:
    """What `check` gives.

    Attributes:
        exercise: its id.
        status: "right", "wrong" or "not attempted".
        reason: why, for the learner.
        mistake: name of the usual mistake that was recognised, or "".
    """

    exercise: str
    status: str
    reason: str = ""
    mistake: str = ""

    def panel(self) -> Panel:
        kind, word = {
            "right": ("right", "right"), "wrong": ("wrong", "not yet"), "not attempted": ("open", "not attempted")
        }[self.status]  # fmt: skip
        return Panel(kind, f"Exercise {self.exercise}: {word}", (self.reason,) if self.reason else ())

    def __str__(self) -> str:
        return str(self.panel())

    __repr__ = __str__

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.panel()._repr_mimebundle_()


@dataclass(frozen=True)
class Exercise:
    """One exercise of a lesson.

    Attributes:
        id: lesson and number, "3.2".
        idea: the node of the idea graph (report face) that it belongs to.
        title: what to do, in a few words.
        minutes: how long it takes.
        answer: the name that the answer has in the lesson, "document_mask".
        reference: the solution: a function or class of that name, or, for an answer that is a value, the line of code
            that computes it ("equal_groups = 576 / 256").
        value: the right value, for an answer that is one (a number, a tensor, a tuple, ...); else None.
        cases: makes the inputs of one check: `cases(generator)` -> list of `Case`. It is called `ROUNDS` times with a
            fresh generator and must vary sizes as well as numbers.
        use: how an answer and a case become a result; by default the answer is called. An exercise whose answer is a
            class builds and runs it here.
        dims: names of the result's dimensions, "B T D" (for a tuple, one string each).
        tolerance: see `compare.difference`.
        mistakes: usual mistakes, the most specific first.
        hints: in steps, from a nudge to nearly the answer; at least two.
        after: one sentence for who got it right: what that is good for.
    """

    id: str
    idea: str
    title: str
    minutes: int
    answer: str
    reference: Any
    hints: tuple[str, ...]
    value: Any = None
    cases: Callable[[torch.Generator], Sequence[Case]] | None = None
    use: Callable[[Any, Case], Any] | None = None
    dims: str | Sequence[str] = ""
    tolerance: float = 1e-5
    mistakes: tuple[Mistake, ...] = ()
    after: str = ""
    _shown: list[int] = field(default_factory=lambda: [0], repr=False, compare=False)

    @property
    def lesson(self) -> str:
        """Number of the lesson, "03"."""
        return f"{int(self.id.split('.')[0]):02}"

    def check(self, answer: Any = ...) -> Verdict:
        """Judge an answer, and record how it went."""
        verdict = self.judge(answer)
        if verdict.status != "not attempted":
            progress.record_exercise(self.id, right=verdict.status == "right")
        return verdict

    def hint(self) -> Panel:
        """The next hint."""
        number = min(self._shown[0], len(self.hints) - 1)
        self._shown[0] = number + 1
        progress.record_exercise(self.id, hints=number + 1)
        last = number == len(self.hints) - 1
        more = f'That was the last one; exercise("{self.id}").solution() shows a solution.' if last else ""
        heading = f"Exercise {self.id}: hint {number + 1} of {len(self.hints)}"
        return Panel("hint", heading, tuple(filter(None, (self.hints[number], more))))

    def solution_code(self) -> str:
        """The reference solution as code that can stand in place of the stub."""
        return self.reference if isinstance(self.reference, str) else source(self.reference, self.answer)

    def solution(self) -> Panel:
        """The reference solution."""
        progress.record_exercise(self.id, solution_shown=True)
        return Panel("note", f"Exercise {self.id}: a solution", code=self.solution_code())

    def mistake(self, name: str) -> Mistake:
        """One of the usual mistakes, by its name."""
        return {mistake.name: mistake for mistake in self.mistakes}[name]

    # -- judging --

    def judge(self, answer: Any) -> Verdict:
        """What `check` does, without recording it. Never raises because of the answer."""
        if answer is None or answer is ... or guard.is_stub(answer):
            how = f'Write your answer, run its cell, and check again. exercise("{self.id}").hint() helps.'
            return Verdict(self.id, "not attempted", how)
        reason, mistake = self._judge_value(answer) if self.cases is None else self._judge_calls(answer)
        if reason is None:
            return Verdict(self.id, "right", self.after)
        return Verdict(self.id, "wrong", reason, mistake)

    def _judge_value(self, answer: Any) -> tuple[str | None, str]:
        problem = difference(answer, self.value, dims=self.dims, tolerance=self.tolerance, what=f"`{self.answer}`")
        if problem is None:
            return None, ""
        for mistake in self.mistakes:
            if close(answer, mistake.wrong, self.tolerance):
                return mistake.message, mistake.name
        return _sentence(problem), ""

    def _judge_calls(self, answer: Any) -> tuple[str | None, str]:
        assert self.cases is not None
        if not callable(answer):
            kind = type(answer).__name__
            return f"Hand in {self.answer} itself, without calling it; this is a value of type {kind}.", ""
        cases: list[Case] = []
        for _ in range(ROUNDS):
            cases += self.cases(torch.Generator().manual_seed(random.SystemRandom().getrandbits(40)))
        results, expected = [], []
        for number, case in enumerate(cases):
            if (problem := self._cannot_call(answer, case)) is not None:
                return problem, ""
            result = self._run(answer, case, quiet=number > 0)
            expected.append(self._run(self.reference, case, quiet=True))
            results.append(result)
            if isinstance(result, guard.Failure):
                break
        problem = self._first_problem(results, expected, cases)
        if problem is None:
            return None, ""
        for mistake in self.mistakes:
            if self._is_mistake(mistake, results, cases):
                return mistake.message, mistake.name
        return problem, ""

    def _run(self, answer: Any, case: Case, quiet: bool) -> Any:
        def call(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
            args, kwargs = inputs
            return self.use(answer, Case(args, kwargs, case.note)) if self.use else answer(*args, **kwargs)

        return guard.run(call, (case.args, case.kwargs), quiet=quiet)

    def _cannot_call(self, answer: Any, case: Case) -> str | None:
        if self.use is not None:
            return None
        try:
            signature = inspect.signature(answer)
        except (TypeError, ValueError):  # a built-in that has none: calling it will tell
            return None
        try:
            signature.bind(*case.args, **case.kwargs)
        except TypeError as error:
            return f"It cannot be called as {self.answer}{inspect.signature(self.reference)}: {error}."
        return None

    def _first_problem(self, results: Sequence[Any], expected: Sequence[Any], cases: Sequence[Case]) -> str | None:
        for result, right, case in zip(results, expected, cases):
            assert not isinstance(right, guard.Failure), f"the solution of exercise {self.id} fails: {right}"
            if isinstance(result, guard.Failure):
                problem: str | None = result.reason
            else:
                problem = difference(result, right, dims=self.dims, tolerance=self.tolerance)
            if problem is not None:
                at = f"With {case.note}: " if case.note else ""
                return _sentence(at + problem)
        return None

    def _is_mistake(self, mistake: Mistake, results: Sequence[Any], cases: Sequence[Case]) -> bool:
        """Whether the answer gives what the mistake gives, on every input."""
        for result, case in zip(results, cases):
            wrong = self._run(mistake.wrong, case, quiet=True)
            if isinstance(result, guard.Failure) or isinstance(wrong, guard.Failure):
                if not (isinstance(result, guard.Failure) and isinstance(wrong, guard.Failure)):
                    return False
                if _plain(result.reason) != _plain(wrong.reason):
                    return False
            elif not close(result, wrong, self.tolerance):
                return False
        return True


def source(function: Any, name: str) -> str:
    """The code of a reference or a mistake under the name that it has in the lesson."""
    code = textwrap.dedent(inspect.getsource(function))
    return re.sub(rf"\b{re.escape(function.__name__)}\b", name, code)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


def _plain(reason: str) -> str:
    """A reason without the place, which differs between the learner's code and ours."""
    return reason.split(" (line ")[0]
