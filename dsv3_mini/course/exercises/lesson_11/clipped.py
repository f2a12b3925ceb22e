"""Exercise 11.1: gradients clipped to a norm over all of them."""

from __future__ import annotations

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_11.inputs import parameters


def clipped(gradients, limit):
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    share = min(1.0, limit / norm.item())
    return [gradient * share for gradient in gradients]


def clipped__each(gradients, limit):
    found = []
    for gradient in gradients:
        share = min(1.0, limit / gradient.norm().item())
        found.append(gradient * share)
    return found


def _norm(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients]).norm().item()


def _scaled(share):
    """All gradients times share(gradients, limit)."""
    return lambda gradients, limit: [gradient * share(gradients, limit) for gradient in gradients]


def _cases(generator: Generator) -> list[Case]:
    large = [20 * gradient for gradient in parameters(generator)]
    large[1] = large[1] / 500  # one tensor alone is below the limit
    small = [gradient / 500 for gradient in parameters(generator)]
    return [
        Case((large, 1.0), note="gradients that are too large"),
        Case((large, 2.5), note="another limit"),
        Case((small, 1.0), note="gradients below the limit"),
    ]


CLIPPED = Exercise(
    id="11.1",
    idea="pretraining",
    title="clip all gradients together",
    minutes=5,
    answer="clipped",
    reference=clipped,
    cases=_cases,
    mistakes=(
        Mistake(
            "each tensor alone",
            clipped__each,
            "Each tensor is clipped by its own norm, so they shrink by different factors and the step points "
            "elsewhere. The norm is one number over all tensors, and so is the factor.",
        ),
        Mistake(
            "always scaled",
            _scaled(lambda gradients, limit: limit / _norm(gradients)),
            "Gradients below the limit are blown up to it. Clipping only ever shrinks.",
        ),
        Mistake(
            "sum of the norms",
            _scaled(lambda gradients, limit: min(1.0, limit / sum(g.norm().item() for g in gradients))),
            "The norms of the tensors are added. The norm over all numbers is the root of the sum of their squares.",
        ),
        Mistake(
            "no root",
            _scaled(lambda gradients, limit: min(1.0, limit / _norm(gradients) ** 2)),
            "The sum of squares is taken for the norm: the square root is missing.",
        ),
        Mistake(
            "mean square",
            _scaled(
                lambda gradients, limit: min(
                    1.0, limit / (_norm(gradients) / sum(gradient.numel() for gradient in gradients) ** 0.5)
                )
            ),
            "The mean of the squares is taken, where their sum belongs: then the limit depends on the model's size.",
        ),
        Mistake(
            "by value",
            lambda gradients, limit: [gradient.clamp(-limit, limit) for gradient in gradients],
            "Every number is cut to the limit by itself. That is clipping by value; it turns the gradient, and the "
            "norm over all of them may still be large.",
        ),
        Mistake(
            "largest number",
            _scaled(lambda gradients, limit: min(1.0, limit / max(g.abs().max().item() for g in gradients))),
            "The largest single number decides. The report limits the norm, over all numbers together.",
        ),
        Mistake(
            "largest tensor",
            _scaled(lambda gradients, limit: min(1.0, limit / max(g.norm().item() for g in gradients))),
            "The norm of the largest tensor decides. The others count too: one norm over all of them.",
        ),
        Mistake(
            "limit forgotten",
            _scaled(lambda gradients, limit: min(1.0, 1.0 / _norm(gradients))),
            "The limit is taken as 1, whatever is given.",
        ),
        Mistake(
            "to zero",
            _scaled(lambda gradients, limit: float(_norm(gradients) <= limit)),
            "Gradients above the limit are thrown away. They keep their direction and are shortened to the limit.",
        ),
    ),
    hints=(
        "Two questions: how long is the whole gradient, all tensors taken as one long vector? And by which one factor "
        "must it shrink, if at all?",
        "Squares add up over tensors: the norm over all is the root of the sum of the squared norms.",
        "The factor is the limit over the norm, and never above 1.",
    ),
    after="One factor for all: the step gets shorter and keeps its direction.",
)
