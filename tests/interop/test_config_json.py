"""config.json: our configs survive the round trip, foreign ones are read as transformers reads them or refused."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, DeepseekV3Config

from dsv3_mini.config import PRESETS, ModelConfig, YarnConfig
from dsv3_mini.errors import InputError
from dsv3_mini.interop import config_from_hf, config_to_hf

from .folders import RELEASED, tiny_config, tiny_hf_json, tiny_yarn

# Round trips


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Any config that can be, small or not."""
    count = st.integers(1, 5000)
    number = st.floats(1e-6, 1e6)
    groups, per_group = draw(st.integers(1, 8)), draw(st.integers(2, 32))
    kept = draw(st.integers(1, groups))
    layers, depth, vocab = draw(st.integers(1, 80)), draw(st.integers(0, 4)), draw(count)
    token = st.none() | st.integers(0, vocab - 1)
    slow = draw(st.floats(0.1, 10))
    yarn = st.none() | st.builds(
        YarnConfig,
        factor=st.floats(1, 200) | st.integers(1, 200),
        original_max_position_embeddings=count,
        beta_fast=st.floats(slow + 0.5, 100),
        beta_slow=st.just(slow),
        mscale=st.sampled_from([0, 0.0, 0.707, 1.0, 1]),
        mscale_all_dim=st.sampled_from([0, 0.0, 0.707, 1.0, 1]),
    )
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=draw(count),
        num_hidden_layers=layers,
        first_k_dense_replace=draw(st.integers(0, layers + depth)),
        intermediate_size=draw(count),
        num_nextn_predict_layers=depth,
        num_attention_heads=draw(count),
        q_lora_rank=draw(st.none() | count),
        kv_lora_rank=draw(count),
        qk_nope_head_dim=draw(count),
        qk_rope_head_dim=2 * draw(count),
        v_head_dim=draw(count),
        n_routed_experts=groups * per_group,
        n_shared_experts=draw(count),
        num_experts_per_tok=draw(st.integers(1, kept * per_group)),
        moe_intermediate_size=draw(count),
        n_group=groups,
        topk_group=kept,
        norm_topk_prob=draw(st.booleans()),
        routed_scaling_factor=draw(number),
        balance_loss_alpha=draw(st.just(0.0) | number),
        batch_balance_loss_alpha=draw(st.just(0.0) | number),
        max_position_embeddings=draw(count),
        rope_theta=draw(number),
        rope_scaling=draw(yarn),
        rms_norm_eps=draw(number),
        initializer_range=draw(st.none() | st.just(0.02) | number),
        bos_token_id=draw(token),
        eos_token_id=draw(token),
    )


@settings(max_examples=200, deadline=None)
@given(configs())
def test_every_config_survives_the_round_trip_through_json(cfg: ModelConfig) -> None:
    assert config_from_hf(json.loads(json.dumps(config_to_hf(cfg, "bfloat16")))) == cfg


@settings(max_examples=30, deadline=None)
@given(configs())
def test_transformers_reads_the_same_model_without_a_warning(cfg: ModelConfig) -> None:
    """Every field of ours that transformers has comes out equal, and what it writes again is the same config to us."""
    theirs = DeepseekV3Config(**config_to_hf(cfg))
    for field in dataclasses.fields(cfg):
        ours = (
            "rope_scaling rope_theta balance_loss_alpha batch_balance_loss_alpha initializer_range plain_kv_heads"
        ).split()
        if field.name not in ours:
            assert getattr(theirs, field.name) == getattr(cfg, field.name), field.name
    assert theirs.initializer_range == (cfg.initializer_range or 0.02)
    assert theirs.num_key_value_heads == cfg.num_attention_heads
    assert theirs.rope_interleave is True
    assert theirs.rope_parameters["rope_theta"] == cfg.rope_theta
    assert theirs.rope_parameters["rope_type"] == ("default" if cfg.rope_scaling is None else "yarn")
    assert config_from_hf(theirs.to_dict()) == cfg


def test_transformers_has_nothing_to_say_about_what_we_write(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        # The context that this YaRN makes out of 32 tokens; for any other length transformers advises to correct it.
        for cfg in (tiny_config(), tiny_config(max_position_embeddings=256, rope_scaling=tiny_yarn())):
            DeepseekV3Config(**config_to_hf(cfg, "float32"))
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.messages == []


def test_presets_survive_the_round_trip() -> None:
    for name in PRESETS:
        cfg = ModelConfig.preset(name)
        assert config_from_hf(config_to_hf(cfg)) == cfg


def test_the_batch_wise_loss_is_said_only_where_it_is_used() -> None:
    # A version without it refuses fields that it does not know, and must be able to read every other model.
    assert set(config_to_hf(tiny_config())["dsv3_mini"]) == {"balance_loss_alpha", "initializer_range"}
    used = config_to_hf(tiny_config(batch_balance_loss_alpha=0.25))
    assert used["dsv3_mini"]["batch_balance_loss_alpha"] == 0.25
    assert config_from_hf(used).batch_balance_loss_alpha == 0.25


def test_plain_attention_is_read_by_us_and_refused_by_everybody_else(tmp_path: Path) -> None:
    cfg = tiny_config(plain_kv_heads=2, qk_nope_head_dim=0, qk_rope_head_dim=6, v_head_dim=6)
    values = config_to_hf(cfg)
    assert config_from_hf(json.loads(json.dumps(values))) == cfg
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match="dsv3_mini_plain_attention"):
        AutoConfig.from_pretrained(tmp_path)
    # A file that claims both would be loaded by others as MLA with weights that are not there.
    with pytest.raises(InputError, match=r"model_type.*dsv3_mini_plain_attention"):
        config_from_hf({**values, "model_type": "deepseek_v3"})
    with pytest.raises(InputError, match="model_type"):
        config_from_hf({**values, "dsv3_mini": {}})


def test_fan_in_initialisation_is_kept_unless_somebody_edits_the_field_that_everybody_knows() -> None:
    values = config_to_hf(tiny_config(initializer_range=None))
    assert values["initializer_range"] == 0.02
    assert config_from_hf(values).initializer_range is None
    assert config_from_hf({**values, "initializer_range": 0.5}).initializer_range == 0.5
    assert config_from_hf(config_to_hf(tiny_config(initializer_range=0.02))).initializer_range == 0.02


def test_reading_a_config_needs_no_torch() -> None:
    code = "import sys, dsv3_mini.interop as i; i.config_from_hf; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Foreign configs


def test_the_released_config_is_our_preset() -> None:
    """Initialisation aside: the report says 0.006, copies of the released file say 0.02 (D18)."""
    assert config_from_hf(RELEASED) == ModelConfig.preset("v3-671b", initializer_range=0.02)


def test_the_default_config_of_transformers_is_read() -> None:
    """It is V3 before the context was extended: plain RoPE, 4096 tokens."""
    expected = ModelConfig.preset("v3-671b", initializer_range=0.02, rope_scaling=None, max_position_embeddings=4096)
    assert config_from_hf(DeepseekV3Config().to_dict()) == expected
    assert config_from_hf(json.loads(DeepseekV3Config().to_json_string())) == expected


def test_fields_that_we_do_not_know_are_passed_over() -> None:
    assert config_from_hf(tiny_hf_json(some_new_field={"a": [1]})) == config_from_hf(tiny_hf_json())


def test_a_relative_that_names_this_architecture_is_read() -> None:
    kimi = tiny_hf_json(model_type="kimi_k2", n_group=1, topk_group=1, num_nextn_predict_layers=0)
    assert config_from_hf(kimi).n_group == 1


def test_a_missing_number_of_mtp_modules_is_the_one_of_transformers() -> None:
    assert config_from_hf(tiny_hf_json(num_nextn_predict_layers=...)).num_nextn_predict_layers == 1
    assert config_from_hf(tiny_hf_json(num_nextn_predict_layers=..., num_mtp_layers=2)).num_nextn_predict_layers == 2


def test_of_several_end_tokens_the_first_counts_and_is_said() -> None:
    assert config_from_hf(tiny_hf_json(eos_token_id=[7])).eos_token_id == 7
    assert config_from_hf(tiny_hf_json(eos_token_id=[])).eos_token_id is None
    with pytest.warns(UserWarning, match=r"eos_token_id lists \[7, 8\]"):
        assert config_from_hf(tiny_hf_json(eos_token_id=[7, 8])).eos_token_id == 7


# Refusals: the message names the file, the field, and what would be right

REFUSED = {
    "another architecture": (dict(model_type="llama", architectures=["LlamaForCausalLM"]), "model_type", "deepseek_v3"),
    "no architecture": (dict(model_type=..., architectures=...), "model_type", "deepseek_v3"),
    "V3.2": (dict(model_type="deepseek_v32", architectures=["DeepseekV32ForCausalLM"]), "model_type", "deepseek_v3"),
    "activation": (dict(hidden_act="gelu"), "hidden_act", "silu"),
    "bias": (dict(attention_bias=True), "attention_bias", "false"),
    "tied": (dict(tie_word_embeddings=True), "tie_word_embeddings", "false"),
    "softmax gate": (dict(scoring_func="softmax"), "scoring_func", "sigmoid"),
    "V2 selection": (dict(topk_method="group_limited_greedy"), "topk_method", "noaux_tc"),
    "half-split RoPE": (dict(rope_interleave=False), "rope_interleave", "true"),
    "null RoPE layout": (dict(rope_interleave=None), "rope_interleave", "true"),
    "grouped heads": (dict(num_key_value_heads=2), "num_key_value_heads", "num_attention_heads = 4"),
    "sparse MoE layers": (dict(moe_layer_freq=2), "moe_layer_freq", "1"),
    "part of RoPE": (dict(partial_rotary_factor=0.5), "partial_rotary_factor", "1"),
    "layers of their own": (dict(per_layer_config={"0": {"hidden_size": 8}}), "per_layer_config", "absent"),
    "MTP order": (dict(mtp_hidden_states_first=True), "mtp_hidden_states_first", "false"),
    "norm_topk_prob": (dict(norm_topk_prob=None), "norm_topk_prob", "true or false"),
    "no groups": (dict(n_group=None), "n_group", "at least 1"),
    "no hidden size": (dict(hidden_size=...), "hidden_size", "missing"),
    "no q_lora_rank": (dict(q_lora_rank=...), "q_lora_rank", "missing"),
    "text for a size": (dict(hidden_size="32"), "hidden_size", "at least 1"),
    "odd rope dim": (dict(qk_rope_head_dim=7), "qk_rope_head_dim", "even"),
    "token beyond vocabulary": (dict(eos_token_id=61), "eos_token_id", "vocab_size = 61"),
    "number beyond floats": (dict(rms_norm_eps=10**400), "rms_norm_eps", "2^63"),
    "NaN": (dict(rms_norm_eps=float("nan")), "rms_norm_eps", "above 0"),
    "our field, broken": (dict(dsv3_mini={"balance_loss_alpha": -1}), "balance_loss_alpha", "at least 0"),
    "our field, no object": (dict(dsv3_mini=3), "dsv3_mini", "object"),
    "our field of tomorrow": (dict(dsv3_mini={"depth_charge": 1}), "dsv3_mini.depth_charge", "unknown"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "field", "right"), REFUSED.values(), ids=REFUSED)
def test_what_we_cannot_honour_is_refused_by_name(changes: dict[str, Any], field: str, right: str) -> None:
    config_from_hf(tiny_hf_json())  # fine without the change
    with pytest.raises(InputError) as caught:
        config_from_hf(tiny_hf_json(**changes), source="some/config.json")
    message = str(caught.value)
    assert message.startswith("some/config.json: ") and field in message and right in message
    assert len(message) < 300 and "\n" not in message


@pytest.mark.parametrize("values", [[], "text", None, 3])
def test_a_config_that_is_not_an_object_is_refused(values: Any) -> None:
    with pytest.raises(InputError, match=r"config\.json: must hold a JSON object"):
        config_from_hf(values)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(tiny_hf_json())),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "factor", "x"]), inner),
        max_leaves=5,
    ),
)
def test_any_value_in_any_field_gives_a_config_or_an_input_error(field: str, value: Any) -> None:
    message = ""
    with warnings.catch_warnings(action="ignore"):  # several end tokens
        try:
            config_from_hf(tiny_hf_json(**{field: value}))
        except InputError as error:
            message = str(error)
    assert not message or message.startswith("config.json: ")
