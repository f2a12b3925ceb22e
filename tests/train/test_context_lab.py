"""The laboratory of context extension, with a tiny model and a few steps; and the models that come with the lesson."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dsv3_mini.model.rope import rope_frequencies
from dsv3_mini.paths import data_dir
from dsv3_mini.train import context_lab
from dsv3_mini.train.balance_lab import load_lab
from dsv3_mini.train.config import TrainConfig
from dsv3_mini.train.context_lab import FACTOR, MAPS, SHIPPED, STAGES, TRAINED, load_models, run_context, share_found
from dsv3_mini.train.corpus import embedded_corpus
from dsv3_mini.train.needle import CHANCE, needle_map
from dsv3_mini.train.run_folder import read_run


@pytest.fixture
def code_text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(40):
        lines = [f"def f_{number}_{n}(x):\n    return x + {n * number}\n\n\n" for n in range(60)]
        (folder / f"part_{number}.py").write_text("".join(lines), encoding="utf-8")
    return folder


def test_all_stages_leave_runs_maps_and_a_result_and_a_second_call_trains_nothing(
    tmp_path: Path, code_text: Path, tiny_run: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_lab, "STAGES", {
        name: context_lab.Stage(length, 2, 1e-3, STAGES[name].begins_with, STAGES[name].yarn)
        for name, length in (("short", 64), ("trained", 64), ("before", 64), ("phase-1", 128), ("phase-2", 256))
    })  # fmt: skip
    monkeypatch.setattr(context_lab, "TRAINED", 64)
    base = tiny_run(text=code_text, model=context_lab.LOOKUP.replace(vocab_size=300, num_hidden_layers=1,
                    first_k_dense_replace=1), batch_tokens=256, micro_batch_tokens=256, seq_len=64)  # fmt: skip
    told: list[str] = []
    settings = dict(base=base, lengths=(48, 64, 256), depths=(0.0, 1.0), count=2, say=told.append)
    result = run_context(tmp_path / "cache", **settings)
    assert [line for line in told if line.startswith("training")] == [
        f"training context-{name}-steps2-seed0" for name in STAGES
    ]
    assert list(result["maps"]) == list(MAPS)
    for found in result["maps"].values():
        assert len(found["found"]) == 2 and len(found["found"][0]) == 3
    assert set(result["runs"][0]["bits_per_byte"]["yarn"]) == {"64", "128", "256"}
    yarn = {name: read_run(tmp_path / "cache" / f"context-{name}-steps2-seed0")["config"]["model"]["rope_scaling"]
            for name in STAGES}  # fmt: skip
    assert [name for name, scaling in yarn.items() if scaling] == ["phase-1", "phase-2"]
    assert yarn["phase-2"]["original_max_position_embeddings"] == 64 and yarn["phase-2"]["factor"] == FACTOR
    told.clear()
    assert run_context(tmp_path / "cache", **settings) == result
    assert not [line for line in told if line.startswith("training")]
    context_lab.ship_models(tmp_path / "cache", steps=2, folder=tmp_path / "shipped")
    assert sorted(path.name for path in (tmp_path / "shipped").iterdir()) == sorted(SHIPPED)


def test_before_and_phase_1_differ_in_length_and_yarn_alone() -> None:
    before, phase = vars(STAGES["before"]), vars(STAGES["phase-1"])
    assert {name for name in before if before[name] != phase[name]} == {"seq_len", "yarn"}
    assert [STAGES[name].seq_len for name in ("before", "phase-1", "phase-2")] == [256, 1024, 4096]


def test_shipped_models_are_small_and_of_these_stages() -> None:
    folder = data_dir() / "long_context"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 6 * 2**20
    models, _ = load_models()
    assert list(models) == list(MAPS)
    plain = rope_frequencies(models["before"].cfg)
    for name, model in models.items():
        scaling = model.cfg.rope_scaling
        assert (scaling is None) == (name == "before")
        assert torch.equal(model.model.rotary.frequencies, plain) == (name == "before")
        assert scaling is None or (scaling.factor, scaling.original_max_position_embeddings) == (FACTOR, TRAINED)
    for name in SHIPPED:
        config = read_run(folder / name)["config"]
        assert (config["seq_len"], config["steps"], config["lr"]) == (
            STAGES[name].seq_len, STAGES[name].steps, STAGES[name].lr,
        )  # fmt: skip


def test_shipped_models_find_what_the_kept_maps_say() -> None:
    kept = load_lab("needle")
    assert kept["chance"] == CHANCE and kept["trained"] == TRAINED
    models, tokenizer = load_models()
    heldout = embedded_corpus().heldout
    for name in MAPS:
        found = kept["runs"][0]["maps"][name]
        lengths, depths = [TRAINED, 4 * TRAINED], found["depths"][::3]
        again = needle_map(models[name], tokenizer, heldout, lengths=lengths, depths=depths, count=found["count"])
        for length in lengths:
            column = found["lengths"].index(length)
            kept_share = sum(line[column] for line in found["found"][::3]) / len(depths)
            # Another Python has other held-out files; the picture must be the same.
            assert share_found(again, length) == pytest.approx(kept_share, abs=0.2), (name, length)
