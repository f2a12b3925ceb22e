"""Exercise 7.2: one step of the routing bias."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_07.inputs import whole


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
    for micro in (2 * whole(generator, 1, 2), 1):  # 2 or 4: a mean over micro-batches is exact, and as right as a sum
        layers, experts = whole(generator, 2, 4), whole(generator, 6, 11)
        counts = torch.randint(0, 60, (micro, layers, experts), generator=generator)
        counts[:, -1] *= 3  # layers need not see the same number
        counts[-1, 0] += 200 - counts[:, 0].sum(0)  # layer 0 is even over the step, not in each micro-batch
        bias = torch.randn(layers, experts, generator=generator) / 10
        note = "one micro-batch" if micro == 1 else f"{micro} micro-batches"
        cases.append(Case((bias, counts, whole(generator, 1, 9) / 100), note=f"{note}, the first layer even"))
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
