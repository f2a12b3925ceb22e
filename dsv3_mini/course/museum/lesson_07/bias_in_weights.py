"""Exhibit 7.C: a routing bias that leaks into the gate weights."""

from __future__ import annotations

import torch

from dsv3_mini.course.exercises.lesson_07.node_limited_gates import (
    node_limited_gates,
    node_limited_gates__bias_in_the_weights,
)
from dsv3_mini.course.museum.lesson_07.router import EXPERTS, GROUPS, KEPT, TOP_K, tokens_and_popularity
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture


def weights_follow_the_bias() -> Picture:
    """The mistake with biases further and further from 0; gives how much of the weight lies elsewhere."""
    generator = torch.Generator().manual_seed(0)
    logits, popularity = tokens_and_popularity(generator)
    scores, direction = (logits + popularity).sigmoid(), torch.randn(EXPERTS, generator=generator)
    sizes, moved = [0.0, 0.05, 0.1, 0.2, 0.3, 0.5], []
    for size in sizes:
        bias = size * direction
        right = node_limited_gates(scores, bias, GROUPS, KEPT, TOP_K)
        wrong = node_limited_gates__bias_in_the_weights(scores, bias, GROUPS, KEPT, TOP_K)
        same = ((right != 0) == (wrong != 0)).all(-1).float().mean()
        moved.append(float((right - wrong).abs().sum(-1).mean() / 2))
        print(f"biases of size {size:4.2f}: {same:4.0%} of the tokens go to the right experts, ", end="")
        print(f"{moved[-1]:5.1%} of their weight lies on another one of them")
    figure = Picture(*style.SIZE, layout="constrained")
    axes = figure.subplots()
    axes.plot(sizes, moved, color=style.VERMILLION, marker="o")
    axes.set(xlabel="size of the biases (standard deviation)", ylabel="share of weight moved", ylim=(0, None))
    axes.set_title("The choice is right throughout; the weights are not")
    return figure


BIAS_IN_WEIGHTS = Exhibit(
    id="7.C",
    title="a bias with a say in the result",
    exercise="7.3",
    mistake="bias in the gate weights",
    story=(
        "`topk` gives the values beside the ids, so why gather them again? The values that the choice was made by "
        "become the gates."
    ),
    question="The biases move away from 0, as they do while a model trains. What will you see?",
    choices={
        "a": "nothing: dividing by their sum takes the bias out of the gates again",
        "b": "other experts are chosen",
        "c": "the same experts are chosen, and the further the biases go, the more the weights shift between them",
        "d": "the gates of a token no longer add up to 1",
    },
    seen="c",
    symptom=weights_follow_the_bias,
    diagnosis=(
        "The bias is there to move tokens, not to change what a token gets. Here it does both: an expert that nobody "
        "likes is chosen more *and* speaks louder. The gradient then works on weights that a rule outside of it keeps "
        "moving. Choice, load, shapes and sums are right, so a dashboard shows nothing.",
        "How to recognise it: test gates with biases that are not 0. A fresh model has none, and there the two "
        "versions agree to the last bit.",
    ),
    caught_by="tests/model/test_router.py::test_bias_changes_selection_never_weights",
)
