"""Exercise 3.4: move keys that are already turned.

Shapes: T keys, R width of a key.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_03.by_hand import one_of, rope, rope_half_split


def move_cached(k_turned, by):
    """k_turned [T, R], turned for positions 0 to T - 1 -> turned for positions by to by + T - 1."""
    T = len(k_turned)
    return rope(k_turned, torch.full((T,), by))  # every key by the same angle: turns add up


def move_cached__turned_twice(k_turned, by):
    """k_turned [T, R], turned for positions 0 to T - 1 -> turned for positions by to by + T - 1."""
    new_positions = torch.arange(by, by + len(k_turned))
    return rope(k_turned, new_positions)


def move_cached_cases(generator: Generator) -> list[Case]:
    T, R, by = one_of(generator, 5, 7, 9), one_of(generator, 4, 8, 12), one_of(generator, 11, 20, 33)
    k = torch.randn(T, R, generator=generator)
    one = torch.randn(1, R, generator=generator)
    return [
        Case((rope(k, torch.arange(T)), by)),
        Case((one, by), note="a single key, of position 0"),
    ]


def every(k_turned: Tensor, angle: int) -> Tensor:
    return torch.full((len(k_turned),), angle)


MOVE_CACHED = Exercise(
    id="3.4",
    idea="rope_yarn",
    title="Move keys that are already turned",
    minutes=10,
    answer="move_cached",
    reference=move_cached,
    cases=move_cached_cases,
    dims="T R",
    tolerance=1e-4,
    mistakes=(
        Mistake(
            "turned twice",
            move_cached__turned_twice,
            "Turned twice: the cached keys carry the angles of 0, 1, 2, ... already, and you turn them by their whole "
            "new positions on top. Only the difference is missing.",
        ),
        Mistake(
            "wrong way",
            lambda k_turned, by: rope(k_turned, every(k_turned, -by)),
            "Turned the wrong way: the text in front pushes these keys to later positions, not to earlier ones.",
        ),
        Mistake(
            "as training does it",
            lambda k_turned, by: rope(k_turned, torch.arange(len(k_turned))),
            "You turned them by 0, 1, 2, ... once more, and `by` plays no part. The keys come turned for these "
            "positions.",
        ),
        Mistake(
            "unchanged",
            lambda k_turned, by: k_turned.clone(),
            "The keys are as they were, so they still say 0, 1, 2, ... Which angle is missing?",
        ),
        Mistake(
            "unturned",
            lambda k_turned, by: rope(k_turned, -torch.arange(len(k_turned))),
            "You turned the keys back to where they were before the cache. That is half of a way that works: now "
            "they need their new positions.",
        ),
        Mistake(
            "all at one place",
            lambda k_turned, by: rope(rope(k_turned, -torch.arange(len(k_turned))), every(k_turned, by)),
            "Now all keys stand at position `by`. You turned them back first, so each needs its whole new position: "
            "key t goes to t + by.",
        ),
        Mistake(
            "a number for positions",
            lambda k_turned, by: rope(k_turned, by),
            "`rope` wants its positions as a tensor, one for each key, and gets a plain number.",
        ),
        Mistake(
            "added",
            lambda k_turned, by: k_turned + by,
            "You add `by` to the numbers of the keys. A position is an angle here: moving a key means turning it.",
        ),
        Mistake(
            "by one too far",
            lambda k_turned, by: rope(k_turned, every(k_turned, by + 1)),
            "One position too far. A text of `by` tokens takes the positions 0 to by - 1, so the first cached key "
            "moves from 0 to by.",
        ),
        Mistake(
            "by one too short",
            lambda k_turned, by: rope(k_turned, every(k_turned, by - 1)),
            "One position too short. A text of `by` tokens takes the positions 0 to by - 1, so the first cached key "
            "moves from 0 to by.",
        ),
        Mistake(
            "moved by its length",
            lambda k_turned, by: rope(k_turned, every(k_turned, len(k_turned))),
            "You move the keys by their own number, T. They should move by the length of the text in front, `by`.",
        ),
        Mistake(
            "times",
            lambda k_turned, by: rope(k_turned, by * torch.arange(len(k_turned))),
            "You turn key t by t * by: the keys are spread out, and the first stays where it was. All of them move "
            "by the same number of places.",
        ),
        Mistake(
            "half-split",
            lambda k_turned, by: rope_half_split(k_turned, every(k_turned, by)),
            "The angle is right and the pairs are not: these keys were turned by `rope`, which takes neighbours.",
        ),
        Mistake(
            "zeros in front",
            lambda k_turned, by: torch.cat([torch.zeros(by, k_turned.shape[1]), k_turned]),
            "You put `by` empty rows in front. The cache of the new text is not asked for: give the T old keys, turned "
            "for where they stand now. A position is an angle here, not a row.",
        ),
        Mistake(
            "rolled",
            lambda k_turned, by: k_turned.roll(by, 0),
            "You moved the rows. The keys keep their order; what must change is their angle.",
        ),
    ),
    hints=(
        "What is the position of cached key t now, and what will it be? How far is it from one to the other?",
        "Two turns one after the other are one turn by the sum of the angles. So a key that carries the angle of t "
        "needs only what is missing to t + by.",
        "`rope` turns each key by the position that it is given, and these need not be 0, 1, 2, ... "
        "torch.full((n,), value) is a tensor of n times the same number.",
    ),
    after="With this, keys that were cached for one place in a text can be used at another.",
)
