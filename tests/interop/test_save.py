"""Saving: what was in the model is in the folder, bit for bit, and the folder is there whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import dsv3_mini.interop.save as save_module
from dsv3_mini.errors import InputError
from dsv3_mini.interop import load_pretrained, save_pretrained
from dsv3_mini.model.transformer import DeepSeekV3

from .folders import same_weights, some_tokens, tensor_names, tiny_config, tiny_model, tiny_yarn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000, 1])
def test_a_round_trip_is_bit_exact(dtype: torch.dtype, shard_bytes: int, tmp_path: Path) -> None:
    model = tiny_model(rope_scaling=tiny_yarn(), num_nextn_predict_layers=2, initializer_range=0.03).to(dtype)
    save_pretrained(model, tmp_path / "m", max_shard_bytes=shard_bytes)
    back = load_pretrained(tmp_path / "m")
    assert back.cfg == model.cfg
    assert same_weights(back, model)
    assert back.lm_head.weight.dtype == dtype
    assert all(router.e_score_correction_bias.dtype == torch.float32 for router in back.routers)
    assert torch.equal(back(some_tokens()).logits, model(some_tokens()).logits)


def test_weights_can_be_saved_in_another_type_and_the_routing_bias_stays(tmp_path: Path) -> None:
    model = tiny_model()
    save_pretrained(model, tmp_path / "m", dtype=torch.bfloat16)
    back = load_pretrained(tmp_path / "m")
    assert same_weights(back, model.to(torch.bfloat16))
    assert json.loads((tmp_path / "m" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert {t.dtype for n, t in stored.items() if n.endswith("correction_bias")} == {torch.float32}
    assert {t.dtype for n, t in stored.items() if not n.endswith("correction_bias")} == {torch.bfloat16}


def test_shards_respect_the_limit_and_the_index_tells_the_truth(tmp_path: Path) -> None:
    save_pretrained(tiny_model(), tmp_path / "m", max_shard_bytes=20_000)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    n = len(files)
    assert n > 3
    assert files == [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]
    total = 0
    for name in files:
        with safe_open(tmp_path / "m" / name, "pt") as file:
            assert file.metadata() == {"format": "pt"}  # older readers refuse a file that does not say so
        tensors = load_file(tmp_path / "m" / name)
        assert set(tensors) == {key for key, file in index["weight_map"].items() if file == name}
        held = sum(tensor.nbytes for tensor in tensors.values())
        assert held <= 20_000
        total += held
    assert index["metadata"]["total_size"] == total
    assert sorted(path.name for path in (tmp_path / "m").iterdir() if path.name not in files) == [
        "config.json",
        "model.safetensors.index.json",
    ]


def test_the_copies_of_an_mtp_module_are_copies(tmp_path: Path) -> None:
    save_pretrained(tiny_model(), tmp_path / "m")
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert torch.equal(stored["model.layers.3.embed_tokens.weight"], stored["model.embed_tokens.weight"])
    assert torch.equal(stored["model.layers.3.shared_head.head.weight"], stored["lm_head.weight"])


def test_saving_holds_no_second_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to the file is the model's own memory, the MTP copies of shared matrices aside."""
    model = tiny_model()
    owned = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    foreign: list[str] = []

    def look(tensors: dict[str, torch.Tensor], file: Path, metadata: Any) -> None:
        foreign.extend(name for name, t in tensors.items() if t.untyped_storage().data_ptr() not in owned)
        original(tensors, file, metadata)

    original = save_module.save_file
    monkeypatch.setattr(save_module, "save_file", look)
    save_pretrained(model, tmp_path / "m")
    assert foreign == ["model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight"]


def test_a_model_on_the_meta_device_has_nothing_to_save(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = DeepSeekV3(tiny_config())
    with pytest.raises(InputError, match="meta device"):
        save_pretrained(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the third shard; a tokenizer that cannot be written."""
    calls = []

    def full(tensors: dict[str, torch.Tensor], file: Path, metadata: Any) -> None:
        calls.append(file)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        original(tensors, file, metadata)

    class Unwritable:
        def save(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("{")
            raise OSError(28, "No space left on device")

    original = save_module.save_file
    with monkeypatch.context() as patch:
        patch.setattr(save_module, "save_file", full)
        with pytest.raises(OSError, match="No space"):
            save_pretrained(tiny_model(), tmp_path / "m", max_shard_bytes=20_000)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No space"):
        save_pretrained(tiny_model(), tmp_path / "m", Unwritable())
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_checkpoint_is_replaced_on_request_only(tmp_path: Path) -> None:
    first, second = tiny_model(seed=1), tiny_model(seed=2)
    save_pretrained(first, tmp_path / "m", max_shard_bytes=20_000)
    with pytest.raises(InputError, match=r"m: already holds something.*overwrite=True"):
        save_pretrained(second, tmp_path / "m")
    assert same_weights(load_pretrained(tmp_path / "m"), first)
    save_pretrained(second, tmp_path / "m", overwrite=True)
    assert same_weights(load_pretrained(tmp_path / "m"), second)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]  # nothing of the first, no draft
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_files_have_the_permissions_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_pretrained(tiny_model(), tmp_path / "m")
    finally:
        os.umask(before)
    for path in (tmp_path / "m").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o640, path


def test_a_shard_of_no_bytes_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_shard_bytes = 0"):
        save_pretrained(tiny_model(), tmp_path / "m", max_shard_bytes=0)


def test_experts_are_split_gate_first(tmp_path: Path) -> None:
    model = tiny_model()
    save_pretrained(model, tmp_path / "m")
    stored = load_file(tmp_path / "m" / "model.safetensors")
    experts = model.model.layers[1].mlp.experts
    for e in range(8):
        prefix = f"model.layers.1.mlp.experts.{e}"
        both = torch.cat((stored[f"{prefix}.gate_proj.weight"], stored[f"{prefix}.up_proj.weight"]))
        assert torch.equal(both, experts.gate_up_proj[e])
        assert torch.equal(stored[f"{prefix}.down_proj.weight"], experts.down_proj[e])
    assert not any("gate_up_proj" in name for name in tensor_names(tmp_path / "m" / "model.safetensors"))
