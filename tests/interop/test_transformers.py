"""Folders between us and stock `transformers`, in both directions: the same keys, the same weights, the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from transformers.modeling_layers import MtpModel

from dsv3_mini.config import YarnConfig
from dsv3_mini.interop import load_pretrained, save_pretrained
from dsv3_mini.train.tokenizer import Tokenizer

from .folders import (
    LOGITS_TOLERANCE,
    distance,
    edit_json,
    load_with_transformers,
    same_weights,
    some_tokens,
    tensor_names,
    tiny_hf_model,
    tiny_model,
    tiny_yarn,
)

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "queries not compressed": dict(q_lora_rank=None),
    "YaRN": dict(rope_scaling=tiny_yarn()),
    "YaRN without mscale_all_dim": dict(rope_scaling=tiny_yarn(mscale_all_dim=0)),
    "YaRN without mscale": dict(rope_scaling=YarnConfig(factor=4, original_max_position_embeddings=16, mscale=0)),
    "all dense but the MTP module": dict(first_k_dense_replace=3),
    "all dense, the MTP module too": dict(first_k_dense_replace=4),
    "all sparse, one group, two shared": dict(first_k_dense_replace=0, n_group=1, topk_group=1, n_shared_experts=2),
    "no MTP, gates not normalised": dict(num_nextn_predict_layers=0, norm_topk_prob=False, rope_theta=300.0),
    "two MTP modules": dict(num_nextn_predict_layers=2, rms_norm_eps=1e-5, eos_token_id=None),
}


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_transformers_loads_what_we_save(changes: dict[str, Any], tmp_path: Path) -> None:
    ours = tiny_model(**changes)
    save_pretrained(ours, tmp_path / "one")
    save_pretrained(ours, tmp_path / "many", max_shard_bytes=20_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    for folder in ("one", "many"):
        assert distance(ours, load_with_transformers(tmp_path / folder)) < LOGITS_TOLERANCE


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_transformers_keeps_type_and_routing_bias_of_a_bf16_folder(experts: str, tmp_path: Path) -> None:
    ours = tiny_model().to(torch.bfloat16)
    save_pretrained(ours, tmp_path / "m")
    theirs = load_with_transformers(tmp_path / "m", experts_implementation=experts)
    state = ours.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert tensor.dtype == (torch.float32 if name.endswith("correction_bias") else torch.bfloat16)
        assert torch.equal(tensor, state[name]), name


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2])
def test_transformers_loads_our_mtp_modules(depth: int, tmp_path: Path) -> None:
    """By its own `MtpModel.from_pretrained`; it looks for layer 61 unless the model is told where its modules are."""
    ours = tiny_model(num_nextn_predict_layers=depth, rope_scaling=tiny_yarn())
    save_pretrained(ours, tmp_path / "m", max_shard_bytes=20_000)
    main = load_with_transformers(tmp_path / "m")
    main._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{3 + k}\..*" for k in range(depth)]
    mtp = MtpModel.from_pretrained(main).eval()

    tokens = some_tokens()
    hidden = main.model(input_ids=tokens, use_cache=False).last_hidden_state
    our_logits = ours(tokens).mtp_logits
    assert len(our_logits) == depth
    for k in range(1, depth + 1):
        ahead = tokens[:, k:]
        positions = torch.arange(k, tokens.shape[1]).expand_as(ahead)
        hidden = mtp.forward_layer(k - 1, hidden[:, : ahead.shape[1]], positions, None, input_ids=ahead)
        assert (main.lm_head(hidden) - our_logits[k - 1]).abs().max() < LOGITS_TOLERANCE


def test_a_checkpoint_has_the_names_that_transformers_gives_and_those_of_the_released_mtp_module(
    tmp_path: Path,
) -> None:
    tiny_hf_model().save_pretrained(tmp_path / "theirs")
    save_pretrained(tiny_model(), tmp_path / "ours")
    theirs = tensor_names(tmp_path / "theirs" / "model.safetensors")
    ours = tensor_names(tmp_path / "ours" / "model.safetensors")
    block = {name.removeprefix("model.layers.2.") for name in theirs if name.startswith("model.layers.2.")}
    module = block | {f"{name}.weight" for name in ("enorm", "hnorm", "eh_proj", "shared_head.norm")}
    module |= {"embed_tokens.weight", "shared_head.head.weight"}  # the released folder repeats them
    assert ours == theirs | {f"model.layers.3.{name}" for name in module}


HF_MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "queries not compressed, dense layers": dict(q_lora_rank=None, first_k_dense_replace=2),
    "YaRN": dict(
        max_position_embeddings=256,
        rope_parameters={"rope_type": "yarn", "rope_theta": 500.0, "factor": 8.0,
                         "original_max_position_embeddings": 32},
    ),
    "YaRN with both mscales": dict(
        max_position_embeddings=128,
        rope_theta=500.0,
        rope_scaling={"type": "yarn", "factor": 4, "original_max_position_embeddings": 32, "beta_fast": 6,
                      "mscale": 0.7, "mscale_all_dim": 1.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("shard_size", ["5GB", "30KB"])
@pytest.mark.parametrize("changes", HF_MODELS.values(), ids=HF_MODELS)
def test_we_load_what_transformers_saves(changes: dict[str, Any], shard_size: str, tmp_path: Path) -> None:
    theirs = tiny_hf_model(**changes)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or shard_size == "30KB"
    with pytest.warns(UserWarning, match="num_nextn_predict_layers = 1.* without multi-token prediction"):
        ours = load_pretrained(tmp_path)
    assert ours.cfg.num_nextn_predict_layers == 0
    assert not ours.training
    assert distance(ours, theirs) < LOGITS_TOLERANCE


def test_the_old_spelling_of_positions_gives_the_same_logits(tmp_path: Path) -> None:
    theirs = tiny_hf_model(**HF_MODELS["YaRN with both mscales"], num_nextn_predict_layers=0)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "rope_scaling" not in config  # what transformers 5 writes
    new = config["rope_parameters"]
    theta = new.pop("rope_theta")
    edit_json(tmp_path / "config.json", rope_parameters=..., rope_theta=theta, rope_scaling=new)
    assert distance(load_pretrained(tmp_path), theirs) < LOGITS_TOLERANCE
    assert distance(load_pretrained(tmp_path), load_with_transformers(tmp_path)) < LOGITS_TOLERANCE


def test_a_round_trip_through_transformers_loses_nothing_but_the_mtp_module(tmp_path: Path) -> None:
    ours = tiny_model(rope_scaling=tiny_yarn(), balance_loss_alpha=3e-3)
    save_pretrained(ours, tmp_path / "a")
    load_with_transformers(tmp_path / "a").save_pretrained(tmp_path / "b")
    with pytest.warns(UserWarning, match="without multi-token prediction"):
        back = load_pretrained(tmp_path / "b")
    assert back.cfg == ours.cfg.replace(num_nextn_predict_layers=0)
    state = ours.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.state_dict().items())


def test_the_tokenizer_travels_along(tmp_path: Path) -> None:
    text = "def square(x):\n    return x * x  # naïve, 12345 €\n"
    tokenizer = Tokenizer.train([text * 20], vocab_size=300)
    model = tiny_model(vocab_size=300, eos_token_id=tokenizer.eos_id)
    save_pretrained(model, tmp_path / "m", tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.eos_id == load_with_transformers(tmp_path / "m").config.eos_token_id
    assert Tokenizer.load(tmp_path / "m").encode(text) == tokenizer.encode(text)
    assert same_weights(load_pretrained(tmp_path / "m"), model)
