"""The chunked cross-entropy against torch's, values and gradients, in chunks of any size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dsv3_mini.model.loss as loss_module
from dsv3_mini.model.loss import chunked_cross_entropy, cross_entropy_reference
from dsv3_mini.model.transformer import DeepSeekV3

from .reference import random_tokens, randomise, small_config

V, D = 29, 12


def inputs(tokens: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, D, generator=generator).to(dtype).requires_grad_()
    head = (torch.randn(V, D, generator=generator)).to(dtype).requires_grad_()
    return hidden, head, torch.randint(0, V, (tokens,), generator=generator)


def reference(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    logits = hidden.double() @ head.double().T
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")


@pytest.mark.parametrize("chunk", [1, V, 3 * V, 5 * V + 1, 10**6])
@pytest.mark.parametrize("tokens", [1, 10, 11])
@pytest.mark.parametrize("ignored", [[], [0], [0, 3, 9], "all"])
def test_value_and_gradients_in_chunks_of_any_size(
    chunk: int, tokens: int, ignored: list[int] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", chunk)
    hidden, head, targets = inputs(tokens)
    for i in range(tokens) if ignored == "all" else ignored:
        targets[i % tokens] = -100
    loss, expected = chunked_cross_entropy(hidden, head, targets), reference(hidden, head, targets)
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(cross_entropy_reference(hidden, head, targets).double(), expected, atol=1e-5, rtol=1e-6)
    ours = torch.autograd.grad(loss * 0.37, (hidden, head))  # the factor: backward must scale by what comes in
    theirs = torch.autograd.grad(expected * 0.37, (hidden, head))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


def test_no_token_costs_nothing() -> None:
    hidden, head, targets = inputs(0)
    loss = chunked_cross_entropy(hidden, head, targets)
    loss.backward()
    assert loss == 0 and not head.grad.any()


def test_large_logits_do_not_overflow() -> None:
    hidden, head, targets = inputs(6)
    loss = chunked_cross_entropy(hidden * 1e3, head, targets)
    assert torch.isfinite(loss) and loss.item() == pytest.approx(
        reference(hidden * 1e3, head, targets).item(), rel=1e-5
    )


def test_the_gradient_of_one_input_alone() -> None:
    for wanted in (0, 1):
        leaves = inputs(7)
        frozen = leaves[1 - wanted].detach()
        arguments = (leaves[0], frozen) if wanted == 0 else (frozen, leaves[1])
        (ours,) = torch.autograd.grad(chunked_cross_entropy(*arguments, leaves[2]), leaves[wanted])
        (theirs,) = torch.autograd.grad(reference(*arguments, leaves[2]), leaves[wanted])
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


def test_bf16_keeps_the_sum_in_fp32() -> None:
    hidden, head, targets = inputs(500, dtype=torch.bfloat16)
    loss = chunked_cross_entropy(hidden, head, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(hidden, head, targets).item(), rel=5e-3)
    ours, theirs = (
        torch.autograd.grad(f(hidden, head, targets), (hidden, head)) for f in (chunked_cross_entropy, reference)
    )
    for a, b in zip(ours, theirs):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b.float()).abs().max() < 0.03 * b.float().abs().max()


def test_autocast_runs_the_products_in_its_dtype_and_returns_gradients_in_that_of_the_weights() -> None:
    hidden, head, targets = inputs(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked_cross_entropy(hidden, head, targets)
    loss.backward()
    exact = reference(hidden, head, targets).item()
    assert loss.dtype == hidden.grad.dtype == head.grad.dtype == torch.float32
    assert 0 < abs(loss.item() - exact) < 5e-3 * exact


def test_without_gradients_none_are_computed() -> None:
    hidden, head, targets = inputs(5)
    with torch.no_grad():
        assert not chunked_cross_entropy(hidden, head, targets).requires_grad


@pytest.mark.parametrize("keep_logits", [True, False])
def test_the_losses_of_the_model_are_those_of_its_logits_with_the_same_gradients(keep_logits: bool) -> None:
    model = DeepSeekV3(small_config(num_nextn_predict_layers=2))
    randomise(model, 12)
    tokens = random_tokens(model.cfg)
    targets = tokens.roll(-1, 1).clone()
    targets[0, 3:6] = -100
    out = model(tokens, targets, keep_logits=keep_logits)
    logits = model(tokens)
    counted = (targets != -100).sum()
    main = F.cross_entropy(logits.logits.flatten(0, 1), targets.flatten())
    mtp = (
        sum(
            F.cross_entropy(m.flatten(0, 1), targets[:, k:].flatten(), reduction="sum") / counted
            for k, m in enumerate(logits.mtp_logits, start=1)
        )
        / 2
    )
    torch.testing.assert_close(out.losses["main"], main, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(out.losses["mtp"], mtp, atol=2e-6, rtol=1e-6)
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad(out.losses["main"] + 0.3 * out.losses["mtp"], list(parameters.values()))
    theirs = torch.autograd.grad(main + 0.3 * mtp, list(parameters.values()))
    for name, a, b in zip(parameters, ours, theirs):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max(), name
