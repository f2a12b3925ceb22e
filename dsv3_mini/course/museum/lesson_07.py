"""Exhibits of lesson 07: a routing bias with the wrong sign, and forbidden experts that win with a 0."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3_mini.course.exercises.lesson_07.node_limited_gates import (
    node_limited_gates,
    node_limited_gates__masked_with_zero,
)
from dsv3_mini.course.exercises.lesson_07.updated_bias import updated_bias, updated_bias__wrong_sign
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.model.balance import max_violation
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

TOKENS, EXPERTS, TOP_K, SPEED, STEPS = 512, 16, 4, 0.01, 200
GROUPS, KEPT = 4, 2


def _tokens_and_popularity(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scores [N, E] of one step before the sigmoid, and how popular each expert is [E]."""
    return torch.randn(TOKENS, EXPERTS, generator=generator), torch.randn(EXPERTS, generator=generator)


def busier_and_busier() -> Picture:
    """The rule and its mirror image on one frozen router; gives MaxVio by step."""
    curves = {}
    for name, update in (("right", updated_bias), ("wrong", updated_bias__wrong_sign)):
        generator = torch.Generator().manual_seed(0)
        popularity = _tokens_and_popularity(generator)[1]
        bias, violation = torch.zeros(1, EXPERTS), []
        for _ in range(STEPS):
            scores = (_tokens_and_popularity(generator)[0] + popularity).sigmoid()
            ids = (scores + bias[0]).topk(TOP_K, dim=-1).indices
            counts = torch.bincount(ids.flatten(), minlength=EXPERTS)
            violation.append(float(max_violation(counts[None])))
            bias = update(bias, counts[None, None], SPEED)
        idle = int((counts == 0).sum())
        print(f"{name} sign: MaxVio {violation[0]:.2f} at first, {violation[-1]:.2f} after {STEPS} steps; ", end="")
        print(f"{idle} of {EXPERTS} experts without a token")
        curves[name] = violation
    print(f"the largest MaxVio there can be: {EXPERTS / TOP_K - 1:.2f}")
    figure = Picture(*style.SIZE, layout="constrained")
    axes = figure.subplots()
    for (name, curve), (colour, line) in zip(curves.items(), ((style.BLUE, "-"), (style.VERMILLION, "--"))):
        axes.plot(curve, color=colour, linestyle=line)
        style.label_line(axes, STEPS - 1, curve[-1], f"{name} sign", colour)
    axes.set(xlabel="step", ylabel="MaxVio", ylim=(0, EXPERTS / TOP_K - 0.8), xlim=(0, STEPS * 1.2))
    axes.set_title("The same router and tokens, the two signs of the update")
    return figure


def forbidden_experts_win() -> Picture:
    """The mistake with biases that all lie lower and lower; gives the share of tokens that go astray."""
    generator = torch.Generator().manual_seed(0)
    logits, popularity = _tokens_and_popularity(generator)
    scores, spread = (logits + popularity).sigmoid(), torch.randn(EXPERTS, generator=generator) / 10
    shifts = [0.0, -0.2, -0.4, -0.6, -0.8, -1.0, -1.2]
    astray, over = [], []
    for shift in shifts:
        right = node_limited_gates(scores, spread + shift, GROUPS, KEPT, TOP_K)
        wrong = node_limited_gates__masked_with_zero(scores, spread + shift, GROUPS, KEPT, TOP_K)
        visited = (wrong.unflatten(-1, (GROUPS, -1)).sum(-1) > 0).sum(-1)  # groups of each token
        astray.append(float(((wrong - right).abs().amax(-1) > 1e-5).float().mean()))
        over.append(float((visited > KEPT).float().mean()))
        print(f"biases around {shift:4.1f}: {astray[-1]:4.0%} of the tokens go to closed groups, ", end="")
        print(f"{over[-1]:4.0%} visit more groups than allowed")
    figure = Picture(*style.SIZE, layout="constrained")
    axes = figure.subplots()
    for curve, words, colour, line in (
        (astray, "in closed groups", style.VERMILLION, "-"),
        (over, "in too many groups", style.BLUE, "--"),
    ):
        axes.plot(shifts, curve, color=colour, linestyle=line, marker="o")
        style.label_line(axes, shifts[-1], curve[-1], words, colour)
    axes.set(xlabel="where the biases lie", ylabel="share of tokens", xlim=(0.05, -1.65), ylim=(-0.03, 1.05))
    axes.set_title("A common shift of all biases should change nothing")
    return figure


EXHIBITS = (
    Exhibit(
        id="7.A",
        title="a busy expert gets busier",
        exercise="7.2",
        mistake="wrong sign",
        story=(
            "The update follows the error, and an error is what is there minus what should be there. So the load minus "
            "its mean is taken, and added, as one adds any correction."
        ),
        question="The update runs on a router that favours some experts a little. What will you see?",
        choices={
            "a": "it balances all the same, only more slowly",
            "b": "the load stays as it was",
            "c": "a few experts get every token, and most experts none",
            "d": "the biases grow until the numbers overflow, and the run stops",
        },
        seen="c",
        symptom=busier_and_busier,
        diagnosis=(
            "A thermostat that heats when it is warm. Each step makes the popular experts more popular, until they get "
            "everything. Nothing fails: shapes, gates and their sums are as they should be. The other experts are "
            "weights that were paid for and are never used.",
            "How to recognise it: log the load next to the loss, and look at its direction. In a test: one expert "
            "above the mean, one below, one update, two signs.",
        ),
        caught_by="tests/model/test_balance.py::test_overloaded_experts_go_down_underloaded_up_and_the_mean_stays",
    ),
    Exhibit(
        id="7.B",
        title="a 0 that wins",
        exercise="7.3",
        mistake="masked with zero",
        story=(
            "Experts of closed groups are multiplied by 0. Scores come out of a sigmoid and are positive, so a 0 is "
            "less than any of them. (The released code did this until February 2025.)"
        ),
        question="All biases are shifted down together, which should change no choice. What will you see?",
        choices={
            "a": "nothing: one common shift changes no choice",
            "b": "right as long as biases are near 0; further down, more and more tokens go to closed groups",
            "c": "wrong from the start, with biases near 0, too",
            "d": "the gates of some tokens become negative",
        },
        seen="b",
        symptom=forbidden_experts_win,
        diagnosis=(
            "Scores are positive; scores plus bias need not be. Where fewer allowed experts than needed lie above 0, "
            "closed experts are taken instead, as their 0 beats a negative number. The gates look healthy, since they "
            "are made of unbiased scores. Only -inf is below everything.",
            "How to recognise it: test with biases below -1, against a router written another way. With the biases of "
            "a fresh model, which are 0, this bug cannot be seen. And to count the groups of each token is not enough: "
            "far down, all tokens visit few enough groups, and exactly the wrong ones.",
        ),
        caught_by="tests/model/test_router.py::test_forbidden_groups_stay_forbidden_under_negative_biases",
    ),
)
