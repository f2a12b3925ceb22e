"""Exercise 11.6: continue a run from what was saved."""

from __future__ import annotations

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_11.inputs import adamw, between, whole


def go_on(saved, batches, rates):
    weight, m, v = saved["weight"], saved["m"], saved["v"]
    for step in range(saved["step"] + 1, len(batches) + 1):
        gradient = weight - batches[step - 1].mean(0)
        weight, m, v = adamw(weight, gradient, m, v, step, rates[step - 1])
    return weight


def go_on__weights_only(saved, batches, rates):
    weight = saved["weight"]
    m, v = torch.zeros_like(weight), torch.zeros_like(weight)
    for count, step in enumerate(range(saved["step"] + 1, len(batches) + 1), start=1):
        gradient = weight - batches[step - 1].mean(0)
        weight, m, v = adamw(weight, gradient, m, v, count, rates[step - 1])
    return weight


def _go_on(start=lambda saved: saved, first=0, last=0, count_from=0, data_from=0, rates_from=0, carried=True):
    """As above with something lost: moments (start), or a counter that begins elsewhere (None: at the beginning)."""

    def wrong(saved, batches, rates):
        state, done = start(saved), saved["step"]
        weight, m, v = state["weight"], state["m"], state["v"]
        for step in range(done + 1 + first, len(batches) + 1 + last):
            data = step - done if data_from is None else step + data_from
            count = step - done if count_from is None else step + count_from
            rate = step - done if rates_from is None else step
            gradient = weight - batches[data - 1].mean(0)
            weight, new_m, new_v = adamw(weight, gradient, m, v, count, rates[rate - 1])
            if carried:
                m, v = new_m, new_v
        return weight

    return wrong


def _zero(*names):
    return lambda saved: {**saved, **{name: torch.zeros_like(saved["weight"]) for name in names}}


def _from_the_start(saved, batches, rates):
    begin = {"weight": saved["weight"], "m": saved["m"], "v": saved["v"], "step": 0}
    return go_on(begin, batches, rates)


def _cases(generator: Generator) -> list[Case]:
    cases = []
    for done, left, note in (
        (whole(generator, 3, 5), whole(generator, 4, 6), ""),
        (whole(generator, 3, 5), 1, "one step is left"),
    ):
        size, steps = whole(generator, 5, 8), done + left
        batches = [torch.randn(whole(generator, 2, 4), size, generator=generator) + i for i in range(steps)]
        rates = [between(generator, 0.01, 0.1) for _ in range(steps)]
        weight, m, v = torch.randn(size, generator=generator), torch.zeros(size), torch.zeros(size)
        for step in range(1, done + 1):
            weight, m, v = adamw(weight, weight - batches[step - 1].mean(0), m, v, step, rates[step - 1])
        cases.append(Case(({"weight": weight, "m": m, "v": v, "step": done}, batches, rates), note=note))
    return cases


GO_ON = Exercise(
    id="11.6",
    idea="pretraining",
    title="continue a run from what was saved",
    minutes=12,
    answer="go_on",
    reference=go_on,
    cases=_cases,
    dims="N",
    mistakes=(
        Mistake(
            "weights only",
            go_on__weights_only,
            "The weights come back, and both moments begin at zero, as in a new run: the first steps after the break "
            "are not those of the unbroken run.",
        ),
        Mistake(
            "moments zero, step kept",
            _go_on(_zero("m", "v")),
            "Both moments begin at zero, while the step count says that they had time to grow: the corrections for "
            "the start are missing as well.",
        ),
        Mistake("m lost", _go_on(_zero("m")), "m begins at zero; it has to come back from what was saved."),
        Mistake(
            "v lost",
            _go_on(_zero("v")),
            "v begins at zero, so the first steps are far too large; it has to come back from what was saved.",
        ),
        Mistake(
            "all from the beginning",
            _from_the_start,
            "Every batch is used, those of the steps that are done already, too.",
        ),
        Mistake(
            "data from the beginning",
            _go_on(data_from=None),
            "The batches begin again with the first. The run has seen that one; it goes on with the one that is next.",
        ),
        Mistake(
            "data one late",
            _go_on(data_from=-1),
            "The last batch before the break is used a second time: off by one.",
        ),
        Mistake(
            "a batch skipped",
            _go_on(first=1),
            "One batch is skipped: the first after the break. After `step` steps the next batch has the index `step`.",
        ),
        Mistake(
            "step count from 1",
            _go_on(count_from=None),
            "The corrections of AdamW begin again with step 1, although the moments are old: the first updates come "
            "out too large or too small.",
        ),
        Mistake(
            "schedule from the beginning",
            _go_on(rates_from=None),
            "The learning rates begin again with the first of the schedule.",
        ),
        Mistake(
            "step count one behind",
            _go_on(count_from=-1),
            "Batches and rates are right, but the corrections of AdamW are those of one step before: the step after "
            "`step` steps is number `step` + 1.",
        ),
        Mistake(
            "moments not carried",
            _go_on(carried=False),
            "Every step starts from the saved m and v. Each step hands its new ones on to the next.",
        ),
        Mistake(
            "last batch missing",
            _go_on(last=-1),
            "The last batch is not used: the steps go from the saved one plus 1 up to the number of batches, itself "
            "included.",
        ),
        Mistake("nothing done", lambda saved, batches, rates: saved["weight"] * 1, "No step is taken."),
    ),
    hints=(
        "What does step number 7 need that step 6 left behind? Everything of that must come from what was saved.",
        "The loop runs over the steps that are left, counted on from the saved step. The same number chooses the "
        "batch, the rate and the corrections.",
        "Steps count from 1 and lists from 0: step s uses batches[s - 1] and rates[s - 1].",
    ),
    after="Weights, both moments, one step count: from the count follow the batch and the schedule.",
)
