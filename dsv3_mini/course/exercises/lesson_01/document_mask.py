"""Exercise 1.1: a causal mask for several documents in one row.

Shapes: T tokens.
"""

from __future__ import annotations

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_01.inputs import _whole


def document_mask(document):
    position = torch.arange(len(document))
    causal = position[None, :] <= position[:, None]  # [T, T]
    same = document[None, :] == document[:, None]  # [T, T]
    return causal & same


def document_mask__counts_from_the_target(document):
    position = torch.arange(len(document))
    target = position + 1  # token t is there to predict token t + 1
    causal = position[None, :] <= target[:, None]  # [T, T]
    same = document[None, :] == document[:, None]  # [T, T]
    return causal & same


def _documents(generator: Generator) -> list[Case]:
    first, second, third = (torch.randperm(9, generator=generator)[:3]).tolist()
    sizes = [_whole(generator, 2, 4) for _ in range(3)]
    two = torch.tensor([first] * sizes[0] + [second] * sizes[1])
    back = torch.tensor([second] * sizes[0] + [third] * sizes[1] + [second] * sizes[2])
    return [
        Case((two,), note="two documents"),
        Case((back,), note="a document that comes back after another one"),
        Case((torch.tensor([third]),), note="a single token"),
    ]


DOCUMENT_MASK = Exercise(
    id="1.1",
    idea="transformer_block",
    title="a causal mask for several documents in one row",
    minutes=5,
    answer="document_mask",
    reference=document_mask,
    cases=_documents,
    dims="asking asked",
    mistakes=(
        Mistake(
            "counts from the target",
            document_mask__counts_from_the_target,
            "The mask is off by one: each token also sees the one right after itself, which is the token that it has "
            "to predict.",
        ),
        Mistake(
            "no causal mask",
            lambda document: document[None, :] == document[:, None],
            "Some token sees its future: above the diagonal everything should be False. The documents are right.",
        ),
        Mistake(
            "no documents",
            lambda document: torch.ones(len(document), len(document), dtype=torch.bool).tril(),
            "This is the causal mask of one long text: a token of the second document looks at the first one.",
        ),
        Mistake(
            "upper triangle",
            lambda document: (document[None, :] == document[:, None]).triu(),
            "Every token sees its future, not its past. The row is the token that asks, the column the one that is "
            "asked.",
        ),
        Mistake(
            "not itself",
            lambda document: (document[None, :] == document[:, None]).tril(-1),
            "No token sees itself: the diagonal should be True, or the first token of a document sees nothing at all.",
        ),
        Mistake(
            "either is enough",
            lambda document: (
                (document[None, :] == document[:, None])
                | torch.ones(len(document), len(document), dtype=torch.bool).tril()
            ),
            "A token may look where one of the two conditions holds; it should need both of them.",
        ),
        Mistake(
            "neighbours only",
            lambda document: document_mask((document.diff(prepend=document[:1]) != 0).cumsum(0)),
            "A document that goes on after another one is taken for a new one. Equal numbers mean the same document, "
            "wherever they stand.",
        ),
        Mistake(
            "order of the numbers",
            lambda document: (document[None, :] <= document[:, None]).tril(),
            "A token sees another document whenever that has a lower number. The numbers are names: only equal or "
            "not equal means something.",
        ),
    ),
    hints=(
        "Two conditions must hold at once: the other token is not later, and it is of the same document.",
        "Each condition is a table [T, T] that comes from comparing a column with a row: a[:, None] is a column "
        "[T, 1], b[None, :] is a row [1, T], and a comparison of both has the shape [T, T].",
        "The causal half stands above: position[None, :] <= position[:, None]. The other half looks the same, with "
        "the documents and ==. Join the two with &.",
    ),
    after="With it, many short texts fill one long row and none of them knows about the others.",
)
