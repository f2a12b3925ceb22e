"""Exhibit 7.E: a balance loss that reports and does not teach."""

from __future__ import annotations

import torch

from dsv3_mini.course.exercises.lesson_07.sequence_loss import sequence_loss, sequence_loss__detached
from dsv3_mini.course.museum.lesson_07.router import EXPERTS, TOKENS, TOP_K, tokens_and_popularity
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.model.balance import max_violation
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

SEQUENCES, STEPS, RATE, ALPHA = 4, 60, 0.05, 10.0


def watched_and_not_taught() -> Picture:
    """Logits trained towards what they are, plus alpha times the loss, right and wrong; gives MaxVio by step."""
    curves = {}
    for name, loss in (("right", sequence_loss), ("detached", sequence_loss__detached)):
        tokens, popularity = tokens_and_popularity(torch.Generator().manual_seed(0))
        wanted = (tokens + popularity).view(SEQUENCES, TOKENS // SEQUENCES, EXPERTS)
        logits = wanted.clone().requires_grad_()
        optimizer, violation, values = torch.optim.Adam([logits], lr=RATE), [], []
        for _ in range(STEPS):
            scores = logits.sigmoid()
            balance = loss(scores, TOP_K)
            main = (logits - wanted).square().mean()  # stands for all else that a router has to learn
            optimizer.zero_grad()
            (main + ALPHA * balance).backward()
            optimizer.step()
            ids = scores.detach().topk(TOP_K, dim=-1).indices
            counts = torch.bincount(ids.flatten(), minlength=EXPERTS)
            violation.append(float(max_violation(counts[None])))
            values.append(float(balance.detach()))
        print(f"{name:8} balance loss {values[0]:.3f} at first, {values[-1]:.3f} after {STEPS} steps; ", end="")
        print(f"MaxVio {violation[0]:.2f}, then {violation[-1]:.2f}")
        curves[name] = violation
    figure = Picture(*style.SIZE, layout="constrained")
    axes = figure.subplots()
    for (name, curve), (colour, line) in zip(curves.items(), ((style.BLUE, "-"), (style.VERMILLION, "--"))):
        axes.plot(curve, color=colour, linestyle=line)
        style.label_line(axes, STEPS - 1, curve[-1], name, colour)
    axes.set(xlabel="step", ylabel="MaxVio", ylim=(0, None), xlim=(0, STEPS * 1.2))
    axes.set_title("The same loss, with a gradient and without")
    return figure


DETACHED_LOSS = Exhibit(
    id="7.E",
    title="a loss that only watches",
    exercise="7.4",
    mistake="detached",
    story="f is a count, and a count has no gradient. So the whole function is put under `no_grad`.",
    question="The loss is added to the main loss, as always, and the model trains. What will you see?",
    choices={
        "a": "`backward` raises an error",
        "b": "the loss has the right value at every step, and the load stays as uneven as it was",
        "c": "it balances, only more slowly",
        "d": "the load becomes less even than without the loss",
    },
    seen="b",
    symptom=watched_and_not_taught,
    diagnosis=(
        "The sum of a tensor with a gradient and one without has a gradient, so nothing complains. The log shows a "
        "balance loss with the right value, and it is easy to take its moving about for learning. Only f is to be "
        "constant; the gradient goes through P.",
        "How to recognise it: a test of the value cannot. Ask for the gradient: `torch.autograd.grad(loss, scores)` "
        "must exist and must not be 0. Public re-implementations have shipped with this.",
    ),
    caught_by="tests/model/test_balance.py::test_gradient_flows_through_the_affinities_only",
)
