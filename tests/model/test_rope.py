"""Rotary positions and YaRN: against complex numbers, against `transformers`, against numbers of the report."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
    apply_rotary_pos_emb_interleave,
)

from dsv3_mini.config import ModelConfig, YarnConfig
from dsv3_mini.model.rope import (
    RotaryEmbedding,
    apply_rope,
    apply_rope_reference,
    rope_attention_factor,
    rope_frequencies,
    softmax_scale,
)

from .reference import hf_config, small_config, small_yarn

V3 = ModelConfig.preset("v3-671b")
YARNS = [None, small_yarn(), small_yarn(mscale=0.7), small_yarn(mscale=0.0), small_yarn(mscale_all_dim=0.0)]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def turned_by_complex_numbers(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """x [B, T, H, R]: read neighbours as a + ib, multiply by e^(i p f). positions [B, T] or [T]."""
    angles = (positions[..., None].double() * frequencies.double()).unsqueeze(-2)  # [.., T, 1, R/2]
    points = torch.view_as_complex(x.double().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(points * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


# Frequencies


def test_plain_frequencies_by_hand() -> None:
    cfg = small_config(qk_rope_head_dim=4, rope_theta=10000.0)
    frequencies = rope_frequencies(cfg)
    assert frequencies.dtype == torch.float32
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.01]), rtol=1e-6, atol=0)  # 10000^0, 10000^(-2/4)
    assert rope_attention_factor(cfg) == 1.0


def test_the_base_is_the_configs() -> None:
    cfg = small_config(qk_rope_head_dim=4, rope_theta=400.0)
    torch.testing.assert_close(rope_frequencies(cfg), torch.tensor([1.0, 0.05]), rtol=1e-6, atol=0)


def test_yarn_of_v3_keeps_the_fast_pairs_and_divides_the_slow_ones_by_40() -> None:
    # §4.3 with the released config: ramp from pair 10 (floor of 10.47) to pair 23 (ceiling of 22.51) of the 32 pairs.
    plain, yarn = rope_frequencies(dataclasses.replace(V3, rope_scaling=None)), rope_frequencies(V3)
    ratio = (plain / yarn).double()
    torch.testing.assert_close(ratio[:11], torch.ones(11).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(ratio[23:], torch.full((9,), 40.0).double(), rtol=1e-5, atol=0)
    # In between the share of the slowed-down frequency grows by 1/13 a pair.
    slow = torch.arange(1, 13).double() / 13
    torch.testing.assert_close((yarn / plain)[11:23].double(), 1 - slow + slow / 40, rtol=1e-5, atol=0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    half=st.integers(1, 40),
    theta=st.floats(50.0, 1e6),
    factor=st.floats(1.0, 64.0),
    original=st.integers(8, 8192),
    slow=st.floats(0.5, 4.0),
    ratio=st.floats(1.5, 40.0),
    mscales=st.tuples(st.sampled_from([0.0, 0.5, 0.707, 1.0]), st.sampled_from([0.0, 0.5, 1.0])),
)
def test_yarn_equals_transformers(
    half: int, theta: float, factor: float, original: int, slow: float, ratio: float, mscales: tuple[float, float]
) -> None:
    yarn = YarnConfig(
        factor=factor,
        original_max_position_embeddings=original,
        beta_slow=slow,
        beta_fast=slow * ratio,
        mscale=mscales[0],
        mscale_all_dim=mscales[1],
    )
    cfg = small_config(
        qk_rope_head_dim=2 * half, rope_theta=theta, rope_scaling=yarn, max_position_embeddings=max(64, original)
    )
    theirs, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](hf_config(cfg), "cpu")
    torch.testing.assert_close(rope_frequencies(cfg), theirs, rtol=1e-5, atol=1e-12)
    assert rope_attention_factor(cfg) == pytest.approx(attention_factor, rel=1e-12)
    assert softmax_scale(cfg) == pytest.approx(DeepseekV3Attention(hf_config(cfg), 0).scaling, rel=1e-12)


def test_yarn_with_factor_1_is_plain_rope() -> None:
    plain, off = small_config(), small_config(rope_scaling=small_yarn(factor=1.0))
    torch.testing.assert_close(rope_frequencies(off), rope_frequencies(plain), rtol=1e-7, atol=0)
    assert softmax_scale(off) == softmax_scale(plain) and rope_attention_factor(off) == 1.0


# Softmax scale


def test_softmax_scale_of_v3_before_and_after_the_extension() -> None:
    # D11: 192^-1/2, and the same times (0.1 ln 40 + 1)^2 = 1.8739.
    assert softmax_scale(dataclasses.replace(V3, rope_scaling=None)) == pytest.approx(0.07216878364870322, rel=1e-12)
    assert softmax_scale(V3) == pytest.approx(0.1352337788608801, rel=1e-12)
    assert rope_attention_factor(V3) == 1.0


def test_yarn_is_not_switched_on_by_the_length_of_the_context() -> None:
    # D12: the released code derives it from the buffer's length. Here the config's field decides alone.
    short, long = (dataclasses.replace(V3, max_position_embeddings=n) for n in (512, 163840))
    assert torch.equal(rope_frequencies(short), rope_frequencies(long)) and softmax_scale(short) == softmax_scale(long)


# Cosines and sines


@pytest.mark.parametrize("yarn", YARNS)
@pytest.mark.parametrize("shape", [(9,), (2, 9)])
def test_cos_and_sin_equal_transformers(yarn: YarnConfig | None, shape: tuple[int, ...]) -> None:
    cfg = small_config(rope_scaling=yarn, qk_rope_head_dim=10)
    positions = torch.randint(0, 4096, shape, generator=torch.Generator().manual_seed(0))
    cos, sin = RotaryEmbedding(cfg)(positions)
    assert cos.dtype == sin.dtype == torch.float32 and cos.shape == sin.shape == (*shape, 5)
    theirs = DeepseekV3RotaryEmbedding(hf_config(cfg))(torch.empty(1), positions)  # [.., T, R]: each angle twice
    # Angles up to 4096 rad are known to 2^-12 in fp32; a frequency may differ by one unit in its last place.
    torch.testing.assert_close(cos, theirs[0][..., :5], atol=1e-3, rtol=0)
    torch.testing.assert_close(sin, theirs[1][..., :5], atol=1e-3, rtol=0)
    factor = rope_attention_factor(cfg)
    torch.testing.assert_close(cos**2 + sin**2, torch.full_like(cos, factor**2))


def test_far_positions_stay_exact_in_a_bf16_model() -> None:
    # Frequencies kept as a bf16 buffer would be off by up to 0.4 % and the angle at 4000 by radians.
    cfg = small_config()
    positions = torch.tensor([0, 1, 4000])
    rotary = RotaryEmbedding(cfg)
    exact = rotary(positions)
    for a, b in zip(rotary.to(torch.bfloat16)(positions), exact):
        assert a.dtype == torch.float32 and torch.equal(a, b)
    angles = positions[:, None].double() * rope_frequencies(cfg).double()
    torch.testing.assert_close(exact[0].double(), angles.cos(), atol=1e-3, rtol=0)


def test_rotary_embedding_has_nothing_to_save() -> None:
    assert RotaryEmbedding(small_config()).state_dict() == {}


# The rotation


@pytest.mark.parametrize("yarn", [None, small_yarn()])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("heads", [1, 3])
def test_turns_neighbours_like_complex_numbers(yarn: YarnConfig | None, batched: bool, heads: int) -> None:
    cfg = small_config(rope_scaling=yarn, qk_rope_head_dim=8)
    positions = torch.randint(0, 60, (2, 5) if batched else (5,), generator=torch.Generator().manual_seed(1))
    x = randn(2, 5, heads, 8)
    out = apply_rope(x, *RotaryEmbedding(cfg)(positions))
    expected = turned_by_complex_numbers(x, positions, rope_frequencies(cfg))
    torch.testing.assert_close(out.double(), expected, atol=3e-5, rtol=0)  # angles to 60 rad in fp32


def test_a_quarter_turn_of_one_pair() -> None:
    # cos 0, sin 1 on the first pair, nothing on the second: (1, 2, 3, 4) -> (-2, 1, 3, 4).
    # The half-split layout would pair 1 with 3 and give (-3, 2, 1, 4).
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    out = apply_rope(x, torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
    assert out.flatten().tolist() == [-2.0, 1.0, 3.0, 4.0]


def test_position_zero_changes_nothing() -> None:
    x = randn(2, 4, 3, 6)
    assert torch.equal(apply_rope(x, *RotaryEmbedding(small_config())(torch.zeros(4, dtype=torch.long))), x)


def test_transformers_rotates_alike_and_then_permutes() -> None:
    cfg = small_config(qk_rope_head_dim=8)
    q, k, positions = randn(2, 5, 3, 8, seed=1), randn(2, 5, 1, 8, seed=2), torch.arange(5)
    cos, sin = DeepseekV3RotaryEmbedding(hf_config(cfg))(q, positions[None])
    for ours, theirs in zip(
        (apply_rope(x, *RotaryEmbedding(cfg)(positions)) for x in (q, k)),
        apply_rotary_pos_emb_interleave(q, k, cos, sin, unsqueeze_dim=2),
    ):
        # Theirs is [all first members | all second members], ours leaves each where it stood.
        torch.testing.assert_close(torch.cat((ours[..., 0::2], ours[..., 1::2]), -1), theirs, atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    m=st.integers(0, 500), n=st.integers(0, 500), shift=st.integers(0, 500), half=st.integers(1, 8), on=st.booleans()
)
def test_dot_product_depends_on_the_distance_only(m: int, n: int, shift: int, half: int, on: bool) -> None:
    rotary = RotaryEmbedding(small_config(qk_rope_head_dim=2 * half, rope_scaling=small_yarn() if on else None))
    q, k = randn(1, 1, 1, 2 * half, seed=m), randn(1, 1, 1, 2 * half, seed=n + 1000)

    def score(q_position: int, k_position: int) -> float:
        turned = [apply_rope(x, *rotary(torch.tensor([p]))) for x, p in ((q, q_position), (k, k_position))]
        return (turned[0] * turned[1]).sum().item()

    size = q.norm().item() * k.norm().item()
    # Angles of up to 1000 rad are rounded to 6e-5 in fp32.
    assert score(m, n) == pytest.approx(score(m + shift, n + shift), abs=3e-4 * size)
    torch.testing.assert_close(apply_rope(q, *rotary(torch.tensor([m]))).norm(), q.norm(), rtol=1e-5, atol=0)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(m=st.integers(0, 50), n=st.integers(0, 50))
def test_different_distances_give_different_scores(m: int, n: int) -> None:
    # The property above would also hold for a rotation that ignores positions.
    assume(m != n)
    rotary, q = RotaryEmbedding(small_config(qk_rope_head_dim=6)), randn(1, 1, 1, 6, seed=7)
    turned_m, turned_n = (apply_rope(q, *rotary(torch.tensor([p]))) for p in (m, n))
    assert (turned_m * turned_n).sum() < (q * q).sum() * (1 - 1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    cfg = small_config(qk_rope_head_dim=8)
    x = randn(2, 5, 3, 8, dtype=dtype)
    out = apply_rope(x, *RotaryEmbedding(cfg)(torch.arange(5)))
    exact = turned_by_complex_numbers(x, torch.arange(5), rope_frequencies(cfg))
    assert out.dtype == dtype
    assert ((out.double() - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact.abs() + 1e-6).all()


def test_gradient_is_the_rotation_back() -> None:
    # The rotation is orthogonal: its gradient is its inverse, the rotation by the negative angle.
    rotary, x, upstream = RotaryEmbedding(small_config()), randn(1, 4, 2, 6).requires_grad_(), randn(1, 4, 2, 6, seed=5)
    cos, sin = rotary(torch.arange(4))
    apply_rope(x, cos, sin).backward(upstream)
    torch.testing.assert_close(x.grad, apply_rope(upstream, cos, -sin))


def test_frequency_of_a_pair_is_a_full_turn_in_two_pi_over_frequency_positions() -> None:
    # A pair of frequency 2 pi / 8 is back after 8 positions. With R = 4 the second pair has theta^(-1/2).
    cfg = small_config(qk_rope_head_dim=4, rope_theta=(8 / (2 * math.pi)) ** 2)
    cos, sin = RotaryEmbedding(cfg)(torch.tensor([8]))
    torch.testing.assert_close(torch.stack((cos[0, 1], sin[0, 1])), torch.tensor([1.0, 0.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("offset", [0, 3, 4])
def test_one_complex_product_equals_the_formula_forward_and_backward(offset: int) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(2, 5, 3, 13, generator=generator)  # the rotary part may start anywhere in a head
    cos, sin = torch.randn(2, 5, 4, generator=generator)
    results = []
    for function in (apply_rope, apply_rope_reference):
        leaf = whole.clone().requires_grad_()
        out = function(leaf[..., offset : offset + 8], cos, sin)
        (out * torch.arange(8)).sum().backward()
        results.append((out.detach(), leaf.grad))
    for ours, obvious in zip(*results):
        torch.testing.assert_close(ours, obvious, atol=1e-6, rtol=1e-6)
