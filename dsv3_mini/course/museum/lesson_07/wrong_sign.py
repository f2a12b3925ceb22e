"""Exhibit 7.A: a routing bias with the wrong sign."""

from __future__ import annotations

import torch

from dsv3_mini.course.exercises.lesson_07.updated_bias import updated_bias, updated_bias__wrong_sign
from dsv3_mini.course.museum.lesson_07.router import EXPERTS, TOP_K, tokens_and_popularity
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.model.balance import max_violation
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

SPEED, STEPS = 0.01, 200


def busier_and_busier() -> Picture:
    """The rule and its mirror image on one frozen router; gives MaxVio by step."""
    curves = {}
    for name, update in (("right", updated_bias), ("wrong", updated_bias__wrong_sign)):
        generator = torch.Generator().manual_seed(0)
        popularity = tokens_and_popularity(generator)[1]
        bias, violation = torch.zeros(1, EXPERTS), []
        for _ in range(STEPS):
            scores = (tokens_and_popularity(generator)[0] + popularity).sigmoid()
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


WRONG_SIGN = Exhibit(
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
)
