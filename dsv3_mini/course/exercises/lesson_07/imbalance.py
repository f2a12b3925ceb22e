"""Exercise 7.1: one number for the imbalance of every layer."""

from __future__ import annotations

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_07.inputs import whole


def imbalance(counts):
    load = counts.float()
    mean = load.mean(-1)
    return (load.amax(-1) - mean) / mean


def _counts(generator: Generator) -> list[Case]:
    layers, experts = whole(generator, 2, 4), whole(generator, 6, 12)
    counts = torch.randint(1, 200, (layers, experts), generator=generator)
    even = torch.full((layers + 1, experts), whole(generator, 5, 50))
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
