"""A disk that fills up while a checkpoint is written: one message, the earlier checkpoint whole, no leftovers."""

import contextlib
import dataclasses
import errno
import os
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from dsv3_mini.errors import InputError
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train import checkpoint as checkpoint_module
from dsv3_mini.train import disk, loop, report
from dsv3_mini.train.checkpoint import checkpoint_bytes, find_damage, latest_checkpoint
from dsv3_mini.train.disk import error_number, free_bytes, full_disk_explained, readable
from dsv3_mini.train.loop import train
from dsv3_mini.train.metrics import MetricsLog, read_metrics
from dsv3_mini.train.optimizer import build_optimizer

resource = pytest.importorskip("resource", reason="limits of a process are a thing of Unix")
RUST = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.fixture
def quiet(monkeypatch):
    """No evaluation at the end, no measuring of the machine: these tests are about something else."""
    monkeypatch.setattr(loop, "evaluate_model", lambda *args, **kwargs: {"bits_per_byte": {"all": 1.0}})
    monkeypatch.setattr(report, "peak_flops", lambda *args: 1e12)


@contextlib.contextmanager
def largest_file(size):
    """No file of this process may grow beyond `size` bytes: the system itself refuses to write, also to Rust."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fail_at_second_save(monkeypatch, name, error):
    """The function `name` of the checkpoint module raises `error` in the save of step 4."""
    original = getattr(checkpoint_module, name)

    def function(*args, **kwargs):
        if any("step-000004" in str(arg) for arg in args):
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(checkpoint_module, name, function)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("save_file", SafetensorError(RUST)),
        ("write_checkpoint", OSError(errno.ENOSPC, "No space left on device")),
        ("write_checkpoint", Exception(RUST)),  # what the tokenizer raises
        ("_fingerprint", OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_no_room_for_a_checkpoint_leaves_the_one_before_and_says_what_is_needed(
    tiny_run, tmp_path, monkeypatch, quiet, name, error
):
    whole, full = (
        tiny_run(out=tmp_path / "whole", steps=6),
        tiny_run(out=tmp_path / "full", steps=6, checkpoint_every=2),
    )
    kept = {}

    def remember(record):
        if record["step"] == 3:
            kept.update(contents(latest_checkpoint(full.out)))

    with monkeypatch.context() as patch:
        fail_at_second_save(patch, name, error)
        with pytest.raises(InputError) as caught:
            train(full, progress=False, on_step=remember)
    message = str(caught.value)
    assert str(full.out / "checkpoints" / "step-000004") in message and "No space left on device" in message
    assert re.search(r"needs about [\d.]+ [kM]B there; [\d.]+ [kMGT]B are free", message) and "--resume" in message
    assert [path.name for path in (full.out / "checkpoints").iterdir()] == ["step-000002"], "nothing is left lying"
    assert contents(latest_checkpoint(full.out)) == kept
    assert train(dataclasses.replace(full, resume=True), progress=False).resumed_from == 2
    train(whole, progress=False)
    assert [line["losses"] for line in read_metrics(full.out)] == [line["losses"] for line in read_metrics(whole.out)]


def test_a_limit_of_the_system_itself_is_met_while_tensors_are_written(tiny_run, quiet):
    cfg = tiny_run(steps=4, checkpoint_every=2)
    limit = contextlib.ExitStack()
    with limit, pytest.raises(InputError, match=r"step-000004 could not be written: File too large"):
        train(
            cfg,
            progress=False,
            on_step=lambda record: limit.enter_context(largest_file(30_000)) if record["step"] == 3 else None,
        )
    assert [path.name for path in (cfg.out / "checkpoints").iterdir()] == ["step-000002"]
    assert find_damage(latest_checkpoint(cfg.out)) is None
    assert train(dataclasses.replace(cfg, resume=True), progress=False).steps == 4


def test_no_room_for_a_line_of_metrics_is_said_too(tiny_run, monkeypatch, quiet):
    cfg = tiny_run(steps=6, checkpoint_every=2)

    def write(self, **record):
        if record["step"] == 4 and self.path.name == "metrics.jsonl":
            self._file.write('{"step": 4, "los')  # as far as there was room
            self._file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, **record)

    original = MetricsLog.write
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", write)
        with pytest.raises(InputError, match=rf"{cfg.out} could not be written: No space left on device. .* are free"):
            train(cfg, progress=False)
    assert train(dataclasses.replace(cfg, resume=True), progress=False).resumed_from == 2
    assert [line["step"] for line in read_metrics(cfg.out)] == [1, 2, 3, 4, 5, 6]


def test_too_little_room_is_said_before_the_first_step(tiny_run, monkeypatch, capsys, quiet):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    train(tiny_run(steps=1))
    said = capsys.readouterr().err
    assert re.search(r"1 MB are free, its checkpoints need about [\d.]+ MB more \(keep_checkpoints = 2", said)


def test_with_enough_room_nothing_is_said(tiny_run, capsys, quiet):
    train(tiny_run(steps=1))
    assert "are free" not in capsys.readouterr().err


def test_the_room_that_a_checkpoint_needs_is_known_beforehand(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "_TEXT_BYTES", 0)
    model = DeepSeekV3(tiny_model.replace(hidden_size=128, moe_intermediate_size=64))
    optimizer = build_optimizer(model, 1e-2)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    folder = checkpoint_module.save_checkpoint(tmp_path, 1, model, None, optimizer, {})
    written = sum(path.stat().st_size for path in folder.iterdir() if path.suffix == ".safetensors")
    assert checkpoint_bytes(model) == pytest.approx(written, rel=0.05)


def test_other_errors_keep_their_kind(tmp_path):
    for error in (OSError(errno.EACCES, "no"), ValueError("x"), InputError("y"), SafetensorError("(os error 13)")):
        with pytest.raises(type(error)) as caught, full_disk_explained(tmp_path):
            raise error
        assert caught.value is error


def test_numbers_of_errors_and_sizes(tmp_path):
    assert error_number(OSError(28, "x")) == 28 == error_number(SafetensorError(RUST))
    assert error_number(ValueError("28")) is None
    assert [readable(size) for size in (0, 999, 1000, 1_234_567, 5 * 10**9, 10**13)] == [
        "0 bytes", "999 bytes", "1 kB", "1.23 MB", "5 GB", "10 TB",
    ]  # fmt: skip
    assert free_bytes(tmp_path / "not" / "there") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert os.listdir(tmp_path) == []
