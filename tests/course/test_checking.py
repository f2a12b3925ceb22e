"""An exercise that answers back: three verdicts, mistakes by name, hints in steps, and a record of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dsv3_mini.course import guard, progress
from dsv3_mini.course.checking import ROUNDS, Case, Exercise, Mistake


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSV3_PROGRESS", str(tmp_path / "progress.json"))
    return tmp_path / "progress.json"


def scale_rows(x, factors, *, base=1.0):
    """x [T, D], factors [T] -> [T, D]"""
    return x * factors[:, None] * base


def scale_rows__transposed(x, factors, *, base=1.0):
    # scale_rows with the other axis
    return x * factors[: x.shape[1]].repeat(x.shape[1])[: x.shape[1]] * base


def cases(generator: torch.Generator) -> list[Case]:
    T, D = torch.randperm(5, generator=generator)[:2].add(2).tolist()
    x, factors = torch.randn(T, D, generator=generator), torch.randn(T, generator=generator)
    return [Case((x, factors)), Case((x[:1], factors[:1]), {"base": 2.0}, note="a text of one token")]


ROWS = Exercise(
    id="1.1", idea="mla", title="scale rows", minutes=5, answer="scale_rows", reference=scale_rows,
    hints=("Look at the shapes.", "Give factors a second axis."), cases=cases, dims="T D", after="Well done.",
    mistakes=(
        Mistake("no base", lambda x, factors, *, base=1.0: x * factors[:, None], "You forgot the base."),
        Mistake("squared", lambda x, factors, *, base=1.0: x * factors[:, None] ** 2 * base, "You squared it."),
        Mistake("transposed", scale_rows__transposed, "Wrong axis."),
    ),
)  # fmt: skip
VALUE = Exercise(
    id="1.2", idea="mla", title="groups", minutes=1, answer="groups", reference="groups = 576 / 256", value=2.25,
    hints=("Divide.", "Which by which?"), mistakes=(Mistake("upside down", 256 / 576, "The other way round."),),
)  # fmt: skip


class Double(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return 2 * x


class Single(Double):
    def forward(self, x):
        return x


LAYER = Exercise(
    id="1.3", idea="mla", title="a layer", minutes=5, answer="Double", reference=Double, hints=("a.", "b."),
    cases=lambda generator: [Case((3, torch.randn(2, 3, generator=generator)))],
    use=lambda answer, case: answer(case.args[0])(case.args[1]),
    mistakes=(Mistake("single", Single, "Once is not twice."),),
)  # fmt: skip


# ---- right


class Callable:
    def __call__(self, x, factors, *, base=1.0):
        return scale_rows(x, factors, base=base)


RIGHT = {
    "other parameter names": lambda a, b, base=1.0: a * b.unsqueeze(1) * base,
    "any inputs": lambda *a, **more: scale_rows(*a, **more),
    "an object": Callable(),
    "an extra default": lambda x, factors, more=None, *, base=1.0: scale_rows(x, factors, base=base),
    "double": lambda x, factors, *, base=1.0: scale_rows(x.double(), factors, base=base),
    "with gradients": lambda x, factors, *, base=1.0: scale_rows(x.clone().requires_grad_(), factors, base=base),
    "loops": lambda x, factors, *, base=1.0: torch.stack([row * f * base for row, f in zip(x, factors)]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_any_way_to_the_right_result_is_right(name: str) -> None:
    verdict = ROWS.judge(RIGHT[name])
    assert (verdict.status, verdict.reason, verdict.mistake) == ("right", "Well done.", "")


def test_values_and_classes_are_right() -> None:
    for value in (2.25, torch.tensor(2.25), np.float64(2.25)):
        assert VALUE.judge(value).status == "right"
    assert LAYER.judge(Double).status == "right"


# ---- not attempted


def test_empty_is_not_attempted_and_not_recorded(file: Path) -> None:
    def stub(x, factors, *, base=1.0): ...

    for exercise, answers in ((ROWS, (stub, None, ...)), (VALUE, (None, ...))):
        for answer in answers:
            verdict = exercise.check(answer)
            assert verdict.status == "not attempted"
            assert f'exercise("{exercise.id}").hint()' in verdict.reason
    assert ROWS.check().status == "not attempted"
    assert not file.exists()


# ---- wrong


def mutate(x, factors, *, base=1.0):
    return x.mul_(factors[:, None]).mul_(base)


def talk(x, factors, *, base=1.0):
    print("here")
    return x


WRONG: dict[str, tuple[Any, str]] = {
    "a value": (3.0, "Hand in scale_rows itself, without calling it"),
    "too few": (lambda x: x, "cannot be called as scale_rows(x, factors, *, base=1.0)"),
    "no base": (lambda x, factors: x, "cannot be called as"),
    "raises": (lambda x, factors, base=1.0: x @ factors, "It raises RuntimeError"),
    "None": (lambda x, factors, base=1.0: print(end=""), "`return` missing"),
    "mutates": (mutate, "changes its input"),
    "NaN": (lambda x, factors, base=1.0: x / 0 * 0, "NaN in"),
    "array": (lambda x, factors, base=1.0: scale_rows(x, factors, base=base).numpy(), "type ndarray"),
    "half": (lambda x, factors, base=1.0: scale_rows(x, factors, base=base).bfloat16(), "fewer digits"),
    "dims": (lambda x, factors, base=1.0: x.T, "stand in the order D, T"),
    "edge": (lambda x, factors, base=1.0: scale_rows(x, factors) if len(x) > 1 else x, "With a text of one token: "),
    "generator": (lambda x, factors, base=1.0: (row for row in x), "type generator"),
    "a class": (dict, ""),
    "a built-in": (len, ""),
    "a module": (nn.Linear(2, 2), "It raises TypeError"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_told_why(name: str) -> None:
    answer, words = WRONG[name]
    verdict = ROWS.judge(answer)
    assert verdict.status == "wrong" and verdict.mistake == ""
    assert words in verdict.reason and verdict.reason[0].isupper() and verdict.reason[-1] in ".?!"


def test_an_endless_answer_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(x, factors, *, base=1.0):
        while len(x):
            pass

    monkeypatch.setattr(guard, "SECONDS", 1.0)
    assert "still running after 1 seconds" in ROWS.judge(endless).reason


def test_a_class_that_is_wrong_is_told_why() -> None:
    assert LAYER.judge(Single).mistake == "single"
    assert "it raises" in LAYER.judge(lambda size: size).reason.lower()
    assert LAYER.judge(3).status == "wrong"


def test_what_an_answer_prints_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert ROWS.judge(talk).status == "wrong"
    assert capsys.readouterr().out == "here\n"


# ---- mistakes


@pytest.mark.parametrize("mistake", ROWS.mistakes, ids=[mistake.name for mistake in ROWS.mistakes])
def test_a_usual_mistake_is_recognised_by_what_it_gives(mistake: Mistake) -> None:
    verdict = ROWS.judge(lambda *a, **more: mistake.wrong(*a, **more))
    if mistake.name == "transposed":  # raises where the sizes do not fit, and so does whoever makes it
        assert verdict.status == "wrong"
    else:
        assert (verdict.status, verdict.mistake, verdict.reason) == ("wrong", mistake.name, mistake.message)
    assert ROWS.mistake(mistake.name) is mistake


def test_a_mistake_that_raises_is_recognised_by_its_error() -> None:
    def bare(x, factors, *, base=1.0):
        return x @ factors[None]

    exercise = Exercise(**{**fields(ROWS), "mistakes": (Mistake("matmul", bare, "That is a matrix product."),)})
    assert exercise.judge(lambda x, factors, base=1.0: x @ factors[None]).mistake == "matmul"
    assert exercise.judge(lambda x, factors, base=1.0: x @ factors[None, None, None]).mistake == ""


def test_a_mistake_that_hits_the_right_result_by_chance_masks_nothing() -> None:
    """The right answer is right even if the list of mistakes holds it, and a mistake must fit on every input."""
    same = Mistake("right", scale_rows, "never shown")
    at_one = Mistake("at one", lambda x, factors, *, base=1.0: scale_rows(x, factors), "only where base is not 1")
    exercise = Exercise(**{**fields(ROWS), "mistakes": (same, at_one)})
    assert exercise.judge(scale_rows).status == "right"
    elsewhere = exercise.judge(lambda x, factors, base=1.0: scale_rows(x, factors) + (len(x) == 1))
    assert elsewhere.status == "wrong" and elsewhere.mistake == ""


def test_a_wrong_value_is_recognised() -> None:
    assert VALUE.judge(256 / 576).reason == "The other way round."
    assert VALUE.judge(4.5).reason == "`groups` is 4.5: twice what it should be."
    assert VALUE.judge("2.25").status == VALUE.judge(lambda: 2.25).status == VALUE.judge(math.nan).status == "wrong"


def fields(exercise: Exercise) -> dict[str, Any]:
    return {name: value for name, value in vars(exercise).items() if not name.startswith("_")}


# ---- inputs


def test_each_run_sees_fresh_inputs_that_no_other_run_has_touched() -> None:
    seen: list[float] = []

    def remember(x, factors, *, base=1.0):
        seen.append(x.flatten()[0].item())
        return scale_rows(x, factors, base=base)

    assert ROWS.judge(remember).status == "right"
    assert len(seen) == 2 * ROUNDS and len(set(seen)) == ROUNDS, "the second case of a round has the first one's row"
    first = set(seen)
    ROWS.judge(remember)
    assert len(set(seen)) == 2 * len(first)


def test_a_definition_that_is_wrong_is_our_bug_and_says_so() -> None:
    broken = Exercise(**{**fields(ROWS), "reference": lambda x, factors, *, base=1.0: 1 / 0})
    with pytest.raises(AssertionError, match=r"the solution of exercise 1\.1 fails"):
        broken.judge(scale_rows)


# ---- record, hints, solution


def test_tries_are_recorded_and_right_stays_right(file: Path) -> None:
    for answer in (talk, scale_rows, talk):
        ROWS.check(answer)
    entry = json.loads(file.read_text())["exercises"]["1.1"]
    assert (entry["state"], entry["tries"]) == ("right", 3)


def test_hints_go_one_step_further_each_time() -> None:
    exercise = Exercise(**fields(ROWS))
    said = [str(exercise.hint()) for _ in range(3)]
    assert "hint 1 of 2" in said[0] and "Look at the shapes." in said[0] and "solution()" not in said[0]
    assert "hint 2 of 2" in said[1] and 'exercise("1.1").solution()' in said[1]
    assert said[2] == said[1]
    assert progress.read().exercises["1.1"]["hints"] == 2


def test_the_solution_is_code_under_the_learner_s_name() -> None:
    assert str(ROWS.solution()).endswith("    def scale_rows(x, factors, *, base=1.0):\n"
                                         '        """x [T, D], factors [T] -> [T, D]"""\n'
                                         "        return x * factors[:, None] * base")  # fmt: skip
    assert progress.read().exercises["1.1"] == {"state": "begun", "tries": 0, "hints": 0, "solution_shown": True}
    assert VALUE.solution_code() == "groups = 576 / 256"
    assert LAYER.solution_code().startswith("class Double(nn.Module):")


def test_nothing_that_is_shown_becomes_markup() -> None:
    evil = "<script>alert(1)</script>"

    def raises(x, factors, *, base=1.0):
        raise ValueError(evil)

    for exercise, answer in ((ROWS, raises), (Exercise(**{**fields(VALUE), "value": "a"}), evil)):
        bundle = exercise.judge(answer)._repr_mimebundle_()
        assert evil in bundle["text/plain"].replace("\n", " ")
        assert "<script" not in bundle["text/html"] and "&lt;script&gt;" in bundle["text/html"]


def test_a_verdict_says_the_same_in_text_and_html() -> None:
    verdict = ROWS.judge(...)
    assert str(verdict).startswith("Exercise 1.1: not attempted\n") and repr(verdict) == str(verdict)
    assert "Exercise 1.1: not attempted" in verdict._repr_mimebundle_()["text/html"]
    assert str(ROWS.judge(talk)).startswith("Exercise 1.1: not yet\n")
    assert ROWS.lesson == "01"
