"""Checkpoints: whole or not there, and everything training needs comes back bit for bit."""

import json
import os
import shutil

import pytest
import torch

from dsv3_mini.errors import InputError
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train import checkpoint as checkpoint_module
from dsv3_mini.train.checkpoint import (
    find_damage,
    latest_checkpoint,
    list_checkpoints,
    load_training_state,
    prune_checkpoints,
    remove_leftovers,
    save_checkpoint,
    write_json,
)
from dsv3_mini.train.optimizer import build_optimizer


@pytest.fixture
def trained(tiny_model):
    """A model and optimizer after two steps with random gradients; routing biases that are not zero."""
    torch.manual_seed(1)
    model = DeepSeekV3(tiny_model)
    optimizer = build_optimizer(model, 1e-2)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    for router in model.routers:
        router.e_score_correction_bias.normal_()
    return model, optimizer


def save(run, step, trained, **numbers):
    return save_checkpoint(run, step, trained[0], None, trained[1], {"seconds": 1.5, **numbers})


def test_a_checkpoint_gives_back_weights_biases_moments_and_random_states(tmp_path, trained):
    model, optimizer = trained
    folder = save(tmp_path, 2, trained, sequences=7)
    expected = torch.rand(5)  # what comes next, drawn after saving

    loaded = load_pretrained(folder)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert any(name.endswith("e_score_correction_bias") for name in loaded.state_dict())
    again = build_optimizer(loaded, 1e-2)
    assert load_training_state(folder, loaded, again) == {"step": 2, "seconds": 1.5, "sequences": 7}
    assert torch.equal(torch.rand(5), expected)
    for before, after in zip(model.parameters(), loaded.parameters(), strict=True):
        assert optimizer.state[before].keys() == again.state[after].keys()
        assert all(torch.equal(optimizer.state[before][key], again.state[after][key]) for key in again.state[after])

    for side, opt in ((model, optimizer), (loaded, again)):
        torch.manual_seed(5)
        for p in side.parameters():
            p.grad = torch.randn_like(p)
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_nothing_is_pickled(tmp_path, trained):
    folder = save(tmp_path, 1, trained)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


def test_the_newest_whole_checkpoint_is_found(tmp_path, trained):
    for step in (9, 999_999, 1_000_000):
        save(tmp_path, step, trained)
    assert latest_checkpoint(tmp_path).name == "step-1000000"
    (tmp_path / "checkpoints" / "step-1000000" / "model.safetensors").unlink()
    assert latest_checkpoint(tmp_path).name == "step-999999"
    assert latest_checkpoint(tmp_path / "checkpoints" / "step-000009").name == "step-000009"


def cut_short(path):
    os.truncate(path, path.stat().st_size - 1)


def change_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "training_state.safetensors", "training_state.json"]
)
@pytest.mark.parametrize("harm", [cut_short, change_a_byte, os.remove])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, trained, name, harm):
    good, bad = save(tmp_path, 1, trained), save(tmp_path, 2, trained)
    harm(bad / name)
    assert name in find_damage(bad)
    assert latest_checkpoint(tmp_path) == good
    with pytest.raises(InputError, match=name):
        latest_checkpoint(bad)
    shutil.rmtree(good)
    with pytest.raises(InputError, match=rf"no whole checkpoint.*step-000002.*{name}"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize("marker", ["", "{", "[]", "{}", '{"files": 3}', '{"files": {"config.json": 1}}'])
def test_a_damaged_marker_is_damage(tmp_path, trained, marker):
    folder = save(tmp_path, 1, trained)
    (folder / "complete.json").write_text(marker)
    assert "complete.json cannot be read" in find_damage(folder)
    (folder / "complete.json").unlink()
    assert "complete.json is missing" in find_damage(folder)


def test_a_marker_cannot_point_outside_its_folder(tmp_path, trained):
    folder = save(tmp_path, 1, trained)
    marker = json.loads((folder / "complete.json").read_text())
    marker["files"]["../secret"] = {"bytes": 1, "sha256": ""}
    (tmp_path / "checkpoints" / "secret").write_text("x")
    (folder / "complete.json").write_text(json.dumps(marker))
    assert "outside the folder" in find_damage(folder)


def test_without_a_checkpoint_the_message_says_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint.*step-XXXXXX"):
        latest_checkpoint(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        latest_checkpoint(tmp_path / "nowhere")


def test_a_model_folder_that_is_not_ours_is_taken_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert latest_checkpoint(tmp_path) == tmp_path


@pytest.mark.parametrize("moment", ["save_file", "_fingerprint", "write_checkpoint"])
def test_a_save_that_fails_half_way_leaves_the_earlier_checkpoint_alone(tmp_path, trained, monkeypatch, moment):
    first = save(tmp_path, 1, trained)
    before = {path.name: path.read_bytes() for path in first.iterdir()}

    def fail(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, moment, fail)
        with pytest.raises(OSError, match="disk full"):
            save(tmp_path, 2, trained)
    assert latest_checkpoint(tmp_path) == first
    assert list_checkpoints(tmp_path) == [first]
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before


def test_the_name_comes_last(tmp_path, trained, monkeypatch):
    """While files are written, no folder has the final name: a kill leaves nothing that looks like a checkpoint."""
    seen = []
    original = checkpoint_module._fingerprint
    monkeypatch.setattr(
        checkpoint_module, "_fingerprint", lambda path: (seen.append(list_checkpoints(tmp_path)), original(path))[1]
    )
    save(tmp_path, 3, trained)
    assert seen and not any(seen)


def test_saving_replaces_a_broken_checkpoint_of_the_same_step(tmp_path, trained):
    folder = save(tmp_path, 1, trained)
    (folder / "config.json").unlink()
    assert find_damage(save(tmp_path, 1, trained)) is None


def test_pruning_keeps_the_newest_and_leftovers_go(tmp_path, trained):
    for step in (1, 2, 3, 12):
        save(tmp_path, step, trained)
    (tmp_path / "checkpoints" / ".step-000013.writing-abcd").mkdir()
    (tmp_path / "checkpoints" / ".DS_Store").write_text("a file manager's, none of our business")
    prune_checkpoints(tmp_path, 2)
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found == [".DS_Store", "step-000003", "step-000012"]
    remove_leftovers(tmp_path / "nowhere")  # nothing to remove is nothing to fail on


def test_moments_of_another_model_are_refused(tmp_path, trained, tiny_model):
    folder = save(tmp_path, 1, trained)
    other = DeepSeekV3(tiny_model.replace(kv_lora_rank=12))
    with pytest.raises(InputError, match=r"moments of .*kv_"):
        load_training_state(folder, other, build_optimizer(other, 1e-3))


def test_a_folder_without_training_state_cannot_be_continued(tmp_path, trained):
    folder = save(tmp_path, 1, trained)
    (folder / "training_state.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="no training state"):
        load_training_state(folder, *trained)


def test_json_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1} and os.listdir(tmp_path) == ["run.json"]
