"""The spike detector: silent on ordinary noise, awake for what stands out, undisturbed by having seen a spike."""

import random

import pytest
import torch

from dsv3_mini.train.spikes import LEAST, WINDOW, SpikeDetector, describe_spike, largest_weight


def ordinary(steps: int, seed: int = 0) -> list[tuple[float, float]]:
    """Loss and gradient norm of a run that goes well: the loss falls, both are noisy."""
    rng = random.Random(seed)
    return [(2 + 6 * 0.98**step + rng.gauss(0, 0.3), rng.lognormvariate(0, 0.25)) for step in range(steps)]


def records(values):
    return [{"losses": {"main": loss}, "grad_norm": norm} for loss, norm in values]


@pytest.mark.parametrize("seed", range(5))
def test_ordinary_noise_is_no_spike(seed):
    detector = SpikeDetector()
    assert not any(detector.look(*values) for values in ordinary(1500, seed))


@pytest.mark.parametrize(("loss", "norm"), [(6.0, 1.0), (2.0, 8.0), (9.0, 20.0)])
def test_a_loss_or_a_norm_that_stands_out_is_a_spike(loss, norm):
    detector = SpikeDetector(records(ordinary(400)))
    found = detector.look(loss, norm)
    assert found["loss"] == loss and found["grad_norm"] == norm
    assert found["loss_before"] == pytest.approx(2, abs=0.2) and found["grad_norm_before"] == pytest.approx(1, abs=0.2)


def test_a_loss_that_falls_or_a_norm_that_shrinks_is_none():
    assert SpikeDetector(records(ordinary(400))).look(-5.0, 1e-6) is None


def test_a_spike_does_not_hide_the_next_one():
    detector = SpikeDetector(records(ordinary(400)))
    assert all(detector.look(60.0, 30.0) for _ in range(10))
    assert detector.look(2.0, 1.0) is None
    assert detector.look(6.0, 1.0)


def test_what_stays_becomes_the_usual():
    """A loss that settles higher is reported while it is news, not for ever."""
    detector = SpikeDetector(records(ordinary(400)))
    found = [bool(detector.look(loss + 8, norm)) for loss, norm in ordinary(2 * WINDOW, seed=1)]
    assert found[0] and not any(found[WINDOW:])


def test_losses_that_hardly_differ_leave_some_room():
    detector = SpikeDetector(records([(2.0, 1.0)] * WINDOW))
    assert detector.look(2.1, 1.0) is None and detector.look(2.5, 1.0)


def test_the_first_steps_are_not_judged():
    detector = SpikeDetector()
    assert [bool(detector.look(2.0 + 5 * (step % 2), 1.0)) for step in range(LEAST)] == [False] * LEAST


def test_a_continued_run_judges_as_the_unbroken_one():
    values = ordinary(120)
    values[100] = (9.0, 30.0)
    unbroken = SpikeDetector()
    expected = [unbroken.look(*value) for value in values]
    continued = SpikeDetector(records(values[:90]))
    assert [continued.look(*value) for value in values[90:]] == expected[90:] and expected[100]


def test_the_largest_weight_is_named_and_the_line_says_it_all():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.fill_(50.0)
    largest = largest_weight(model)
    assert largest == {"largest_weight": "1.weight", "weight_norm": 100.0}
    spike = {"sequences": [40, 43], "loss": 9.0, "loss_before": 2.0, "grad_norm": 30.0, "grad_norm_before": 1.0}
    line = describe_spike(11, {**spike, **largest})
    for part in ("step 11 (sequences 40 to 43", "loss 9.000 after 2.000", "norm 30 after 1", "norm 100 (1.weight)"):
        assert part in line
