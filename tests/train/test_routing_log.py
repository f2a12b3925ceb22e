"""Routing snapshots: true to the step, no effect on the training, whole after a break, small."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from dsv3_mini.errors import InputError
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.train import loop
from dsv3_mini.train.checkpoint import latest_checkpoint
from dsv3_mini.train.loop import train
from dsv3_mini.train.metrics import read_metrics
from dsv3_mini.train.routing_log import ROUTING_FILE, RoutingLog, read_routing_log


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No evaluation at the end: these tests are about something else."""
    monkeypatch.setattr(loop, "evaluate_model", lambda *args, **kwargs: {"bits_per_byte": {"all": 1.0}})


def test_a_snapshot_is_the_load_and_the_biases_of_its_step(tiny_run, monkeypatch):
    seen, step_once = [], loop.train_step

    def watched(model, *args, **kwargs):
        bias = torch.stack([router.e_score_correction_bias for router in model.routers])
        result = step_once(model, *args, **kwargs)
        seen.append((result.expert_counts, bias))
        return result

    monkeypatch.setattr(loop, "train_step", watched)
    cfg = tiny_run(steps=12, routing_every=5)
    train(cfg, progress=False)
    log = read_routing_log(cfg.out)
    assert log.steps.tolist() == [1, 5, 10, 12], "the first, every fifth, and the last"
    assert log.layers.tolist() == [1, 2], "the MoE layer, and the MTP module behind it"
    lines = read_metrics(cfg.out)
    for place, step in enumerate(log.steps):
        counts, bias = seen[step - 1]
        assert log.load[place].tolist() == counts.tolist()
        assert log.bias[place] == pytest.approx(bias.numpy(), abs=1e-6)
        assert log.max_violation[place] == pytest.approx(lines[step - 1]["maxvio"], abs=1e-4)
    # The first step routes with biases of 0; later ones with what came out of the steps before.
    assert not log.bias[0].any() and log.bias[1].any()


def test_micro_batches_are_summed_in_a_snapshot(tiny_run, tmp_path):
    for name, micro in (("whole", 64), ("parts", 16)):
        train(tiny_run(out=tmp_path / name, steps=2, routing_every=1, micro_batch_tokens=micro), progress=False)
    whole, parts = read_routing_log(tmp_path / "whole"), read_routing_log(tmp_path / "parts")
    # From the second step on the weights differ by rounding.
    assert whole.load[0].tolist() == parts.load[0].tolist()
    tokens = [line["batch_sequences"] * 16 for line in read_metrics(tmp_path / "parts")]
    assert parts.load.sum(-1)[:, 0].tolist() == [2 * n for n in tokens], "every token goes to two experts"


def test_recording_changes_nothing_in_the_training(tiny_run, tmp_path):
    for name, every in (("off", 0), ("on", 1)):
        train(tiny_run(out=tmp_path / name, routing_every=every), progress=False)
    off, on = (load_pretrained(latest_checkpoint(tmp_path / name)).state_dict() for name in ("off", "on"))
    assert all(torch.equal(off[key], on[key]) for key in off)
    assert [line["losses"] for line in read_metrics(tmp_path / "off")] == [
        line["losses"] for line in read_metrics(tmp_path / "on")
    ]
    assert not (tmp_path / "off" / ROUTING_FILE).exists()
    assert len(read_routing_log(tmp_path / "on")) == 12


@pytest.mark.parametrize("every", [1, 4])
def test_a_broken_and_continued_run_has_the_snapshots_of_the_unbroken_one(tiny_run, tmp_path, monkeypatch, every):
    whole = tiny_run(out=tmp_path / "whole", routing_every=every)
    train(whole, progress=False)
    broken = dataclasses.replace(whole, out=tmp_path / "broken")
    step_once, steps = loop.train_step, []

    def stop_after_nine(*args, **kwargs):
        if len(steps) == 9:
            raise KeyboardInterrupt
        steps.append(1)
        return step_once(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stop_after_nine)
        with pytest.raises(KeyboardInterrupt):
            train(broken, progress=False)
    assert read_routing_log(broken.out).steps.max() > 6, "it knows more than the checkpoint of step 6"
    with open(broken.out / ROUTING_FILE, "a") as file:
        file.write('{"step": 10, "lay')  # killed while writing
    assert read_routing_log(broken.out).steps.max() < 10
    train(dataclasses.replace(broken, resume=True), progress=False)
    assert (broken.out / ROUTING_FILE).read_bytes() == (whole.out / ROUTING_FILE).read_bytes()


def test_continuing_without_recording_leaves_no_snapshots_of_steps_that_were_done_again(tiny_run, monkeypatch):
    cfg = tiny_run(steps=6, checkpoint_every=3, routing_every=1)
    train(cfg, progress=False)
    (cfg.out / "checkpoints" / "step-000006" / "complete.json").unlink()
    train(dataclasses.replace(cfg, resume=True, routing_every=0), progress=False)
    assert read_routing_log(cfg.out).steps.tolist() == [1, 2, 3]


def test_the_preset_records_and_a_nano_run_stays_below_200_kilobytes(tmp_path):
    settings = loop.TrainConfig(out=tmp_path).resolved()
    assert settings.routing_every == 10
    # A line of nano with three layers of 16 experts, as long as it gets: loads of a thousand, biases of 9 characters.
    line = json.dumps({"step": 1300, "layers": [1, 2, 3], "load": [[1024] * 16] * 3, "bias": [[-0.123456] * 16] * 3,
                       "maxvio": [1.2345] * 3})  # fmt: skip
    assert (settings.steps / settings.routing_every + 2) * (len(line) + 1) < 200_000


def test_a_dense_model_records_nothing(tiny_run, tiny_model):
    dense = tiny_model.replace(first_k_dense_replace=2, num_nextn_predict_layers=0)
    cfg = tiny_run(steps=2, routing_every=1, model=dense)
    train(cfg, progress=False)
    with pytest.raises(InputError, match=r"holds a run without routing snapshots.*routed experts.*routing_every"):
        read_routing_log(cfg.out)


def test_a_folder_without_a_run_is_told_apart(tmp_path):
    with pytest.raises(InputError, match=r"is no run folder: routing.jsonl is missing"):
        read_routing_log(tmp_path)


LINE = {"step": 1, "layers": [1], "load": [[3, 1]], "bias": [[0.0, 0.0]], "maxvio": [0.5]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no snapshot yet"),
        ([{**LINE, "load": [[3]]}], "do not fit together"),
        ([{**LINE, "maxvio": [0.5, 0.5]}], "do not fit together"),
        ([LINE, LINE], "do not fit together"),
        ([{"step": 1}], "is not what a training run wrote"),
        ([LINE, {**LINE, "step": 2, "load": [[3, 1, 0]]}], "is not what a training run wrote"),
        (["text"], "is not what a training run wrote"),
    ],
)
def test_a_file_that_no_run_wrote_is_refused(tmp_path, lines, message):
    (tmp_path / ROUTING_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=message):
        read_routing_log(tmp_path)


def test_what_is_read_has_the_promised_types(tmp_path):
    (tmp_path / ROUTING_FILE).write_text(json.dumps(LINE) + "\n" + json.dumps({**LINE, "step": 4}) + "\n")
    log = read_routing_log(tmp_path)
    assert isinstance(log, RoutingLog) and len(log) == 2 and log.steps.tolist() == [1, 4]
    assert log.load.shape == log.bias.shape == (2, 1, 2) and log.max_violation.shape == (2, 1)
    assert (log.load.dtype, log.bias.dtype, log.layers.dtype) == (np.int64, np.float32, np.int64)
