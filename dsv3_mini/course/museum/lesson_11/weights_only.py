"""Exhibit 11.B: a run that is continued from its weights alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dsv3_mini.course.exercises.lesson_11.go_on import go_on, go_on__weights_only
from dsv3_mini.course.exercises.lesson_11.inputs import adamw
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

SIZE, BREAK, STEPS, RATE = 300, 100, 160, 0.1


def noisy_batches() -> list[Tensor]:
    """Batches of 4 samples around a point; the loss is half the squared distance to that point, a number a weight."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(SIZE, generator=generator)
    return [centre, *(centre + 0.6 * torch.randn(4, SIZE, generator=generator) for _ in range(STEPS))]


def loss_after_each(rule: Callable[..., Tensor], saved: dict[str, Any], data: list[Tensor], centre: Tensor) -> Any:
    """The loss after each step that follows the break."""
    rates = [RATE] * STEPS
    last = [rule(saved, data[:end], rates) for end in range(saved["step"] + 1, STEPS + 1)]
    return [(weight - centre).pow(2).mean().item() / 2 for weight in last]


def after_the_break() -> Picture:
    centre, *data = noisy_batches()
    weight, m, v = torch.zeros(SIZE), torch.zeros(SIZE), torch.zeros(SIZE)
    before = []
    for step in range(1, BREAK + 1):
        weight, m, v = adamw(weight, weight - data[step - 1].mean(0), m, v, step, RATE)
        before.append((weight - centre).pow(2).mean().item() / 2)
    saved = {"weight": weight, "m": m, "v": v, "step": BREAK}
    figure = Picture(*style.SIZE, layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, BREAK + 1), before, color=style.INK)
    print(f"loss before the break, at step {BREAK}: {before[-1]:.4f}")
    for (name, rule), (colour, line, _) in zip((("right", go_on), ("exhibit", go_on__weights_only)), style.STYLES):
        after = loss_after_each(rule, saved, data, centre)
        print(f"{name:8} loss 5 steps later {after[4]:.4f}, at step {STEPS} {after[-1]:.4f}")
        axes.plot(range(BREAK + 1, STEPS + 1), after, color=colour, linestyle=line, label=name)
    axes.axvline(BREAK, color=style.GREY, linewidth=1)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.set_title("Continued after a break")
    axes.legend()
    return figure


WEIGHTS_ONLY = Exhibit(
    id="11.B",
    title="only the weights were saved",
    exercise="11.6",
    mistake="weights only",
    story="The model is what one wants to keep, so the model is what is saved. After the crash it is loaded, a new "
    "optimizer is made, and training goes on with the right batch at the right rate.",
    question="The run goes on from these weights. What does its loss do, beside that of a run that was never broken?",
    choices={
        "a": "the same to the last digit",
        "b": "it jumps up, and comes back after some steps",
        "c": "it starts again from the loss of an untrained model",
        "d": "it falls faster: a fresh optimizer is not held back by the past",
    },
    seen="b",
    symptom=after_the_break,
    diagnosis=(
        "A new m has seen one batch, and a new v as well: their quotient is the sign of one noisy gradient, so in the "
        "first step every weight moves by the whole learning rate. It takes some ten steps until m is a mean again, "
        "and longer for v.",
        "One sees a bump in the loss at every restart. With a large learning rate it can cost hours; with a small one "
        "it hides in the noise, and only a comparison with an unbroken run shows it.",
        "The moments take twice the room of the weights. That is why checkpoints that one trains from are three times "
        "as large as those that one publishes.",
    ),
    caught_by="tests/train/test_loop.py::test_a_continued_run_is_the_unbroken_run_bit_for_bit",
)
