"""A whole run of several processes, from the loop's side: what it leaves, and that any number of processes goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dsv3_mini.errors import InputError
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.parallel.distributed_checkpoint import load_state
from dsv3_mini.train import run_folder
from dsv3_mini.train.checkpoint import STATE_SHARDS, find_damage, latest_checkpoint
from dsv3_mini.train.config import TrainConfig
from dsv3_mini.train.loop import train
from dsv3_mini.train.metrics import read_metrics
from dsv3_mini.train.optimizer import build_optimizer

from .jobs import TINY, tiny_model
from .worlds import run_world

MODEL = TINY.replace(vocab_size=280)
SETTINGS = dict(
    steps=9, device="cpu", precision="fp32", seq_len=16, batch_tokens=64, micro_batch_tokens=32, lr=5e-3,
    bias_update_speed=0.01, checkpoint_every=2, routing_every=1, eval_bytes=2000, baselines=False, model=MODEL,
)  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A few kilobytes of text, every paragraph another."""
    path = tmp_path_factory.mktemp("text") / "counting.txt"
    lines = [f"{n} times {n + 3} is {n * (n + 3)}, and counting to {n} takes {n} steps.\n" for n in range(300)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(cache, monkeypatch):
    monkeypatch.setenv("DSV3_MINI_CACHE", str(cache))


@pytest.fixture(scope="module")
def together(text, cache, tmp_path_factory):
    """`together(processes, out=.., ...)`: a run in so many processes."""
    worlds = tmp_path_factory.mktemp("worlds")

    def run(processes, **settings):
        return run_world(worlds, processes, "train_run", cache=cache, **{"text": text, **SETTINGS, **settings})

    return run


@pytest.fixture(scope="module")
def unbroken(text, cache, tmp_path_factory):
    """The same run in one process, from start to end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSV3_MINI_CACHE", str(cache))
        return train(TrainConfig(out=tmp_path_factory.mktemp("one") / "run", text=text, **SETTINGS), progress=False)


@pytest.fixture(scope="module")
def relay(together, text, cache, tmp_path_factory):
    """A run that four processes begin (experts shared by two), two continue, and one ends."""
    out = tmp_path_factory.mktemp("relay") / "run"
    four = together(4, out=out, expert_parallel=2, stop_after=3)
    kept = shutil.copytree(out, out.with_name("after-four"))
    two = together(2, out=out, resume=True, stop_after=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSV3_MINI_CACHE", str(cache))
        one = train(TrainConfig(out=out, text=text, resume=True, **SETTINGS), progress=False)
    return {"four": four, "two": two, "one": one, "after four": kept, "out": out}


def same_run(found: Path, truth: Path) -> None:
    """Equal within rounding: every step's losses and norm, where the tokens went, and the weights at the end."""
    lines, right = read_metrics(found), read_metrics(truth)
    assert [line["step"] for line in lines] == [line["step"] for line in right] == list(range(1, 10))
    for line, expected in zip(lines, right, strict=True):
        assert line["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert line["maxvio"] == pytest.approx(expected["maxvio"])
    assert (found / "routing.jsonl").read_text() == (truth / "routing.jsonl").read_text()
    weights = load_pretrained(latest_checkpoint(found)).state_dict()
    for name, weight in load_pretrained(latest_checkpoint(truth)).state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=2e-5, msg=name)


def test_four_processes_then_two_then_one_make_the_run_of_one(relay, unbroken):
    assert [result.steps for result, _ in relay["four"]] == [3] * 4
    assert [result.steps for result, _ in relay["two"]] == [6] * 2
    assert all(result.stopped for result, _ in (*relay["four"], *relay["two"]))
    assert relay["one"].resumed_from == 6
    same_run(relay["out"], unbroken.folder)
    assert relay["one"].bits_per_byte == pytest.approx(unbroken.bits_per_byte, rel=1e-4)


def test_the_first_process_writes_and_all_of_them_know_the_result(together, tmp_path, unbroken):
    found = together(2, out=tmp_path / "run", expert_parallel=2, eval_every=4)
    (first, first_seen), (second, second_seen) = found
    assert dataclasses.replace(first, seconds=0) == dataclasses.replace(second, seconds=0)
    assert first_seen == second_seen == list(range(1, 10))
    same_run(tmp_path / "run", unbroken.folder)
    assert first.bits_per_byte == pytest.approx(unbroken.bits_per_byte, rel=1e-4)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["step"] == 9
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "bits_per_byte" in line] == [4, 8]


def test_a_checkpoint_of_shards_is_a_model_that_anybody_can_load(relay):
    checkpoint = latest_checkpoint(relay["after four"])
    assert len(list((checkpoint / STATE_SHARDS).iterdir())) == 4, "each process writes its own"
    assert not list(checkpoint.rglob("*.distcp")) and not list(checkpoint.rglob(".metadata")), "pickles can run code"
    assert find_damage(checkpoint) is None
    model = load_pretrained(checkpoint)
    assert model(torch.zeros(1, 4, dtype=torch.long)).logits.isfinite().all()


@pytest.mark.parametrize("harm", ["changed", "removed"])
def test_a_damaged_shard_is_noticed(relay, tmp_path, harm):
    checkpoint = shutil.copytree(latest_checkpoint(relay["after four"]), tmp_path / "step-000003")
    shard = sorted((checkpoint / STATE_SHARDS).iterdir())[2]
    if harm == "changed":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    else:
        shard.unlink()
    assert f"{STATE_SHARDS}/{shard.name}" in (find_damage(checkpoint) or "")


def test_the_state_of_another_model_is_refused(relay):
    model = tiny_model()  # its vocabulary is smaller
    with pytest.raises(InputError, match="holds no training state to continue from"):
        load_state(latest_checkpoint(relay["after four"]), model, build_optimizer(model, 1e-3))


def test_two_processes_continue_the_run_of_one(together, text, tmp_path, unbroken):
    out = tmp_path / "run"
    steps: list[int] = []
    train(
        TrainConfig(out=out, text=text, **SETTINGS), progress=False,
        on_step=lambda record: steps.append(record["step"]), should_stop=lambda: len(steps) == 4,
    )  # fmt: skip
    together(2, out=out, resume=True, expert_parallel=2, recompute=True)  # two ways to save memory at once
    same_run(out, unbroken.folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(expert_parallel=3), "expert_parallel = 3 cannot be"),
        (dict(batch_tokens=48), "batch_tokens = '3 . seq_len' cannot be"),
        (dict(text=Path("/nowhere/at/all")), "/nowhere/at/all"),
        (dict(model=MODEL.replace(first_k_dense_replace=3), expert_parallel=2), "1 for a dense model"),
    ],
)
def test_bad_input_stops_all_with_one_message_before_anything_is_written(together, tmp_path, settings, message):
    messages = together(2, out=tmp_path / "run", **settings)
    assert messages[0] == messages[1]
    assert message.split(" . ")[0] in messages[0]
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_stops_all(together, tmp_path):
    with run_folder.locked(tmp_path / "run"):
        messages = together(2, out=tmp_path / "run")
    assert messages[0] == messages[1]
    assert "is in use by another process" in messages[0]


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "-m", "dsv3_mini.cli", "train", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--expert-parallel", "3"], "expert_parallel = 3 cannot be"),  # found by the loop
        (["--expert-parallel", "0"], "expert_parallel = 0 cannot be"),  # found before
        (["--resume"], "holds no run to continue"),
    ],
)
def test_the_command_says_once_what_is_wrong(tmp_path, more, message):
    first, second = run_world(tmp_path, 2, "command", arguments=["train", "--out", str(tmp_path / "run"), *more])
    assert first[0] == second[0] == 2
    assert first[2].startswith("dsv3-mini train: ") and message in first[2] and first[2].count("\n") == 1
    assert second[1:] == ("", "")
    assert not (tmp_path / "run").exists()


def test_under_torchrun_sigterm_saves_and_one_process_goes_on(tmp_path, text):
    out = tmp_path / "run"
    sizes = ("--seq-len", "16", "--batch-tokens", "32", "--micro-batch-tokens", "16", "--device", "cpu")
    process = torchrun("--out", str(out), "--text", str(text), "--expert-parallel", "2", "--steps", "500", *sizes)
    try:
        end = time.monotonic() + 120
        while len(read_metrics(out)) < 2:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end, "no step after two minutes"
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    done = len(read_metrics(out))
    assert f"stopped after step {done} of 500, which is saved" in said
    assert said.count("stopped after step") == 1
    checkpoint = latest_checkpoint(out)
    assert checkpoint.name == f"step-{done:06d}"
    assert find_damage(checkpoint) is None
    steps: list[int] = []
    result = train(
        TrainConfig(out=out, text=text, steps=500, seq_len=16, batch_tokens=32, resume=True), progress=False,
        on_step=lambda record: steps.append(record["step"]), should_stop=lambda: True,
    )  # fmt: skip
    assert result.resumed_from == done
    assert steps == [done + 1]
