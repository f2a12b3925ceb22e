"""Exercise 9.4: which predictions stay inside one document.

Shapes: B texts, S tokens of a text, k the depth of the module.
"""

from __future__ import annotations

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_09.inputs import ids, whole


def inside(text, eos, depth):
    ends = (text == eos).long()
    document = ends.cumsum(1) - ends  # [B, S]: number of the document; an eos belongs to the one that it ends
    return document[:, : -1 - depth] == document[:, depth + 1 :]


def _eos_begins(text, eos, depth):
    document = (text == eos).cumsum(1)
    return document[:, : -1 - depth] == document[:, depth + 1 :]


def _given_not_eos(text, eos, depth):
    return text[:, depth : text.shape[1] - 1] != eos


def _own_not_eos(text, eos, depth):
    return text[:, : -1 - depth] != eos


def _own_and_given_not_eos(text, eos, depth):
    return _own_not_eos(text, eos, depth) & _given_not_eos(text, eos, depth)


def _own_left_out(text, eos, depth):
    places = range(text.shape[1] - 1 - depth)
    return torch.stack([(text[:, i + 1 : i + depth + 1] != eos).all(1) for i in places], dim=1)


def _target_not_eos(text, eos, depth):
    return text[:, depth + 1 :] != eos


def _none_at_all(text, eos, depth):
    places = range(text.shape[1] - 1 - depth)
    return torch.stack([(text[:, i : i + depth + 2] != eos).all(1) for i in places], dim=1)


def _crossing(text, eos, depth):
    return ~inside(text, eos, depth)


def _one_short(text, eos, depth):
    ends = (text == eos).long()
    document = ends.cumsum(1) - ends
    return document[:, : -1 - depth] == document[:, depth : text.shape[1] - 1]


def _not_shortened(text, eos, depth):
    ends = (text == eos).long()
    document = ends.cumsum(1) - ends
    return document == document.roll(-1 - depth, 1)


def _over_the_texts(text, eos, depth):
    ends = (text == eos).long()
    document = ends.flatten().cumsum(0).view_as(text) - ends
    return document[:, : -1 - depth] == document[:, : -1 - depth]


def _packed(generator: Generator) -> list[Case]:
    cases = []
    for depth, note in ((0, "depth 0, the main model"), (1, "depth 1"), (whole(generator, 2, 3), "a larger depth")):
        eos = whole(generator, 0, 3)
        text = ids(generator, whole(generator, 3, 5), whole(generator, 14, 20), below=9)
        text[0, 6:8] = eos  # a document without a token
        text[1, [2, 9]] = eos
        text[2, -1] = eos
        cases.append(Case((text, eos, depth), note=note))
    cases.append(Case((ids(generator, 2, 8, below=9) + 1, 0, 1), note="texts without any border"))
    return cases


BORDERS = Exercise(
    id="9.4",
    idea="mtp",
    title="which predictions stay inside their document",
    minutes=12,
    answer="inside",
    reference=inside,
    cases=_packed,
    dims="B T",
    mistakes=(
        Mistake(
            "eos begins the next document",
            _eos_begins,
            "For you an end token belongs to the document behind it, so that predicting the end of a document counts "
            "as crossing. It is the last token of the document that it ends.",
        ),
        Mistake(
            "only the given token",
            _given_not_eos,
            "You look at the token that the module is given. The border may also lie before it: then the state comes "
            "from one document and the target from another.",
        ),
        Mistake(
            "only the own token",
            _own_not_eos,
            "You look at the token at the position itself. For the main model that is enough. A module's target lies "
            "further away, and a border on the way to it separates them, too.",
        ),
        Mistake(
            "own and given token",
            _own_and_given_not_eos,
            "You look at the position's own token and at the given one. For depth 1 that is all there is; a deeper "
            "module has more tokens on the way.",
        ),
        Mistake(
            "own token left out",
            _own_left_out,
            "You look at the tokens between a position and its target, and not at the position's own token. If that is "
            "an end token, the target belongs to the next document.",
        ),
        Mistake(
            "only the target",
            _target_not_eos,
            "You exclude the positions whose target is an end token. These are inside: the end of a document is part "
            "of it, and worth learning.",
        ),
        Mistake(
            "no eos anywhere",
            _none_at_all,
            "You exclude a position as soon as an end token is anywhere from its own token to its target. As target "
            "it is still inside: the end of a document is part of it.",
        ),
        Mistake("the other way round", _crossing, "The other way round: True should stand where no border is crossed."),
        Mistake(
            "as far as the given token",
            _one_short,
            "You compare the position with the token that the module is given. Its target is one place further.",
        ),
        Mistake(
            "wrapped around",
            _not_shortened,
            "The rows are not shortened: roll compares the last positions with the start of the text.",
        ),
        Mistake(
            "compared with itself",
            _over_the_texts,
            "Every position is compared with itself, so nothing ever crosses. Compare it with the place of its target.",
        ),
    ),
    hints=(
        "Give every token the number of its document first. Then a position is inside when its own token and its "
        "target have the same number.",
        "`(text == eos).cumsum(1)` counts the end tokens up to each place, the place itself included. Which number "
        "does it give to the end token itself, and which should it have?",
        "The target of position i stands at place i + depth + 1. Exercise 9.1 cut the same two slices.",
    ),
    after="A deeper module crosses more often: each border costs depth + 1 positions.",
)
