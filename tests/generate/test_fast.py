"""The weights prepared for decoding: the same states as the model's own, for every shape of model."""

from __future__ import annotations

import pytest
import torch

from dsv3_mini.config import ModelConfig, YarnConfig
from dsv3_mini.generate.cache import LatentCache
from dsv3_mini.generate.fast import FastModel, fast, merges
from dsv3_mini.model.mla import MLA
from dsv3_mini.model.transformer import DeepSeekV3

NANO = ModelConfig.preset("nano", vocab_size=97)
CONFIGS = {
    "nano": NANO,
    "no query compression": NANO.replace(q_lora_rank=None),
    "dense": NANO.dense_twin(),
    "two shared experts": NANO.replace(n_shared_experts=2),
    "one group": NANO.replace(n_group=1, topk_group=1),
    "odd latent": NANO.replace(kv_lora_rank=31, q_lora_rank=47),
    "values of another width": NANO.replace(v_head_dim=24, qk_nope_head_dim=40),
    "yarn": NANO.replace(rope_scaling=YarnConfig(factor=8, original_max_position_embeddings=64)),
    "another epsilon": NANO.replace(rms_norm_eps=1e-2),
}


def model_of(cfg: ModelConfig, dtype: torch.dtype = torch.float64) -> DeepSeekV3:
    torch.manual_seed(0)
    model = DeepSeekV3(cfg).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norm weights of 1 would hide one that is left out; small matrices say nearly the same everywhere.
            parameter.uniform_(0.5, 1.5) if name.endswith("norm.weight") else parameter.mul_(1.5)
        for router in model.routers:
            router.e_score_correction_bias.uniform_(-0.1, 0.1)
    return model.to(dtype)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_steps_are_those_of_the_model(name: str, merge: bool) -> None:
    model = model_of(CONFIGS[name])
    engine = FastModel(model, merge)
    ours, theirs = (LatentCache(model.cfg, 2, 24, torch.float64) for _ in range(2))
    prompt = torch.randint(97, (2, 9))
    for cache in (ours, theirs):
        model.hidden_states(prompt, cache)
    for new in (1, 3, 1, 5):
        tokens = torch.randint(97, (2, new))
        expected, got = model.hidden_states(tokens, theirs), engine.hidden_states(tokens, ours)
        # The model turns positions, and routes, in fp32.
        torch.testing.assert_close(got, expected, atol=5e-6, rtol=1e-5)
        lengths = [ours.lengths[0] - 1, ours.lengths[1]]  # from here on the rows are of different lengths
        ours.crop(lengths)
        theirs.crop(lengths)
    torch.testing.assert_close(ours.store, theirs.store, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 40])
@torch.no_grad()
def test_many_rows_take_another_path_through_the_experts_and_agree(batch: int) -> None:
    model = model_of(NANO, torch.float32)
    ours, theirs = (LatentCache(model.cfg, batch, 12) for _ in range(2))
    for new in (6, 1, 2):
        tokens = torch.randint(97, (batch, new))
        expected, got = model.hidden_states(tokens, theirs), fast(model).hidden_states(tokens, ours)
        assert (got - expected).abs().median() < 1e-5  # a near-tie may send one token elsewhere


@torch.no_grad()
def test_bf16_stays_as_close_as_bf16_is() -> None:
    exact, model = model_of(NANO, torch.float64), model_of(NANO, torch.bfloat16)
    tokens = torch.randint(97, (1, 8))
    states = {}
    for name, step in {"model": model.hidden_states, "fast": fast(model).hidden_states}.items():
        cache = LatentCache(NANO, 1, 9, torch.bfloat16)
        model.hidden_states(tokens, cache)
        states[name] = step(tokens[:, :1], cache).double()
    cache = LatentCache(NANO, 1, 9, torch.float64)
    exact.hidden_states(tokens, cache)
    truth = exact.hidden_states(tokens[:, :1], cache)
    off = {name: (state - truth).abs().median().item() for name, state in states.items()}
    assert off["fast"] < 2 * off["model"] < 0.2


@torch.no_grad()
def test_a_changed_weight_is_noticed() -> None:
    model = model_of(NANO)
    first = fast(model)
    assert fast(model) is first
    model.model.layers[1].self_attn.o_proj.weight.mul_(2)
    second = fast(model)
    assert second is not first
    states = []
    for step in (model.hidden_states, second.hidden_states):
        cache = LatentCache(NANO, 1, 2, torch.float64)
        states.append(step(torch.tensor([[5, 7]]), cache))
    torch.testing.assert_close(*states, atol=5e-6, rtol=1e-5)
    assert fast(model.float()) is not second


def test_a_model_that_nobody_holds_is_forgotten() -> None:
    import gc
    import weakref

    model = model_of(NANO)
    fast(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_narrow_models_merge_and_v3_does_not() -> None:
    with torch.device("meta"):
        assert all(merges(MLA(ModelConfig.preset(name))) for name in ("nano", "mini"))
        assert not merges(MLA(ModelConfig.preset("v3-671b")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_takes_the_bytes_of_the_formula(dtype: torch.dtype) -> None:
    cfg = ModelConfig.preset("mini")
    cache = LatentCache(cfg, batch=3, max_len=50, dtype=dtype)
    formula = (cfg.kv_lora_rank + cfg.qk_rope_head_dim) * cfg.num_hidden_layers * dtype.itemsize
    assert cache.bytes_per_token == formula
    assert cache.store.untyped_storage().nbytes() == formula * 3 * 50
