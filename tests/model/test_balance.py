"""The sequence-wise balance loss, the routing-bias update and MaxVio, against loops and numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dsv3_mini.model.balance import batch_balance_loss, max_violation, sequence_balance_loss, update_routing_bias
from dsv3_mini.model.router import Router
from dsv3_mini.model.transformer import DeepSeekV3

from .literal import literal_balance_loss
from .reference import random_tokens, randomise, small_config


def random_scores(batch: int, tokens: int, experts: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, tokens, experts, generator=torch.Generator().manual_seed(seed)) * 0.9 + 0.05


# The loss, Eq. 17-20


def test_balance_loss_by_hand() -> None:
    # T = 2, E = 3, K = 1. Token 1: scores .6 .3 .1 (sum 1), token 2: .2 .8 .6 (sum 1.6).
    # f = 3 / (1 * 2) * (1, 1, 0) = (1.5, 1.5, 0). P = mean of (.6, .3, .1) and (.125, .5, .375) = (.3625, .4, .2375).
    # Loss 1.5 * .3625 + 1.5 * .4 = 1.14375.
    scores = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.8, 0.6]]])
    assert sequence_balance_loss(scores, 1).item() == pytest.approx(1.14375, rel=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(2, 7), st.integers(0, 10**6), st.data())
def test_balance_loss_equals_the_literal_loop(
    batch: int, tokens: int, experts: int, seed: int, data: st.DataObject
) -> None:
    top_k, scores = data.draw(st.integers(1, experts)), random_scores(batch, tokens, experts, seed)
    literal = sum(literal_balance_loss(rows, top_k) for rows in scores.tolist()) / batch
    assert sequence_balance_loss(scores, top_k).item() == pytest.approx(literal, rel=1e-5)


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (6, 3), (4, 1)])
def test_balance_loss_is_1_with_even_choices_and_flat_affinities(experts: int, top_k: int) -> None:
    # Token t prefers experts t, t + 1, .. by a hair: every expert is chosen equally often, every share is 1/E.
    scores = torch.full((1, experts, experts), 0.5)
    for t in range(experts):
        for k in range(top_k):
            scores[0, t, (t + k) % experts] += 1e-6
    assert sequence_balance_loss(scores, top_k).item() == pytest.approx(1.0, rel=1e-5)


def test_balance_loss_is_experts_over_top_k_when_all_go_to_the_same() -> None:
    scores = torch.full((2, 5, 8), 1e-9)
    scores[..., 3:5] = 0.7
    assert sequence_balance_loss(scores, 2).item() == pytest.approx(8 / 2, rel=1e-5)


def test_balance_loss_is_per_sequence_and_not_per_batch() -> None:
    # Sequence 1 uses expert 0 only, sequence 2 expert 1 only. Over the batch that is even; in each sequence it is not.
    scores = torch.full((2, 4, 2), 1e-9)
    scores[0, :, 0] = scores[1, :, 1] = 0.8
    assert sequence_balance_loss(scores, 1).item() == pytest.approx(2.0, rel=1e-5)
    assert sequence_balance_loss(scores.flatten(0, 1)[None], 1).item() == pytest.approx(1.0, rel=1e-5)


def balance_gradient_error(loss: Callable[[Tensor, int], Tensor]) -> float:
    """Largest distance of d loss / d scores from that of Eq. 17 with f held constant, over its largest element."""
    batch, tokens, experts, top_k = 2, 5, 6, 2
    scores = random_scores(batch, tokens, experts).double().requires_grad_()
    chosen = torch.zeros_like(scores)
    for b in range(batch):
        for t in range(tokens):
            for i in sorted(range(experts), key=lambda j: -scores[b, t, j].item())[:top_k]:
                chosen[b, t, i] = 1
    f = experts / (top_k * tokens) * chosen.detach().sum(1)
    (expected,) = torch.autograd.grad((f * (scores / scores.sum(-1, keepdim=True)).mean(1)).sum() / batch, scores)
    value = loss(scores, top_k)
    if not value.requires_grad:
        return 1.0
    (gradient,) = torch.autograd.grad(value, scores)
    return ((gradient - expected).abs().max() / expected.abs().max()).item()


def test_gradient_flows_through_the_affinities_only() -> None:
    assert balance_gradient_error(sequence_balance_loss) < 1e-6


def test_a_step_against_the_gradient_evens_out_the_choices() -> None:
    # All tokens prefer experts 0 and 1 a little; following the gradient must take preference away from them.
    logits = torch.zeros(1, 16, 6)
    logits[..., :2] = 0.3
    logits += 0.2 * torch.randn(1, 16, 6, generator=torch.Generator().manual_seed(0))
    before = sequence_balance_loss(logits.sigmoid(), 2)
    for _ in range(30):
        logits.requires_grad_()
        (gradient,) = torch.autograd.grad(sequence_balance_loss(logits.sigmoid(), 2), logits)
        logits = (logits - 2.0 * gradient).detach()
    assert before > 1.035 and sequence_balance_loss(logits.sigmoid(), 2) < 1.01


def test_the_model_reports_the_sum_over_layers_of_unbiased_top_k() -> None:
    # D7: Eq. 18 counts the top-K of the plain scores, although the bias routes elsewhere.
    model = DeepSeekV3(small_config(num_nextn_predict_layers=2))
    randomise(model, 12, bias="random")
    tokens = random_tokens(model.cfg)
    out = model(tokens, tokens, record_routing=True)
    literal = sum(literal_balance_loss(rows, 3) for record in out.routing for rows in record.scores.tolist()) / 2
    assert len(out.routing) == 4 and out.losses["balance"].item() == pytest.approx(literal, rel=1e-5)
    top = [record.scores.topk(3).indices.sort(-1).values for record in out.routing]
    assert any((t != record.ids.sort(-1).values).any() for t, record in zip(top, out.routing))  # the bias did matter


def test_the_models_balance_loss_reaches_the_routers() -> None:
    model = DeepSeekV3(small_config())
    randomise(model, 12)
    tokens = random_tokens(model.cfg)
    model(tokens, tokens).losses["balance"].backward()
    assert all(router.weight.grad.abs().max() > 1e-5 for router in model.routers)


# The batch-wise loss, §4.5.3


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(2, 6), st.integers(0, 10**6), st.data())
def test_batch_loss_is_the_literal_loop_over_all_tokens(
    batch: int, tokens: int, experts: int, seed: int, data: st.DataObject
) -> None:
    top_k, scores = data.draw(st.integers(1, experts)), random_scores(batch, tokens, experts, seed)
    everything = [row for rows in scores.tolist() for row in rows]
    assert batch_balance_loss(scores, top_k).item() == pytest.approx(literal_balance_loss(everything, top_k), rel=1e-5)


def test_batch_loss_allows_sequences_that_differ_and_sequence_loss_does_not() -> None:
    # Sequence 1 goes to expert 0 only, sequence 2 to expert 1 only: even over the batch, uneven in each of them.
    scores = torch.full((2, 4, 2), 1e-9)
    scores[0, :, 0] = scores[1, :, 1] = 0.8
    assert batch_balance_loss(scores, 1).item() == pytest.approx(1.0, rel=1e-5)
    assert sequence_balance_loss(scores, 1).item() == pytest.approx(2.0, rel=1e-5)
    # All on one expert: both see it.
    scores = torch.full((2, 4, 2), 1e-9)
    scores[..., 0] = 0.8
    assert batch_balance_loss(scores, 1).item() == sequence_balance_loss(scores, 1).item() == pytest.approx(2.0)


def batch_gradient_error(loss: Callable[[Tensor, int], Tensor]) -> float:
    """Largest distance of d loss / d scores from that of Eq. 17 over all tokens, f held constant, over its largest."""
    batch, tokens, experts, top_k = 3, 4, 6, 2
    scores = random_scores(batch, tokens, experts).double().requires_grad_()
    rows = scores.flatten(0, 1)
    chosen = torch.zeros_like(rows)
    for t, row in enumerate(rows.tolist()):
        for i in sorted(range(experts), key=lambda j: -row[j])[:top_k]:
            chosen[t, i] = 1
    f = experts / (top_k * batch * tokens) * chosen.sum(0)
    (expected,) = torch.autograd.grad((f * (rows / rows.sum(-1, keepdim=True)).mean(0)).sum(), scores)
    value = loss(scores, top_k)
    if not value.requires_grad:
        return 1.0
    (gradient,) = torch.autograd.grad(value, scores)
    return ((gradient - expected).abs().max() / expected.abs().max()).item()


def test_gradient_of_the_batch_loss_flows_through_the_affinities_only() -> None:
    assert batch_gradient_error(batch_balance_loss) < 1e-6


def test_the_model_reports_the_batch_loss_summed_over_layers_and_only_when_it_is_on() -> None:
    model = DeepSeekV3(small_config(batch_balance_loss_alpha=0.1, balance_loss_alpha=0.0, num_nextn_predict_layers=1))
    randomise(model, 12, bias="random")
    tokens = random_tokens(model.cfg)
    out = model(tokens, tokens, record_routing=True)
    literal = sum(
        literal_balance_loss(record.scores.flatten(0, 1).tolist(), model.cfg.num_experts_per_tok)
        for record in out.routing
    )
    assert "balance" not in out.losses and out.losses["batch_balance"].item() == pytest.approx(literal, rel=1e-5)
    out.losses["batch_balance"].backward()
    assert all(router.weight.grad.abs().max() > 1e-6 for router in model.routers)
    assert "batch_balance" not in DeepSeekV3(small_config())(tokens, tokens).losses


# The bias update


def routers(layers: int, experts: int) -> list[Router]:
    return [Router(small_config(n_routed_experts=experts, n_group=1, topk_group=1, num_experts_per_tok=1))
            for _ in range(layers)]  # fmt: skip


def bias_update_error(update: Callable[[list[Router], Tensor, float], None]) -> float:
    """Largest distance from b_i + speed * sign(mean - c_i), worked out by hand."""
    ours = routers(3, 4)
    ours[1].e_score_correction_bias += 1.0
    # Mean load 5. Layer 1: over, under, exactly at the mean, over. Layer 2: everything on one expert. Layer 3, an MTP
    # module, saw fewer tokens: its mean is 4.
    update(ours, torch.tensor([[7, 1, 5, 7], [0, 0, 20, 0], [4, 4, 5, 3]]), 0.25)
    expected = torch.tensor([[-0.25, 0.25, 0.0, -0.25], [1.25, 1.25, 0.75, 1.25], [0.0, 0.0, -0.25, 0.25]])
    return (torch.stack([r.e_score_correction_bias for r in ours]) - expected).abs().max().item()


def test_overloaded_experts_go_down_underloaded_up_and_the_mean_stays() -> None:
    assert bias_update_error(update_routing_bias) == 0.0


def test_only_the_sign_of_the_load_counts() -> None:
    small, large = routers(1, 4), routers(1, 4)
    update_routing_bias(small, torch.tensor([[11, 10, 10, 9]]), 0.001)
    update_routing_bias(large, torch.tensor([[4000, 10, 10, 0]]), 0.001)
    assert torch.equal(small[0].e_score_correction_bias.sign(), torch.tensor([-1.0, 0.0, 0.0, 1.0]))
    # The mean of the second is 1005: all but the first are underloaded, and each moves by the same 0.001.
    torch.testing.assert_close(large[0].e_score_correction_bias, torch.tensor([-0.001, 0.001, 0.001, 0.001]))


def test_counts_of_micro_batches_are_summed_before_the_one_update() -> None:
    # Expert 0 is over in two micro-batches of three, but under in the sum: one update of the sum must raise it.
    micro = torch.tensor([[[6, 4]], [[6, 4]], [[0, 10]]])
    once = routers(1, 2)
    update_routing_bias(once, micro.sum(0), 0.1)
    torch.testing.assert_close(once[0].e_score_correction_bias, torch.tensor([0.1, -0.1]))
    each = routers(1, 2)
    for counts in micro:
        update_routing_bias(each, counts, 0.1)
    assert each[0].e_score_correction_bias[0] < 0  # what would have come out instead


def test_speed_zero_changes_nothing() -> None:
    ours = routers(1, 4)
    update_routing_bias(ours, torch.tensor([[9, 0, 0, 3]]), 0.0)
    assert not ours[0].e_score_correction_bias.any()


def test_a_row_of_counts_too_few_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        update_routing_bias(routers(2, 4), torch.ones(1, 4), 0.1)


def test_small_steps_next_to_large_biases_survive_in_a_bf16_model() -> None:
    router = routers(1, 4)[0].to(torch.bfloat16)
    router.e_score_correction_bias += 2.02
    for _ in range(10):
        update_routing_bias([router], torch.tensor([[9, 1, 1, 1]]), 0.001)
    torch.testing.assert_close(router.e_score_correction_bias, torch.tensor([2.01, 2.03, 2.03, 2.03]))


@torch.no_grad()
def test_updates_over_many_steps_spread_a_skewed_load() -> None:
    cfg = small_config(n_routed_experts=8, n_group=1, topk_group=1, num_experts_per_tok=2)
    router, generator = Router(cfg), torch.Generator().manual_seed(0)
    router.weight.normal_(0, 0.2, generator=generator)
    x = torch.randn(400, 32, generator=generator) + 1.0  # a common direction, so that some experts please everybody
    before = max_violation(router(x).counts[None]).item()
    for _ in range(60):
        update_routing_bias([router], router(x).counts[None], 0.01)
    after = max_violation(router(x).counts[None]).item()
    assert before > 1.0 and after < 0.15  # measured: 1.28 and 0.06


# Counting


def counts_and_bias(model: DeepSeekV3, tokens: Tensor) -> tuple[Tensor, Tensor]:
    out = model(tokens, tokens)
    (out.losses["main"] + out.losses["mtp"]).backward()
    return out.expert_counts, torch.stack([r.e_score_correction_bias.clone() for r in model.routers])


def test_counts_sum_to_tokens_times_top_k_and_follow_the_record() -> None:
    cfg = small_config(num_nextn_predict_layers=2)
    model = DeepSeekV3(cfg)
    randomise(model, cfg.kv_lora_rank)
    tokens = random_tokens(cfg, batch=3, length=17)
    out = model(tokens, tokens, record_routing=True)
    # Two MoE layers over 17 tokens, then module k over 17 - k.
    assert out.expert_counts.sum(-1).tolist() == [3 * n * 3 for n in (17, 17, 16, 15)]
    assert out.expert_counts.shape == (cfg.num_moe_layers, 8) == (len(model.routers), 8)
    assert out.expert_counts.dtype == torch.int64
    for counts, record in zip(out.expert_counts, out.routing):
        assert torch.equal(counts, torch.bincount(record.ids.flatten(), minlength=8))


class Recomputed(nn.Module):
    """A layer whose activations are thrown away and computed again in the backward pass."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.calls = layer, 0

    def forward(self, *args: object) -> object:
        def run(*inner: object) -> object:
            self.calls += 1
            return self.layer(*inner)

        return checkpoint(run, *args, use_reentrant=False)


def test_activation_recomputation_does_not_count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = small_config()
    tokens = random_tokens(cfg)
    plain, recomputed = DeepSeekV3(cfg), DeepSeekV3(cfg)
    for model in (plain, recomputed):
        randomise(model, cfg.kv_lora_rank)
    layers = [Recomputed(layer) for layer in recomputed.main_layers]
    monkeypatch.setattr(
        DeepSeekV3, "main_layers", property(lambda m: layers if m is recomputed else m.model.layers[:3])
    )
    expected, actual = counts_and_bias(plain, tokens), counts_and_bias(recomputed, tokens)
    assert all(layer.calls == 2 for layer in layers)  # forward, and again in backward
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])
    for (name, p), (_, q) in zip(plain.named_parameters(), recomputed.named_parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_a_forward_pass_alone_never_moves_the_bias() -> None:
    model = DeepSeekV3(small_config()).train()
    randomise(model, 12)
    before = [r.e_score_correction_bias.clone() for r in model.routers]
    counts_and_bias(model, random_tokens(model.cfg))
    assert all(torch.equal(r.e_score_correction_bias, b) for r, b in zip(model.routers, before))


# MaxVio


def test_max_violation_by_hand() -> None:
    # Mean 2: the most loaded has 5, 150 % too much. Even: 0. All on one of four: 3. Nothing routed: 0, not NaN.
    counts = torch.tensor([[5, 1, 1, 1], [2, 2, 2, 2], [0, 8, 0, 0], [0, 0, 0, 0]])
    assert max_violation(counts).tolist() == pytest.approx([1.5, 0.0, 3.0, 0.0])


def test_max_violation_of_large_counts_stays_exact() -> None:
    # 60 million tokens a step: fp32 sums of ones would stop at 16.8 million.
    counts = torch.full((1, 8), 60_000_000)
    counts[0, 3] = 90_000_000
    assert max_violation(counts).item() == pytest.approx(90 / (510 / 8) - 1, rel=1e-5)
