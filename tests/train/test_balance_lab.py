"""The laboratory: equal conditions, honest summaries, and no run trained twice."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dsv3_mini.errors import InputError
from dsv3_mini.train import balance_lab, loop
from dsv3_mini.train.balance_lab import curve, load_lab, run_lab, run_speeds, summarise
from dsv3_mini.train.metrics import read_metrics
from dsv3_mini.train.routing_log import read_routing_log
from dsv3_mini.train.run_folder import read_run

SMALL = dict(steps=10, seeds=(0, 1), evaluations=2, eval_bytes=1500)


@pytest.fixture
def base(tiny_run):
    return tiny_run(micro_batch_tokens=64)


def test_all_ways_see_the_same_data_from_the_same_weights(base, tmp_path):
    lab = run_lab(tmp_path / "lab", base, **SMALL, say=lambda text: None)
    assert [(run["way"], run["seed"]) for run in lab["runs"]] == [
        (way, seed) for seed in (0, 1) for way in ("none", "sequence", "batch", "bias")
    ]
    json.dumps(lab)
    first = {}
    for run in lab["runs"]:
        folder = tmp_path / "lab" / run["folder"]
        record = read_run(folder)
        # The first step was taken with the same weights on the same batch, whatever the way.
        losses, data = read_metrics(folder)[0]["losses"]["main"], record["data_fingerprint"]
        assert first.setdefault(run["seed"], (losses, data)) == (losses, data)
        assert record["config"]["steps"] == 10
        assert [step for step, _ in run["evaluations"]] == [5, 10]
        assert run["evaluations"][-1][1]["all"] == pytest.approx(run["bits_per_byte"]["all"], abs=1e-4)
    assert first[0] != first[1]
    bias = {run["way"]: read_routing_log(tmp_path / "lab" / run["folder"]).bias for run in lab["runs"]}
    assert bias["bias"].any() and not any(bias[way].any() for way in ("none", "sequence", "batch"))


def test_a_finished_run_is_read_and_a_broken_one_continued(base, tmp_path, monkeypatch):
    said, step_once, steps = [], loop.train_step, []

    def count(*args, **kwargs):
        steps.append(1)
        if len(steps) == 17:
            raise KeyboardInterrupt  # in the second run, at its seventh step
        return step_once(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", count)
    settings = dict(steps=10, seeds=(0,), ways=("none", "bias"), evaluations=2, eval_bytes=1500)
    with pytest.raises(KeyboardInterrupt):
        run_lab(tmp_path / "lab", base, **settings, say=said.append)
    lab = run_lab(tmp_path / "lab", base, **settings, say=said.append)
    assert said == ["training none-steps10-seed0", "training bias-steps10-seed0", "continuing bias-steps10-seed0"]
    assert len(steps) == 17 + 10 - 6, "continued from the checkpoint of step 6"
    assert run_lab(tmp_path / "lab", base, **settings, say=said.append) == lab and len(said) == 3
    fresh = run_lab(tmp_path / "fresh", base, **settings, say=said.append)
    for run, again in zip(lab["runs"], fresh["runs"]):
        assert {**run, "seconds": 0} == {**again, "seconds": 0}, "a continued run is the unbroken one"


def test_a_cache_of_other_settings_is_refused(base, tiny_run, tmp_path):
    settings = dict(steps=3, seeds=(0,), ways=("none",), evaluations=1, eval_bytes=1500, say=lambda text: None)
    run_lab(tmp_path / "lab", base, **settings)
    with pytest.raises(InputError, match=r"lr = 0.005, not 0.01"):
        run_lab(tmp_path / "lab", tiny_run(micro_batch_tokens=64, lr=0.01), **settings)


def test_a_record_is_what_the_run_wrote(base, tmp_path):
    (run,) = run_lab(tmp_path, base, steps=10, seeds=(3,), ways=("bias",), evaluations=1, eval_bytes=1500)["runs"]
    violation = np.array([line["maxvio"] for line in read_metrics(tmp_path / run["folder"])])
    assert run["maxvio_last_fifth"] == pytest.approx(violation[8:].mean(0), abs=1e-4)
    load = read_routing_log(tmp_path / run["folder"]).load[8:].sum(0)
    assert run["maxvio_of_last_fifth_together"] == pytest.approx(load.max(-1) / load.mean(-1) - 1, abs=1e-4)
    assert run["steps"] == list(range(1, 11)) and np.array(run["maxvio"]) == pytest.approx(violation, abs=1e-4)
    assert run["layers"] == [1, 2]


def test_a_long_curve_is_the_means_of_its_parts(base, tmp_path, monkeypatch):
    monkeypatch.setattr(balance_lab, "POINTS", 4)
    (run,) = run_lab(tmp_path, base, steps=10, seeds=(0,), ways=("none",), evaluations=1, eval_bytes=1500)["runs"]
    losses = [line["losses"]["main"] for line in read_metrics(tmp_path / run["folder"])]
    assert run["steps"] == [2, 5, 8, 10]
    expected = [np.mean(losses[a:b]) for a, b in ((0, 2), (2, 5), (5, 8), (8, 10))]
    assert run["loss"] == pytest.approx(expected, abs=1e-4)


def record(way, seed, violation, bits):
    return {
        "way": way, "seed": seed, "steps": [1, 2], "maxvio": [[violation, violation + 2], [violation, violation]],
        "loss": [2.0, 1.0], "evaluations": [[2, {"code": bits, "all": bits + 1}]],
        "maxvio_last_fifth": [violation, violation + 2], "maxvio_of_last_fifth_together": [violation] * 2,
        "bits_per_byte": {"code": bits, "all": bits + 1},
    }  # fmt: skip


def test_summaries_and_bands_are_over_the_seeds_of_one_way():
    records = [record("none", 0, 1.0, 2.0), record("none", 1, 3.0, 2.5), record("bias", 0, 0.1, 1.0)]
    summary = summarise(records, "way")
    assert summary["none"]["maxvio_last_fifth"] == {"mean": 3.0, "low": 2.0, "high": 4.0}
    assert summary["none"]["bits_per_byte"]["code"] == {"mean": 2.25, "low": 2.0, "high": 2.5}
    assert summary["bias"]["bits_per_byte"]["all"]["mean"] == 2.0
    lab = {"runs": records}
    assert curve(lab, "none") == {"steps": [1, 2], "mean": [3.0, 2.0], "low": [2.0, 1.0], "high": [4.0, 3.0]}
    assert curve(lab, "none", "code") == {"steps": [2], "mean": [2.25], "low": [2.0], "high": [2.5]}
    assert curve(lab, "bias", "loss")["mean"] == [2.0, 1.0]
    with pytest.raises(InputError, match=r"way = 'batch'.*none, bias"):
        curve(lab, "batch")
    with pytest.raises(InputError, match=r"what = 'prose'.*code, all"):
        curve(lab, "none", "prose")


def test_speeds_differ_in_nothing_but_the_speed_and_share_the_usual_run(base, tmp_path):
    said = []
    settings = dict(steps=3, seeds=(0,), evaluations=1, eval_bytes=1500, say=said.append)
    run_lab(tmp_path, base, ways=("bias",), **settings)
    lab = run_speeds(tmp_path, base, speeds=(0.01, 0.5), **settings)
    assert said == ["training bias-steps3-seed0", "training bias-speed0.5-steps3-seed0"]
    biases = [read_routing_log(tmp_path / run["folder"]).bias[-1] for run in lab["runs"]]
    assert np.abs(biases[0]).max() <= 0.02 + 1e-6 and np.abs(biases[1]).max() >= 0.5
    assert set(lab["summary"]) == {"0.01", "0.5"} and curve(lab, 0.5, key="speed")["steps"] == [1, 2, 3]


def test_a_result_that_is_not_there_says_how_to_make_it():
    with pytest.raises(InputError, match=r"no_such_lab.json is missing; .*run.py no_such_lab --keep"):
        load_lab("no_such_lab")
