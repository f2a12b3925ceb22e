"""Exercise 9.3: the loss of all modules, with the report's normaliser (Eq. 24 and 25).

Shapes: B texts, T positions of the main model, T - k of depth k, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_09.inputs import ids, whole


def mtp_loss(logits, targets, weight):
    losses = []
    for k, scores in enumerate(logits, start=1):
        log_p = scores.log_softmax(-1)  # [B, T - k, V]
        said = log_p.gather(-1, targets[:, k:, None])  # of the right token, [B, T - k, 1]
        losses.append(-said.sum() / targets.numel())  # Eq. 24: by all T positions of each text
    return weight * sum(losses) / len(losses)  # Eq. 25


def _with(divide="all", depths="mean", shift="k", weigh="once", sign=-1, logarithm=True):
    """`mtp_loss` with one of its parts changed."""

    def wrong(logits, targets, weight):
        texts, positions = targets.shape
        losses = []
        for k, scores in enumerate(logits, start=1):
            kept = positions - k
            wanted = {"k": targets[:, k:], "0": targets[:, :kept], "1": targets[:, 1:][:, :kept]}[shift]
            scores = scores.log_softmax(-1) if logarithm else scores
            number = {"all": texts * positions, "valid": texts * kept, "T": positions, "T - k": kept, "": 1}[divide]
            loss = sign * scores.gather(-1, wanted[..., None]).sum() / number
            losses.append(loss * (weight**k if weigh == "by depth" else 1))
        total = {"mean": sum(losses) / len(losses), "sum": sum(losses), "last": losses[-1]}[depths]
        return total * weight if weigh == "once" else total

    return wrong


def _by_all_valid(logits, targets, weight):
    right = mtp_loss(logits, targets, weight) * targets.numel() * len(logits)
    return right / sum(scores.shape[0] * scores.shape[1] for scores in logits)


def _predictions(generator: Generator) -> list[Case]:
    cases = []
    for depths, length, note in (
        (1, whole(generator, 4, 9), "one module"),
        (whole(generator, 2, 3), whole(generator, 5, 9), "several modules"),
        (1, 2, "one module with a single position"),
    ):
        texts, vocabulary = whole(generator, 2, 4), whole(generator, 10, 15)
        logits = [2 * torch.randn(texts, length - k, vocabulary, generator=generator) for k in range(1, depths + 1)]
        targets = ids(generator, texts, length, below=vocabulary)
        cases.append(Case((logits, targets, 0.1 * whole(generator, 2, 6)), note=note))
    return cases


LOSS = Exercise(
    id="9.3",
    idea="mtp",
    title="the MTP loss of Eq. 24 and 25",
    minutes=12,
    answer="mtp_loss",
    reference=mtp_loss,
    cases=_predictions,
    mistakes=(
        Mistake(
            "mean over the valid positions",
            _with(divide="valid"),
            "That is the usual mean: divided by the T - k positions that depth k has. Eq. 24 divides by T at every "
            "depth.",
        ),
        Mistake(
            "mean over the valid positions, unweighted",
            _with(divide="valid", weigh="never"),
            "Two things: the usual mean over T - k positions, where Eq. 24 divides by T; and lambda is missing.",
        ),
        Mistake(
            "mean over the valid positions, depths added",
            _with(divide="valid", depths="sum"),
            "Two things: the usual mean over T - k positions, where Eq. 24 divides by T; and the depths are added up, "
            "where Eq. 25 takes their mean.",
        ),
        Mistake(
            "mean over all predictions",
            _by_all_valid,
            "All predictions of all depths are in one mean. Each depth has its own loss, divided by T; Eq. 25 then "
            "averages these.",
        ),
        Mistake(
            "texts not counted",
            _with(divide="T"),
            "You divide by the positions of one text. The sum runs over all texts of the batch.",
        ),
        Mistake(
            "texts not counted, valid positions",
            _with(divide="T - k"),
            "You divide by T - k. Eq. 24 divides by T, and here the sum runs over all texts of the batch.",
        ),
        Mistake("sum", _with(divide=""), "You add up the positions and never divide by their number."),
        Mistake(
            "depths added",
            _with(depths="sum"),
            "The depths are added up. Eq. 25 divides by their number, so that lambda means the same for any depth.",
        ),
        Mistake("last depth", _with(depths="last"), "Only the deepest module counts in your loss."),
        Mistake("unweighted", _with(weigh="never"), "The weight, the lambda of Eq. 25, is missing."),
        Mistake(
            "weight to the power of the depth",
            _with(weigh="by depth"),
            "The weight is multiplied in once for each depth. It stands in Eq. 25 once, in front of the mean.",
        ),
        Mistake(
            "targets not shifted",
            _with(shift="0"),
            "The modules are compared with the targets of the main model. The targets of depth k begin k places on.",
        ),
        Mistake(
            "targets shifted by one",
            _with(shift="1"),
            "For depth 1 the targets are right. A deeper module's targets are shifted further.",
        ),
        Mistake("sign", _with(sign=1), "The sign is wrong: a loss is minus the log-probability."),
        Mistake(
            "no softmax",
            _with(logarithm=False),
            "You took the scores of the right tokens themselves. They become log-probabilities by a log-softmax.",
        ),
    ),
    hints=(
        "One depth first. Which of the T targets belong to its T - k positions? Exercise 9.1 has the answer.",
        "F.cross_entropy with reduction='sum' takes [rows, V] and [rows]; flatten texts and positions into rows.",
        "Divide the sum of each depth by the same number: how many targets the batch has. Then the mean over the "
        "depths, and the weight.",
    ),
    after="At T = 4096 the normaliser hardly matters; at short T a comparison with other code shows it.",
)
