"""Stopping a run and going on: a stop button, Ctrl-C, SIGTERM, and `kill -9` at any moment."""

import dataclasses
import os
import shlex
import signal
import threading
from pathlib import Path

import pytest
import torch

from dsv3_mini.cli import main
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.train import checkpoint, loop, report
from dsv3_mini.train.checkpoint import latest_checkpoint
from dsv3_mini.train.loop import Interrupted, train
from dsv3_mini.train.metrics import read_metrics


@pytest.fixture
def quiet(monkeypatch):
    """No evaluation at the end, no measuring of the machine: these tests are about something else."""
    monkeypatch.setattr(loop, "evaluate_model", lambda *args, **kwargs: {"bits_per_byte": {"all": 1.0}})
    monkeypatch.setattr(report, "peak_flops", lambda *args: 1e12)


def losses(run: Path) -> list[dict[str, float]]:
    return [line["losses"] for line in read_metrics(run)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_pretrained(latest_checkpoint(run)).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def raise_in_step(wanted: int, numbers: list[int]):
    """An `on_step` that sends this process the signals when step `wanted` is done."""

    def send(record):
        if record["step"] == wanted:
            for number in numbers:
                signal.raise_signal(number)

    return send


# Watching and stopping from the program


def test_a_run_that_is_told_to_stop_saves_and_goes_on_to_the_same_end(tiny_run, tmp_path, quiet):
    whole, broken = tiny_run(out=tmp_path / "whole"), tiny_run(out=tmp_path / "broken")
    train(whole, progress=False)
    told = []
    result = train(broken, progress=False, on_step=told.append, should_stop=lambda: len(told) == 4)
    assert result.stopped and result.steps == 4 and result.evaluation == result.bits_per_byte == {}
    assert result.checkpoint == latest_checkpoint(broken.out) and result.checkpoint.name == "step-000004"
    assert result.tokens == told[-1]["tokens"] and not (broken.out / "evaluation.json").exists()
    again = train(dataclasses.replace(broken, resume=True), progress=False)
    assert again.resumed_from == 4 and not again.stopped and again.bits_per_byte
    assert losses(broken.out) == losses(whole.out) and same(weights(broken.out), weights(whole.out))


def test_stopping_after_the_last_step_leaves_the_evaluation_to_the_continuation(tiny_run, quiet):
    cfg = tiny_run(steps=2)
    asked = []
    result = train(cfg, progress=False, should_stop=lambda: bool(asked.append(1)) or len(asked) == 2)
    assert result.stopped and result.steps == 2 and not result.bits_per_byte
    assert train(dataclasses.replace(cfg, resume=True), progress=False).bits_per_byte == {"all": 1.0}


def test_a_run_in_another_thread_is_stopped_by_should_stop(tiny_run, quiet):
    """What a dashboard does. Only the main thread may set signal handlers, so none are set."""
    stop, results = threading.Event(), []
    cfg = tiny_run(steps=1000)
    worker = threading.Thread(
        target=lambda: results.append(
            train(cfg, progress=False, on_step=lambda record: stop.set(), should_stop=stop.is_set)
        )
    )
    worker.start()
    worker.join(60)
    assert results[0].stopped and results[0].steps == 1


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_the_step_saves_and_says_so(tiny_run, tmp_path, quiet, number):
    whole, broken = tiny_run(out=tmp_path / "whole"), tiny_run(out=tmp_path / "broken")
    train(whole, progress=False)
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match="stopped after step 4 of 12, which is saved") as caught:
        train(broken, progress=False, on_step=raise_in_step(4, [number]))
    assert caught.value.number == number and isinstance(caught.value, KeyboardInterrupt)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before, "handlers are put back"
    assert latest_checkpoint(broken.out).name == "step-000004" and not (broken.out / "evaluation.json").exists()
    train(dataclasses.replace(broken, resume=True), progress=False)
    assert losses(broken.out) == losses(whole.out) and same(weights(broken.out), weights(whole.out))


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_stops_at_once_and_the_earlier_checkpoint_stands(tiny_run, quiet, second):
    cfg = tiny_run(checkpoint_every=3)
    with pytest.raises(Interrupted, match="stopped at once") as caught:
        train(cfg, progress=False, on_step=raise_in_step(5, [signal.SIGINT, second]))
    assert caught.value.number == second
    assert latest_checkpoint(cfg.out).name == "step-000003"
    assert train(dataclasses.replace(cfg, resume=True), progress=False).resumed_from == 3


def test_a_second_signal_while_the_checkpoint_is_written_drops_it_whole(tiny_run, monkeypatch, quiet):
    cfg = tiny_run(checkpoint_every=3)
    original = checkpoint.write_checkpoint

    def write_and_press_again(model, draft, tokenizer):
        original(model, draft, tokenizer)
        if len(read_metrics(cfg.out)) == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoint, "write_checkpoint", write_and_press_again)
    with pytest.raises(Interrupted, match="stopped at once"):
        train(cfg, progress=False, on_step=raise_in_step(5, [signal.SIGINT]))
    assert [path.name for path in (cfg.out / "checkpoints").iterdir()] == ["step-000003"]


def test_while_nothing_is_left_to_save_the_first_signal_stops_at_once(tiny_run, monkeypatch, quiet):
    cfg = tiny_run(steps=2)
    monkeypatch.setattr(loop, "evaluate_model", lambda *args, **kwargs: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped at once"):
        train(cfg, progress=False)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored(tiny_run, quiet):
    """`nohup`, and shells for jobs in the background, start a program that way."""
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = train(tiny_run(steps=3), progress=False, on_step=raise_in_step(1, [signal.SIGINT, signal.SIGINT]))
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert result.steps == 3 and not result.stopped


# The command, and a notebook


def test_the_command_says_how_to_go_on_and_that_is_right(tiny_text, tiny_cache, tmp_path, monkeypatch, capsys):
    """Also where the run was started with settings that its continuation must have too."""
    monkeypatch.setenv("DSV3_MINI_CACHE", str(tiny_cache))
    step_once, steps = loop.train_step, []

    def terminate_in_step_two(*args, **kwargs):
        steps.append(1)
        if len(steps) == 2:
            signal.raise_signal(signal.SIGTERM)
        return step_once(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", terminate_in_step_two)
    run = tmp_path / "a run"
    options = "--steps 3 --seed 5 --seq-len 32 --batch-tokens 64 --eval-every 3 --device cpu".split()
    assert main(["train", "--out", str(run), "--text", str(tiny_text), *options]) == 143
    said = capsys.readouterr().err
    assert "stopped after step 2 of 3, which is saved. Continue with: dsv3-mini train" in said
    command = shlex.split(said.split("Continue with: ")[1])
    assert command == ["dsv3-mini", "train", "--out", str(run), "--resume"]
    assert main(command[1:]) == 0
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3] and "bits_per_byte" in lines[-1], "--eval-every 3 still holds"


NOTEBOOK_CELL = """
from pathlib import Path
from dsv3_mini.config import ModelConfig
from dsv3_mini.train.loop import TrainConfig, train
settings = {settings!r}
settings["model"] = ModelConfig(**settings["model"])
train(TrainConfig(**settings), progress=False, on_step=lambda record: print("step", record["step"]))
"""


def test_in_a_notebook_the_stop_button_saves_and_the_kernel_lives(tiny_run):
    """Jupyter's interrupt is a SIGINT to the kernel."""
    manager = pytest.importorskip("jupyter_client.manager")
    cfg = tiny_run(steps=100_000)
    kernel, client = manager.start_new_kernel(env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        request = client.execute(NOTEBOOK_CELL.format(settings=cfg.to_json()))
        said = ""
        while "step 1" not in said:
            message = client.get_iopub_msg(timeout=120)
            assert message["msg_type"] != "error", message["content"]
            said += message["content"].get("text", "")
        kernel.interrupt_kernel()
        while (reply := client.get_shell_msg(timeout=120))["parent_header"]["msg_id"] != request:
            pass  # what was asked before
        assert reply["content"]["ename"] == "Interrupted" and "which is saved" in reply["content"]["evalue"]
        done = len(read_metrics(cfg.out))
        assert latest_checkpoint(cfg.out).name == f"step-{done:06d}"
        assert client.execute("6 * 7", reply=True, timeout=60)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
