"""Exercise 15.5: the score of the needle test."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_15.inputs import whole


def found_share(logits, rows, answer):
    says = logits[:, -answer - 1 : -1].argmax(-1)
    right = says == rows[:, -answer:]
    return right.all(-1).float().mean().item()


def found_share__same_place(logits, rows, answer):
    return (logits[:, -answer:].argmax(-1) == rows[:, -answer:]).all(-1).float().mean().item()


def _right(logits: Tensor, rows: Tensor, answer: int) -> Tensor:
    return logits[:, -answer - 1 : -1].argmax(-1) == rows[:, -answer:]


def _case(generator: Generator, pattern: list[list[int]], note: str = "") -> Case:
    """Logits under which row b says its token i of the answer exactly if pattern[b][i]."""
    batch, answer = len(pattern), len(pattern[0])
    length, vocabulary = answer + whole(generator, 4, 9), whole(generator, 20, 40)
    rows = torch.randint(0, vocabulary, (batch, length), generator=generator)
    logits = torch.randn(batch, length, vocabulary, generator=generator)
    place = torch.arange(length)
    # What comes two places later, everywhere: whoever reads one place too late or too early finds nothing.
    for b in range(batch):
        wrong = (rows[b] + whole(generator, 1, vocabulary - 1)) % vocabulary
        logits[b, place, wrong] += 20.0
        for i, good in enumerate(pattern[b]):
            at = length - answer + i
            logits[b, at - 1] = torch.randn(vocabulary, generator=generator)
            token = rows[b, at] if good else (rows[b, at] + 1) % vocabulary
            logits[b, at - 1, token] += 20.0
    return Case((logits, rows, answer), note=note)


def _cases(generator: Generator) -> list[Case]:
    batch, answer = whole(generator, 4, 7), whole(generator, 3, 5)
    drawn = (torch.rand(batch, answer, generator=generator) < 0.7).int().tolist()
    return [
        _case(generator, [[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]], "some rows right in part"),
        _case(generator, [*drawn, [1] * answer]),
        _case(generator, [[1, 0], [0, 1], [0, 0]], "no row right as a whole"),
        _case(generator, [[1, 1], [1, 1]], "every row right"),
    ]


FOUND_SHARE = Exercise(
    id="15.5",
    idea="rope_yarn",
    title="the score of the needle test",
    minutes=8,
    answer="found_share",
    reference=found_share,
    cases=_cases,
    tolerance=1e-6,
    mistakes=(
        Mistake(
            "one place too late",
            found_share__same_place,
            "You compare each token with the logits at its own place. Those are about the token after it: the first "
            "token of the answer is said by the last one of the prompt.",
        ),
        Mistake(
            "partial credit",
            lambda logits, rows, answer: _right(logits, rows, answer).float().mean().item(),
            "You give credit for single tokens. A needle is found when its whole answer is right.",
        ),
        Mistake(
            "any token",
            lambda logits, rows, answer: _right(logits, rows, answer).any(-1).float().mean().item(),
            "One right token is enough for you. A needle is found when its whole answer is right.",
        ),
        Mistake(
            "first token only",
            lambda logits, rows, answer: _right(logits, rows, answer)[:, 0].float().mean().item(),
            "You look at the first token of the answer only.",
        ),
        Mistake(
            "last token only",
            lambda logits, rows, answer: _right(logits, rows, answer)[:, -1].float().mean().item(),
            "You look at the last token of the answer only.",
        ),
        Mistake(
            "a count",
            lambda logits, rows, answer: float(_right(logits, rows, answer).all(-1).sum().item()),
            "You count the rows. A share is asked for: divide by how many there are.",
        ),
        Mistake(
            "all rows at once",
            lambda logits, rows, answer: float(_right(logits, rows, answer).all().item()),
            "You ask whether every row is right. Ask row by row, then take the mean.",
        ),
    ),
    hints=(
        "Three steps: which token is likeliest at each place, which of them are right, and which whole rows.",
        "The logits at place i are about the token at i + 1. So the last `answer` tokens are said by the places from "
        "-answer - 1 up to the last but one.",
        "`.all(-1)` asks row by row.",
    ),
    after="One forward pass: teacher forcing and greedy decoding agree on whether the whole answer is right.",
)
