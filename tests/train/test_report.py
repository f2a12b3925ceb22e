"""What a run tells about its steps: the same to the file, to the program and, when a step stands out, to the person."""

import dataclasses
import json

import pytest
import torch

from dsv3_mini.train import loop, report
from dsv3_mini.train.loop import train
from dsv3_mini.train.metrics import read_metrics


@pytest.fixture
def quiet(monkeypatch):
    """No evaluation at the end, no measuring of the machine: these tests are about something else."""
    monkeypatch.setattr(loop, "evaluate_model", lambda *args, **kwargs: {"bits_per_byte": {"all": 1.0}})
    monkeypatch.setattr(report, "peak_flops", lambda *args: 1e12)


@pytest.fixture
def garbage_in_step_33(monkeypatch):
    """Random tokens in place of the batch of one step."""
    step_once = loop.train_step

    def step(model, optimizer, inputs, targets, *args, where, **kwargs):
        if where.startswith("step 33 "):
            inputs, targets = (torch.randint(5, 320, t.shape, generator=torch.Generator()) for t in (inputs, targets))
        return step_once(model, optimizer, inputs, targets, *args, where=where, **kwargs)

    monkeypatch.setattr(loop, "train_step", step)


def spikes(run):
    return {line["step"]: line["spike"] for line in read_metrics(run) if "spike" in line}


def test_every_step_is_told_as_it_is_written(tiny_run, quiet):
    cfg = tiny_run(steps=5, eval_every=5, eval_bytes=1000)
    told = []
    train(cfg, progress=False, on_step=lambda record: told.append(json.loads(json.dumps(record))))
    assert told == read_metrics(cfg.out) and [record["step"] for record in told] == [1, 2, 3, 4, 5]
    assert "bits_per_byte" in told[-1]


def test_an_ordinary_run_has_no_spike(tiny_run, capsys, quiet):
    cfg = tiny_run(steps=80, lr=1e-2)
    train(cfg)
    assert spikes(cfg.out) == {} and "spike" not in capsys.readouterr().err


def test_a_batch_of_garbage_is_a_spike_and_training_goes_on(tiny_run, capsys, quiet, garbage_in_step_33):
    cfg = tiny_run(steps=36, lr=1e-2, checkpoint_every=12)
    assert train(cfg).steps == 36
    found = spikes(cfg.out)
    lines = read_metrics(cfg.out)
    assert list(found) == [33]
    spike = found[33]
    assert spike["loss"] == lines[32]["losses"]["main"] > spike["loss_before"] + 1
    assert spike["grad_norm"] == lines[32]["grad_norm"] and spike["weight_norm"] > 0
    first, last = spike["sequences"]
    assert (last + 1) * 16 == lines[32]["tokens"] and last - first + 1 == lines[32]["batch_sequences"]
    assert f"spike in step 33 (sequences {first} to {last} of the run)" in capsys.readouterr().err
    # Continued just before it, the run finds the same.
    (cfg.out / "checkpoints" / "step-000036" / "config.json").unlink()
    assert train(dataclasses.replace(cfg, resume=True), progress=False).resumed_from == 24
    assert spikes(cfg.out) == found


def test_a_jump_of_the_learning_rate_is_a_spike(tiny_run, monkeypatch, quiet):
    cfg = tiny_run(steps=40)
    step_once = loop.train_step

    def jump(model, optimizer, inputs, targets, settings, *, where, **kwargs):
        if where.startswith("step 30 "):
            settings = dataclasses.replace(settings, lr=1.0)
        return step_once(model, optimizer, inputs, targets, settings, where=where, **kwargs)

    monkeypatch.setattr(loop, "train_step", jump)
    train(cfg, progress=False)
    assert min(spikes(cfg.out)) == 31, "the step after the jump is the first to see it"
