"""The whole model: its names and numbers, what it gives on request, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.deepseek_v3 import DeepseekV3ForCausalLM

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.generate.cache import LatentCache
from dsv3_mini.model.transformer import DeepSeekV3

from .reference import hf_config, random_tokens, randomise, small_config, small_yarn


def make_model(seed: int = 0, **changes: object) -> DeepSeekV3:
    model = DeepSeekV3(small_config(**changes)).eval()
    randomise(model, model.cfg.kv_lora_rank, seed)
    return model


# Names and numbers


@pytest.mark.parametrize(
    "changes",
    [{}, dict(q_lora_rank=None), dict(first_k_dense_replace=0, n_shared_experts=2), dict(first_k_dense_replace=3)],
    ids=["all of V3", "no query latent", "no dense layer", "dense only"],
)
def test_names_and_shapes_of_the_main_model_are_those_of_transformers(changes: dict[str, object]) -> None:
    cfg = small_config(num_nextn_predict_layers=0, **changes)
    ours, theirs = DeepSeekV3(cfg).state_dict(), DeepseekV3ForCausalLM(hf_config(cfg)).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_names_of_an_mtp_module_are_those_of_the_checkpoint() -> None:
    names = set(DeepSeekV3(small_config(num_nextn_predict_layers=2)).state_dict())
    block = {name.removeprefix("model.layers.2.") for name in names if name.startswith("model.layers.2.")}
    for layer in (3, 4):  # behind the L = 3 layers
        own = {
            name.removeprefix(f"model.layers.{layer}.") for name in names if name.startswith(f"model.layers.{layer}.")
        }
        assert own - block == {"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"}
        assert block <= own


@pytest.fixture(scope="module")
def v3() -> DeepSeekV3:
    with torch.device("meta"):
        return DeepSeekV3(ModelConfig.preset("v3-671b"))


# By component, worked out from the released config. Each row: what its names contain, and its size.
COMPONENTS = {
    "input embedding": (["embed_tokens."], 926_679_040),
    "output head": (["lm_head."], 926_679_040),
    "MLA, 61 layers": (["self_attn."], 11_413_547_008),
    "dense FFN, 3 layers": ([f"layers.{i}.mlp." for i in range(3)], 1_189_085_184),
    "routed experts, 58 layers": (["mlp.experts."], 653_908_770_816),
    "shared experts, 58 layers": (["mlp.shared_experts."], 2_554_331_136),
    "router centroids": (["mlp.gate.weight"], 106_430_464),
    "router bias": (["mlp.gate.e_score_correction_bias"], 14_848),
    "block norms": ([".input_layernorm.", ".post_attention_layernorm."], 874_496),
    "final norm": (["model.norm."], 7_168),
}


def test_v3_has_671_026_419_200_parameters_component_by_component(v3: DeepSeekV3) -> None:
    main = {name: t for name, t in v3.state_dict().items() if not name.startswith("model.layers.61.")}
    counted = []
    for component, (parts, size) in COMPONENTS.items():
        names = [name for name in main if any(part in name for part in parts)]
        assert sum(main[name].numel() for name in names) == size, component
        counted += names
    assert sorted(counted) == sorted(main)  # each tensor in one row, none left out
    assert sum(t.numel() for t in main.values()) == 671_026_419_200
    assert v3.num_parameters(include_mtp=False) == 671_026_419_200
    assert all(t.is_meta for t in v3.parameters())


def test_one_mla_layer_one_expert_and_the_mtp_module_of_v3(v3: DeepSeekV3) -> None:
    assert {name: p.numel() for name, p in v3.model.layers[60].self_attn.named_parameters()} == {
        "q_a_proj.weight": 11_010_048,
        "q_a_layernorm.weight": 1_536,
        "q_b_proj.weight": 37_748_736,
        "kv_a_proj_with_mqa.weight": 4_128_768,
        "kv_a_layernorm.weight": 512,
        "kv_b_proj.weight": 16_777_216,
        "o_proj.weight": 117_440_512,
    }
    experts = v3.model.layers[3].mlp.experts
    assert experts.gate_up_proj[0].numel() + experts.down_proj[0].numel() == 44_040_192
    mtp = {name: t.numel() for name, t in v3.model.layers[61].state_dict().items()}
    own = {"enorm.weight", "hnorm.weight", "shared_head.norm.weight"}
    assert mtp["eh_proj.weight"] == 102_760_448 and sum(mtp[name] for name in own) == 21_504
    assert sum(n for name, n in mtp.items() if name not in own | {"eh_proj.weight"}) == 11_507_286_272
    assert sum(mtp.values()) == v3.num_parameters() - v3.num_parameters(include_mtp=False) == 11_610_068_224
    assert len(v3.model.layers) == 62
    # With its own copies of embedding and head, as on disk: the 685B of the model card.
    assert v3.num_parameters() + 2 * 926_679_040 == 684_489_845_504


@pytest.mark.parametrize("preset", ["nano", "mini", "small"])
def test_presets_build_and_count_the_same_on_the_meta_device(preset: str) -> None:
    cfg = ModelConfig.preset(preset)
    with torch.device("meta"):
        model = DeepSeekV3(cfg)
    names = dict(model.named_parameters())
    assert "model.layers.0.mlp.gate_proj.weight" in names and "model.layers.1.mlp.gate.weight" in names
    assert model.num_parameters() == sum(p.numel() for p in names.values()) + cfg.num_moe_layers * cfg.n_routed_experts


def test_a_model_built_on_the_meta_device_and_filled_later_is_the_same_model() -> None:
    # What loading a checkpoint does; anything computed at construction (the RoPE frequencies) must survive it.
    model, tokens = make_model(rope_scaling=small_yarn()), random_tokens(small_config())
    for assign in (True, False):
        with torch.device("meta"):
            other = DeepSeekV3(model.cfg)
        if not assign:
            other = other.to_empty(device="cpu")
        other.load_state_dict(model.state_dict(), assign=assign)
        assert torch.equal(other.eval()(tokens).logits, model(tokens).logits)
    assert torch.equal(copy.deepcopy(model)(tokens).logits, model(tokens).logits)


# What goes through it


@torch.no_grad()
@pytest.mark.parametrize("changed", [0, 5, 11])
def test_no_logit_depends_on_a_later_token(changed: int) -> None:
    model, tokens = make_model(), random_tokens(small_config(), batch=1, length=12)
    other = tokens.clone()
    other[0, changed] = (other[0, changed] + 1) % 61
    difference = (model(tokens).logits - model(other).logits).abs().amax((0, 2))
    assert (difference[:changed] < 1e-5).all() and (difference[changed:] > 1e-3).all()


@torch.no_grad()
def test_rows_of_a_batch_do_not_depend_on_each_other() -> None:
    # No token is dropped however the other rows load the experts.
    model, tokens = make_model(), random_tokens(small_config(), batch=4)
    together = model(tokens)
    for b in range(4):
        alone = model(tokens[b : b + 1])
        torch.testing.assert_close(together.logits[b], alone.logits[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.mtp_logits[0][b], alone.mtp_logits[0][0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_training_mode_changes_nothing() -> None:
    model, tokens = make_model(), random_tokens(small_config())
    assert torch.equal(model.train()(tokens).logits, model.eval()(tokens).logits)


@torch.no_grad()
def test_hidden_is_what_the_head_reads() -> None:
    model, tokens = make_model(), random_tokens(small_config())
    out = model(tokens)
    assert out.hidden.shape == (2, 23, 32) and out.logits.shape == (2, 23, 61) and out.logits.dtype == torch.float32
    torch.testing.assert_close(F.linear(out.hidden, model.lm_head.weight), out.logits)
    # After the final norm: divided by the norm's weight, its mean square is 1.
    torch.testing.assert_close(
        (out.hidden / model.model.norm.weight).pow(2).mean(-1), torch.ones(2, 23), atol=1e-3, rtol=0
    )


@torch.no_grad()
def test_int32_tokens_and_targets_are_as_good() -> None:
    model, tokens = make_model(), random_tokens(small_config())
    short, long = model(tokens.int(), tokens.int()), model(tokens, tokens)
    assert torch.equal(short.logits, long.logits) and torch.equal(short.losses["main"], long.losses["main"])


# Losses and records, on request


@torch.no_grad()
def test_losses_only_with_targets_and_unweighted() -> None:
    model, tokens = make_model(), random_tokens(small_config())
    assert model(tokens).losses == {}
    losses = model(tokens, tokens).losses
    assert set(losses) == {"main", "mtp", "balance"} and all(loss.shape == () for loss in losses.values())
    # alpha is the caller's business: the reported loss of three MoE layers is around 3, not 3e-4.
    heavy = DeepSeekV3(dataclasses.replace(model.cfg, balance_loss_alpha=0.5))
    heavy.load_state_dict(model.state_dict())
    assert torch.equal(heavy(tokens, tokens).losses["balance"], losses["balance"]) and 1 < losses["balance"] < 9


@torch.no_grad()
def test_routing_is_recorded_only_on_request() -> None:
    model, tokens = make_model(), random_tokens(small_config())
    plain = model(tokens)
    assert plain.routing is None and plain.expert_counts is None
    assert model(tokens, tokens).routing is None
    recorded = model(tokens, record_routing=True)
    assert torch.equal(recorded.logits, plain.logits)
    assert [record.layer for record in recorded.routing] == [1, 2, 3]  # layer 0 is dense, 3 is the MTP module
    for record, length in zip(recorded.routing, (23, 23, 22)):
        assert record.ids.shape == record.weights.shape == (2, length, 3) and record.scores.shape == (2, length, 8)
        assert not record.ids.is_floating_point() and record.ids.min() >= 0 and record.ids.max() < 8
        torch.testing.assert_close(record.weights.sum(-1), torch.full((2, length), 2.5))
        gathered = record.scores.gather(-1, record.ids)
        torch.testing.assert_close(record.weights, 2.5 * gathered / gathered.sum(-1, keepdim=True))


def test_a_record_does_not_keep_the_graph_alive() -> None:
    model, tokens = make_model(), random_tokens(small_config())
    for record in model(tokens, record_routing=True).routing:
        assert not record.weights.requires_grad and not record.scores.requires_grad


@torch.no_grad()
def test_the_record_of_a_row_is_the_row_of_the_record() -> None:
    # [B * T, K] folded back the wrong way round would mix rows and time.
    model, tokens = make_model(), random_tokens(small_config(), batch=3, length=9)
    together = model(tokens, record_routing=True).routing
    for b in range(3):
        for record, alone in zip(together, model(tokens[b : b + 1], record_routing=True).routing):
            assert torch.equal(record.ids[b].sort(-1).values, alone.ids[0].sort(-1).values)
            torch.testing.assert_close(record.scores[b], alone.scores[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_bf16_model_keeps_its_routing_biases_in_fp32() -> None:
    model = make_model(num_nextn_predict_layers=2)
    exact = [router.e_score_correction_bias.clone() for router in model.routers]
    model = model.to(torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and len(exact) == 4
    for router, bias in zip(model.routers, exact):
        assert router.e_score_correction_bias.dtype == torch.float32 and torch.equal(
            router.e_score_correction_bias, bias
        )
    out = model(random_tokens(model.cfg))
    assert out.logits.dtype == torch.bfloat16 and torch.isfinite(out.logits).all()


def test_autocast_trains_in_bf16_and_keeps_gradients_in_fp32() -> None:
    model, tokens = make_model(), random_tokens(small_config())
    exact = model(tokens, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(tokens, tokens, record_routing=True)
    sum(out.losses.values()).backward()
    for name, loss in out.losses.items():
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.losses[name].item(), rel=0.03), name
    assert all(record.scores.dtype == torch.float32 for record in out.routing)
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in model.parameters())


# Fresh weights


def test_fresh_weights_follow_the_generator_and_the_config() -> None:
    cfg = small_config(hidden_size=64, vocab_size=512)
    models = [DeepSeekV3(cfg) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2)):
        for router in model.routers:
            router.e_score_correction_bias.fill_(3.0)
        model.reset_parameters(torch.Generator().manual_seed(seed))
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for name, value in states[0].items():
        if name.endswith("norm.weight"):
            assert torch.equal(value, torch.ones_like(value)), name
        elif name.endswith("e_score_correction_bias"):
            assert torch.equal(value, torch.zeros_like(value)), name
        else:
            assert not torch.equal(value, states[2][name]), name
            # None: 1/sqrt(fan-in), the last dimension; 1 for an embedding, whose rows are picked and not summed.
            fan_in = 1 if name == "model.embed_tokens.weight" else value.shape[-1]
            error = 5 / (2 * value.numel()) ** 0.5  # 5 standard errors of the estimate
            assert value.std().item() == pytest.approx(fan_in**-0.5, rel=error), name
    fixed = DeepSeekV3(dataclasses.replace(cfg, initializer_range=0.006))
    for weight in (fixed.lm_head.weight, fixed.model.embed_tokens.weight, fixed.model.layers[1].mlp.experts.down_proj):
        assert weight.std().item() == pytest.approx(0.006, rel=0.05)


def test_a_fresh_model_knows_nothing_yet() -> None:
    # Near ln V = 4.11: fresh logits are neither huge nor all the same.
    torch.manual_seed(0)
    tokens = random_tokens(small_config())
    assert 3.6 < DeepSeekV3(small_config())(tokens, tokens.roll(-1, 1)).losses["main"].item() < 6.0


# Bad input


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([[1, 61]]), "0..60.*vocab_size = 61.*61"),
        (torch.tensor([[1, -1]]), "0..60.*-1"),
        (torch.tensor([1, 2, 3]), r"shape \[B, T\]"),
        (torch.zeros(1, 2, 3, dtype=torch.long), r"shape \[B, T\]"),
        (torch.zeros(1, 0, dtype=torch.long), "T >= 1"),
        (torch.ones(1, 3), "whole numbers.*float32"),
        (torch.ones(1, 3, dtype=torch.bool), "whole numbers.*bool"),
        (torch.zeros(1, 65, dtype=torch.long), "65 tokens.*max_position_embeddings = 64"),
    ],
)
def test_bad_tokens_are_refused_by_name(tokens: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_model()(tokens)


def test_the_longest_text_that_fits_is_accepted() -> None:
    with torch.no_grad():
        assert make_model()(torch.zeros(1, 64, dtype=torch.long)).logits.shape[1] == 64


def test_a_text_that_outgrows_the_context_step_by_step_is_refused() -> None:
    model = make_model()
    cache = LatentCache(model.cfg, 1, 70)
    with torch.no_grad():
        model(torch.zeros(1, 63, dtype=torch.long), cache=cache)
        model(torch.zeros(1, 1, dtype=torch.long), cache=cache)
        with pytest.raises(InputError, match=r"65.*max_position_embeddings = 64"):
            model(torch.zeros(1, 1, dtype=torch.long), cache=cache)
    assert cache.lengths == [64]  # the refused token left nothing behind


def test_targets_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"targets.*\[1, 4\].*\[1, 3\]"):
        make_model()(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long))


@pytest.mark.parametrize("bad", [61, -1, -7])
def test_targets_outside_the_vocabulary_are_refused(bad: int) -> None:
    tokens = random_tokens(small_config())
    targets = tokens.clone()
    targets[0, 3] = bad
    with pytest.raises(InputError, match=f"target.*{bad}"):
        make_model()(tokens, targets)
