"""With recomputation the gradients are the same and fewer bytes are kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dsv3_mini.model.recompute import Note, recomputed
from dsv3_mini.model.transformer import DeepSeekV3

from .reference import random_tokens, randomise, small_config


def step(recompute: bool, **changes: object) -> tuple[DeepSeekV3, int]:
    """A model after a backward pass, and the bytes that its forward pass had left for it."""
    cfg = small_config(**changes)
    model = DeepSeekV3(cfg)
    randomise(model, 0)
    model.set_recompute(recompute)
    tokens = random_tokens(cfg, batch=2, length=33)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        loss = torch.stack([*model(tokens[:, :-1], tokens[:, 1:], keep_logits=False).losses.values()]).sum()
    loss.backward()
    return model, sum(event.self_cpu_memory_usage for event in found.key_averages())


@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None}], ids=["compressed queries", "plain queries"])
def test_gradients_are_the_same_and_fewer_bytes_are_kept(changes: dict[str, object]) -> None:
    kept, full = step(False, **changes)
    again, less = step(True, **changes)
    for (name, a), b in zip(kept.named_parameters(), again.parameters()):
        scale = a.grad.abs().max().item()
        torch.testing.assert_close(
            b.grad, a.grad, atol=2e-5 * max(scale, 1.0), rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert less < 0.85 * full


def test_without_gradients_nothing_changes() -> None:
    model, _ = step(True)
    tokens = random_tokens(model.cfg, batch=1, length=9)
    with torch.no_grad():
        with_it = model(tokens).logits
        model.set_recompute(False)
        assert torch.equal(model(tokens).logits, with_it)


def test_outputs_are_made_again_once_per_backward_pass_and_then_forgotten() -> None:
    calls = []

    def make(x: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(torch.is_grad_enabled())
        return x * 2, x.exp()

    x = torch.randn(3, 4, requires_grad=True)
    (double, power), context = recomputed(make, x)
    with context:
        loss = (double * power).sum() + (double.t() @ power).sum()
    expected = torch.autograd.grad((2 * x * x.exp()).sum() + (2 * x.t() @ x.exp()).sum(), x)[0]
    for passes in (1, 2):
        found = torch.autograd.grad(loss, x, retain_graph=True)[0]
        torch.testing.assert_close(found, expected)
        assert calls == [True] + [False] * passes
    assert context.pack_hook(double) == Note(0, double.shape, double.stride(), 0)
    assert context.pack_hook(x) is x
