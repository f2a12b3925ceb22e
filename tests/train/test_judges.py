"""The judges: right is right, wrong is wrong, and a model that knows the answers gets full marks."""

from __future__ import annotations

import re

import pytest

from dsv3_mini.errors import InputError
from dsv3_mini.train import arithmetic, judges
from dsv3_mini.train.documents import Document, is_held_out
from dsv3_mini.train.judges import (
    arithmetic_accuracy,
    held_out_problems,
    judge,
    open_functions,
    parse_rate,
    parses,
)
from dsv3_mini.train.tokenizer import Tokenizer

CODE = '''import os


class Thing:
    @property
    def size(self):
        return os.path.getsize(self.path)

    def long_header(
        self,
        first, second=(1, 2),
    ):
        if first:
            @staticmethod
            def inner(): return 1
        return second


def short(): return 1


def last(x):
    @staticmethod
    def y():
        """Doc."""
    return y
'''


@pytest.fixture(scope="module")
def tokenizer():
    lines = [problem.line for problem in arithmetic.problems(0, 300)]
    return Tokenizer.train([CODE * 5, "\n".join(lines)], 400)


def test_functions_are_cut_between_header_and_body():
    found = open_functions([Document("code", "a.py", CODE), Document("prose", "b", "def f():\n    pass\n")], 99)
    headers = {function.header for function in found}
    assert headers == {
        "    def size(self):\n",
        "    def long_header(\n        self,\n        first, second=(1, 2),\n    ):\n",
        "def last(x):\n",
        "    def y():\n",
    }, "not the ones whose body stands on the line of the header"
    for function in found:
        assert function.before + function.header + function.after == CODE
        assert parses(function.header, function.after, ended=True)
    assert open_functions([Document("code", "a.py", CODE)], 2) == found[:2]
    assert open_functions([Document("code", "a.py", "def f(:\n")], 2) == []


@pytest.mark.parametrize(
    ("continuation", "ended", "right"),
    [
        ("    return 1\n", True, True),
        ("    return (1\n", True, False),
        ("    return 1\nthis is no python\nnor this\n", False, True),  # the function has ended before
        ("    x = 1\n    return (1, 2", False, True),  # the unfinished line is left out
        ("    x = 1\n    return (1, 2", True, False),  # but not when the model says that this is all
        ("    x = 1\n", False, False),  # one line, perhaps unfinished: nothing is left
        ("", True, False),
        ("return 1\n", True, False),  # a body that is not indented is none
        ("    x = 1\n\n\n    return x\n    \nclass A:", False, True),  # empty lines end nothing
        ("    x = '\\x0'\n    return\n", True, False),
        ("    return 0\0\n", True, False),
    ],
)
def test_what_parses(continuation, ended, right):
    assert parses("def f(x):\n", continuation, ended=ended) is right
    deeper = "".join(f"    {line}" if line.strip() else line for line in continuation.splitlines(keepends=True))
    assert parses("    def f(x):\n", deeper, ended=ended) is right


def _answers(monkeypatch, answer):
    """Let `answer(prompt ids) -> ids` write instead of a model."""
    monkeypatch.setattr(judges, "generate", lambda model, prompts, *rest, **kw: [answer(prompt) for prompt in prompts])


def test_the_parse_rate_counts_what_the_model_writes(tokenizer, monkeypatch):
    functions = open_functions([Document("code", "a.py", CODE)], 99)
    prompts = []

    def answer(prompt):
        assert len(prompt) <= 30
        prompts.append(tokenizer.decode(prompt))
        body = "            pass\n" if len(prompts) % 2 else "            (\n"
        return [*tokenizer.encode(body), tokenizer.eos_id]

    _answers(monkeypatch, answer)
    found = parse_rate(None, tokenizer, functions, context=30)
    assert found["rate"] == 0.5 and found["functions"] == 4
    assert found["ceiling"] == 1.0, "the true bodies parse"
    for prompt, function in zip(prompts, functions):
        assert (function.before + function.header).endswith(prompt.removeprefix(tokenizer.eos_token))
    cut = parse_rate(None, tokenizer, functions, context=30, max_new_tokens=3)
    assert cut["ceiling"] < 1, "cut after three tokens the true ones have no body"
    with pytest.raises(InputError, match="no held-out code"):
        parse_rate(None, tokenizer, [])


def test_problems_are_held_out_and_right_answers_count(tokenizer, monkeypatch):
    problems = held_out_problems(80)
    assert len({p.line for p in problems}) == 80 and all(is_held_out(p.key) for p in problems)
    by_prompt = {problem.prompt.rstrip(): problem for problem in problems}

    def solve(prompt):
        problem = by_prompt[tokenizer.decode(prompt[1:])]
        assert prompt[0] == tokenizer.eos_id
        return tokenizer.encode(f" {problem.answer}\n1 + 1 = 3")

    _answers(monkeypatch, solve)
    found = arithmetic_accuracy(None, tokenizer, problems)
    assert found == {"accuracy": 1.0, "by_kind": dict.fromkeys("*+-/", 1.0) | {"chain": 1.0}, "problems": 80}
    _answers(monkeypatch, lambda prompt: tokenizer.encode(" 7"))
    sevens = sum(arithmetic.check(p.prompt + "7") for p in problems)
    assert arithmetic_accuracy(None, tokenizer, problems)["accuracy"] == sevens / 80 < 0.1


def test_kinds_are_those_of_the_generator():
    for problem in arithmetic.problems(3, 300):
        plain = {op for op, wordings in arithmetic.WORDINGS.items() for w in wordings if _fits(w, problem.prompt)}
        assert judges._kind(problem) == (plain.pop() if plain else "chain"), problem


def _fits(wording, prompt):
    numbers = re.findall(r"\d+", prompt)
    if len(numbers) != 2:
        return False
    a, b = numbers
    return prompt in (wording.format(a=a, b=b), wording.format(a=b, b=a))


def test_both_judges_with_a_real_model(tokenizer, tiny_model):
    from dsv3_mini.model.transformer import DeepSeekV3

    model = DeepSeekV3(tiny_model.replace(vocab_size=tokenizer.vocab_size, max_position_embeddings=512)).eval()
    documents = [Document("code", "a.py", CODE)]
    found = judge(model, tokenizer, documents, functions=3, problems=5)
    assert found["parse_rate"]["functions"] == 3 and found["arithmetic"]["problems"] == 5
    assert found == judge(model, tokenizer, documents, functions=3, problems=5), "repeatable"
    assert set(judge(model, tokenizer, [], problems=2)) == {"arithmetic"}
