"""AdamW as the report sets it, decay on matrices only, one clipping norm over everything."""

import pytest
import torch

from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.optimizer import build_optimizer, clip_gradients, set_learning_rate


def is_norm(name: str) -> bool:
    return name.endswith("norm.weight")


@pytest.fixture
def model(tiny_model) -> DeepSeekV3:
    torch.manual_seed(0)
    return DeepSeekV3(tiny_model)


def test_decay_is_on_matrices_and_stacked_experts_but_not_on_norms(model):
    optimizer = build_optimizer(model, 1e-3)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert {name for name, value in found.items() if value == 0} == {n for n in found if n.endswith("norm.weight")}
    assert {value for name, value in found.items() if not is_norm(name)} == {0.1}
    assert found["model.layers.1.mlp.experts.gate_up_proj"] == 0.1
    assert len(decay) == len(list(model.parameters())), "every parameter once"


def test_one_step_is_adamw_by_hand(model):
    lr = 1e-2
    optimizer = build_optimizer(model, 0.5)
    set_learning_rate(optimizer, lr)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    grads = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    moment = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    square = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for step in (1, 2):
        for name, p in model.named_parameters():
            p.grad = grads[name] * step
            moment[name] = 0.9 * moment[name] + 0.1 * p.grad
            square[name] = 0.95 * square[name] + 0.05 * p.grad**2
            decayed = before[name] * (1 - lr * (0.0 if is_norm(name) else 0.1))
            unbiased = moment[name] / (1 - 0.9**step), square[name] / (1 - 0.95**step)
            before[name] = decayed - lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name], rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_together_to_norm_one(model):
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.1)
    norm = clip_gradients(model)
    size = sum(p.numel() for p in model.parameters())
    assert norm.item() == pytest.approx(0.1 * size**0.5, rel=1e-5), "the norm from before"
    after = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert after.norm().item() == pytest.approx(1.0, rel=1e-4)
    assert after.std().item() < 1e-6, "all by the same factor"


def test_small_gradients_stay_as_they_are(model):
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e-5)
    clip_gradients(model)
    assert all(torch.equal(p.grad, torch.full_like(p, 1e-5)) for p in model.parameters())


def test_the_routing_bias_is_nothing_the_optimizer_moves(model):
    held = {id(p) for group in build_optimizer(model, 1e-3).param_groups for p in group["params"]}
    assert not any(id(router.e_score_correction_bias) in held for router in model.routers)
