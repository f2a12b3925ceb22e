"""Exercise 6.2: from scores to gates.

Shapes: N tokens, E routed experts, K of them per token.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_06.inputs import _randn, _whole


def gates(scores, bias, top_k, scaling):
    ids = (scores + bias).topk(top_k, dim=-1).indices  # the bias has a say in the choice only
    chosen = torch.zeros_like(scores).scatter(-1, ids, scores.gather(-1, ids))  # Eq. 16: s, or 0
    return scaling * chosen / chosen.sum(-1, keepdim=True)  # Eq. 13, and the released factor


def _gates(choose_by=lambda s, b: s + b, weigh_by=lambda s, b: s, divide="chosen", largest=True, scaled=True):
    """The gates above with one of their parts changed."""

    def wrong(scores, bias, top_k, scaling):
        ids = choose_by(scores, bias).topk(top_k, dim=-1, largest=largest).indices
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, ids, True)
        values = weigh_by(scores, bias)
        chosen = values * mask
        if divide == "softmax of the chosen":
            chosen = values.masked_fill(~mask, float("-inf")).softmax(-1)
        elif divide == "softmax of all":
            chosen = values.softmax(-1) * mask
        elif divide == "chosen":
            chosen = chosen / chosen.sum(-1, keepdim=True)
        elif divide == "all":
            chosen = chosen / values.sum(-1, keepdim=True)
        elif divide == "tokens":
            chosen = chosen / chosen.sum(0, keepdim=True).clamp_min(1e-20)
        elif divide == "top_k":
            chosen = chosen / top_k
        return chosen * scaling if scaled else chosen

    return wrong


def _scores(generator: Generator) -> list[Case]:
    cases = []
    for tokens, note in ((_whole(generator, 5, 9), ""), (1, "one token")):
        experts, top_k = _whole(generator, 12, 20), _whole(generator, 3, 5)
        scores = _randn(generator, tokens, experts).sigmoid()
        bias = _randn(generator, experts) / 2 + 0.7 * _whole(generator, -1, 1)
        cases.append(Case((scores, bias, top_k, 1.5 + _whole(generator, 1, 4) / 4), note=note))
    return cases


GATES = Exercise(
    id="6.2",
    idea="sigmoid_gate",
    title="from scores to gates, with a bias that only chooses",
    minutes=10,
    answer="gates",
    reference=gates,
    cases=_scores,
    dims="N E",
    mistakes=(
        Mistake(
            "bias leaks",
            _gates(weigh_by=lambda s, b: s + b),
            "The bias leaks into the gates: they are made of scores + bias. The bias has a say in who is chosen, never "
            "in how much it counts.",
        ),
        Mistake(
            "bias ignored",
            _gates(choose_by=lambda s, b: s),
            "The bias has no effect: the choice is by the scores alone.",
        ),
        Mistake(
            "normalised over all",
            _gates(divide="all"),
            "You divide by the sum over all experts, so the gates of a token do not add up to the factor. Eq. 13 adds "
            "up the chosen ones.",
        ),
        Mistake(
            "softmax over all",
            _gates(divide="softmax of all"),
            "This is a softmax over all experts. The scores have been through a sigmoid already, and are only divided "
            "by their sum over the chosen ones.",
        ),
        Mistake(
            "softmax over the chosen",
            _gates(divide="softmax of the chosen"),
            "This is a softmax over the chosen experts. Eq. 13 takes no exponential: each score is divided by a sum.",
        ),
        Mistake(
            "factor forgotten",
            _gates(scaled=False),
            "The gates of a token add up to 1: the factor `scaling` is missing.",
        ),
        Mistake(
            "not normalised",
            _gates(divide=""),
            "The scores are not divided by their sum over the chosen experts (Eq. 13).",
        ),
        Mistake(
            "divided by K",
            _gates(divide="top_k"),
            "You divide by the number of chosen experts. Eq. 13 divides by the sum of their scores.",
        ),
        Mistake(
            "normalised over tokens",
            _gates(divide="tokens"),
            "The sum runs over the tokens. Each token's own gates should add up to the factor.",
        ),
        Mistake(
            "bias in the sum",
            lambda scores, bias, top_k, scaling: _bias_in_the_sum(scores, bias, top_k, scaling),
            "The gates are made of the scores alone, but the sum that you divide by contains the bias.",
        ),
        Mistake(
            "bias subtracted",
            _gates(choose_by=lambda s, b: s - b),
            "The bias is subtracted: who should be helped is held back.",
        ),
        Mistake(
            "sigmoid again",
            _gates(weigh_by=lambda s, b: s.sigmoid()),
            "The gates go through a sigmoid once more. `scores` have been through it already (Eq. 15).",
        ),
        Mistake(
            "sigmoid again for all",
            lambda scores, bias, top_k, scaling: gates(scores.sigmoid(), bias, top_k, scaling),
            "You apply a sigmoid to the scores. They have been through it already (Eq. 15).",
        ),
        Mistake("smallest", _gates(largest=False), "These are the experts with the lowest scores."),
        Mistake(
            "all experts work",
            lambda scores, bias, top_k, scaling: scaling * scores / scores.sum(-1, keepdim=True),
            "No expert is left out: those that were not chosen must have gate 0.",
        ),
        Mistake(
            "only the chosen, as [N, K]",
            lambda scores, bias, top_k, scaling: _chosen_only(scores, bias, top_k, scaling),
            "These are the gates of the chosen experts only, one column for each choice. Asked is a table with a "
            "column for every expert, 0 where it was not chosen.",
        ),
    ),
    hints=(
        "Two questions, two numbers: who is chosen, and with which weight. Which of the two does the bias enter?",
        "topk gives the numbers of the chosen experts. Make a table of zeros and scatter the unbiased scores of the "
        "chosen ones into it: that is Eq. 16.",
        "Then divide each row by its sum, and multiply by `scaling`.",
    ),
    after="Where the bias comes from, and what it is good for, is lesson 07.",
)


def _chosen_only(scores: Tensor, bias: Tensor, top_k: int, scaling: float) -> Tensor:
    chosen = scores.gather(-1, (scores + bias).topk(top_k, dim=-1).indices)
    return scaling * chosen / chosen.sum(-1, keepdim=True)


def _bias_in_the_sum(scores: Tensor, bias: Tensor, top_k: int, scaling: float) -> Tensor:
    best = (scores + bias).topk(top_k, dim=-1)
    chosen = torch.zeros_like(scores).scatter(-1, best.indices, scores.gather(-1, best.indices))
    return scaling * chosen / best.values.sum(-1, keepdim=True)
