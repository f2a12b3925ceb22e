"""The router against numbers worked out by hand, against the literal version, and as properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsv3_mini.config import ModelConfig
from dsv3_mini.model.router import Router, Routing

from .literal import literal_router
from .reference import small_config


def router_with_scores(
    scores: list[list[float]], bias: list[float] | None = None, **changes: object
) -> tuple[Router, Tensor]:
    """A router and inputs x [N, D] whose sigmoid affinities are the given numbers: the centroids are unit vectors."""
    experts = len(scores[0])
    cfg = small_config(hidden_size=experts, n_routed_experts=experts, **changes)
    router = Router(cfg)
    with torch.no_grad():
        router.weight.copy_(torch.eye(experts))
        if bias is not None:
            router.e_score_correction_bias.copy_(torch.tensor(bias))
    return router, torch.tensor([[math.log(s / (1 - s)) for s in row] for row in scores])


def by_expert(routing: Routing, token: int = 0) -> dict[int, float]:
    """{expert: weight} of one token."""
    return dict(zip(routing.ids[token].tolist(), routing.weights[token].tolist()))


ONE_OF_TWO_GROUPS = dict(n_group=2, topk_group=1, num_experts_per_tok=2, routed_scaling_factor=2.5)


def test_group_is_chosen_by_the_sum_of_its_two_best() -> None:
    # Groups {0, 1} and {2, 3}: 0.9 + 0.1 = 1.0 loses to 0.6 + 0.5 = 1.1, although expert 0 is the best of all.
    # Weights 0.6 / 1.1 * 2.5 = 1.3636364 and 0.5 / 1.1 * 2.5 = 1.1363636.
    router, x = router_with_scores([[0.9, 0.1, 0.6, 0.5]], **ONE_OF_TWO_GROUPS)
    routing = router(x)
    assert by_expert(routing) == pytest.approx({2: 1.3636364, 3: 1.1363636}, rel=1e-5)
    assert routing.counts.tolist() == [0, 0, 1, 1] and routing.counts.dtype == torch.int64
    torch.testing.assert_close(routing.scores, torch.tensor([[0.9, 0.1, 0.6, 0.5]]))


def test_bias_changes_selection_never_weights() -> None:
    # The bias lifts group {0, 1} to 1.2. The weights come from 0.9 and 0.1 (sum 1.0), not from 1.1 and 0.1.
    router, x = router_with_scores([[0.9, 0.1, 0.6, 0.5]], bias=[0.2, 0.0, 0.0, 0.0], **ONE_OF_TWO_GROUPS)
    routing = router(x)
    assert by_expert(routing) == pytest.approx({0: 2.25, 1: 0.25}, rel=1e-5)
    torch.testing.assert_close(routing.scores, torch.tensor([[0.9, 0.1, 0.6, 0.5]]))  # recorded without it


def test_bias_also_ranks_within_the_group() -> None:
    # One group; 0.5 + 0.3 and 0.4 + 0.3 overtake 0.7 and 0.6. Weights 0.5 / 0.9 and 0.4 / 0.9.
    router, x = router_with_scores(
        [[0.7, 0.6, 0.5, 0.4]], bias=[0, 0, 0.3, 0.3], n_group=1, topk_group=1, num_experts_per_tok=2,
        routed_scaling_factor=1.0,
    )  # fmt: skip
    assert by_expert(router(x)) == pytest.approx({2: 5 / 9, 3: 4 / 9}, rel=1e-5)


def test_forbidden_groups_stay_forbidden_under_negative_biases() -> None:
    # All biased scores are below zero, so a mask of 0 in place of -inf would let experts 0 and 1 win (D3).
    router, x = router_with_scores([[0.9, 0.1, 0.6, 0.5]], bias=[-2.0] * 4, **ONE_OF_TWO_GROUPS)
    assert by_expert(router(x)) == pytest.approx({2: 1.3636364, 3: 1.1363636}, rel=1e-5)


def test_one_common_bias_changes_nothing() -> None:
    scores = torch.rand(20, 8, generator=torch.Generator().manual_seed(0)).clamp(0.01, 0.99).tolist()
    plain, x = router_with_scores(scores, n_group=4, topk_group=2, num_experts_per_tok=3)
    for shift in (-3.0, 2.02):  # released biases are reported to lie above 2 (D5)
        shifted, _ = router_with_scores(scores, bias=[shift] * 8, n_group=4, topk_group=2, num_experts_per_tok=3)
        assert all(by_expert(plain(x), n) == by_expert(shifted(x), n) for n in range(20))


def test_without_normalisation_the_weights_are_the_scores_times_the_factor() -> None:
    router, x = router_with_scores([[0.9, 0.1, 0.6, 0.5]], norm_topk_prob=False, **ONE_OF_TWO_GROUPS)
    assert by_expert(router(x)) == pytest.approx({2: 1.5, 3: 1.25}, rel=1e-5)


def test_all_scores_equal_still_gives_distinct_experts() -> None:
    router, x = router_with_scores([[0.5] * 8] * 5, n_group=4, topk_group=2, num_experts_per_tok=3)
    routing = router(x)
    for ids in routing.ids.tolist():
        assert len(set(ids)) == 3 and len({i // 2 for i in ids}) <= 2
    torch.testing.assert_close(routing.weights, torch.full((5, 3), 2.5 / 3))


def test_vanishing_scores_give_finite_weights() -> None:
    # sigmoid(-200) is 0 in fp32: 0 / (0 + 1e-20), not 0 / 0.
    router, _ = router_with_scores([[0.5] * 4], **ONE_OF_TWO_GROUPS)
    assert torch.equal(router(torch.full((1, 4), -200.0)).weights, torch.zeros(1, 2))


@st.composite
def routings(draw: st.DrawFn) -> tuple[ModelConfig, int, float, float]:
    n_group = draw(st.integers(1, 4))
    size = draw(st.integers(2, 4))
    topk_group = draw(st.integers(1, n_group))
    cfg = small_config(
        hidden_size=6,
        n_routed_experts=n_group * size,
        n_group=n_group,
        topk_group=topk_group,
        num_experts_per_tok=draw(st.integers(1, topk_group * size)),
        norm_topk_prob=draw(st.booleans()),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5, 0.3])),
    )
    return cfg, draw(st.integers(0, 10**6)), draw(st.sampled_from([-2.0, 0.0, 1.0])), draw(st.sampled_from([0.0, 0.5]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(routings())
def test_properties_and_equality_with_the_literal_version(drawn: tuple[ModelConfig, int, float, float]) -> None:
    cfg, seed, bias_mean, bias_width = drawn
    generator = torch.Generator().manual_seed(seed)
    router = Router(cfg)
    with torch.no_grad():
        router.weight.normal_(generator=generator)
        router.e_score_correction_bias.uniform_(bias_mean - bias_width, bias_mean + bias_width, generator=generator)
    x = torch.randn(9, 6, generator=generator)
    routing, literal = router(x), literal_router(router, cfg, x)
    k, size = cfg.num_experts_per_tok, cfg.n_routed_experts // cfg.n_group

    assert routing.ids.shape == routing.weights.shape == (9, k) and routing.scores.shape == (9, cfg.n_routed_experts)
    for n, ids in enumerate(routing.ids.tolist()):
        assert len(set(ids)) == k and all(0 <= i < cfg.n_routed_experts for i in ids)
        assert len({i // size for i in ids}) <= cfg.topk_group
        assert by_expert(routing, n) == pytest.approx(by_expert(literal, n), rel=1e-5)
    if cfg.norm_topk_prob:
        torch.testing.assert_close(routing.weights.sum(-1), torch.full((9,), cfg.routed_scaling_factor))
    assert (routing.weights > 0).all()
    assert torch.equal(routing.counts, literal.counts) and routing.counts.sum() == 9 * k


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_bias_stays_fp32_and_unrounded_when_the_model_is_cast(dtype: torch.dtype) -> None:
    router = Router(small_config())
    exact = torch.linspace(2.0, 2.01, 8)  # steps of 0.0014: bf16 has nothing between 2 and 2.0156
    router.e_score_correction_bias.copy_(exact)
    for cast in (router.to(dtype), router.to(torch.float32)):
        assert cast.e_score_correction_bias.dtype == torch.float32
        assert torch.equal(cast.e_score_correction_bias, exact)
    assert (
        "e_score_correction_bias" in dict(router.named_buffers()) and "e_score_correction_bias" in router.state_dict()
    )


@pytest.mark.parametrize("how", ["cast", "autocast"])
def test_affinities_are_computed_in_fp32(how: str) -> None:
    generator = torch.Generator().manual_seed(3)
    router = Router(small_config(hidden_size=64))
    with torch.no_grad():
        router.weight.normal_(0, 0.5, generator=generator)
    x = torch.randn(50, 64, generator=generator)
    if how == "cast":
        router, x = router.to(torch.bfloat16), x.to(torch.bfloat16)
        routing = router(x)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            routing = router(x)
    exact = (x.double() @ router.weight.double().T).sigmoid()  # of the rounded inputs
    assert routing.scores.dtype == routing.weights.dtype == torch.float32
    assert (routing.scores.double() - exact).abs().max() < 1e-6  # a product in bf16 is off by 1e-2


# Gradients


def test_gradient_reaches_the_centroids_of_the_chosen_experts_only_and_never_the_bias() -> None:
    router, x = router_with_scores([[0.9, 0.1, 0.6, 0.5]], bias=[0.0, 0.0, 0.1, 0.0], **ONE_OF_TWO_GROUPS)
    x.requires_grad_()
    routing = router(x)
    (routing.weights * torch.tensor([[1.0, -2.0]])).sum().backward()
    assert not router.e_score_correction_bias.requires_grad and not routing.ids.is_floating_point()
    rows = router.weight.grad.abs().sum(-1)
    assert (rows[:2] == 0).all() and (rows[2:] > 0).all() and x.grad.abs().sum() > 0


def test_gradient_of_the_weights_equals_that_of_the_formula() -> None:
    cfg, generator = small_config(), torch.Generator().manual_seed(5)
    router = Router(cfg)
    with torch.no_grad():
        router.weight.normal_(0, 0.2, generator=generator)
        router.e_score_correction_bias.uniform_(-0.5, 0.5, generator=generator)
    x, upstream = torch.randn(11, 32, generator=generator), torch.randn(11, 3, generator=generator)
    routing = router(x)
    (routing.weights * upstream).sum().backward()
    weight = router.weight.detach().double().requires_grad_()
    chosen = (x.double() @ weight.T).sigmoid().gather(1, routing.ids)
    (cfg.routed_scaling_factor * chosen / chosen.sum(1, keepdim=True) * upstream).sum().backward()
    torch.testing.assert_close(router.weight.grad.double(), weight.grad, atol=1e-6, rtol=1e-5)
