"""Arithmetic problems: right, varied, reproducible, and judged by a checker that does not trust the generator."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_mini.train.arithmetic import Problem, check, problems


def test_every_generated_line_is_right_and_none_comes_twice():
    lines = [problem.line for problem in problems(seed=3, n=5000)]
    assert all(check(line) for line in lines)
    assert len(set(lines)) == len(lines)


def test_every_wrong_answer_is_rejected():
    rng = random.Random(0)
    for problem in problems(seed=4, n=2000):
        result = problem.answer.rindex("= ") + 2 if "=" in problem.answer else 0
        digits = [place for place in range(result, len(problem.answer)) if problem.answer[place].isdigit()]
        place = rng.choice(digits)
        other = rng.choice([digit for digit in "0123456789" if digit != problem.answer[place]])
        wrong = problem.prompt + problem.answer[:place] + other + problem.answer[place + 1 :]
        assert not check(wrong), wrong


def test_seed_decides_everything():
    assert problems(7, 200) == problems(7, 200)
    assert problems(7, 50) == problems(7, 200)[:50]
    assert problems(7, 200) != problems(8, 200)


def test_all_kinds_and_wordings_occur():
    lines = [problem.line for problem in problems(0, 1000)]
    openings = ("What is", "Add", "Subtract", "Multiply", "Divide")
    assert all(any(line.startswith(opening) for line in lines) for opening in openings)
    assert any("remainder" in line for line in lines)
    assert any("(" in line for line in lines)
    assert any(line.count("=") > 2 for line in lines), "some chains are worked out"


@pytest.mark.parametrize(
    "line",
    [
        "2 + 2 = 4",
        "2+2=4",
        "What is 7 minus 12? -5",
        "Subtract 3 from 10: 7",
        "Divide 47 by 6: 7 remainder 5",
        "48 / 6 = 8",
        "48 / 6 = 8 remainder 0",
        "(3 + 4) * 12 - 7 = 7 * 12 - 7 = 84 - 7 = 77",
        "9 - (3 - 20) = 26",
        "6 + (-47) = -41",
    ],
)
def test_right_lines(line):
    assert check(line)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "4",
        "4 = 4",
        "2 + 2 =",
        "2 + 2 = 5",
        "2 + 2 = 4 apples",
        "2 + 2 = 2 + 2",
        "2 + 2 = 4 = ",
        "2 + 3 * 4 = 5 * 4 = 20",
        "2 + 3 * 4 = 5 * 4 = 14",
        " + ".join(["1"] * 200) + " = 200",  # right, but no problem of this course
        "Subtract 3 from 10: -7",
        "47 / 6 = 7",
        "47 / 6 = 6 remainder 11",
        "47 / 0 = 0",
        "2 ** 3 = 8",
        "2 + 2 = 04 + 0",
        "__import__('os') + 1 = 1",
        "1 +" * 500,
        "(" * 250 + "1 + 1 = 2",
        "٣ + 1 = 4",
        "5 + 2 remainder 1 = 7",
        "Add 1 and 2: 3 remainder 0",
    ],
)
def test_wrong_lines(line):
    assert not check(line)


@given(st.text(max_size=60) | st.text("0123456789+-*/()= ?:", max_size=40))
def test_check_never_raises(line):
    assert check(line) in (True, False)


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6), st.integers(-3, 3))
def test_check_agrees_with_python(a, b, off):
    assert check(f"What is {a} plus {b}? {a + b + off}") == (off == 0)
    assert check(f"{a} * ({b}) = {a * b + off}") == (off == 0)
    assert check(f"What is {a} minus {b}? {a - b + off}") == (off == 0)


def test_key_is_the_same_for_the_same_question():
    by_key: dict[str, set[str]] = {}
    for problem in problems(0, 20000):
        by_key.setdefault(problem.key, set()).add(problem.answer.rpartition("= ")[2])
    assert all(len(answers) == 1 for answers in by_key.values()), "one question, one answer"
    assert len(by_key) < 20000, "some questions come in several wordings"


def test_shown_names_the_problems_inside_an_answer():
    worked_out = next(p for p in problems(0, 5000) if p.shown)
    assert isinstance(worked_out, Problem)
    last_step = worked_out.line.split(" = ")[-2]  # "84 - 7"
    a, op, b = last_step.replace("(", "").replace(")", "").split(" ")
    key = f"{a}{op}{b}" if op == "-" or int(a) <= int(b) else f"{b}{op}{a}"
    assert key in worked_out.shown
