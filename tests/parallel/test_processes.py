"""Processes agree: what one of them finds, all of them know."""

from __future__ import annotations

import pytest
import torch

from dsv3_mini.errors import InputError
from dsv3_mini.parallel import processes
from dsv3_mini.parallel.processes import Processes, joined

from .worlds import run_world


def test_what_two_processes_exchange(tmp_path):
    first, second = run_world(tmp_path, 2, "meet")
    for found in (first, second):
        assert found["gather"] == [0, 10]
        assert found["from_first"] == "made by 0"
        assert found["largest"] == 1
        assert found["any"] == (False, True)
        assert found["bad in one"] == found["bad in the first"] == "this is not right"
        assert found["not the same"] == "process 1 has other luck than process 0: 1, not 0"
    assert (first["mark"], second["mark"]) == (False, True), "the second came after the first was done"


def test_alone_everything_is_at_once():
    alone = Processes()
    assert alone.first and alone.gather(3) == [3] and alone.largest(2) == 2 and not alone.any(False)
    assert alone.from_first(lambda: 5) == alone.first_then_others(lambda: 5) == 5
    with pytest.raises(InputError, match="mine"), alone.agreed():
        raise InputError("mine")
    with joined() as nobody_else:
        assert nobody_else == alone


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(processes, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")


def test_each_process_takes_the_gpu_of_its_local_number(two_gpus):
    assert Processes(rank=5, world=6).device("cuda") == torch.device("cuda:1")
    assert Processes(rank=5, world=6).device("cpu") == torch.device("cpu")
    assert Processes().device("cuda:0") == torch.device("cuda:0"), "alone, the device that was asked for"


def test_a_device_that_cannot_be_everybodys_is_bad_input(two_gpus, monkeypatch):
    with pytest.raises(InputError, match="'cuda:1': 6 processes need a device each"):
        Processes(rank=5, world=6).device("cuda:1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(InputError, match="3 processes on a host where torch sees 2 GPUs; give --nproc-per-node 2"):
        Processes(rank=5, world=6).device("cuda")
