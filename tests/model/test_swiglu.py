"""The function that recomputes equals the one written down, forward and backward, and keeps its inputs only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsv3_mini.model.swiglu import swiglu, swiglu_reference


def values_and_gradients(function, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = tuple(t.detach().requires_grad_() for t in leaves)
    out = function(*leaves)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def inputs(scaled: bool, rows: int = 7, width: int = 5) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    gate, up = 3 * torch.randn(2, rows, width, generator=generator)
    return (gate, up, torch.rand(rows, 1, generator=generator)) if scaled else (gate, up)


@pytest.mark.parametrize("scaled", [True, False])
def test_equals_the_reference_forward_and_backward(scaled: bool) -> None:
    leaves = inputs(scaled)
    for ours, obvious in zip(values_and_gradients(swiglu, leaves), values_and_gradients(swiglu_reference, leaves)):
        torch.testing.assert_close(ours, obvious, atol=1e-6, rtol=1e-5)


def test_bf16_is_no_further_from_the_truth_than_the_reference() -> None:
    leaves = inputs(True, rows=200, width=64)
    exact = values_and_gradients(swiglu_reference, tuple(t.double() for t in leaves))
    low = tuple(t.to(torch.bfloat16) for t in leaves)
    exact = values_and_gradients(swiglu_reference, tuple(t.double() for t in low))
    for ours, obvious, truth in zip(
        values_and_gradients(swiglu, low), values_and_gradients(swiglu_reference, low), exact
    ):
        assert (ours.double() - truth).norm() <= 1.2 * (obvious.double() - truth).norm()


def test_halves_of_one_matrix_give_the_same() -> None:
    joined = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
    for ours, obvious in zip(
        values_and_gradients(lambda t: swiglu(*t.chunk(2, -1)), (joined,)),
        values_and_gradients(lambda t: swiglu_reference(*t.chunk(2, -1)), (joined,)),
    ):
        torch.testing.assert_close(ours, obvious, atol=1e-6, rtol=1e-5)


def test_keeps_its_inputs_and_nothing_else() -> None:
    gate, up, scale = (t.requires_grad_() for t in inputs(True))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        swiglu(gate, up, scale)
    assert {t.data_ptr() for t in kept} == {gate.data_ptr(), up.data_ptr(), scale.data_ptr()}
