"""Exhibit 7.B: experts of closed groups that win with a 0."""

from __future__ import annotations

import torch

from dsv3_mini.course.exercises.lesson_07.node_limited_gates import (
    node_limited_gates,
    node_limited_gates__masked_with_zero,
)
from dsv3_mini.course.museum.lesson_07.router import EXPERTS, GROUPS, KEPT, TOP_K, tokens_and_popularity
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture


def forbidden_experts_win() -> Picture:
    """The mistake with biases that all lie lower and lower; gives the share of tokens that go astray."""
    generator = torch.Generator().manual_seed(0)
    logits, popularity = tokens_and_popularity(generator)
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


ZERO_WINS = Exhibit(
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
)
