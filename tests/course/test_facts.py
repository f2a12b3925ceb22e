"""The facts that lessons may state: whole, with places, and a malformed one is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsv3_mini import ModelConfig
from dsv3_mini.course.facts import MARKS, load_facts
from dsv3_mini.errors import InputError
from dsv3_mini.paths import data_dir


def content() -> dict[str, Any]:
    return json.loads((data_dir() / "facts.json").read_text(encoding="utf-8"))


FACTS = {fact.id: fact for fact in load_facts()}


def test_marks_are_explained_alike_in_file_and_code() -> None:
    assert content()["marks"] == MARKS


@pytest.mark.parametrize(
    ("fact", "field"),
    [
        ("layers", "num_hidden_layers"),
        ("dense_layers", "first_k_dense_replace"),
        ("hidden_size", "hidden_size"),
        ("heads", "num_attention_heads"),
        ("head_dim", "v_head_dim"),
        ("rope_dim", "qk_rope_head_dim"),
        ("kv_lora_rank", "kv_lora_rank"),
        ("q_lora_rank", "q_lora_rank"),
        ("routed_experts", "n_routed_experts"),
        ("shared_experts", "n_shared_experts"),
        ("experts_per_token", "num_experts_per_tok"),
        ("expert_width", "moe_intermediate_size"),
        ("dense_width", "intermediate_size"),
        ("expert_groups", "n_group"),
        ("node_limit", "topk_group"),
        ("route_scale", "routed_scaling_factor"),
        ("vocabulary_rows", "vocab_size"),
        ("mtp_depth", "num_nextn_predict_layers"),
        ("rope_theta", "rope_theta"),
        ("norm_epsilon", "rms_norm_eps"),
    ],
)
def test_facts_agree_with_the_preset_of_the_real_model(fact: str, field: str) -> None:
    assert FACTS[fact].values == (getattr(ModelConfig.preset("v3-671b"), field),)


def value(name: str) -> float:
    (only,) = FACTS[name].values
    return only


def test_derived_facts_follow_from_the_others() -> None:
    assert value("gpu_hours_total") == sum(
        value(f"gpu_hours_{stage}") for stage in ("pre_training", "context_extension", "post_training")
    )
    assert value("cost_total") == value("gpu_hours_total") * value("dollars_per_hour")
    assert value("gpu_hours_pre_training") == pytest.approx(value("gpu_hours_per_trillion") * 14.8)
    assert value("cache_mla_per_layer") == value("kv_lora_rank") + value("rope_dim")
    assert value("cache_mla_bytes") == value("cache_mla_per_layer") * value("layers") * value("bf16_bytes")
    assert value("cache_mha_per_layer") == 2 * value("heads") * value("head_dim")
    assert value("cache_equal_groups") == value("cache_mla_per_layer") / (2 * value("head_dim"))
    assert value("one_expert") == 3 * value("hidden_size") * value("expert_width")
    assert value("tokens_per_step") == value("batch_end") * value("training_length")
    assert value("count_routed_experts") == value("moe_layers") * value("routed_experts") * value("one_expert")
    parts = "embedding head attention dense_ffn routed_experts shared_experts router router_bias block_norms final_norm"
    assert value("count_total") == sum(value(f"count_{part}") for part in parts.split())
    assert value("yarn_mscale_squared") == pytest.approx(value("yarn_mscale") ** 2)
    assert value("softmax_scale_extended") == pytest.approx(value("softmax_scale") * value("yarn_mscale_squared"))


def test_claims_graph_and_differences_are_counted_right() -> None:
    data = {name: json.loads((data_dir() / f"{name}.json").read_text()) for name in ("claims", "idea_graph")}
    assert value("claims") == len(data["claims"]["claims"])
    assert all(value("graph_size") == len(face["nodes"]) for face in data["idea_graph"]["faces"].values())


def test_keywords_are_found_as_words_and_in_the_plural() -> None:
    heads = FACTS["heads"]
    assert heads.keywords_in("all Heads of a layer") == 1
    assert heads.keywords_in("it goes ahead") == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.pop("where"), r"facts\[2\] \(layers\): where = None must be a text"),
        (lambda f: f.update(value="61"), r"\(layers\): value = '61' must be a finite number"),
        (lambda f: f.update(value=True), r"\(layers\): value = True must be a finite number"),
        (lambda f: f.update(value=float("nan")), r"\(layers\): value = nan must be a finite number"),
        (lambda f: f.update(value=[61, 3]), r"\(layers\): value has 2 numbers for 0 columns"),
        (lambda f: f.update(mark="sure"), r"\(layers\): mark = 'sure' must be one of verified, code"),
        (lambda f: f.update(keywords=[]), r"\(layers\): keywords must name"),
        (lambda f: f.update(keywords="layer"), r"\(layers\): keywords = 'layer' must be a list"),
        (lambda f: f.update(id="heads"), r"facts\[\d+\]: id 'heads' is there twice"),
        (lambda f: f.update(id=""), r"facts\[2\]: id = '' must be a text"),
        (lambda f: f.update(untis="layers"), r"\(layers\): has no field 'untis'"),
    ],
)
def test_a_malformed_fact_is_named(tmp_path: Path, change: Any, said: str) -> None:
    broken = content()
    assert broken["facts"][2]["id"] == "layers"
    change(broken["facts"][2])
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(InputError, match=said) as caught:
        load_facts(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"facts": []}', '{"facts": 1}', '{"facts": [1]}'])
def test_a_file_that_holds_no_facts_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"facts\.json"):
        load_facts(path)
