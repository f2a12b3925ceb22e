"""Exercises of lesson 07, balance: MaxVio, the update of the routing bias, the node limit, the sequence-wise loss.

Shapes: B sequences, T tokens, N tokens (batch and time in one), E routed experts, L layers, M micro-batches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake


def _whole(generator: Generator, low: int, high: int) -> int:
    """A whole number from low to high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _scores(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator).sigmoid()


# -- 7.1: one number for the imbalance --


def imbalance(counts):
    load = counts.float()
    mean = load.mean(-1)
    return (load.amax(-1) - mean) / mean


def _counts(generator: Generator) -> list[Case]:
    layers, experts = _whole(generator, 2, 4), _whole(generator, 6, 12)
    counts = torch.randint(1, 200, (layers, experts), generator=generator)
    even = torch.full((layers + 1, experts), _whole(generator, 5, 50))
    return [
        Case((counts,), note=f"{layers} layers of {experts} experts"),
        Case((even,), note="every expert equally busy"),
    ]


IMBALANCE = Exercise(
    id="7.1",
    idea="lossfree",
    title="MaxVio of every layer",
    minutes=5,
    answer="imbalance",
    reference=imbalance,
    cases=_counts,
    dims="L",
    mistakes=(
        Mistake(
            "not in shares",
            lambda counts: counts.float().amax(-1) - counts.float().mean(-1),
            "This is a number of tokens. It grows with the batch; how many times the mean is it?",
        ),
        Mistake(
            "the share itself",
            lambda counts: counts.float().amax(-1) / counts.float().mean(-1),
            "This is how many times the mean the busiest expert gets. Asked is what it has too much, so that perfect "
            "balance gives 0.",
        ),
        Mistake(
            "over the busiest",
            lambda counts: (counts.float().amax(-1) - counts.float().mean(-1)) / counts.float().amax(-1),
            "You divide by the load of the busiest expert, so the number never passes 1. Compare with the mean.",
        ),
        Mistake(
            "busiest against idlest",
            lambda counts: (counts.float().amax(-1) - counts.float().amin(-1)) / counts.float().mean(-1),
            "You compare the busiest expert with the idlest. Nobody waits for the idlest: compare with the mean.",
        ),
        Mistake(
            "mean over all layers",
            lambda counts: (counts.float().amax(-1) - counts.float().mean()) / counts.float().mean(),
            "The mean is taken over all layers. Each layer has its own.",
        ),
        Mistake(
            "one number for all layers",
            lambda counts: (counts.float().max() - counts.float().mean()) / counts.float().mean(),
            "This is one number for all layers together. Asked is one for each layer.",
        ),
        Mistake(
            "over layers instead of experts",
            lambda counts: (counts.float().amax(0) - counts.float().mean(0)) / counts.float().mean(0),
            "You compare layers with each other, expert by expert. Compare the experts of a layer.",
        ),
        Mistake(
            "mean deviation",
            lambda counts: (counts.float() / counts.float().mean(-1, keepdim=True) - 1).abs().mean(-1),
            "This is the mean deviation of all experts. A machine waits for the busiest one only.",
        ),
        Mistake(
            "standard deviation",
            lambda counts: counts.float().std(-1, correction=0) / counts.float().mean(-1),
            "This is a standard deviation. A machine waits for the busiest expert, not for a typical one.",
        ),
    ),
    hints=(
        "By which share does the busiest expert pass the mean of its layer?",
        "Counts are whole numbers, and torch takes no mean of those: make them float first. The experts are the last "
        "dimension.",
    ),
    after="With 0 nobody waits; with 1 the layer takes twice as long as it must, if each expert has its own machine.",
)


# -- 7.2: one step of the routing bias --


def updated_bias(bias, counts, speed):
    load = counts.sum(0).float()  # the whole batch of the step
    return bias + speed * torch.sign(load.mean(-1, keepdim=True) - load)  # too few tokens: up


def updated_bias__wrong_sign(bias, counts, speed):
    load = counts.sum(0).float()  # the whole batch of the step
    return bias + speed * torch.sign(load - load.mean(-1, keepdim=True))  # how far from the mean


def _direction(counts: Tensor) -> Tensor:
    load = counts.sum(0).float()
    return torch.sign(load.mean(-1, keepdim=True) - load)


def _by_the_error(bias, counts, speed):
    load = counts.sum(0).float()
    return bias + speed * (load.mean(-1, keepdim=True) - load)


def _by_the_relative_error(bias, counts, speed):
    load = counts.sum(0).float()
    return bias + speed * (1 - load / load.mean(-1, keepdim=True))


def _mean_of_all_layers(bias, counts, speed):
    load = counts.sum(0).float()
    return bias + speed * torch.sign(load.mean() - load)


def _mean_over_layers(bias, counts, speed):
    load = counts.sum(0).float()
    return bias + speed * torch.sign(load.mean(0) - load)


def _every_micro_batch(bias, counts, speed):
    load = counts.float()
    return bias + speed * torch.sign(load.mean(-1, keepdim=True) - load).sum(0)


def _two_ways_only(bias, counts, speed):
    load = counts.sum(0).float()
    return bias + speed * torch.where(load > load.mean(-1, keepdim=True), -1.0, 1.0)


def _two_ways_only_down(bias, counts, speed):
    load = counts.sum(0).float()
    return bias + speed * torch.where(load < load.mean(-1, keepdim=True), 1.0, -1.0)


def _busiest_only(bias, counts, speed):
    load = counts.sum(0).float()
    return bias - speed * (load > load.mean(-1, keepdim=True)).float()


def _idle_only(bias, counts, speed):
    load = counts.sum(0).float()
    return bias + speed * (load < load.mean(-1, keepdim=True)).float()


def _step_cases(generator: Generator) -> list[Case]:
    cases = []
    for micro in (2 * _whole(generator, 1, 2), 1):  # 2 or 4: a mean over micro-batches is exact, and as right as a sum
        layers, experts = _whole(generator, 2, 4), _whole(generator, 6, 11)
        counts = torch.randint(0, 60, (micro, layers, experts), generator=generator)
        counts[:, -1] *= 3  # layers need not see the same number
        counts[-1, 0] += 200 - counts[:, 0].sum(0)  # layer 0 is even over the step, not in each micro-batch
        bias = torch.randn(layers, experts, generator=generator) / 10
        note = "one micro-batch" if micro == 1 else f"{micro} micro-batches"
        cases.append(Case((bias, counts, _whole(generator, 1, 9) / 100), note=f"{note}, the first layer even"))
    return cases


UPDATED_BIAS = Exercise(
    id="7.2",
    idea="lossfree",
    title="one step of the routing bias",
    minutes=10,
    answer="updated_bias",
    reference=updated_bias,
    cases=_step_cases,
    dims="L E",
    mistakes=(
        Mistake(
            "wrong sign",
            updated_bias__wrong_sign,
            "The sign is turned round: a busy expert gets a higher bias, is chosen more often, and gets busier.",
        ),
        Mistake(
            "by the error",
            _by_the_error,
            "The bias moves by how many tokens an expert has too much or too few. The report moves every bias by the "
            "same amount; only the direction depends on the load.",
        ),
        Mistake(
            "by the relative error",
            _by_the_relative_error,
            "The bias moves in proportion to the imbalance. The report moves every bias by the same amount; only the "
            "direction depends on the load.",
        ),
        Mistake(
            "every micro-batch",
            _every_micro_batch,
            "The bias moves once for every micro-batch. The load is that of the whole step, and so is the update: add "
            "the counts up first.",
        ),
        Mistake(
            "last micro-batch only",
            lambda bias, counts, speed: bias + speed * _direction(counts[-1:]),
            "Only the last micro-batch is counted. The load is that of the whole step.",
        ),
        Mistake(
            "first micro-batch only",
            lambda bias, counts, speed: bias + speed * _direction(counts[:1]),
            "Only the first micro-batch is counted. The load is that of the whole step.",
        ),
        Mistake(
            "mean of all layers",
            _mean_of_all_layers,
            "The load is compared with the mean over all layers. Each layer has its own mean.",
        ),
        Mistake(
            "mean over the layers",
            _mean_over_layers,
            "The load is compared with the same expert number of other layers. The mean runs over the experts of one "
            "layer.",
        ),
        Mistake(
            "an even expert goes up",
            _two_ways_only,
            "An expert that is exactly at the mean moves up. It is neither overloaded nor underloaded: it stays.",
        ),
        Mistake(
            "an even expert goes down",
            _two_ways_only_down,
            "An expert that is exactly at the mean moves down. It is neither overloaded nor underloaded: it stays.",
        ),
        Mistake(
            "only the busy ones",
            _busiest_only,
            "Busy experts go down, but idle ones stay where they are. They should come up.",
        ),
        Mistake(
            "only the idle ones",
            _idle_only,
            "Idle experts come up, but busy ones stay where they are. They should go down.",
        ),
        Mistake(
            "the step alone",
            lambda bias, counts, speed: speed * _direction(counts),
            "This is the step alone. The bias remembers all steps before: add it to what was there.",
        ),
        Mistake(
            "no speed",
            lambda bias, counts, speed: bias + _direction(counts),
            "Each bias moves by 1. The update speed is missing.",
        ),
        Mistake(
            "centred",
            lambda bias, counts, speed: bias + speed * (_direction(counts) - _direction(counts).mean(-1, keepdim=True)),
            "The mean of the update is taken out, so that biases stay around 0. Some programs do that, and it changes "
            "no choice; the report does not, and here each bias moves by exactly the speed, or not at all.",
        ),
        Mistake(
            "decides by the bias",
            lambda bias, counts, speed: bias + speed * torch.sign(bias.mean(-1, keepdim=True) - bias),
            "The direction follows the bias itself. It must follow the load.",
        ),
    ),
    hints=(
        "Three questions in this order: how many tokens did each expert get in the whole step? Is that more or less "
        "than the mean of its layer? Which way must its bias go?",
        "Sum over the micro-batches, take the mean over the experts with keepdim=True, and look at the sign of a "
        "difference.",
        "torch.sign gives -1, 0 or 1. An expert with too few tokens needs +1.",
    ),
    after="No gradient and no loss: a thermostat that looks at the load once a step.",
)


# -- 7.3: node-limited gates --


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


def _best_two(by_group: Tensor) -> Tensor:
    return by_group.topk(2, dim=-1).values.sum(-1)


def _limited(
    rank=_best_two,
    rank_by=None,
    choose_by=None,
    weigh_by=None,
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
        values = scores if weigh_by is None else weigh_by(scores, bias)
        gates = torch.zeros_like(scores).scatter(-1, ids, values.gather(-1, ids))
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
        groups, size = _whole(generator, 4, 5), _whole(generator, 4, 6)
        scores = _scores(generator, tokens, groups * size)
        bias = torch.randn(groups * size, generator=generator) / 5 + shift
        cases.append(Case((scores, bias, groups, 2, _whole(generator, 3, 5)), note=note))
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
            _limited(rank=lambda g: g.amax(-1)),
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
            _limited(weigh_by=lambda s, b: s + b),
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


# -- 7.4: the loss of every sequence --


def sequence_loss(scores, top_k):
    tokens, experts = scores.shape[1:]
    chosen = torch.zeros_like(scores).scatter(-1, scores.topk(top_k, dim=-1).indices, 1.0)
    f = chosen.sum(1) * experts / (top_k * tokens)  # [B, E], Eq. 18: a count, no gradient
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
        (_whole(generator, 2, 4), _whole(generator, 5, 9), ""),
        (1, 1, "one sequence of one token"),
    ):
        experts = _whole(generator, 10, 14)
        liking = torch.randn(sequences, 1, experts, generator=generator)  # each sequence has its favourites
        scores = (torch.randn(sequences, tokens, experts, generator=generator) + 2 * liking).sigmoid()
        cases.append(Case((scores, _whole(generator, 3, 5)), note=note))
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
            lambda scores, top_k: sequence_loss(scores.detach(), top_k),
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

EXERCISES = (IMBALANCE, UPDATED_BIAS, NODE_LIMITED_GATES, SEQUENCE_LOSS)
