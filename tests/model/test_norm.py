"""RMSNorm against the formula, worked out apart from the package."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsv3_mini.model.norm import RMSNorm, rms_norm_reference


def truth(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight in fp64."""
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def norm_with_random_weight(dim: int, eps: float, seed: int = 0) -> RMSNorm:
    norm = RMSNorm(dim, eps)
    with torch.no_grad():
        norm.weight.uniform_(0.8, 1.2, generator=torch.Generator().manual_seed(seed))
    return norm


def test_three_and_four() -> None:
    # mean of squares (9 + 16) / 2 = 12.5, root 3.5355339, so 3 -> 0.84852814 and 4 -> 1.1313708
    norm = RMSNorm(2, eps=0.0)
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), torch.tensor([0.84852814, 1.1313708]))


def test_weight_starts_at_one_and_scales_each_channel() -> None:
    norm = RMSNorm(3, eps=1e-6)
    assert torch.equal(norm.weight, torch.ones(3)) and [n for n, _ in norm.named_parameters()] == ["weight"]
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.0]))
    out = norm(torch.tensor([1.0, 1.0, 1.0]))
    torch.testing.assert_close(out, torch.tensor([1.0, -2.0, 0.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 4, 7)])
@pytest.mark.parametrize("function", ["module", "reference"])
def test_equals_the_formula(shape: tuple[int, ...], function: str) -> None:
    norm = norm_with_random_weight(7, 1e-5)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    out = norm(x) if function == "module" else rms_norm_reference(x, norm.weight, norm.eps)
    torch.testing.assert_close(out.double(), truth(x, norm.weight, 1e-5), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 1e-2])
def test_eps_counts_where_the_input_is_small(eps: float) -> None:
    # Input of 1e-3: mean of squares 1e-6, as large as the epsilon. Half a percent off and this fails.
    x = torch.full((1, 8), 1e-3)
    expected = (1e-6 / (1e-6 + eps)) ** 0.5
    torch.testing.assert_close(RMSNorm(8, eps)(x), torch.full((1, 8), expected), atol=0, rtol=1e-5)


def test_zero_stays_zero() -> None:
    assert torch.equal(RMSNorm(5, 1e-6)(torch.zeros(2, 5)), torch.zeros(2, 5))


def test_does_not_subtract_the_mean() -> None:
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    assert (RMSNorm(16)(x + 5.0) - RMSNorm(16)(x)).abs().max() > 0.5  # LayerNorm would give 0


@settings(max_examples=25, deadline=None, derandomize=True)
@given(scale=st.floats(1e-2, 1e6), dim=st.integers(1, 33), seed=st.integers(0, 1000))
def test_scale_of_the_input_does_not_matter(scale: float, dim: int, seed: int) -> None:
    x = torch.randn(3, dim, generator=torch.Generator().manual_seed(seed)).double()
    norm = norm_with_random_weight(dim, 1e-20, seed).double()
    torch.testing.assert_close(norm(x * scale), norm(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights_too", [True, False])
def test_half_precision_keeps_dtype_and_sums_in_fp32(dtype: torch.dtype, weights_too: bool) -> None:
    # 1000 squared is beyond fp16's 65504, and 4096 squares summed in bf16 would stop growing at 256 of them.
    norm = norm_with_random_weight(4096, 1e-6)
    if weights_too:
        norm = norm.to(dtype)
    x = (1000 * torch.randn(2, 4096, generator=torch.Generator().manual_seed(3))).to(dtype)
    for out in (norm(x), rms_norm_reference(x, norm.weight, norm.eps)):
        assert out.dtype == dtype
        relative = (out.double() - truth(x, norm.weight, 1e-6)).abs() / truth(x, norm.weight, 1e-6).abs().clamp_min(
            1e-3
        )
        # The weight may be rounded to x's dtype first, then the result: two roundings of half a unit each.
        assert relative.max() <= 1.05 * torch.finfo(dtype).eps


def test_gradients_equal_those_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(5, 9, generator=generator).requires_grad_()
    upstream = torch.randn(5, 9, generator=generator)
    norm = norm_with_random_weight(9, 1e-5)
    (norm(x) * upstream).sum().backward()
    x64, weight64 = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    (truth(x64, weight64, 1e-5) * upstream).sum().backward()
    torch.testing.assert_close(x.grad.double(), x64.grad, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(norm.weight.grad.double(), weight64.grad, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (0, 7), (2, 3, 7)])
def test_training_and_inference_agree(shape: tuple[int, ...]) -> None:
    # On a CPU training takes a function of ours, and inference torch's.
    norm = RMSNorm(7)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    out = norm(x)
    assert out.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(out, norm(x), atol=1e-6, rtol=1e-6)


def test_training_keeps_the_input_and_one_number_a_row() -> None:
    norm, x = RMSNorm(8), torch.randn(5, 8, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        norm(x)
    assert sorted(t.numel() for t in kept) == [5, 8, 40]
