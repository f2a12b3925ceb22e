"""Every exercise of the course: its solution is right, what is empty is not attempted, a mistake meets its message."""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dsv3_mini.course import exercises, guard
from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.idea_graph import load_idea_graph
from dsv3_mini.course.lessons import LESSONS
from dsv3_mini.errors import InputError

CHECKS = 5  # each on fresh inputs
NUMBERS = list(exercises._modules())


def found() -> list[Exercise]:
    """The exercises of every module that can be imported; one that cannot is a failure of its own below."""
    there: list[Exercise] = []
    for number in NUMBERS:
        try:
            there += exercises.exercises_of(number)
        except Exception:
            continue
    return there


EXERCISES = found()
CALLED = [exercise for exercise in EXERCISES if exercise.cases is not None]
MISTAKES = [(exercise, mistake) for exercise in EXERCISES for mistake in exercise.mistakes]
each_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=[exercise.id for exercise in EXERCISES])
each_called = pytest.mark.parametrize("exercise", CALLED, ids=[exercise.id for exercise in CALLED])


# ---- definitions


@pytest.mark.parametrize("number", NUMBERS)
def test_a_lesson_has_its_exercises_in_order(number: str) -> None:
    assert number in {lesson.number for lesson in LESSONS}
    ids = [exercise.id for exercise in exercises.exercises_of(number)]
    assert ids == [f"{int(number)}.{count}" for count in range(1, len(ids) + 1)]
    assert 3 <= len(ids) <= 6


@each_exercise
def test_definition_is_complete(exercise: Exercise) -> None:
    assert exercise.idea in load_idea_graph("report").nodes, f"{exercise.idea!r} is no idea of the report's graph"
    assert exercise.answer.isidentifier()
    assert exercise.title and exercise.title[-1] not in ".!", "a title is a few words"
    assert 1 <= exercise.minutes <= 30
    assert len(exercise.hints) >= 2 and len(exercise.mistakes) >= 3
    texts = [*exercise.hints, *(mistake.message for mistake in exercise.mistakes), exercise.after]
    for text in filter(None, texts):
        assert text == text.strip() and "\n" not in text and text[-1] in ".?!)", f"not a sentence: {text!r}"
    if exercise.cases is None:
        assert exercise.value is not None and isinstance(exercise.reference, str)
    else:
        assert exercise.value is None and exercise.reference.__name__ == exercise.answer


@each_exercise
def test_names_and_messages_of_mistakes_are_distinct(exercise: Exercise) -> None:
    names, messages = [m.name for m in exercise.mistakes], [m.message for m in exercise.mistakes]
    # Several wrong values may come from one slip; two wrong functions have two causes.
    for texts in (names, exercise.hints, *([messages] if exercise.cases else ())):
        assert len(set(texts)) == len(texts)


@each_exercise
def test_neither_hints_nor_messages_hold_the_solution(exercise: Exercise) -> None:
    statements = body(exercise.solution_code())
    for text in [*exercise.hints, *(mistake.message for mistake in exercise.mistakes)]:
        assert not all(statement in squeezed(text) for statement in statements), f"gives the solution away: {text!r}"


def body(code: str) -> list[str]:
    """The statements of a solution without white space, without head and docstring; of a value, what is assigned."""
    (top, *more) = ast.parse(code).body
    if isinstance(top, ast.Assign) and not more:
        return [squeezed(ast.unparse(top.value))]
    found = [] if isinstance(top, (ast.FunctionDef, ast.ClassDef)) else [top]
    for node in (top, *more):
        found += node.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
    said = [ast.unparse(statement) for statement in found if not _is_text(statement)]
    return [squeezed(statement.removeprefix("return ")) for statement in said]


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def squeezed(text: str) -> str:
    return re.sub(r"[\s'\"`]", "", text)


# ---- judging


@each_exercise
def test_reference_is_right_on_any_input(exercise: Exercise) -> None:
    answer = exercise.value if exercise.cases is None else exercise.reference
    for _ in range(CHECKS):
        verdict = exercise.judge(answer)
        assert (verdict.status, verdict.reason) == ("right", exercise.after)


@each_exercise
def test_shown_solution_is_what_the_checker_wants(exercise: Exercise) -> None:
    """Run as it is shown, where the exercise was written: a lesson imports or builds the names that it uses."""
    code = compile(exercise.solution_code(), exercise.id, "exec")
    if exercise.cases is None:
        return  # the names in it are the lesson's; tests/notebooks/test_lessons.py runs it there
    space = dict(vars(inspect.getmodule(exercise.reference)))
    exec(code, space)
    assert exercise.judge(space[exercise.answer]).status == "right"


@each_exercise
def test_empty_stub_is_not_attempted(exercise: Exercise) -> None:
    for answer in (None, ..., stub_of(exercise)):
        verdict = exercise.judge(answer)
        assert verdict.status == "not attempted", verdict
        assert "hint()" in verdict.reason


def stub_of(exercise: Exercise) -> Any:
    """What the lesson holds before anybody wrote something."""
    if exercise.cases is None:
        return ...
    if isinstance(exercise.reference, type):
        methods = [name for name, value in vars(exercise.reference).items() if inspect.isfunction(value)]
        code = f"class {exercise.answer}:\n" + "".join(
            f"    def {name}(self, *inputs):\n        ...\n" for name in methods
        )
    else:
        parameters = inspect.signature(exercise.reference).parameters.values()
        names = ", ".join(str(p.replace(annotation=p.empty, default=p.empty)) for p in parameters)
        code = f'def {exercise.answer}({names}):\n    """What it does."""\n    ...  # your code here\n'
    space: dict[str, Any] = {}
    exec(code, space)
    return space[exercise.answer]


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES, ids=[f"{e.id}-{m.name}" for e, m in MISTAKES])
def test_each_mistake_meets_its_own_message(exercise: Exercise, mistake: Mistake) -> None:
    for _ in range(CHECKS):
        verdict = exercise.judge(mistake.wrong)
        assert (verdict.status, verdict.mistake, verdict.reason) == ("wrong", mistake.name, mistake.message)


@each_called
def test_whatever_an_answer_does_it_is_wrong_for_a_reason(exercise: Exercise) -> None:
    for said, answer in bad_answers(exercise):
        verdict = exercise.judge(answer)
        assert verdict.status == "wrong", f"an answer that {said} is {verdict.status}"
        assert len(verdict.reason) > 10 and "Traceback" not in verdict.reason, said


def bad_answers(exercise: Exercise) -> Iterator[tuple[str, Any]]:
    """What any exercise may be handed."""

    def raises(*inputs: Any, **more: Any) -> Any:
        raise RuntimeError("no")

    def forgets(*inputs: Any, **more: Any) -> None:
        for _ in inputs:  # does something, and returns nothing
            pass

    yield "is a value", 7.5
    yield "raises", raises
    yield "returns nothing", forgets
    yield "returns another type", lambda *inputs, **more: object()
    if isinstance(exercise.reference, type):
        yield "is an empty class", type(exercise.answer, (), {"value": 1})
        return
    yield "gives NaN", lambda *inputs, **more: _with_nan(exercise.reference(*inputs, **more))
    if exercise.use is None:
        yield "takes no input", lambda: 1
        if any(_tensors(case) for case in exercise.cases(torch.Generator().manual_seed(0))):
            yield "changes its input", lambda *inputs, **more: _change(exercise.reference, inputs, more)


def _with_nan(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return torch.full(result.shape, math.nan)
    return type(result)(map(_with_nan, result)) if isinstance(result, (list, tuple)) else math.nan


def _tensors(case: Case) -> list[torch.Tensor]:
    inputs = [*case.args, *case.kwargs.values()]
    return [value for value in inputs if isinstance(value, torch.Tensor) and value.numel()]


def _change(reference: Any, inputs: tuple[Any, ...], more: dict[str, Any]) -> Any:
    result = reference(*inputs, **more)
    for tensor in _tensors(Case(inputs, more)):
        tensor.copy_(~tensor if tensor.dtype == torch.bool else tensor + 1)
    return result


def test_an_endless_answer_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    if not CALLED:
        pytest.skip("no exercise with a function yet")

    def endless(*inputs: Any, **more: Any) -> None:
        while True:
            pass

    monkeypatch.setattr(guard, "SECONDS", 2.0)
    verdict = CALLED[0].judge(endless)
    assert verdict.status == "wrong" and "still running" in verdict.reason


# ---- the registry


def test_exercises_are_found_by_id() -> None:
    for exercise in EXERCISES:
        assert exercises.exercise(exercise.id) is exercise
    assert len({exercise.id for exercise in EXERCISES}) == len(EXERCISES)


@pytest.mark.parametrize("number", ["99.1", "", "x", 1.2, "1.99"])
def test_an_unknown_id_is_one_message(number: Any) -> None:
    with pytest.raises(InputError, match="no exercise") as caught:
        exercises.exercise(number)
    assert repr(number) in str(caught.value)


def test_a_lesson_without_exercises_has_none() -> None:
    assert exercises.exercises_of("99") == ()
