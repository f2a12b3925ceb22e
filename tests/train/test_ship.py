"""A shipped folder: what the run had, in small files, measured as it is, and a card that says the same."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from dsv3_mini.errors import InputError
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.train import ship as shipping
from dsv3_mini.train.checkpoint import latest_checkpoint
from dsv3_mini.train.evaluate import evaluate_folder
from dsv3_mini.train.loop import train
from dsv3_mini.train.metrics import read_metrics
from dsv3_mini.train.routing_log import read_routing_log
from dsv3_mini.train.ship import card, ship, thinned


@pytest.fixture
def shipped(tiny_run, tmp_path, monkeypatch):
    """A tiny run and its shipped folder."""
    monkeypatch.setattr(shipping, "SHARD_BYTES", 40_000)
    monkeypatch.setattr(shipping, "LINES", {"metrics.jsonl": 5, "routing.jsonl": 3})
    monkeypatch.setattr(shipping, "judge", lambda *args: JUDGED)
    cfg = tiny_run(routing_every=2)
    train(cfg, progress=False)
    ship(cfg.out, tmp_path / "shipped", machine="an abacus", cpu_minutes=41.6)
    return cfg.out, tmp_path / "shipped"


JUDGED = {
    "parse_rate": {"rate": 0.47, "ceiling": 0.93, "functions": 77, "max_new_tokens": 64, "temperature": 0.7},
    "arithmetic": {"accuracy": 0.11, "by_kind": {"+": 0.22, "chain": 0.0}, "problems": 88},
}


def test_weights_are_those_of_the_run_in_bf16_small_files_without_copies(shipped):
    run, folder = shipped
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3 and all(file.stat().st_size < 45_000 for file in files)
    names = {name for file in files for name in load_file(file)}
    assert "model.layers.2.eh_proj.weight" in names and not any("shared_head.head" in name for name in names)
    trained, model = load_pretrained(latest_checkpoint(run)), load_pretrained(folder)
    assert model.cfg == trained.cfg and model.lm_head.weight.dtype == torch.bfloat16
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.to(model.state_dict()[name].dtype)), name


def test_what_the_run_wrote_can_be_read_from_the_shipped_folder(shipped):
    run, folder = shipped
    assert [line["step"] for line in read_metrics(folder)] == [1, 4, 7, 9, 12]
    assert all(line in read_metrics(run) for line in read_metrics(folder))
    assert read_routing_log(folder).steps.tolist() == [1, 6, 12]
    assert json.loads((folder / "run.json").read_text()) == json.loads((run / "run.json").read_text())


def test_the_card_says_what_was_measured_on_the_shipped_weights(shipped):
    _, folder = shipped
    evaluation = json.loads((folder / "evaluation.json").read_text())
    measured = evaluate_folder(folder)
    assert evaluation["bits_per_byte"] == pytest.approx(measured["bits_per_byte"], abs=1e-9)
    assert evaluation["judges"] == JUDGED and evaluation["step"] == 12
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text == card(folder)
    for number in (evaluation["bits_per_byte"]["all"], evaluation["ngram"]["all"], evaluation["xz"]["all"]):
        assert f"{number:.3f}" in text
    for part in ("an abacus; 42 CPU minutes", "47% of 77", "93% of the true", "11% of 88", "`chain` 0%", "12 steps"):
        assert part in text, part


def test_a_dense_model_says_so_and_has_no_routing(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(shipping, "judge", lambda *args: {})
    cfg = tiny_run(model=tiny_run().model_config.dense_twin())
    train(cfg, progress=False)
    ship(cfg.out, tmp_path / "dense", machine="an abacus")
    assert "dense: no layer has experts" in (tmp_path / "dense" / "README.md").read_text(encoding="utf-8")
    assert not (tmp_path / "dense" / "routing.jsonl").exists()
    with pytest.raises(InputError, match="dense"):  # an earlier one is not replaced by accident
        ship(cfg.out, tmp_path / "dense", machine="an abacus")


def test_thinning_keeps_the_ends_and_drops_half_a_line():
    lines = [f"{i}\n" for i in range(100)]
    text = thinned("".join(lines) + "half", 10)
    assert text.splitlines() == ["0", "11", "22", "33", "44", "55", "66", "77", "88", "99"]
    assert thinned("a\nb\n", 10) == "a\nb\n"
