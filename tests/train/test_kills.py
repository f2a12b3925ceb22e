"""`kill -9` at twenty moments, and two runs at one folder: real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.train.checkpoint import latest_checkpoint
from dsv3_mini.train.metrics import read_metrics

KILLER = Path(__file__).with_name("killer.py")
KILLS = 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="every life of the run is a fork")
def test_killed_at_twenty_moments_a_run_ends_as_if_nothing_had_happened(tiny_run, tmp_path):
    cfg = tiny_run(out=tmp_path / "killed", steps=100, checkpoint_every=2, routing_every=1)
    order = {"settings": cfg.to_json(), "whole": str(tmp_path / "whole"), "kills": KILLS, "seed": 0}
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, KILLER, json.dumps(order)], env=environ, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    deaths = json.loads(done.stdout)
    assert len(deaths) == KILLS and deaths[-1]["steps"] < 100
    left = " ".join(name for death in deaths for name in death["leftovers"])
    assert ".writing" in left and ".removed" in left, (
        "none came while a checkpoint was written, or while one was removed"
    )
    assert any(death["steps"] > death["checkpoint"] for death in deaths), "none came between two checkpoints"

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    a, b = read_metrics(whole), read_metrics(killed)
    assert [line["step"] for line in b] == list(range(1, 101)), "every step once"
    for name in ("losses", "grad_norm", "lr", "maxvio", "tokens"):
        assert [line[name] for line in a] == [line[name] for line in b], name
    assert (whole / "routing.jsonl").read_bytes() == (killed / "routing.jsonl").read_bytes()
    expected, found = (load_pretrained(latest_checkpoint(run)).state_dict() for run in (whole, killed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [path.name for path in sorted((killed / "checkpoints").iterdir())] == ["step-000098", "step-000100"]


def test_two_runs_cannot_write_one_folder_and_sigterm_saves(tiny_text, tiny_cache, tmp_path):
    run = tmp_path / "run"
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "DSV3_MINI_CACHE": str(tiny_cache)}
    command = [sys.executable, "-m", "dsv3_mini.cli", "train", "--out", run]
    options = ["--text", tiny_text, "--steps", "100000", "--seq-len", "32", "--batch-tokens", "64", "--device", "cpu"]
    with subprocess.Popen([*command, *options], env=environ, stderr=subprocess.PIPE, text=True) as first:
        while not read_metrics(run):
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.05)
        second = subprocess.run([*command, "--resume"], env=environ, capture_output=True, text=True)
        assert second.returncode == 2
        assert f"out = {run} is in use by another process (pid {first.pid})" in second.stderr
        assert first.poll() is None, "the first is none the worse for it"
        first.send_signal(signal.SIGTERM)
        _, said = first.communicate(timeout=60)
    steps = len(read_metrics(run))
    assert first.returncode == 143 and "once more stops at once" in said
    assert f"stopped after step {steps} of 100000, which is saved. Continue with: dsv3-mini train" in said
    assert "Traceback" not in said and latest_checkpoint(run).name == f"step-{steps:06d}"
