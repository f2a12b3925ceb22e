"""What `run.json` says about the machine of a run, and that a continued run computes as it began."""

import dataclasses
import json

import pytest
import torch

from dsv3_mini.errors import InputError
from dsv3_mini.train import device, loop, report
from dsv3_mini.train.loop import TrainConfig, train
from dsv3_mini.train.metrics import read_metrics

CPU = f"cpu ({torch.backends.cpu.get_cpu_capability()})"


@pytest.fixture
def quiet(monkeypatch):
    """No evaluation at the end, no measuring of the machine: these tests are about something else."""
    monkeypatch.setattr(loop, "evaluate_model", lambda *args, **kwargs: {"bits_per_byte": {"all": 1.0}})
    monkeypatch.setattr(report, "peak_flops", lambda *args: 1e12)


@pytest.fixture
def stopped(tiny_run, monkeypatch, quiet):
    """Makes a run that has done 2 of 4 steps, precision and device "auto", on a CPU that is fast at bf16 or not."""

    def make(fast_bf16):
        monkeypatch.setattr(device, "has_fast_bf16", lambda device: fast_bf16)
        cfg, done = tiny_run(steps=4, device="auto"), []
        train(cfg, progress=False, on_step=done.append, should_stop=lambda: len(done) == 2)
        return cfg

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return make


def record_of(cfg):
    return json.loads((cfg.out / "run.json").read_text())


def edit(cfg, **changes):
    """Change `run.json`: {section: {name: value}}."""
    record = record_of(cfg)
    for section, values in changes.items():
        record[section].update(values)
    (cfg.out / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_recorded_as_what_it_became_and_stays_that(stopped, monkeypatch, fast, precision):
    cfg = stopped(fast)
    config, machine = record_of(cfg)["config"], record_of(cfg)["machine"]
    assert (config["device"], config["precision"]) == ("cpu", precision)
    assert machine["device"] == CPU and machine["threads"] >= 1
    # Where "auto" would mean something else, the run goes on as it began.
    monkeypatch.setattr(device, "has_fast_bf16", lambda device: not fast)
    used, step_once = [], loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *a, **k: (used.append(k["precision"]), step_once(*a, **k))[1])
    assert train(dataclasses.replace(cfg, resume=True), progress=False).steps == 4
    assert set(used) == {precision}


def test_a_precision_may_be_said_again_but_not_changed(stopped):
    cfg = stopped(False)
    with pytest.raises(InputError, match=r"precision = 'fp32', not 'bf16'"):
        train(dataclasses.replace(cfg, resume=True, precision="bf16"), progress=False)
    assert train(dataclasses.replace(cfg, resume=True, precision="fp32"), progress=False).steps == 4


def test_on_the_same_machine_nothing_is_said(stopped, capsys):
    cfg = stopped(False)
    train(dataclasses.replace(cfg, resume=True))
    assert "unlike" not in capsys.readouterr().err


def test_another_machine_is_said_and_the_run_goes_on(stopped, capsys):
    cfg = stopped(False)
    edit(cfg, config={"device": "cuda"}, versions={"torch": "2.0"}, machine={"device": "cuda (GPU)", "threads": 64})
    assert train(dataclasses.replace(cfg, resume=True)).steps == 4
    said = capsys.readouterr().err
    assert f"device {CPU} instead of cuda (GPU)" in said and "instead of 2.0" in said
    assert f"threads {torch.get_num_threads()} instead of 64" in said and "not bit for bit" in said


def test_a_device_that_is_asked_for_and_not_here_is_refused(stopped, monkeypatch):
    cfg = stopped(False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=r"device = 'cuda'"):
        train(dataclasses.replace(cfg, resume=True, device="cuda"), progress=False)


def test_a_run_that_recorded_auto_can_be_continued(stopped):
    """As versions before this record did."""
    cfg = stopped(False)
    edit(cfg, config={"device": "auto", "precision": "auto"}, machine={"threads": torch.get_num_threads()})
    record = record_of(cfg)
    del record["machine"]["device"]
    (cfg.out / "run.json").write_text(json.dumps(record))
    assert train(TrainConfig(out=cfg.out, resume=True), progress=False).steps == 4
    assert [line["step"] for line in read_metrics(cfg.out)] == [1, 2, 3, 4]
