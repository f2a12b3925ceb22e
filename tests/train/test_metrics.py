"""FLOPs against hand counts and the report's parameter counts; a metrics file without half lines or repeated steps."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dsv3_mini.config import ModelConfig
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.metrics import (
    MetricsLog,
    matmul_parameters,
    peak_flops,
    read_metrics,
    training_flops_per_token,
)


def test_active_parameters_of_the_real_model():
    cfg = ModelConfig.preset("v3-671b")
    norms = 61 * (2 * 7168 + 1536 + 512) + 7168
    biases = 58 * 256
    # 36,625,618,432 active without the embedding, of which norms and routing biases are in no matrix product.
    assert matmul_parameters(cfg, mtp=False) == 36_625_618_432 - norms - biases
    mtp_norms = 2 * 7168 + 1536 + 512 + 256  # the count by component leaves enorm, hnorm and shared_head.norm out
    assert matmul_parameters(cfg) - matmul_parameters(cfg, mtp=False) == 1_614_758_144 - mtp_norms


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"q_lora_rank": None, "num_nextn_predict_layers": 2, "n_shared_experts": 2},
        {"first_k_dense_replace": 3},
        {"plain_kv_heads": 1, "qk_nope_head_dim": 0, "qk_rope_head_dim": 8},
    ],
)
def test_matrix_products_are_those_that_torch_counts(tiny_model, changes):
    cfg = tiny_model.replace(**changes)
    model = DeepSeekV3(cfg)
    model.set_experts_path("loop")
    tokens = torch.randint(5, cfg.vocab_size, (48, 1))  # one token looks only at itself: next to no attention
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens, mtp=False)
    per_token = counter.get_total_flops() / tokens.numel()
    assert per_token == pytest.approx(2 * matmul_parameters(cfg, mtp=False), rel=5e-3)  # the router alone is 1 %


def test_a_dense_mtp_module_counts_as_a_dense_block(tiny_model):
    with_experts, dense = (
        matmul_parameters(cfg) - matmul_parameters(cfg, mtp=False) for cfg in (tiny_model, tiny_model.dense_twin())
    )
    assert with_experts - dense == tiny_model.hidden_size * tiny_model.n_routed_experts  # the router


def test_a_longer_window_costs_attention_only(tiny_model):
    longer, shorter = (training_flops_per_token(tiny_model, t) for t in (101, 1))
    # 3 attention layers (one is MTP's), 2 heads, 12 + 8 numbers, 50 more tokens to look at, 2 * 3 per product
    assert longer - shorter == 3 * 2 * (12 + 8) * 50 * 6
    assert shorter == 6 * matmul_parameters(tiny_model) + 3 * 2 * (12 + 8) * 6


def test_peak_is_a_rate_a_machine_can_have():
    assert 1e8 < peak_flops(torch.device("cpu"), torch.float32, size=256, seconds=0.05) < 1e15


def test_the_file_can_be_read_while_it_grows(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.write(step=step, losses={"main": 1.5})
        assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, step + 1))
    log.close()


@pytest.mark.parametrize("tail", ["", '{"step": 4, "lo', '{"step": 4}\n', "\x00\x00", '{"stop": 1}\n{"step": 2}\n'])
def test_continuing_cuts_off_what_the_checkpoint_does_not_know(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + tail)
    log = MetricsLog(path, keep_steps=2)
    log.write(step=3, again=True)
    log.sync()
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "again": True},
    ]


def test_a_half_written_last_line_is_not_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "los')
    assert read_metrics(tmp_path) == [{"step": 1}]
    assert read_metrics(tmp_path / "nowhere") == []
