"""Plain attention of lessons 1-3 against softmax written out, with shared heads, positions and a cache."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dsv3_mini.errors import InputError
from dsv3_mini.model.attention import MultiHeadAttention, attention_reference
from dsv3_mini.model.rope import RotaryEmbedding, apply_rope

from .reference import small_config

HIDDEN, HEADS, WIDTH = 12, 4, 6


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(kv_heads: int | None = None, seed: int = 0) -> MultiHeadAttention:
    module = MultiHeadAttention(HIDDEN, HEADS, WIDTH, kv_heads)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(0, weight.shape[-1] ** -0.5 * 1.5, generator=generator)
    return module


def rotary(positions: Tensor) -> tuple[Tensor, Tensor]:
    return RotaryEmbedding(small_config(qk_rope_head_dim=WIDTH))(positions)


@torch.no_grad()
def literal(module: MultiHeadAttention, x: Tensor, cos: Tensor | None = None, sin: Tensor | None = None) -> Tensor:
    """Head by head and token by token, in fp64. Query head h reads key/value head h // (H / G)."""
    x = x.double()
    q, k, v = (x @ p.weight.double().T for p in (module.q_proj, module.k_proj, module.v_proj))
    groups = module.k_proj.weight.shape[0] // WIDTH
    out = torch.zeros(*x.shape[:2], HEADS * WIDTH, dtype=torch.double)
    for b in range(x.shape[0]):
        for h in range(HEADS):
            g = h // (HEADS // groups)
            q_h, k_h, v_h = q[b, :, h * WIDTH :][:, :WIDTH], k[b, :, g * WIDTH :][:, :WIDTH], v[b, :, g * WIDTH :]
            if cos is not None and sin is not None:
                q_h, k_h = (apply_rope(t[None, :, None], cos.double(), sin.double())[0, :, 0] for t in (q_h, k_h))
            for t in range(x.shape[1]):
                weights = [math.exp(q_h[t] @ k_h[s] / math.sqrt(WIDTH)) for s in range(t + 1)]
                mixed = sum(w / sum(weights) * v_h[s, :WIDTH] for s, w in enumerate(weights))
                out[b, t, h * WIDTH : (h + 1) * WIDTH] = mixed
    return out @ module.o_proj.weight.double().T


@pytest.mark.parametrize("kv_heads", [None, 4, 2, 1])
@pytest.mark.parametrize("with_rope", [False, True])
def test_equals_softmax_written_out(kv_heads: int | None, with_rope: bool) -> None:
    module, x = attention(kv_heads), randn(2, 5, HIDDEN)
    angles = rotary(torch.arange(5)) if with_rope else (None, None)
    torch.testing.assert_close(module(x, *angles).double(), literal(module, x, *angles), atol=2e-6, rtol=1e-5)


def test_reference_formula_equals_torch() -> None:
    q, k, v = (randn(2, 3, 7, 5, seed=s) for s in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(attention_reference(q, k, v), expected, atol=1e-6, rtol=1e-5)
    # Fewer queries than keys: they are the last ones.
    torch.testing.assert_close(attention_reference(q[:, :, 4:], k, v), expected[:, :, 4:], atol=1e-6, rtol=1e-5)


def test_the_first_token_sees_itself_only() -> None:
    module, x = attention(), randn(1, 4, HIDDEN)
    torch.testing.assert_close(module(x)[:, 0], module.o_proj(module.v_proj(x[:, 0])))


@pytest.mark.parametrize("changed", range(6))
def test_no_token_sees_a_later_one(changed: int) -> None:
    module, x = attention(2), randn(1, 6, HIDDEN)
    other = x.clone()
    other[0, changed] += 1.0
    difference = (module(x) - module(other)).abs().amax((0, 2))
    assert (difference[:changed] < 1e-6).all() and (difference[changed:] > 1e-4).all()


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_shared_heads_equal_full_heads_with_repeated_weights(kv_heads: int) -> None:
    shared, full = attention(kv_heads), attention()
    with torch.no_grad():
        for ours, theirs in ((full.k_proj, shared.k_proj), (full.v_proj, shared.v_proj)):
            by_head = theirs.weight.view(kv_heads, WIDTH, HIDDEN)
            ours.weight.copy_(by_head.repeat_interleave(HEADS // kv_heads, 0).reshape(-1, HIDDEN))
        full.q_proj.weight.copy_(shared.q_proj.weight)
        full.o_proj.weight.copy_(shared.o_proj.weight)
    x = randn(2, 5, HIDDEN)
    torch.testing.assert_close(shared(x), full(x))


@pytest.mark.parametrize(("kv_heads", "numbers"), [(None, 48), (2, 24), (1, 12)])
def test_cache_holds_two_vectors_per_key_value_head_and_decoding_equals_one_pass(
    kv_heads: int | None, numbers: int
) -> None:
    module, x, cache = attention(kv_heads), randn(2, 9, HIDDEN), []
    pieces, start = [], 0
    for length in (4, 1, 1, 3):
        angles = rotary(torch.arange(start, start + length))
        pieces.append(module(x[:, start : start + length], *angles, cache=cache))
        start += length
    assert sum(t.numel() for t in cache) == numbers * 2 * 9  # per token, times rows and tokens
    torch.testing.assert_close(torch.cat(pieces, 1), module(x, *rotary(torch.arange(9))), atol=2e-6, rtol=1e-5)


def test_only_relative_positions_matter() -> None:
    module, x = attention(2), randn(1, 6, HIDDEN)
    here, there, stretched = (
        module(x, *rotary(p)) for p in (torch.arange(6), torch.arange(6) + 37, torch.arange(6) * 2)
    )
    torch.testing.assert_close(here, there, atol=2e-5, rtol=1e-4)
    assert (here - stretched).abs().max() > 1e-3


def test_without_positions_the_order_of_the_past_is_invisible() -> None:
    module, x = attention(), randn(1, 6, HIDDEN)
    shuffled = x[:, [3, 0, 4, 2, 1, 5]]
    torch.testing.assert_close(module(x)[:, -1], module(shuffled)[:, -1], atol=1e-6, rtol=1e-5)
    angles = rotary(torch.arange(6))
    assert (module(x, *angles)[:, -1] - module(shuffled, *angles)[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("kv_heads", [3, 8])
def test_key_value_heads_that_do_not_divide_are_refused(kv_heads: int) -> None:
    with pytest.raises(InputError, match="num_kv_heads"):
        MultiHeadAttention(HIDDEN, HEADS, WIDTH, kv_heads)
