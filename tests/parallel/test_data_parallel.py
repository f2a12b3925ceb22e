"""Several processes take the steps that one process would take; and a mistake in how they do it is noticed."""

from __future__ import annotations

import math

import pytest
import torch

from dsv3_mini.parallel.data_parallel import DataParallel

from . import jobs
from .worlds import run_world

PARALLEL, EXPERTS, STEP = (
    "dsv3_mini.parallel.data_parallel",
    "dsv3_mini.parallel.expert_parallel",
    "dsv3_mini.train.step",
)
# (module, what it says, what it must not say): each is run in four processes, two of which share the experts.
MISTAKES = {
    "counts are not summed": (PARALLEL, "for tensor in tensors:", "for tensor in tensors[:1]:"),
    "losses are not summed": (PARALLEL, "for tensor in tensors:", "for tensor in tensors[1:]:"),
    "gradients are averaged": (PARALLEL, "factor(1.0)", "factor(4.0)"),
    "gradients are averaged over the mesh, an expert's too": (PARALLEL, "factor(1.0)", "factor(float(mesh.size()))"),
    "a process weighs its part as if it were all": (PARALLEL, "/ len(inputs)) for", "/ max(1, len(inputs) // 4)) for"),
    "each process clips by its own norm": (PARALLEL, "        dist.all_reduce(square)\n", ""),
    "company counts": (STEP, "if micro.weight:", "if True:"),
    "company weighs": (PARALLEL, "targets[:1], 0.0)", "targets[:1], 0.1)"),
    "all processes read the same sequences": (PARALLEL, "(self.world)[self.rank]", "(self.world)[0]"),
    "tokens go to the wrong process": (EXPERTS, "(self.mesh.size(), -1)", "(self.mesh.size(), -1).flip(0)"),
    "tokens go to the wrong expert": (EXPERTS, "torch.arange(experts,", "torch.arange(experts - 1, -1, -1,"),
    "results come back unsorted": (EXPERTS, "rows[by_token]", "rows"),
    "gate weights are left out": (EXPERTS, "routing.weights.to(results.dtype)", "torch.ones_like(routing.weights)"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="module")
def truth():
    return jobs.alone()


def differences(found: dict, truth: dict) -> list[str]:
    """Everything in which the steps differ by more than rounding."""
    steps = range(len(found["losses"]))
    wrong = [
        f"step {i}: {name} {found['losses'][i].get(name)} for {value}"
        for i in steps
        for name, value in truth["losses"][i].items()
        if not math.isclose(found["losses"][i][name], value, rel_tol=1e-5)
    ]
    wrong += [
        f"step {i}: gradient norm {found['norms'][i]} for {truth['norms'][i]}"
        for i in steps
        if not math.isclose(found["norms"][i], truth["norms"][i], rel_tol=1e-4)
    ]
    wrong += [f"step {i}: expert counts" for i in steps if found["counts"][i] != truth["counts"][i]]
    if found["state"] is not None and len(steps) == len(truth["losses"]):
        wrong += [f"names {sorted(found['state'].keys() ^ truth['state'].keys())}"] * (
            list(found["state"]) != list(truth["state"])
        )
        wrong += [
            f"{name} by {(found['state'][name] - value).abs().max()}"
            for name, value in truth["state"].items()
            if not torch.allclose(found["state"][name], value, rtol=1e-4, atol=2e-5)
        ]
    return wrong


@pytest.mark.parametrize(("processes", "experts"), [(2, 1), (2, 2), (4, 2)])
def test_several_processes_take_the_steps_of_one(folder, truth, processes, experts):
    found = run_world(folder, processes, "steps_together", expert_parallel_size=experts)
    assert differences(found[0], truth) == []
    assert found[0]["state"].keys() == truth["state"].keys()
    for other in found[1:]:
        assert other["state"] is None, "only the first process needs the whole model"
        assert other["losses"] == found[0]["losses"]
        assert torch.equal(other["biases"], found[0]["biases"])
    # Nothing is held twice: the shards together are the model.
    assert sum(other["held"] for other in found) == sum(t.numel() for t in truth["state"].values()) - 16
    for other in found:
        name, norm = max((t.norm().item(), k) for k, t in found[0]["state"].items())[::-1]
        assert other["largest"] == {"largest_weight": name, "weight_norm": pytest.approx(norm, rel=1e-5)}


def test_experts_that_nobody_chooses_keep_nobody_waiting(folder):
    """All tokens go to experts 0..3, so process 1 of each pair receives no row, forward and backward."""
    truth = jobs.alone(steps=2, only_experts=4)
    assert all(not any(layer[4:]) for counts in truth["counts"] for layer in counts)
    found = run_world(folder, 4, "steps_together", expert_parallel_size=2, steps=2, only_experts=4)
    assert differences(found[0], truth) == []


@pytest.fixture(scope="module")
def broken(folder):
    return run_world(folder, 4, "steps_with_mistakes", mistakes=MISTAKES, expert_parallel_size=2, steps=1)[0]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(broken, truth, mistake):
    assert differences(broken[mistake], truth)


def test_a_weight_that_is_no_number_in_one_process_stops_all_with_one_message(folder):
    messages = run_world(folder, 2, "diverge")
    assert messages[0] == messages[1]
    assert messages[0].startswith("training stopped before this step changed anything: losses main nan")
    assert "not finite in 0 parameters" not in messages[0]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("sequences", [1, 2, 3, 5, 8, 9])
@pytest.mark.parametrize("micro", [1, 2, 3, 16])
def test_every_sequence_is_read_once_in_equally_many_rounds(world, sequences, micro):
    inputs = torch.arange(sequences).unsqueeze(1)
    parts = [DataParallel(rank, world).split(inputs, inputs + 100, micro) for rank in range(world)]
    assert len({len(mine) for mine in parts}) == 1, "each round is a meeting"
    counting = [part for mine in parts for part in mine if part.weight]
    assert torch.equal(torch.cat([part.inputs for part in counting]), inputs)
    assert all(torch.equal(part.targets, part.inputs + 100) for part in counting)
    assert all(part.weight == pytest.approx(len(part.inputs) / sequences) for part in counting)
    assert all(1 <= len(part.inputs) <= micro for mine in parts for part in mine)
