"""Exercise 2.3: the mask for several new tokens behind a cache."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_02.inputs import _whole


def chunk_mask(start, new):
    position = torch.arange(start, start + new)  # of the new tokens
    slot = torch.arange(start + new)
    return slot[None, :] <= position[:, None]  # [new, start + new]


def _ones(start: int, new: int) -> Tensor:
    return torch.ones(new, start + new, dtype=torch.bool)


def _chunks(generator: Generator) -> list[Case]:
    start = _whole(generator, 3, 6)
    return [
        Case((start, _whole(generator, 3, 5)), note="several new tokens behind a cache"),
        Case((0, _whole(generator, 3, 5)), note="an empty cache"),
        Case((start, 1), note="one new token"),
    ]


CHUNK_MASK = Exercise(
    id="2.3",
    idea="kv_cache",
    title="the mask for several new tokens behind a cache",
    minutes=10,
    answer="chunk_mask",
    reference=chunk_mask,
    cases=_chunks,
    dims="new slot",
    mistakes=(
        Mistake(
            "no mask",
            _ones,
            "Every new token sees every slot, so the first new tokens see those after them: their future.",
        ),
        Mistake(
            "counts from the first slot",
            lambda start, new: _ones(start, new).tril(),
            "The first new token sees slot 0 only, as if it stood at the beginning of the text. It stands behind "
            "everything in the cache.",
        ),
        Mistake(
            "not itself",
            lambda start, new: _ones(start, new).tril(start - 1),
            "No new token sees itself: the first one stands in slot `start`.",
        ),
        Mistake(
            "one too far",
            lambda start, new: _ones(start, new).tril(start + 1),
            "The mask is off by one: each new token sees the one right after itself.",
        ),
        Mistake(
            "without the cache",
            lambda start, new: torch.ones(new, new, dtype=torch.bool).tril(),
            "The mask has the new tokens only. What they look at includes the cache: start + new slots.",
        ),
        Mistake(
            "new tokens alone",
            lambda start, new: _ones(start, new).tril(start).triu(start),
            "The new tokens see themselves and nothing of the cache.",
        ),
        Mistake(
            "new tokens first",
            lambda start, new: torch.cat([_ones(0, new).tril(), torch.ones(new, start, dtype=torch.bool)], dim=1),
            "The columns begin with the new tokens. The slots of the cache come first: 0 to start - 1.",
        ),
        Mistake(
            "strangers to each other",
            lambda start, new: (
                (torch.arange(start + new)[None] < start)
                | (torch.arange(start + new)[None] == torch.arange(start, start + new)[:, None])
            ),
            "The new tokens see the cache and themselves, but not each other. The second one may see the first.",
        ),
    ),
    hints=(
        "Which position has the first new token, and which slot is its own?",
        "As in lesson 01: a slot may be seen if it is not later than the position of the token that asks. Here rows "
        "and columns count from different places.",
        "Rows: torch.arange(start, start + new). Columns: torch.arange(start + new). Compare with <=.",
    ),
    after="Long prompts are read in pieces with it, and in lesson 12 it checks a draft of several tokens at once.",
)
