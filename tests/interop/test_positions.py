"""Position settings of config.json: two spellings, and the meaning that transformers gives them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from dsv3_mini.config import YarnConfig
from dsv3_mini.errors import InputError
from dsv3_mini.interop import config_from_hf, config_to_hf
from dsv3_mini.model.rope import rope_attention_factor, rope_frequencies, softmax_scale

from .folders import RELEASED, tiny_config, tiny_hf_json, tiny_yarn


def test_both_spellings_of_positions_say_the_same() -> None:
    yarn = {key: value for key, value in RELEASED["rope_scaling"].items() if key != "type"}
    new = {"rope_type": "yarn", "rope_theta": 10000.0, **yarn}
    spellings = [
        {},
        {"rope_scaling": {"rope_type": "yarn", **yarn}},
        {"rope_scaling": {"type": "yarn", "rope_theta": 10000.0, **yarn}, "rope_theta": ...},
        {"rope_scaling": ..., "rope_theta": ..., "rope_parameters": new},
        {"rope_scaling": None, "rope_parameters": new},
        {"rope_parameters": {**new, "type": "yarn"}},
    ]
    for spelling in spellings:
        values = {key: value for key, value in {**RELEASED, **spelling}.items() if value is not ...}
        assert config_from_hf(values) == config_from_hf(RELEASED), spelling


@st.composite
def position_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Position settings as people write them: two spellings, optional keys there, null, zero, or not there."""
    block: dict[str, Any] = {}
    if draw(st.booleans()):
        block = {draw(st.sampled_from(["type", "rope_type"])): "yarn", "factor": draw(st.sampled_from([1, 4, 40.0]))}
        optional = {
            "original_max_position_embeddings": [16, 64],
            "beta_fast": [None, 0, 6, 32.0],
            "beta_slow": [None, 0, 1, 0.5],
            "mscale": [None, 0, 0.7, 1],
            "mscale_all_dim": [None, 0, 0.0, 1, 1.3],
            "truncate": [True],
            "attention_factor": [None],
        }
        for name, values in optional.items():
            if draw(st.booleans()):
                block[name] = draw(st.sampled_from(values))
    elif draw(st.booleans()):
        block = {"rope_type": "default"}
    spelling = draw(st.sampled_from(["rope_scaling", "rope_parameters"]))
    inside, outside = draw(st.booleans()), draw(st.booleans())
    theta = draw(st.sampled_from([500, 10000.0]))
    result: dict[str, Any] = {"rope_scaling": ..., "rope_theta": theta if outside else ...}
    result[spelling] = {**block, **({"rope_theta": theta} if inside and block else {})}
    if draw(st.booleans()):
        result["original_max_position_embeddings"] = draw(st.sampled_from([16, 64]))
    return result


@settings(max_examples=300, deadline=None)
@given(position_settings())
def test_positions_mean_what_they_mean_to_transformers(position: dict[str, Any]) -> None:
    """Frequencies, the factor on cos and sin, and the softmax scale, whatever is written, null, zero or left out."""
    values = tiny_hf_json(**position)
    cfg = config_from_hf(json.loads(json.dumps(values)))
    theirs = DeepseekV3Config(**json.loads(json.dumps(values)))
    rotary = DeepseekV3RotaryEmbedding(theirs)
    assert rope_frequencies(cfg).tolist() == pytest.approx(rotary.inv_freq.tolist(), rel=1e-6)
    assert rope_attention_factor(cfg) == pytest.approx(rotary.attention_scaling, rel=1e-12)
    assert softmax_scale(cfg) == pytest.approx(DeepseekV3Attention(theirs, 0).scaling, rel=1e-12)


def test_what_is_left_out_is_filled_in_as_transformers_does() -> None:
    bare = config_from_hf(tiny_hf_json(rope_scaling={"type": "yarn", "factor": 4}))
    expected = YarnConfig(
        factor=4, original_max_position_embeddings=256, beta_fast=32, beta_slow=1, mscale=0, mscale_all_dim=0
    )
    assert bare.rope_scaling == expected


def test_an_absent_mscale_is_written_as_absent() -> None:
    """The released code would take a written 0 for the number 0, and an absent mscale for 1."""
    values = config_to_hf(tiny_config(rope_scaling=YarnConfig(mscale=0, mscale_all_dim=0.5)))
    for block in (values["rope_scaling"], values["rope_parameters"]):
        assert "mscale" not in block and block["mscale_all_dim"] == 0.5


def test_either_spelling_that_we_write_is_enough() -> None:
    for yarn in (None, tiny_yarn(), YarnConfig(factor=3, mscale=0, mscale_all_dim=0.5)):
        cfg = tiny_config(rope_scaling=yarn, rope_theta=500.0)
        values = config_to_hf(cfg)
        released = {key: value for key, value in values.items() if key != "rope_parameters"}
        new = {key: value for key, value in values.items() if key not in ("rope_theta", "rope_scaling")}
        assert config_from_hf(released) == config_from_hf(new) == cfg
        spellings = [DeepseekV3Config(**json.loads(json.dumps(form))) for form in (values, released, new)]
        for theirs in spellings:
            theirs.rope_parameters.pop("type", None)
        assert spellings[0].rope_parameters == spellings[1].rope_parameters == spellings[2].rope_parameters


# Refusals

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
REFUSED = {
    "theta text": (dict(rope_theta="10000"), "rope_theta", "number"),
    "theta beyond floats": (dict(rope_theta=10**400), "rope_theta", "finite"),
    "theta twice": (dict(rope_parameters={"rope_theta": 5.0}), "rope_parameters.rope_theta", "equal"),
    "positions twice": (dict(rope_scaling=YARN, rope_parameters={"rope_type": "default"}), "rope_parameters", "agree"),
    "positions not an object": (dict(rope_scaling="yarn"), "rope_scaling", "object"),
    "linear RoPE": (dict(rope_scaling={"type": "linear", "factor": 2.0}), "rope_scaling.rope_type", "yarn"),
    "llama3 RoPE": (dict(rope_parameters={"rope_type": "llama3"}), "rope_parameters.rope_type", "yarn"),
    "RoPE by layer": (dict(rope_parameters={"full_attention": {"rope_type": "default"}}), "full_attention", "absent"),
    "truncate": (dict(rope_scaling={**YARN, "truncate": False}), "rope_scaling.truncate", "true"),
    "attention_factor": (dict(rope_scaling={**YARN, "attention_factor": 1.2}), "attention_factor", "absent"),
    "part of YaRN": (dict(rope_scaling={**YARN, "partial_rotary_factor": 0.5}), "partial_rotary_factor", "1"),
    "no factor": (dict(rope_scaling={"type": "yarn"}), "rope_scaling.factor", "missing"),
    "factor null": (dict(rope_scaling={"type": "yarn", "factor": None}), "rope_scaling.factor", "number"),
    "factor below 1": (dict(rope_parameters={"rope_type": "yarn", "factor": 0.5}), "rope_parameters.factor", "1"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "field", "right"), REFUSED.values(), ids=REFUSED)
def test_positions_that_we_cannot_honour_are_refused_by_name(changes: dict[str, Any], field: str, right: str) -> None:
    with pytest.raises(InputError) as caught:
        config_from_hf(tiny_hf_json(**changes), source="some/config.json")
    message = str(caught.value)
    assert message.startswith("some/config.json: ") and field in message and right in message
    assert len(message) < 300
