"""A config that is accepted can be built and run; one that cannot be is refused by the name of the field."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_mini.config import PRESETS, ModelConfig, YarnConfig
from dsv3_mini.errors import InputError
from dsv3_mini.model.count import count_parameters
from dsv3_mini.model.transformer import DeepSeekV3

TINY: dict[str, Any] = dict(
    vocab_size=24, hidden_size=16, num_hidden_layers=2, first_k_dense_replace=1, intermediate_size=24,
    num_attention_heads=2, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4,
    n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=8, n_group=2, topk_group=1,
    max_position_embeddings=32,
)  # fmt: skip

small = st.integers(1, 6)
SIZES = st.fixed_dictionaries(
    {
        "hidden_size": st.integers(1, 24),
        "num_hidden_layers": st.integers(1, 3),
        "first_k_dense_replace": st.integers(0, 5),
        "num_nextn_predict_layers": st.integers(0, 2),
        "num_attention_heads": small,
        "q_lora_rank": st.none() | small,
        "kv_lora_rank": small,
        "qk_nope_head_dim": small,
        "qk_rope_head_dim": small,
        "v_head_dim": small,
        "n_routed_experts": st.integers(1, 12),
        "num_experts_per_tok": small,
        "n_group": st.integers(1, 4),
        "topk_group": st.integers(1, 4),
        "moe_intermediate_size": small,
        "n_shared_experts": st.integers(1, 2),
        "plain_kv_heads": st.none() | st.none() | small,
        "rope_scaling": st.none()
        | st.builds(YarnConfig, factor=st.floats(1, 64), original_max_position_embeddings=st.integers(1, 64)),
    }
)


@given(SIZES)
@settings(max_examples=150, deadline=None)
def test_what_is_accepted_can_be_built_and_run(sizes: dict[str, Any]) -> None:
    if sizes["plain_kv_heads"] and sizes["qk_nope_head_dim"] < 5:  # most of the time, what plain attention wants
        sizes = {**sizes, "qk_nope_head_dim": 0, "v_head_dim": sizes["qk_rope_head_dim"], "rope_scaling": None}
    refusal = ""
    try:
        cfg = ModelConfig(**{**TINY, **sizes})
    except InputError as error:
        refusal = str(error)
    if refusal:
        assert any(name in refusal for name in sizes)
        return
    model = DeepSeekV3(cfg)
    tokens = torch.arange(10).view(2, 5)
    out = model(tokens, tokens)
    assert out.logits.shape == (2, 5, cfg.vocab_size)
    assert len(out.mtp_logits) == cfg.num_nextn_predict_layers
    assert all(math.isfinite(loss.item()) for loss in out.losses.values())
    assert out.expert_counts is not None and len(out.expert_counts) == len(model.routers) == cfg.num_moe_layers


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"qk_rope_head_dim": 3}, "qk_rope_head_dim"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok"),  # one group of four is in reach
        ({"n_routed_experts": 9}, "n_routed_experts"),
        ({"n_group": 8, "topk_group": 8}, "n_group"),  # groups of one expert have no two best
        ({"topk_group": 3}, "topk_group"),
        ({"first_k_dense_replace": 4}, "first_k_dense_replace"),  # two layers and one MTP module
        ({"first_k_dense_replace": False}, "first_k_dense_replace"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 16.0}, "hidden_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"q_lora_rank": 0}, "q_lora_rank"),
        ({"qk_nope_head_dim": 0}, "qk_nope_head_dim"),  # every head of MLA has a part without position
        ({"plain_kv_heads": 2}, "qk_nope_head_dim"),  # and a plain head has none
        ({"plain_kv_heads": 3, "qk_nope_head_dim": 0}, "plain_kv_heads"),
        ({"plain_kv_heads": True, "qk_nope_head_dim": 0}, "plain_kv_heads"),
        ({"plain_kv_heads": 2, "qk_nope_head_dim": 0, "v_head_dim": 8}, "v_head_dim"),
        ({"plain_kv_heads": 2, "qk_nope_head_dim": 0, "rope_scaling": YarnConfig()}, "rope_scaling"),
        ({"rope_theta": math.inf}, "rope_theta"),
        ({"routed_scaling_factor": math.nan}, "routed_scaling_factor"),
        ({"balance_loss_alpha": -1e-4}, "balance_loss_alpha"),
        ({"batch_balance_loss_alpha": True}, "batch_balance_loss_alpha"),
        ({"initializer_range": 0.0}, "initializer_range"),
        ({"rope_scaling": {"factor": 40}}, "rope_scaling"),
        ({"eos_token_id": 24}, "eos_token_id"),
        ({"bos_token_id": -1}, "bos_token_id"),
        ({"no_such_field": 1}, "no_such_field"),
    ],
)
def test_refusals_name_the_field(changes: dict[str, Any], field: str) -> None:
    cfg = ModelConfig(**TINY)
    with pytest.raises(InputError, match=field):
        cfg.replace(**changes)
    with pytest.raises(InputError, match=field):
        ModelConfig.preset("nano", **{**TINY, **changes})


@pytest.mark.parametrize(
    "values",
    [{"factor": 0.5}, {"factor": "40"}, {"beta_fast": 0.5}, {"original_max_position_embeddings": 0}, {"mscale": -1.0}],
)
def test_yarn_refusals_name_the_field(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        YarnConfig(**values)


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'huge'.*nano, mini, small, v3-671b"):
        ModelConfig.preset("huge")


@pytest.mark.parametrize("name", PRESETS)
def test_every_part_of_v3_is_in_every_preset(name: str) -> None:
    cfg = ModelConfig.preset(name)
    assert cfg.q_lora_rank and cfg.first_k_dense_replace >= 1 and cfg.n_shared_experts >= 1
    assert cfg.num_nextn_predict_layers == 1 and 1 < cfg.topk_group < cfg.n_group
    assert cfg.num_experts_per_tok == 2 * cfg.topk_group and cfg.routed_scaling_factor != 1
    # A dense layer costs a token as much as the experts it uses, as in V3.
    assert cfg.intermediate_size == (cfg.num_experts_per_tok + cfg.n_shared_experts) * cfg.moe_intermediate_size


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_dense_twin_has_no_experts_and_equal_active_parameters(depth: int) -> None:
    for name in PRESETS:
        moe = ModelConfig.preset(name, num_nextn_predict_layers=depth)
        twin, moe_count, twin_count = moe.dense_twin(), count_parameters(moe), count_parameters(moe.dense_twin())
        assert twin.num_moe_layers == 0 and twin == moe.replace(first_k_dense_replace=moe.num_hidden_layers + depth)
        moe_layers = moe.num_hidden_layers - moe.first_k_dense_replace
        router = moe.n_routed_experts * (moe.hidden_size + 1)  # centroids and biases
        assert moe_count.active - twin_count.active == moe_layers * router
        assert moe_count.mtp_active - twin_count.mtp_total == depth * router
        assert twin_count.total == twin_count.active


def test_a_dense_twin_of_unequal_ffns_has_their_mean_width() -> None:
    moe = ModelConfig(**{**TINY, "num_hidden_layers": 4, "intermediate_size": 100, "n_shared_experts": 2})
    assert moe.dense_twin().intermediate_size == round((100 + 3 * (2 + 2) * 8) / 4)
    assert moe.replace(first_k_dense_replace=5).dense_twin().intermediate_size == 100, "dense already"


@pytest.mark.parametrize("name", PRESETS)
def test_a_dense_model_of_equal_total_has_it_within_the_routers(name: str) -> None:
    moe, dense = ModelConfig.preset(name), ModelConfig.preset(name).dense_total()
    assert (
        dense.num_moe_layers == 0
        and dense.replace(first_k_dense_replace=moe.first_k_dense_replace, intermediate_size=moe.intermediate_size)
        == moe
    ), "nothing else differs"
    routers = (moe.num_hidden_layers - moe.first_k_dense_replace) * moe.n_routed_experts * (moe.hidden_size + 1)
    rounding = 3 * moe.hidden_size * moe.num_hidden_layers / 2
    missing = count_parameters(moe).total - count_parameters(dense).total
    assert abs(missing - routers) <= rounding


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig(**TINY).hidden_size = 1  # type: ignore[misc]


def test_configs_need_no_torch() -> None:
    code = "import sys, dsv3_mini; dsv3_mini.ModelConfig.preset('nano'); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
