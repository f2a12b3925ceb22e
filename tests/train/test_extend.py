"""A run that begins with a trained model: its weights, its tokenizer, YaRN on request, a phase at one rate."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dsv3_mini import cli
from dsv3_mini.errors import InputError
from dsv3_mini.interop.config_json import config_from_hf, read_json_object
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.train import loop
from dsv3_mini.train.checkpoint import latest_checkpoint
from dsv3_mini.train.config import TRAIN_PRESETS, TrainConfig
from dsv3_mini.train.data import open_data
from dsv3_mini.train.extend import beginning
from dsv3_mini.train.loop import train
from dsv3_mini.train.metrics import read_metrics
from dsv3_mini.train.run_folder import read_run
from dsv3_mini.train.schedule import ExtensionSchedule, bias_speed, extension_rate, mtp_weight
from dsv3_mini.train.tokenizer import Tokenizer

Make = Callable[..., TrainConfig]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No evaluation at the end: these tests are about the beginning."""
    monkeypatch.setattr(loop, "evaluate_model", lambda *args, **kwargs: {"bits_per_byte": {"all": 1.0}})


@pytest.fixture
def first(tiny_run: Make, tmp_path: Path) -> Path:
    """A finished run of the tiny model."""
    return train(tiny_run(out=tmp_path / "first", steps=4), progress=False).folder


@pytest.fixture
def phase(tiny_run: Make, tmp_path: Path, first: Path) -> Make:
    """Settings of a phase that begins with `first`."""

    def make(factor: float | None = 4, **changes: object) -> TrainConfig:
        return tiny_run(**{"out": tmp_path / "phase", "seq_len": 32, "steps": 3, **beginning(first, factor), **changes})

    return make


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_pretrained(latest_checkpoint(folder)).state_dict()


def test_yarn_is_over_the_length_of_the_training_and_the_model_is_else_the_same(first: Path) -> None:
    before = config_from_hf(read_json_object(latest_checkpoint(first) / "config.json"))
    model = beginning(first, 8)["model"]
    assert (model.rope_scaling.factor, model.rope_scaling.original_max_position_embeddings) == (8, 16)  # seq_len = 16
    assert model.max_position_embeddings == 128
    assert model.replace(rope_scaling=None, max_position_embeddings=64) == before
    assert beginning(first)["model"] == before


def test_a_second_phase_inherits_yarn(phase: Make, tmp_path: Path) -> None:
    folder = train(phase(), progress=False).folder
    model = beginning(folder)["model"]
    assert (model.rope_scaling.factor, model.rope_scaling.original_max_position_embeddings) == (4, 16)
    assert beginning(folder, 4)["model"] == model
    with pytest.raises(InputError, match="has YaRN with factor 4 already"):
        beginning(folder, 8)


def test_the_first_step_is_that_of_the_trained_weights(phase: Make, first: Path) -> None:
    cfg = phase(factor=None, precision="fp32")
    data = open_data(cfg.resolved())
    with torch.no_grad():
        expected = load_pretrained(latest_checkpoint(first))(*data.windows.batch(0, 2)).losses["main"].item()
    train(cfg, progress=False)
    assert read_metrics(cfg.out)[0]["losses"]["main"] == pytest.approx(expected, rel=1e-4)


def test_the_tokenizer_is_that_of_the_checkpoint_on_another_text_too(phase: Make, first: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(f"Something else, {n}, altogether." for n in range(400)), encoding="utf-8")
    folder = train(phase(text=other), progress=False).folder
    ours, theirs = (Tokenizer.load(latest_checkpoint(path)) for path in (folder, first))
    assert ours.fingerprint == theirs.fingerprint


def test_run_json_records_where_the_run_began(phase: Make, first: Path) -> None:
    config = read_run(train(phase(needle_share=0.0), progress=False).folder)["config"]
    assert config["init_from"] == str(first.absolute())
    assert config["model"]["rope_scaling"]["factor"] == 4


def test_a_stopped_phase_continues_bit_for_bit_without_the_folder_it_began_with(
    phase: Make, first: Path, tmp_path: Path
) -> None:
    whole = train(phase(steps=4, out=tmp_path / "whole"), progress=False).folder
    done: list[object] = []
    cfg = phase(steps=4)
    train(cfg, progress=False, on_step=done.append, should_stop=lambda: len(done) == 2)
    shutil.rmtree(first)
    train(dataclasses.replace(cfg, resume=True, model=None, init_from=None), progress=False)
    assert all(torch.equal(tensor, state(whole)[name]) for name, tensor in state(cfg.out).items())


def test_a_phase_runs_at_one_rate_with_the_end_of_pre_trainings_other_settings() -> None:
    schedule = ExtensionSchedule(steps=50, full_batch=7, peak_rate=1e-3, peak_bias_speed=0.01, warmup=5)
    steps = [schedule[i] for i in range(50)]
    assert [step.lr for step in steps] == pytest.approx([1e-3 * min(1, (i + 1) / 5) for i in range(50)])
    assert {step.sequences for step in steps} == {7}
    assert [step.start for step in steps] == list(range(0, 350, 7))
    assert {(step.mtp_weight, step.bias_speed) for step in steps} == {(mtp_weight(1.0), bias_speed(1.0))} == {(0.1, 0)}


def test_without_settings_a_phase_is_short_and_slow(first: Path, tmp_path: Path) -> None:
    cfg = TrainConfig(out=tmp_path / "x", seq_len=32, **beginning(first)).resolved()
    nano = TRAIN_PRESETS["nano"]
    assert cfg.steps == nano["steps"] // 10
    assert cfg.lr == pytest.approx(nano["lr"] * 7.3e-6 / 2.2e-4) == extension_rate(nano["lr"])
    longer = TrainConfig(out=tmp_path / "x", seq_len=4096, preset="nano", init_from=first).resolved()
    assert longer.batch_tokens == longer.micro_batch_tokens == 4096  # a batch holds at least one window


# Bad input


def test_weights_of_another_size_are_refused_by_name(phase: Make) -> None:
    cfg = phase()
    with pytest.raises(InputError, match=r"init_from = .*its model has hidden_size = 32, not 64"):
        train(dataclasses.replace(cfg, model=cfg.model.replace(hidden_size=64)), progress=False)


def test_a_folder_without_a_run_says_that_yarn_needs_a_length(first: Path, tmp_path: Path) -> None:
    lone = shutil.copytree(latest_checkpoint(first), tmp_path / "lone")
    assert beginning(lone)["preset"] == "nano"
    with pytest.raises(InputError, match=r"no run\.json that says with which seq_len it was trained"):
        beginning(lone, 4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--yarn-factor", "4"], "name its folder with --init-from"),
        (["--init-from", "nowhere"], "nowhere does not exist"),
        (["--init-from", "FIRST", "--preset", "mini"], "--preset cannot be combined with --init-from"),
        (["--init-from", "FIRST", "--dense-twin"], "--dense-twin cannot be combined with --init-from"),
        (["--init-from", "FIRST", "--yarn-factor", "0.5"], "rope_scaling.factor"),
        (["--init-from", "FIRST", "--needle-share", "2"], "needle_share"),
        (["--init-from", "FIRST", "--seq-len", "128"], "max_position_embeddings = 64"),
    ],
)
def test_the_command_line_says_what_cannot_be(
    arguments: list[str], said: str, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(first) if word == "FIRST" else word for word in arguments]
    assert cli.main(["train", "--out", str(tmp_path / "new"), *given]) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_command_line_extends_a_run(first: Path, tiny_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "longer"
    words = f"train --init-from {first} --yarn-factor 4 --seq-len 64 --steps 2 --batch-tokens 64 --device cpu".split()
    assert cli.main([*words, "--text", str(tiny_text), "--out", str(out)]) == 0
    assert json.loads((latest_checkpoint(out) / "config.json").read_text())["rope_scaling"]["factor"] == 4
