"""Exhibit 11.A: weight decay inside the gradient."""

from __future__ import annotations

import torch

from dsv3_mini.course.exercises.lesson_11.optimizer_step import optimizer_step, optimizer_step__in_the_gradient
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

STEPS, RATE, START = 1000, 1e-4, 0.1
SIZES = (0.8, 0.008)  # norms of the gradients, below the clipping limit


def who_shrinks() -> Picture:
    """Weights that nothing pulls at: gradients are noise, so decay is all that remains in the mean."""
    decayed = (1 - RATE * 0.1) ** STEPS
    print(f"Gradients are pure noise. The decay alone leaves {decayed:.1%} of a weight after {STEPS} steps.")
    figure = Picture(*style.SIZE, layout="constrained")
    axes = figure.subplots()
    looks = iter(style.STYLES)
    # One long draw for both rules: they see the same noise.
    noise = torch.randn(STEPS, 40, 40, generator=torch.Generator().manual_seed(0)) / 40
    for name, rule in (("right", optimizer_step), ("exhibit", optimizer_step__in_the_gradient)):
        for size in SIZES:
            start = torch.full((40, 40), START)
            weight, curve = start, []
            m = v = torch.zeros_like(weight)
            for step in range(1, STEPS + 1):
                gradient = size * noise[step - 1]
                (weight,) = rule([weight], [gradient], [m], [v], step, RATE)
                seen = gradient + (0.1 * weight if rule is optimizer_step__in_the_gradient else 0.0)
                m, v = 0.9 * m + 0.1 * seen, 0.95 * v + 0.05 * seen**2
                curve.append(weight.mean().item())
            print(f"{name:8} gradients of norm {size:<5g}: the mean weight goes from {START} to {curve[-1]:.3f}")
            colour, line, _ = next(looks)
            axes.plot(curve, color=colour, linestyle=line, label=f"{name}, gradients of norm {size:g}")
    axes.set(xlabel="step", ylabel="mean weight")
    axes.set_title("How fast weights shrink")
    axes.legend()
    return figure


COUPLED_DECAY = Exhibit(
    id="11.A",
    title="decay inside the gradient",
    exercise="11.2",
    mistake="decay in the gradient",
    story="Weight decay is a penalty on large weights, and the gradient of a squared penalty is the weight itself. So "
    "it is added to the gradient, as it was for decades, and everything after that stays as it is.",
    question="Two matrices get gradients that are pure noise, one of them a hundred times as large as the other. How "
    "fast do their weights shrink under this code?",
    choices={
        "a": "both as fast as with the right code",
        "b": "both alike, but ten times too slowly",
        "c": "far too fast, and the one with small gradients fastest",
        "d": "not at all: the noise wins",
    },
    seen="c",
    symptom=who_shrinks,
    diagnosis=(
        "Adam divides what it gets by its usual size. A decay inside the gradient is divided, too: where the gradient "
        "is small, the decay is most of it, and it becomes a full step of the learning rate, whatever its strength.",
        "Decoupled, the decay is the learning rate times 0.1 of the weight, the same for all. That is the W of AdamW.",
        "No error, and a loss that falls. It shows in the norms of the weights, by layer, over a run; and in a test "
        "that takes two steps by hand.",
    ),
    caught_by="tests/train/test_optimizer.py::test_one_step_is_adamw_by_hand",
)
