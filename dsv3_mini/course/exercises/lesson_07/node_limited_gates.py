"""Exercise 7.3: gates under a bias and a limit on groups."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_07.inputs import random_scores, whole


def node_limited_gates(scores, bias, groups, kept, top_k):
    by_group = (scores + bias).unflatten(-1, (groups, -1))  # [N, G, E/G]
    group_scores = by_group.topk(2, dim=-1).values.sum(-1)  # [N, G]: the two best of each
    best = group_scores.topk(kept, dim=-1).indices
    allowed = torch.zeros_like(group_scores, dtype=torch.bool).scatter(-1, best, True)
    biased = by_group.masked_fill(~allowed[..., None], float("-inf")).flatten(-2)  # [N, E]
    ids = biased.topk(top_k, dim=-1).indices
    gates = torch.zeros_like(scores).scatter(-1, ids, scores.gather(-1, ids))
    return gates / gates.sum(-1, keepdim=True)


def node_limited_gates__masked_with_zero(scores, bias, groups, kept, top_k):
    by_group = (scores + bias).unflatten(-1, (groups, -1))  # [N, G, E/G]
    group_scores = by_group.topk(2, dim=-1).values.sum(-1)  # [N, G]: the two best of each
    best = group_scores.topk(kept, dim=-1).indices
    allowed = torch.zeros_like(group_scores).scatter(-1, best, 1.0)
    biased = (by_group * allowed[..., None]).flatten(-2)  # [N, E]
    ids = biased.topk(top_k, dim=-1).indices
    gates = torch.zeros_like(scores).scatter(-1, ids, scores.gather(-1, ids))
    return gates / gates.sum(-1, keepdim=True)


def node_limited_gates__bias_in_the_weights(scores, bias, groups, kept, top_k):
    by_group = (scores + bias).unflatten(-1, (groups, -1))  # [N, G, E/G]
    group_scores = by_group.topk(2, dim=-1).values.sum(-1)  # [N, G]: the two best of each
    best = group_scores.topk(kept, dim=-1).indices
    allowed = torch.zeros_like(group_scores, dtype=torch.bool).scatter(-1, best, True)
    biased = by_group.masked_fill(~allowed[..., None], float("-inf")).flatten(-2)  # [N, E]
    values, ids = biased.topk(top_k, dim=-1)
    gates = torch.zeros_like(scores).scatter(-1, ids, values)
    return gates / gates.sum(-1, keepdim=True)


def node_limited_gates__best_expert_of_a_group(scores, bias, groups, kept, top_k):
    by_group = (scores + bias).unflatten(-1, (groups, -1))  # [N, G, E/G]
    group_scores = by_group.amax(-1)  # [N, G]: the best of each
    best = group_scores.topk(kept, dim=-1).indices
    allowed = torch.zeros_like(group_scores, dtype=torch.bool).scatter(-1, best, True)
    biased = by_group.masked_fill(~allowed[..., None], float("-inf")).flatten(-2)  # [N, E]
    ids = biased.topk(top_k, dim=-1).indices
    gates = torch.zeros_like(scores).scatter(-1, ids, scores.gather(-1, ids))
    return gates / gates.sum(-1, keepdim=True)


def _best_two(by_group: Tensor) -> Tensor:
    return by_group.topk(2, dim=-1).values.sum(-1)


def _limited(
    rank=_best_two,
    rank_by=None,
    choose_by=None,
    limit=True,
    largest=True,
    normalise=True,
    closed=float("-inf"),
):
    """The gates above with one of their parts changed; `*_by` are functions of scores and bias."""

    def wrong(scores, bias, groups, kept, top_k):
        biased = scores + bias
        ranked = biased if rank_by is None else rank_by(scores, bias)
        group_scores = rank(ranked.unflatten(-1, (groups, -1)))
        best = group_scores.topk(kept, dim=-1, largest=largest).indices
        allowed = torch.zeros_like(group_scores, dtype=torch.bool).scatter(-1, best, True)
        by_group = (biased if choose_by is None else choose_by(scores, bias)).unflatten(-1, (groups, -1))
        masked = (by_group.masked_fill(~allowed[..., None], closed) if limit else by_group).flatten(-2)
        ids = masked.topk(top_k, dim=-1).indices
        gates = torch.zeros_like(scores).scatter(-1, ids, scores.gather(-1, ids))
        return gates / gates.sum(-1, keepdim=True) if normalise else gates

    return wrong


def _strided_groups(scores, bias, groups, kept, top_k):
    """Group g as the experts g, g + G, ..."""
    experts = scores.shape[-1]
    order = torch.arange(experts).view(-1, groups).T.flatten()
    gates = node_limited_gates(scores[:, order], bias[order], groups, kept, top_k)
    return torch.zeros_like(scores).index_copy(-1, order, gates)


def _gate_cases(generator: Generator) -> list[Case]:
    cases = []
    settings = (
        (14, 0.0, ""),
        (12, -0.9, "biases below 0"),
        (11, -2.0, "all biases far below 0"),
        (1, 1.0, "one token"),
    )
    for tokens, shift, note in settings:
        groups, size = whole(generator, 4, 5), whole(generator, 4, 6)
        scores = random_scores(generator, tokens, groups * size)
        bias = torch.randn(groups * size, generator=generator) / 5 + shift
        cases.append(Case((scores, bias, groups, 2, whole(generator, 3, 5)), note=note))
    return cases


NODE_LIMITED_GATES = Exercise(
    id="7.3",
    idea="sigmoid_gate",
    title="gates of a router with a limit on groups",
    minutes=15,
    answer="node_limited_gates",
    reference=node_limited_gates,
    cases=_gate_cases,
    dims="N E",
    mistakes=(
        Mistake(
            "masked with zero",
            node_limited_gates__masked_with_zero,
            "Experts of the other groups get 0, and 0 can win: where allowed experts have biased scores below 0, the "
            "forbidden ones are chosen.",
        ),
        Mistake(
            "masked with -1",
            _limited(closed=-1.0),
            "Experts of the other groups get -1, which can win: scores plus bias may lie lower than that.",
        ),
        Mistake(
            "group score by the maximum",
            node_limited_gates__best_expert_of_a_group,
            "A group counts as its single best expert. It should count as its two best together: a token that goes "
            "there can use more than one.",
        ),
        Mistake(
            "group score by the sum of all",
            _limited(rank=lambda g: g.sum(-1)),
            "A group counts as all of its experts. Most of them will not be chosen: only the two best should count.",
        ),
        Mistake(
            "groups ranked without the bias",
            _limited(rank_by=lambda s, b: s),
            "The groups are ranked by the scores without the bias. The report's words can be read so; the released "
            "code, and we, rank them by the biased scores.",
        ),
        Mistake(
            "bias in the gate weights",
            node_limited_gates__bias_in_the_weights,
            "The choice is right, but the gates are made of biased scores. The bias has no say in how much an expert "
            "counts.",
        ),
        Mistake(
            "bias ignored",
            _limited(rank_by=lambda s, b: s, choose_by=lambda s, b: s),
            "The bias has no effect: groups and experts are chosen by the scores alone.",
        ),
        Mistake(
            "bias for the groups only",
            _limited(choose_by=lambda s, b: s),
            "The bias ranks the groups, but within them you choose by the scores alone.",
        ),
        Mistake(
            "no limit",
            _limited(limit=False),
            "The experts are the best of all groups: the limit on groups has no effect.",
        ),
        Mistake("worst groups", _limited(largest=False), "These are the groups with the lowest scores."),
        Mistake(
            "not normalised",
            _limited(normalise=False),
            "The choice is right, but the gates of a token do not add up to 1 (Eq. 13).",
        ),
        Mistake(
            "groups of strided experts",
            _strided_groups,
            "The groups are made of every so many-th expert. Experts of a group stand next to each other: with four "
            "in a group, the first group is 0, 1, 2, 3.",
        ),
    ),
    hints=(
        "Four steps: biased scores; a score for each group; close the other groups; choose. Then the weights, from "
        "which scores?",
        "unflatten(-1, (groups, -1)) gives every group a row of its own. The group score is the sum of the row's two "
        "best.",
        "What must a closed expert hold so that it can never win, also against numbers below 0?",
    ),
    after="The limit bounds how many machines a token is sent to; lesson 16 counts what that saves.",
)
