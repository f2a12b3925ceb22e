"""Attention by blocks of queries equals the formula, whatever is left over in the last block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsv3_mini.model.attention import attention_reference
from dsv3_mini.model.causal import BLOCK, MAX_TOKENS, causal_attention
from dsv3_mini.model.mla import scaled_dot_product

SCALE = 0.3


def obvious(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention_reference(q * (SCALE * q.shape[-1] ** 0.5), k, v)


def by_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return causal_attention(q, k, v, SCALE)


def torchs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product(q, k, v, None, True, SCALE)


def inputs(tokens: int, batch: int = 2, heads: int = 3, width: int = 6, narrow: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(batch, heads, tokens, w, generator=generator) for w in (width, width, narrow)]


def values_and_gradients(function, leaves: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in leaves]
    out = function(*leaves)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


@pytest.mark.parametrize("tokens", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 17])
def test_equals_the_formula_forward_and_backward(tokens: int) -> None:
    leaves = inputs(tokens)
    for ours, plain in zip(values_and_gradients(by_blocks, leaves), values_and_gradients(obvious, leaves)):
        torch.testing.assert_close(ours, plain, atol=5e-6, rtol=1e-5)


def test_gradient_of_a_plain_sum_and_of_inputs_in_another_order() -> None:
    leaves = [t.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for t in inputs(70)]
    assert not leaves[0].is_contiguous()
    ours = torch.autograd.grad(by_blocks(*leaves).sum(), leaves)
    plain = torch.autograd.grad(obvious(*leaves).sum(), leaves)
    for a, b in zip(ours, plain):
        torch.testing.assert_close(a, b, atol=5e-6, rtol=1e-5)


def test_no_token_sees_a_later_one() -> None:
    q, k, v = inputs(BLOCK + 5)
    changed = by_blocks(q, k, v)
    k[..., BLOCK:, :], v[..., BLOCK:, :] = 7.0, -7.0
    assert torch.equal(by_blocks(q, k, v)[..., :BLOCK, :], changed[..., :BLOCK, :])


@pytest.mark.parametrize("tokens", [0, 1, 40, MAX_TOKENS + 1])
def test_with_and_without_gradients_agree(tokens: int) -> None:
    # With gradients short sequences go by blocks; all else takes torch's own kernel.
    leaves = [t.requires_grad_() for t in inputs(tokens, batch=1, heads=1)]
    training = torchs(*leaves)
    with torch.no_grad():
        torch.testing.assert_close(training, torchs(*leaves), atol=5e-6, rtol=1e-5)


def test_autocast_computes_in_fp32_and_hands_back_the_type_it_got() -> None:
    leaves = [t.to(torch.bfloat16).requires_grad_() for t in inputs(90)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = torchs(*leaves)
    assert out.dtype == torch.bfloat16
    exact = obvious(*(t.detach().float() for t in leaves))
    torch.testing.assert_close(out.float(), exact.to(torch.bfloat16).float(), atol=1e-2, rtol=1e-2)
