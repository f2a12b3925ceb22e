"""Exercise 11.5: the loss of a batch that goes through the model in parts of different size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_11.inputs import whole


def batch_loss(logits, targets):
    asked = sum(int((part != -100).sum()) for part in targets)
    total = torch.tensor(0.0)
    for part_logits, part_targets in zip(logits, targets, strict=True):
        total = total + F.cross_entropy(part_logits, part_targets, reduction="sum") / asked
    return total


def batch_loss__mean_of_means(logits, targets):
    total = torch.tensor(0.0)
    for part_logits, part_targets in zip(logits, targets, strict=True):
        total = total + F.cross_entropy(part_logits, part_targets) / len(logits)
    return total


def _weighted(weight, reduction="sum"):
    """The loss of each part times weight(its targets, all targets), added up."""

    def wrong(logits, targets):
        return sum(F.cross_entropy(a, b, reduction=reduction) * weight(b, targets) for a, b in zip(logits, targets))

    return wrong


def _asked(targets: list[Tensor]) -> int:
    return sum(int((part != -100).sum()) for part in targets)


def _places(targets: list[Tensor]) -> int:
    return sum(len(part) for part in targets)


def _detached(logits, targets):
    return batch_loss([part.detach() for part in logits], targets)


def _padding_as_token(logits, targets):
    return batch_loss(logits, [part.clamp(min=0) for part in targets])


def _cases(generator: Generator) -> list[Case]:
    cases = []
    for sizes, note in (
        ((whole(generator, 12, 15), whole(generator, 4, 6), 3), "three parts of different size"),
        ((whole(generator, 5, 9),), "one part"),
    ):
        words = whole(generator, 7, 11)
        logits = [(3 - i) * torch.randn(size, words, generator=generator) for i, size in enumerate(sizes)]
        targets = [torch.randint(1, words, (size,), generator=generator) for size in sizes]
        for i, part in enumerate(targets):
            part[: 1 + i % 2] = -100  # places without a question; more in some parts than in others
        cases.append(Case((logits, targets), note=note))
    return cases


def _loss_and_gradients(answer: Any, case: Case) -> Any:
    """(the loss, the gradient for the logits of each part)."""
    logits = [part.clone().requires_grad_() for part in case.args[0]]
    loss = answer(logits, case.args[1])
    if isinstance(loss, float):
        loss = torch.tensor(loss)
    if not isinstance(loss, Tensor) or loss.dim():
        return loss
    if not loss.requires_grad:
        return (loss.detach(), *(torch.zeros_like(part) for part in logits))
    gradients = torch.autograd.grad(loss, logits, allow_unused=True)
    return (loss.detach(), *(torch.zeros_like(p) if g is None else g for p, g in zip(logits, gradients, strict=True)))


BATCH_LOSS = Exercise(
    id="11.5",
    idea="pretraining",
    title="the loss of a batch in parts",
    minutes=12,
    answer="batch_loss",
    reference=batch_loss,
    cases=_cases,
    use=_loss_and_gradients,
    mistakes=(
        Mistake(
            "mean of means",
            batch_loss__mean_of_means,
            "The mean of each part counts equally, so a token in a small part weighs more than one in a large part. "
            "Each token of the batch should weigh the same.",
        ),
        Mistake(
            "sum of means",
            _weighted(lambda part, targets: 1.0, "mean"),
            "The means of the parts are added up: the loss, and every gradient, grows with the number of parts.",
        ),
        Mistake(
            "sum",
            _weighted(lambda part, targets: 1.0),
            "The losses of all tokens are summed and not divided: a larger batch takes larger steps.",
        ),
        Mistake(
            "weighted by places",
            _weighted(lambda part, targets: len(part) / _places(targets), "mean"),
            "The parts are weighted by their length, places without a question included. Count only targets that "
            "are not -100.",
        ),
        Mistake(
            "divided by places",
            _weighted(lambda part, targets: 1 / _places(targets)),
            "The sum is divided by all places, and those with -100 ask for nothing. Count only the others.",
        ),
        Mistake(
            "padding as a token",
            _padding_as_token,
            "Places with -100 count as if token 0 were asked for there.",
        ),
        Mistake(
            "first part only",
            lambda logits, targets: F.cross_entropy(logits[0], targets[0]),
            "Only the first part counts.",
        ),
        Mistake(
            "last part only",
            lambda logits, targets: F.cross_entropy(logits[-1], targets[-1]),
            "Only the last part counts: is the result overwritten in the loop?",
        ),
        Mistake(
            "detached",
            _detached,
            "The value is right, and no gradient reaches the logits. Is the loss turned into a plain number on the "
            "way (.item(), float(...)), or built from detached logits?",
        ),
        Mistake(
            "parts weighted by tokens, then averaged",
            _weighted(lambda part, targets: 1 / _asked(targets) / len(targets)),
            "The division by the number of tokens is right, and then the result is divided by the number of parts "
            "as well.",
        ),
    ),
    hints=(
        "How much should one token count, if the batch has N tokens that are asked for? Then how much should a part?",
        "Count the targets that are not -100 over all parts first.",
        'F.cross_entropy(..., reduction="sum") leaves the division to you.',
    ),
    after="This is why a bug in many training programs went unseen for years: with parts of equal size both agree.",
)
