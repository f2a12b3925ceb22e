"""Exercise 9.1: what a module is given, and what it is asked for.

Shapes: B texts, S tokens of a text, k the depth of the module.
"""

from __future__ import annotations

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_09.inputs import ids, whole


def mtp_rows(text, depth):
    given = text[:, depth:-1]  # position i: the token `depth` places on
    targets = text[:, depth + 1 :]  # and the one behind that
    return given, targets


def mtp_rows__own_target(text, depth):
    inputs, targets = text[:, :-1], text[:, 1:]
    positions = inputs.shape[1] - depth  # the last ones have no token to predict
    later = targets[:, depth:][:, :positions]
    return later, later


def _asked_for_what_it_is_given(text, depth):
    return text[:, depth:-1], text[:, depth:-1]


def _one_too_many(text, depth):
    return text[:, depth + 1 : -1], text[:, depth + 2 :]


def _one_too_few(text, depth):
    return text[:, depth - 1 : -1], text[:, depth:]


def _not_shifted(text, depth):
    return text[:, : -1 - depth], text[:, depth + 1 :]


def _targets_of_the_main_model(text, depth):
    return text[:, depth:-1], text[:, 1:-depth]


def _nothing_shifted(text, depth):
    return text[:, : -1 - depth], text[:, 1:-depth]


def _wrapped(text, depth):
    return text[:, :-1].roll(-depth, 1), text[:, 1:].roll(-depth, 1)


def _filled(text, depth):
    rows, filling = len(text), text.new_zeros(len(text), depth)
    return torch.cat((text[:rows, depth:-1], filling), 1), torch.cat((text[:, depth + 1 :], filling), 1)


def _last_token_given(text, depth):
    return text[:, depth:], text[:, depth + 1 :]


def _always_one(text, depth):
    return text[:, 1:-1], text[:, 2:]


def _one_row(text, depth):
    return text[0, depth:-1], text[0, depth + 1 :]


def _shifted_the_texts(text, depth):
    return text[depth:-1], text[depth + 1 :]


def _shortened_at_the_front(text, depth):
    return text[:, 1:-depth], text[:, depth + 1 :]


def _texts(generator: Generator) -> list[Case]:
    cases = []
    for depth in (1, whole(generator, 2, 3)):
        text = ids(generator, whole(generator, 2, 4), depth + whole(generator, 5, 9), below=500)
        cases.append(Case((text, depth), note=f"depth {depth}"))
    cases.append(Case((ids(generator, 1, 4, below=500), 2), note="a text that leaves depth 2 a single position"))
    return cases


ROWS = Exercise(
    id="9.1",
    idea="mtp",
    title="tokens and targets of the module of any depth",
    minutes=8,
    answer="mtp_rows",
    reference=mtp_rows,
    cases=_texts,
    dims=("B T", "B T"),
    mistakes=(
        Mistake(
            "own target",
            mtp_rows__own_target,
            "The module is given the very token that it has to predict: both rows are the same. It would only learn to "
            "copy. At position i it may know what the main model knows one step later, not more.",
        ),
        Mistake(
            "asked for what it is given",
            _asked_for_what_it_is_given,
            "The tokens that are given are right, and the targets are the same tokens. What is given is known: the "
            "target is the token behind it.",
        ),
        Mistake(
            "one too many",
            _one_too_many,
            "Both rows are shifted by one too many: that is the module one deeper. Depth 0 would be the main model, "
            "which is given the token at its own position.",
        ),
        Mistake(
            "one too few",
            _one_too_few,
            "Both rows are shifted by one too few: that is the module one less deep, and for depth 1 the main model.",
        ),
        Mistake(
            "not shifted",
            _not_shifted,
            "The targets are right. The module is given the token at its own position, which is in the main model's "
            "state already: it has to get from i to its target without the tokens in between.",
        ),
        Mistake(
            "targets of the main model",
            _targets_of_the_main_model,
            "The tokens that are given are right. The targets are those of the main model; this module looks further.",
        ),
        Mistake(
            "nothing shifted",
            _nothing_shifted,
            "That is what the main model reads and predicts, cut shorter. Nothing is shifted.",
        ),
        Mistake(
            "wrapped around",
            _wrapped,
            "roll brings the first tokens back at the end, so the last positions are trained on the start of the text. "
            "These positions have no token to predict: the rows must be shorter.",
        ),
        Mistake(
            "filled up",
            _filled,
            "The last positions are filled with a token that is not in the text. Eq. 22 leaves these positions out.",
        ),
        Mistake(
            "last token given",
            _last_token_given,
            "The row of given tokens is one longer than the targets: it holds the last token of the text, which has "
            "none behind it.",
        ),
        Mistake("always depth 1", _always_one, "For depth 1 that is right. `depth` has no effect on your rows."),
        Mistake("one row", _one_row, "You took the first text only. `text` holds a batch, one text in each row."),
        Mistake(
            "shifted the texts",
            _shifted_the_texts,
            "You cut whole texts off: the first index of `text` is the text, the second one the token.",
        ),
        Mistake(
            "shortened at the front",
            _shortened_at_the_front,
            "The targets are right. The given row has the right length and always begins one on: for a larger depth "
            "it is not the token right before the target.",
        ),
    ),
    hints=(
        "Write the table of the lesson for depth 2 and a text of eight tokens: which token comes first in each row, "
        "and which comes last?",
        "The target is always the token right behind the given one. So both rows are slices of the text, of the same "
        "length, one place apart.",
        "With places counted from 0, position 0 is given the token at place `depth`. The last token of the text is "
        "never given, only predicted.",
    ),
    after="Depth 0 in your function is the main model: its inputs and targets.",
)
