"""The cost of a decode step: the formulas against torch's own count of a real step, bytes against real tensors."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.generate.cache import LatentCache
from dsv3_mini.model.decode_cost import WAYS, decode_cost
from dsv3_mini.model.mla import MLA
from dsv3_mini.model.rope import RotaryEmbedding

from .reference import small_config

V3 = ModelConfig.preset("v3-671b")
SIZES = [(1, 9, 1), (3, 9, 1), (2, 11, 4)]  # batch, context, new


def one_step(cfg: ModelConfig, batch: int, context: int, new: int, path: str) -> tuple[int, LatentCache, MLA]:
    """Operations that torch counts in the last step of a layer, its cache, and the layer."""
    mla, rope = MLA(cfg), RotaryEmbedding(cfg)
    cache = LatentCache(cfg, batch, context)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the backend whose products torch counts on a CPU
        if context > new:
            mla(torch.randn(batch, context - new, cfg.hidden_size), *rope(cache.begin(context - new)), cache)
            cache.commit()
        angles = rope(cache.begin(new))
        with FlopCounterMode(display=False) as counter:
            mla(torch.randn(batch, new, cfg.hidden_size), *angles, cache, path=path)
    return counter.get_total_flops(), cache, mla


@pytest.mark.parametrize(("batch", "context", "new"), SIZES)
@pytest.mark.parametrize("changes", [{}, dict(q_lora_rank=None), dict(v_head_dim=5)])
def test_absorbed_equals_what_torch_counts(changes: dict, batch: int, context: int, new: int) -> None:
    cfg = small_config(**changes)
    counted, _, _ = one_step(cfg, batch, context, new, "absorbed")
    assert decode_cost(cfg, "absorbed", context, batch=batch, new=new).flops == counted


@pytest.mark.parametrize(("batch", "context", "new"), SIZES)
def test_expanded_equals_what_torch_counts(batch: int, context: int, new: int) -> None:
    cfg = small_config(v_head_dim=16)  # as wide as a key: torch's attention would pad narrower values
    counted, _, _ = one_step(cfg, batch, context, new, "expanded")
    assert decode_cost(cfg, "expanded", context, batch=batch, new=new).flops == counted


@pytest.mark.parametrize(("batch", "context", "new"), SIZES)
def test_naive_equals_what_torch_counts(batch: int, context: int, new: int) -> None:
    cfg = small_config()
    mla, heads = MLA(cfg), cfg.num_attention_heads
    past_keys = torch.randn(batch, heads, context - new, cfg.qk_head_dim)
    past_values = torch.randn(batch, heads, context - new, cfg.v_head_dim)
    cos, sin = RotaryEmbedding(cfg)(torch.arange(context - new, context))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        x = torch.randn(batch, new, cfg.hidden_size)
        q = torch.cat(mla.queries(x, cos, sin), dim=-1).transpose(1, 2)
        latent, k_pe = mla.compress(x, cos, sin)
        k, v = mla.kv_b_proj(latent).unflatten(-1, (heads, -1)).split((cfg.qk_nope_head_dim, cfg.v_head_dim), dim=-1)
        k = torch.cat((k, k_pe.unsqueeze(-2).expand(-1, -1, heads, -1)), dim=-1)
        keys = torch.cat((past_keys, k.transpose(1, 2)), dim=2)
        values = torch.cat((past_values, v.transpose(1, 2)), dim=2)
        mla.o_proj(((q @ keys.transpose(2, 3)).softmax(-1) @ values).transpose(1, 2).flatten(-2))
    cost = decode_cost(cfg, "naive", context, batch=batch, new=new, bytes_per_number=4)
    assert cost.flops == counter.get_total_flops()
    assert cost.memory_bytes == bytes_of(keys) + bytes_of(values)


def bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@pytest.mark.parametrize(("batch", "context", "new"), SIZES)
def test_bytes_are_those_of_the_cache_and_of_the_matrices(batch: int, context: int, new: int) -> None:
    cfg = small_config()
    _, cache, mla = one_step(cfg, batch, context, new, "absorbed")
    matrices = sum(bytes_of(weight) for weight in mla.parameters() if weight.dim() == 2)
    for way in ("absorbed", "expanded"):
        cost = decode_cost(cfg, way, context, batch=batch, new=new, bytes_per_number=4)
        assert cost.memory_bytes == bytes_of(cache.store[0])  # the cache is full: it was made for `context` tokens
        assert cost.weight_bytes == matrices


def test_rebuilt_keys_and_values_that_are_written_out_go_there_and_back() -> None:
    cfg = small_config()
    rebuilt = cfg.num_attention_heads * (cfg.qk_nope_head_dim + cfg.v_head_dim)  # numbers for each token of the past
    inside = decode_cost(cfg, "expanded", 7, batch=2)
    outside = decode_cost(cfg, "expanded", 7, batch=2, written_out=True)
    assert outside.memory_bytes - inside.memory_bytes == 2 * rebuilt * 7 * 2 * 2
    assert outside.flops == inside.flops


def test_v3_by_hand() -> None:
    absorbed, expanded, naive = (decode_cost(V3, way, 1000) for way in WAYS)
    assert absorbed.memory_flops == 2 * 128 * (576 + 512) * 1000
    assert naive.memory_flops == 2 * 128 * (192 + 128) * 1000
    assert expanded.memory_flops == naive.memory_flops + 2 * 128 * 512 * 256 * 1000
    assert absorbed.memory_bytes == expanded.memory_bytes == 576 * 2 * 1000
    assert naive.memory_bytes == 40_960 * 2 * 1000
    assert naive.memory_intensity == 1
    assert absorbed.memory_intensity == pytest.approx(128 * (576 + 512) / 576)


@pytest.mark.parametrize("way", WAYS)
def test_batch_raises_the_intensity_of_weights_and_not_of_the_memory(way: str) -> None:
    one, many = (decode_cost(V3, way, 4096, batch=batch) for batch in (1, 32))
    assert many.weight_intensity == pytest.approx(32 * one.weight_intensity)
    assert many.memory_intensity == pytest.approx(one.memory_intensity)
    assert decode_cost(V3, "absorbed", 4096).weight_intensity == 1  # two operations for each two bytes


def test_the_slower_clock_decides_in_each_part() -> None:
    cost = decode_cost(V3, "absorbed", 4096, batch=512)  # weights: 512 operations a byte, memory: 242
    peak, bandwidth = 300.0, 1.0  # the ridge lies between
    assert cost.seconds(peak, bandwidth) == cost.weight_flops / peak + cost.memory_bytes
    for device in product((1.0, 1e4), (1.0, 1e4)):
        assert cost.seconds(*device) >= max(cost.flops / device[0], cost.bytes / device[1])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("way", dict(way="fast")),
        ("context", dict(context=0)),
        ("batch", dict(batch=0)),
        ("new", dict(new=1.0)),
        ("new", dict(new=8)),
        ("bytes_per_number", dict(bytes_per_number=0.5)),
    ],
)
def test_what_cannot_be_counted_is_named(name: str, changes: dict) -> None:
    with pytest.raises(InputError, match=f"^{name} = "):
        decode_cost(V3, **{"way": "absorbed", "context": 7, **changes})
