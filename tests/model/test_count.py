"""The arithmetic of sizes, against the report's totals and against a model that is really built."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dsv3_mini.config import PRESETS, ModelConfig
from dsv3_mini.model.count import attention_parameters, cache_bytes_per_token, count_parameters

V3 = ModelConfig.preset("v3-671b")


def test_v3_has_the_reports_parameters() -> None:
    count = count_parameters(V3)
    assert count.total == 671_026_419_200
    assert count.active == 37_552_297_472
    assert round(count.active_without_embedding / 1e9, 2) == 36.63


def test_v3_table_by_component() -> None:
    table = {row.name: (row.total, row.active) for row in count_parameters(V3).components}
    assert table == {
        "input embedding": (926_679_040, 926_679_040),
        "latent attention": (11_413_547_008, 11_413_547_008),
        "dense FFN": (1_189_085_184, 1_189_085_184),
        "routed experts": (653_908_770_816, 20_434_649_088),
        "shared experts": (2_554_331_136, 2_554_331_136),
        "router centroids": (106_430_464, 106_430_464),
        "routing bias": (14_848, 14_848),
        "block norms": (874_496, 874_496),
        "final norm": (7_168, 7_168),
        "output head": (926_679_040, 926_679_040),
    }
    assert attention_parameters(V3) == 187_107_328


def test_mtp_module_is_counted_apart_and_without_its_copies() -> None:
    count = count_parameters(V3)
    rows = {row.name: row.total for row in count.mtp}
    assert rows.pop("joining projection") == 102_760_448
    assert rows.pop("MTP norms") == 21_504
    assert sum(rows.values()) == 11_507_286_272  # one MoE block
    assert round(count.mtp_total / 1e9, 2) == 11.61
    without = count_parameters(V3.replace(num_nextn_predict_layers=0))
    assert without.mtp == () and without.total == count.total


def test_v3_caches_70272_bytes_per_token() -> None:
    assert cache_bytes_per_token(V3) == 70_272


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"q_lora_rank": None},
        {"first_k_dense_replace": 0, "num_nextn_predict_layers": 2},
        {"first_k_dense_replace": 3, "num_nextn_predict_layers": 0},
        {"n_shared_experts": 2, "v_head_dim": 24, "qk_nope_head_dim": 40},
        {"first_k_dense_replace": 4},
        {"first_k_dense_replace": 4, "num_nextn_predict_layers": 2},
        {"plain_kv_heads": 2, "qk_nope_head_dim": 0, "qk_rope_head_dim": 32},
    ],
    ids=lambda changes: ",".join(changes) or "nano",
)
def test_count_equals_the_model_that_is_built(changes: dict) -> None:
    import torch

    from dsv3_mini import DeepSeekV3

    cfg = ModelConfig.preset("nano", **changes)
    with torch.device("meta"):
        model = DeepSeekV3(cfg)
    tensors = model.state_dict()  # with the routing bias, which is a buffer
    built = sum(t.numel() for t in tensors.values())
    count = count_parameters(cfg)
    assert count.total + count.mtp_total == built
    mtp_layers = tuple(f"model.layers.{cfg.num_hidden_layers + k}." for k in range(cfg.num_nextn_predict_layers))
    assert sum(t.numel() for name, t in tensors.items() if name.startswith(mtp_layers or ("none",))) == count.mtp_total


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_activates_less_than_it_has(name: str) -> None:
    count = count_parameters(ModelConfig.preset(name))
    assert 0 < count.active < count.total


def test_counting_needs_no_torch() -> None:
    code = "import sys, dsv3_mini.model.count; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
