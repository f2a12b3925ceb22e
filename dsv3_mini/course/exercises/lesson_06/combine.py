"""Exercise 6.4: from the rows of the experts back to the tokens.

Shapes: N tokens, D model width, M rows (token-expert pairs).
"""

from __future__ import annotations

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_06.inputs import _randn, _whole


def combine(rows, token, weights, tokens):
    out = torch.zeros(tokens, rows.shape[1])
    return out.index_add(0, token, rows * weights[:, None])


def _overwrites(rows, token, weights, tokens):
    out = torch.zeros(tokens, rows.shape[1])
    for row, place in zip(rows * weights[:, None], token.tolist(), strict=True):
        out[place] = row
    return out


def _keeps_first(rows, token, weights, tokens):
    return _overwrites(rows.flip(0), token.flip(0), weights.flip(0), tokens)


def _averages(rows, token, weights, tokens):
    times = torch.bincount(token, minlength=tokens).clamp_min(1)
    return combine(rows, token, weights, tokens) / times[:, None]


def _cut(rows, token, weights, tokens):
    return combine(rows, token, weights, tokens)[: int(token.max()) + 1]


def _leaves_out_idle(rows, token, weights, tokens):
    return combine(rows, token, weights, tokens)[token.unique()]


def _rows_of_a_machine(generator: Generator) -> list[Case]:
    cases = []
    for tokens, note in ((_whole(generator, 6, 9), ""), (3, "three tokens")):
        count, width = _whole(generator, 2 * tokens, 3 * tokens), _whole(generator, 4, 7)
        # The last token and token 1 get nothing, token 0 gets three rows: experts on other machines do the rest.
        token = torch.randint(2, tokens, (count,), generator=generator) if tokens > 3 else torch.zeros(count).long()
        token[:3], token[token == tokens - 1] = 0, 0
        token = token[torch.randperm(count, generator=generator)]
        weights = torch.rand(count, generator=generator) + 0.1
        cases.append(Case((_randn(generator, count, width), token, weights, tokens), note=note))
    return cases


COMBINE = Exercise(
    id="6.4",
    idea="deepseekmoe",
    title="rows of experts back to their tokens",
    minutes=5,
    answer="combine",
    reference=combine,
    cases=_rows_of_a_machine,
    dims="N D",
    mistakes=(
        Mistake(
            "overwriting",
            _overwrites,
            "Of several rows of one token only the last one is left. out[token] = rows writes them over each other, "
            "and so does out[token] += rows: it reads, adds once and writes back. Rows of one token must add up.",
        ),
        Mistake(
            "only the first",
            _keeps_first,
            "Of several rows of one token only the first one is left. They must add up.",
        ),
        Mistake(
            "weights forgotten", lambda r, t, w, n: combine(r, t, torch.ones_like(w), n), "The weights are missing."
        ),
        Mistake("mean", _averages, "The rows of a token are averaged; they should add up."),
        Mistake(
            "tokens missing at the end",
            _cut,
            "The result ends with the last token that has a row. There is a row of zeros for each token without one.",
        ),
        Mistake(
            "tokens missing",
            _leaves_out_idle,
            "Tokens without a row are left out. Their sum is zero, and they keep their place.",
        ),
        Mistake(
            "weights twice",
            lambda r, t, w, n: combine(r, t, w * w, n),
            "Each row is multiplied by its weight twice.",
        ),
    ),
    hints=(
        "Start from zeros, one row for each token. Multiply every row by its weight first.",
        "Which operation adds rows at given places, also several at the same place? The loop of the lesson uses it.",
    ),
    after="Tokens without a row occur when the experts are spread over several machines: exercise 6.6.",
)
