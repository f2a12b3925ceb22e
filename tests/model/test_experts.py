"""Loop = sorted = grouped = token by token, forward and backward, however the load falls; and the layer around them."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dsv3_mini.model.experts as experts_module
from dsv3_mini.errors import InputError
from dsv3_mini.model.experts import (
    Experts,
    expert_layout,
    experts_grouped,
    experts_loop,
    experts_sorted,
    experts_tokenwise,
)
from dsv3_mini.model.moe import MLP, MoE
from dsv3_mini.model.router import Routing
from dsv3_mini.model.transformer import DeepSeekV3

from .literal import literal_experts, literal_router
from .reference import randomise, small_config

PATHS = {
    "loop": experts_loop,
    "sorted": experts_sorted,
    "grouped": experts_grouped,
    "tokenwise": experts_tokenwise,
}
E, D, F = 6, 16, 8


def experts_filled(*arguments: Tensor) -> Tensor:
    """The grouped path with slices filled up to a multiple of 4 rows, as it does to 16 in bf16 on a CPU."""
    with mock.patch.object(experts_module, "expert_layout", lambda ids, counts, _: expert_layout(ids, counts, 4)):
        return experts_grouped(*arguments)


FUNCTIONS = {**PATHS, "filled": experts_filled}

# Expert ids [N, K] by name: every way a load can fall.
LOADS = {
    "random": torch.rand(13, E, generator=torch.Generator().manual_seed(0)).topk(3).indices,
    "two experts empty": torch.rand(13, E - 2, generator=torch.Generator().manual_seed(1)).topk(3).indices + 1,
    "all to one expert": torch.full((13, 1), 4),
    "all to the first": torch.zeros(7, 1, dtype=torch.long),
    "all to the last": torch.full((7, 1), E - 1),
    "one token": torch.tensor([[5, 0, 3]]),
    "one token, one expert": torch.tensor([[2]]),
    "every expert for every token": torch.arange(E).expand(4, E),
    "the same expert twice": torch.tensor([[2, 2, 1], [0, 5, 5], [3, 3, 3]]),
}


def inputs(ids: Tensor, seed: int = 0, width: int = D, inner: int = F) -> tuple[Tensor, ...]:
    """x [N, D], gate weights [N, K], gate_up [E, 2F, D], down [E, D, F], all leaves that want gradients."""
    generator = torch.Generator().manual_seed(seed)
    n, k = ids.shape
    return (
        torch.randn(n, width, generator=generator).requires_grad_(),
        torch.rand(n, k, generator=generator).requires_grad_(),
        (torch.randn(E, 2 * inner, width, generator=generator) / width**0.5).requires_grad_(),
        (torch.randn(E, width, inner, generator=generator) / inner**0.5).requires_grad_(),
    )


def run(path: str, ids: Tensor, leaves: tuple[Tensor, ...]) -> Tensor:
    x, weights, gate_up, down = leaves
    if path == "literal":
        return literal_experts(x, ids, weights, gate_up, down)
    return FUNCTIONS[path](x, ids, weights, torch.bincount(ids.flatten(), minlength=E), gate_up, down)


def forward_and_gradients(path: str, ids: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    """Output, then the gradients of x, gate weights, gate_up, down under a fixed random upstream gradient."""
    leaves = tuple(t.detach().requires_grad_() for t in leaves)
    out = run(path, ids, leaves)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


@pytest.mark.parametrize("path", FUNCTIONS)
@pytest.mark.parametrize("load", LOADS)
def test_equals_token_by_token_forward_and_backward(path: str, load: str) -> None:
    ids = LOADS[load]
    leaves = inputs(ids)
    for name, ours, literal in zip(
        ("out", "x", "weights", "gate_up", "down"),
        forward_and_gradients(path, ids, leaves),
        forward_and_gradients("literal", ids, leaves),
    ):
        # fp32 sums of a few dozen terms around 1, in another order.
        torch.testing.assert_close(ours, literal, atol=5e-6, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("path", FUNCTIONS)
def test_unused_experts_get_a_zero_gradient(path: str) -> None:
    ids = LOADS["two experts empty"]
    _, _, _, gate_up, down = forward_and_gradients(path, ids, inputs(ids))
    for e in range(E):
        used = bool((ids == e).any())
        assert bool(gate_up[e].any()) == used and bool(down[e].any()) == used


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_input_need_not_be_contiguous(path: str, layout: str) -> None:
    ids = LOADS["random"]
    leaves = [t.detach() for t in inputs(ids)]
    x = {
        "transposed": leaves[0].T.contiguous().T,
        "strided": torch.randn(13, 2 * D)[:, ::2],
        "expanded": leaves[0][:1].expand(13, D),
    }[layout]
    weights = leaves[1].T.contiguous().T
    assert not x.is_contiguous()
    with torch.no_grad():
        ours = run(path, ids.T.contiguous().T, (x, weights, *leaves[2:]))
        literal = literal_experts(x, ids, weights, *leaves[2:])
    torch.testing.assert_close(ours, literal, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("path", FUNCTIONS)
def test_gradient_of_a_plain_sum(path: str) -> None:
    # .sum() sends back a gradient of stride 0, which a grouped product refuses.
    ids = LOADS["random"]
    leaves, literal = inputs(ids), inputs(ids)
    run(path, ids, leaves).sum().backward()
    run("literal", ids, literal).sum().backward()
    for a, b in zip(leaves, literal):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(n=st.integers(1, 40), k=st.integers(1, E), skew=st.floats(0.0, 4.0), seed=st.integers(0, 10**6))
def test_paths_agree_for_any_load(n: int, k: int, skew: float, seed: int) -> None:
    preference = skew * torch.arange(E) + torch.rand(n, E, generator=torch.Generator().manual_seed(seed))
    ids = preference.topk(k).indices
    leaves = inputs(ids, seed)
    outputs = {path: forward_and_gradients(path, ids, leaves) for path in FUNCTIONS}
    for path in ("sorted", "grouped", "filled"):
        for ours, loop in zip(outputs[path], outputs["loop"]):
            torch.testing.assert_close(ours, loop, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("load", LOADS)
def test_bf16_stays_within_rounding_of_fp32_forward_and_backward(path: str, load: str) -> None:
    ids = LOADS[load]
    leaves = tuple(t.detach().to(torch.bfloat16) for t in inputs(ids))
    ours = forward_and_gradients(path, ids, leaves)
    exact = forward_and_gradients("literal", ids, tuple(t.double() for t in leaves))
    for a, b in zip(ours, exact):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).abs().max() < 0.03 * b.abs().max()  # a handful of roundings of 0.4 %


# The module


def test_gate_rows_come_first_and_up_rows_second() -> None:
    cfg = small_config(hidden_size=2, moe_intermediate_size=1, n_routed_experts=2, n_group=1, topk_group=1,
                       num_experts_per_tok=1)  # fmt: skip
    experts = Experts(cfg)
    with torch.no_grad():
        experts.gate_up_proj.zero_()
        experts.gate_up_proj[1] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # gate reads x0, up reads x1
        experts.down_proj.fill_(1.0)
    routing = Routing(torch.tensor([[1]]), torch.tensor([[1.0]]), torch.zeros(1, 2), torch.tensor([0, 1]))
    # silu(2) * 3 = 2 * 0.8807971 * 3 = 5.2847824, where silu(3) * 2 would be 5.7154448.
    torch.testing.assert_close(experts(torch.tensor([[2.0, 3.0]]), routing), torch.full((1, 2), 5.2847824))


@pytest.mark.parametrize(("width", "inner"), [(10, 8), (16, 6), (10, 5), (9, 7)])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("tokens", [3, 40])
def test_auto_runs_for_any_width(width: int, inner: int, grad: bool, tokens: int) -> None:
    # A grouped product needs rows of whole 16 bytes; these are not.
    ids = torch.rand(tokens, E, generator=torch.Generator().manual_seed(1)).topk(2).indices
    x, weights, gate_up, down = (t.detach() for t in inputs(ids, width=width, inner=inner))
    experts = Experts(small_config(hidden_size=width, moe_intermediate_size=inner, n_routed_experts=E, n_group=1,
                                   topk_group=1, num_experts_per_tok=2))  # fmt: skip
    with torch.no_grad():
        experts.gate_up_proj.copy_(gate_up)
        experts.down_proj.copy_(down)
    routing = Routing(ids, weights, torch.zeros(tokens, E), torch.bincount(ids.flatten(), minlength=E))
    with torch.set_grad_enabled(grad):
        out = experts(x, routing)
    torch.testing.assert_close(out, literal_experts(x, ids, weights, gate_up, down), atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("path", ["loop", "sorted", "grouped", "auto"])
def test_the_forced_path_is_the_one_that_runs(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DeepSeekV3(small_config())
    model.set_experts_path(path)
    ran = set()
    for name in PATHS:
        original = experts_module._PATHS[name]
        monkeypatch.setitem(experts_module._PATHS, name, lambda *a, o=original, n=name: (ran.add(n), o(*a))[1])
    model(torch.arange(20)[None])
    assert ran == ({path} if path != "auto" else {"grouped"})


def test_grouped_products_that_cannot_be_are_refused_by_name() -> None:
    model = DeepSeekV3(small_config(moe_intermediate_size=10))
    model.set_experts_path("grouped")
    with pytest.raises(InputError, match=r"grouped.*moe_intermediate_size.*multiples of 4"):
        model(torch.arange(20)[None])


def test_an_unknown_path_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"fast.*auto, loop, sorted"):
        DeepSeekV3(small_config()).set_experts_path("fast")


@pytest.mark.parametrize("path", [*PATHS, "auto"])
@pytest.mark.parametrize("grad", [True, False])
def test_no_token_at_all_is_no_trouble(path: str, grad: bool) -> None:
    # An MTP module of depth k has nothing to do on a text of k tokens.
    experts = Experts(small_config())
    randomise(experts, 0)
    experts.force_path(path)
    nothing = Routing(torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, 3), torch.zeros(0, 8), torch.zeros(8).long())
    with torch.set_grad_enabled(grad):
        out = experts(torch.zeros(0, 32), nothing)
    assert out.shape == (0, 32)


@pytest.mark.parametrize("path", PATHS)
def test_autocast_reaches_the_experts(path: str) -> None:
    # Grouped products ignore autocast: without a cast by hand they would run in fp32, unlike the layers around them.
    model = DeepSeekV3(small_config())
    model.set_experts_path(path)
    seen = []
    model.model.layers[1].mlp.experts.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.arange(20)[None]).logits.float().sum().backward()
    assert seen == [torch.bfloat16]
    assert model.model.layers[1].mlp.experts.gate_up_proj.grad.dtype == torch.float32


# The layer: Eq. 12 without the residual


@pytest.mark.parametrize("shared", [1, 2])
def test_moe_is_routed_plus_shared_and_only_the_routed_part_is_scaled(shared: int) -> None:
    cfg = small_config(n_shared_experts=shared, routed_scaling_factor=2.5)
    moe = MoE(cfg)
    randomise(moe, cfg.kv_lora_rank)
    moe.gate.e_score_correction_bias.uniform_(-1.6, -1.1, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        out, routing = moe(x)
        flat = x.flatten(0, 1)
        literal = literal_router(moe.gate, cfg, flat)
        routed = literal_experts(flat, literal.ids, literal.weights, moe.experts.gate_up_proj, moe.experts.down_proj)
        # N_s shared experts, each of the width of one routed expert, no gate.
        shared_out = torch.zeros_like(flat)
        width = cfg.moe_intermediate_size
        for s in range(shared):
            rows = slice(s * width, (s + 1) * width)
            gate, up = (flat @ p.weight[rows].T for p in (moe.shared_experts.gate_proj, moe.shared_experts.up_proj))
            shared_out += (torch.nn.functional.silu(gate) * up) @ moe.shared_experts.down_proj.weight[:, rows].T
    torch.testing.assert_close(out, (routed + shared_out).view_as(x), atol=5e-6, rtol=1e-5)
    assert routing.ids.shape == (10, 3) and torch.equal(routing.counts, literal.counts)


def test_dense_mlp_by_hand() -> None:
    mlp = MLP(2, 1)
    with torch.no_grad():
        mlp.gate_proj.weight.copy_(torch.tensor([[1.0, 0.0]]))
        mlp.up_proj.weight.copy_(torch.tensor([[0.0, 1.0]]))
        mlp.down_proj.weight.copy_(torch.tensor([[1.0], [-2.0]]))
    torch.testing.assert_close(mlp(torch.tensor([2.0, 3.0])), torch.tensor([5.2847824, -10.5695648]))  # silu(2) * 3
