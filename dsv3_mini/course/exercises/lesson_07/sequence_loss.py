"""Exercise 7.4: the balance loss of every sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_07.inputs import whole


def sequence_loss(scores, top_k):
    tokens, experts = scores.shape[1:]
    chosen = torch.zeros_like(scores).scatter(-1, scores.topk(top_k, dim=-1).indices, 1.0)
    f = chosen.sum(1) * experts / (top_k * tokens)  # [B, E], Eq. 18: a count, no gradient
    p = (scores / scores.sum(-1, keepdim=True)).mean(1)  # [B, E], Eq. 19 and 20
    return (f * p).sum(-1).mean()


@torch.no_grad()  # a count has no gradient
def sequence_loss__detached(scores, top_k):
    tokens, experts = scores.shape[1:]
    chosen = torch.zeros_like(scores).scatter(-1, scores.topk(top_k, dim=-1).indices, 1.0)
    f = chosen.sum(1) * experts / (top_k * tokens)  # [B, E], Eq. 18
    p = (scores / scores.sum(-1, keepdim=True)).mean(1)  # [B, E], Eq. 19 and 20
    return (f * p).sum(-1).mean()


def _balance(
    share=lambda s, chosen: s / s.sum(-1, keepdim=True), over="sequence", factor=True, top=True, reduce="mean"
):
    """The loss above with one of its parts changed."""

    def wrong(scores, top_k):
        if over == "batch":
            scores = scores.flatten(0, 1)[None]
        experts = scores.shape[-1]
        chosen = torch.zeros_like(scores).scatter(-1, scores.topk(top_k, dim=-1).indices, 1.0)
        f = chosen.mean(1) * (experts if factor else 1) / (top_k if top else 1)
        each = (f * share(scores, chosen).mean(1)).sum(-1)
        return each.sum() if reduce == "sum" else each.mean()

    return wrong


def _tokenwise(scores, top_k):
    """The product token by token: f and P never become means over the sequence."""
    chosen = torch.zeros_like(scores).scatter(-1, scores.topk(top_k, dim=-1).indices, 1.0)
    each = chosen * scores.shape[-1] / top_k * scores / scores.sum(-1, keepdim=True)
    return each.sum(-1).mean()


def _loss_cases(generator: Generator) -> list[Case]:
    cases = []
    for sequences, tokens, note in (
        (whole(generator, 2, 4), whole(generator, 5, 9), ""),
        (1, 1, "one sequence of one token"),
    ):
        experts = whole(generator, 10, 14)
        liking = torch.randn(sequences, 1, experts, generator=generator)  # each sequence has its favourites
        scores = (torch.randn(sequences, tokens, experts, generator=generator) + 2 * liking).sigmoid()
        cases.append(Case((scores, whole(generator, 3, 5)), note=note))
    return cases


def _loss_and_gradient(answer: Any, case: Case) -> Any:
    """(the loss, its gradient with respect to the scores [B, T, E])."""
    scores = case.args[0].clone().requires_grad_()
    loss = answer(scores, *case.args[1:])
    if isinstance(loss, float):
        loss = torch.tensor(loss)
    if not isinstance(loss, Tensor) or loss.dim():
        return loss
    gradient = torch.autograd.grad(loss, scores)[0] if loss.requires_grad else torch.zeros_like(scores)
    return loss.detach(), gradient


SEQUENCE_LOSS = Exercise(
    id="7.4",
    idea="lossfree",
    title="the sequence-wise balance loss, and its gradient",
    minutes=15,
    answer="sequence_loss",
    reference=sequence_loss,
    cases=_loss_cases,
    use=_loss_and_gradient,
    dims=("", "B T E"),
    mistakes=(
        Mistake(
            "detached",
            sequence_loss__detached,
            "The value is right, and no gradient reaches the scores: the loss can be watched, but it teaches nothing. "
            "Is P computed inside no_grad, from detached scores, or is the loss turned into a plain number?",
        ),
        Mistake(
            "over the batch",
            _balance(over="batch"),
            "f and P are taken over the whole batch before they are multiplied. That is the batch-wise loss: one "
            "sequence may be one-sided if another makes up for it.",
        ),
        Mistake(
            "normalised over the chosen only",
            _balance(share=lambda s, chosen: s * chosen / (s * chosen).sum(-1, keepdim=True)),
            "The scores are divided by their sum over the chosen experts, and the others become 0. That is Eq. 13, "
            "for the gates. Eq. 19 divides by the sum over all experts.",
        ),
        Mistake(
            "divided by the chosen",
            _balance(share=lambda s, chosen: s / (s * chosen).sum(-1, keepdim=True)),
            "The scores of all experts are divided by the sum over the chosen ones. Eq. 19 divides by the sum over "
            "all experts.",
        ),
        Mistake(
            "not normalised",
            _balance(share=lambda s, chosen: s),
            "The scores are not divided by their sum (Eq. 19).",
        ),
        Mistake(
            "softmax",
            _balance(share=lambda s, chosen: s.softmax(-1)),
            "The scores go through a softmax. Eq. 19 takes no exponential: each is divided by a sum.",
        ),
        Mistake(
            "token by token",
            _tokenwise,
            "Choice and share are multiplied token by token. Take both means over the sequence first: the loss speaks "
            "of the load of experts, not of single tokens.",
        ),
        Mistake(
            "no factor",
            _balance(factor=False, top=False),
            "f is a bare share of tokens: the factor of Eq. 18 is missing, which makes an even load 1.",
        ),
        Mistake(
            "K missing in the factor",
            _balance(top=False),
            "In the factor of Eq. 18 the number of experts a token is missing, so an even load does not give 1.",
        ),
        Mistake(
            "too small by the number of experts",
            _balance(factor=False),
            "The loss is too small by the number of experts: it is missing in the factor of Eq. 18, or you take a mean "
            "over experts where Eq. 17 has a sum.",
        ),
        Mistake(
            "one loss for each sequence",
            lambda scores, top_k: torch.stack([sequence_loss(one[None], top_k) for one in scores]),
            "There is one number for each sequence. Their mean is asked for, a tensor without dimensions.",
        ),
        Mistake(
            "with alpha",
            lambda scores, top_k: 1e-4 * sequence_loss(scores, top_k),
            "The loss is multiplied by alpha. Here it is asked for without, so that perfect balance gives 1.",
        ),
        Mistake(
            "sum over the batch",
            _balance(reduce="sum"),
            "The losses of the sequences are summed. Take their mean, so that a larger batch has no larger loss.",
        ),
    ),
    hints=(
        "Two tables [B, E]: f counts, P adds up scores. Both are means over the tokens of one sequence.",
        "f: a table of ones at the chosen experts, summed over the tokens, times N_r / (K_r T). P: scores over their "
        "sum, mean over the tokens.",
        "Multiply the tables, sum over the experts, and take the mean over the sequences last.",
    ),
    after="f says who is too busy, and weighs the gradient that flows through P.",
)
