"""The six steps equal the router, and a missing step changes what it should and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.model.router import Router
from dsv3_mini.viz.gate_steps import WITHOUT, changes, describe, gate_steps

CFG = ModelConfig.preset("nano")  # 16 experts in 4 groups, 2 of them kept, 4 experts a token


def config(n_group: int = 4, topk_group: int = 2, top_k: int = 4, normalise: bool = True) -> ModelConfig:
    return CFG.replace(
        n_group=n_group, topk_group=topk_group, num_experts_per_tok=top_k, norm_topk_prob=normalise,
        routed_scaling_factor=1.7,
    )  # fmt: skip


@given(
    seed=st.integers(0, 10_000),
    shape=st.sampled_from([(1, 1, 4), (2, 1, 3), (4, 2, 4), (4, 1, 4), (4, 4, 5), (8, 3, 6)]),
    normalise=st.booleans(),
    spread=st.sampled_from([0.0, 0.3, 3.0]),
    shift=st.sampled_from([-3.0, 0.0, 1.0]),
)
def test_the_steps_equal_the_router_also_with_negative_biases(
    seed: int, shape: tuple[int, int, int], normalise: bool, spread: float, shift: float
) -> None:
    cfg = config(*shape, normalise)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(16, generator=generator)
    bias = shift + spread * torch.randn(16, generator=generator)
    router = Router(cfg)
    router.e_score_correction_bias.copy_(bias)
    ids = router.choose(scores[None])
    steps = gate_steps(scores, bias, cfg)
    assert steps.ids.tolist() == ids[0].tolist()
    torch.testing.assert_close(steps.weights, router.gate_weights(scores[None], ids)[0], atol=0, rtol=0)
    assert steps.kept.sum() == (cfg.topk_group if cfg.n_group > 1 else 1)
    assert steps.masked.isfinite().tolist() == steps.kept.repeat_interleave(16 // cfg.n_group).tolist()


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """Group 0 has the best expert and nothing else, groups 1 and 2 two good ones each; group 3 is bad."""
    scores = torch.full((16,), 0.1)
    scores[0] = 0.9
    scores[4:8] = torch.tensor([0.6, 0.55, 0.3, 0.2])
    scores[8:12] = torch.tensor([0.7, 0.5, 0.4, 0.35])
    return scores, torch.zeros(16)


def test_every_number_of_an_example_worked_out_by_hand() -> None:
    scores, bias = example()
    bias[7] = 0.05
    steps = gate_steps(scores, bias, CFG)
    torch.testing.assert_close(steps.group_scores, torch.tensor([1.0, 1.15, 1.2, 0.2]))
    assert steps.kept.tolist() == [False, True, True, False]
    assert steps.ids.tolist() == [8, 4, 5, 9]
    torch.testing.assert_close(steps.weights, torch.tensor([0.7, 0.6, 0.55, 0.5]) / 2.35 * 2.5)


def test_each_missing_step_does_to_the_example_what_it_must() -> None:
    scores, bias = example()
    by_name = {change.name: change for change in changes(scores, bias, CFG)}
    assert list(by_name) == list(WITHOUT)
    assert (by_name["group_limit"].won, by_name["group_limit"].lost) == ((0,), (9,))
    # By its best expert alone, group 0 comes first; then one good expert brings a bad one along.
    assert by_name["best_two"].won == (0, 10) and by_name["best_two"].lost == (4, 5)
    for name in ("bias", "minus_infinity", "unbiased"):  # nothing to see: all biases are 0
        assert by_name[name].words == "nothing changes for this token" and by_name[name].moved == 0


def test_the_bias_decides_who_is_chosen_and_does_not_enter_the_weights() -> None:
    scores, bias = example()
    bias[11] = 0.2  # from fourth to third of its group: into the choice, at the cost of expert 9
    found = {change.name: change for change in changes(scores, bias, CFG)}
    assert gate_steps(scores, bias, CFG).ids.tolist() == [8, 4, 5, 11]
    assert (found["bias"].won, found["bias"].lost) == ((9,), (11,))
    unbiased = found["unbiased"]
    assert unbiased.won == () and unbiased.moved > 0.05
    weights = torch.tensor([0.7, 0.6, 0.55, 0.55])
    torch.testing.assert_close(unbiased.steps.weights, weights / weights.sum() * 2.5)
    assert "same experts" in unbiased.words


def test_a_mask_of_0_lets_a_forbidden_expert_win_where_allowed_ones_are_below_0() -> None:
    scores, bias = example()
    bias -= 0.58
    change = next(change for change in changes(scores, bias, CFG) if change.name == "minus_infinity")
    allowed = set(range(4, 12))
    assert set(gate_steps(scores, bias, CFG).ids.tolist()) <= allowed
    assert change.won and not set(change.won) & allowed
    assert "instead of" in change.words


def test_the_words_hold_the_numbers_and_say_what_was_left_out() -> None:
    scores, bias = example()
    bias[7] = -0.25
    words = dict(describe(gate_steps(scores, bias, CFG), CFG))
    assert "Expert 0 fits best: 0.900" in words["Scores"]
    assert "Expert 7 moves most, by -0.250" in words["Plus the routing bias"]
    assert "two best" in words["Group scores"] and "group 2 1.200" in words["Group scores"]
    assert "groups 1 and 2" in words["Groups kept"] and "-inf" in words["Groups kept"]
    assert "experts 8, 4, 5 and 9" in words["Experts chosen"]
    assert "without the bias" in words["Gate weights"] and "expert 8 0.745" in words["Gate weights"]
    for name, title, expected in [
        ("bias", "Plus the routing bias", "Left out"),
        ("best_two", "Group scores", "its best expert alone"),
        ("group_limit", "Groups kept", "All groups stay"),
        ("minus_infinity", "Groups kept", "become 0"),
        ("unbiased", "Gate weights", "with the bias"),
    ]:
        wrong = gate_steps(scores, bias, CFG, without=name)
        assert expected in dict(describe(wrong, CFG, name))[title]


@pytest.mark.parametrize(
    ("scores", "bias", "message"),
    [
        (torch.rand(15), torch.zeros(16), r"scores must hold one number .* = 16; it has the shape \[15\]"),
        (torch.rand(2, 16), torch.zeros(16), "scores must hold one number"),
        (torch.rand(16), torch.zeros(4), "bias must hold one number"),
        (torch.rand(16), torch.full((16,), float("nan")), "bias must hold finite numbers"),
    ],
)
def test_what_cannot_be_is_refused(scores: torch.Tensor, bias: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gate_steps(scores, bias, CFG)


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(InputError, match="'mask' must be one of bias, best_two"):
        gate_steps(torch.rand(16), torch.zeros(16), CFG, without="mask")
