"""Does the parity suite notice? Each plausible mistake, put into our model, must show in the other tests' comparisons.

Every mutation here is a mistake that runs: found in public re-implementations, or easily made. The yardstick is that of
`test_parity`: `logits_distance` against `transformers`, tolerance 2e-5. A mutation that cost less than that would mean
that the parity tests pass on a broken model.

Where a mistake amounts to other weights, it is made by changing weights: swapping the halves of `eh_proj` *is* the
other concatenation order. That way a mutation cannot miss its target when code moves. The rest replaces one method by
the version of `literal.py` with one mistake switched on; without a mistake that version passes (`test_controls`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_mini.generate.cache import LatentCache
from dsv3_mini.model.balance import batch_balance_loss, sequence_balance_loss, update_routing_bias
from dsv3_mini.model.mla import MLA
from dsv3_mini.model.rope import apply_rope
from dsv3_mini.model.router import Router
from dsv3_mini.model.transformer import DeepSeekV3

from . import test_parity
from .literal import literal_mla, literal_router
from .reference import (
    LOGITS_TOLERANCE,
    Pair,
    gradient_distances,
    hf_forward,
    logits_distance,
    make_pair,
    max_diff,
    random_tokens,
    small_config,
    small_yarn,
)
from .test_balance import balance_gradient_error, batch_gradient_error, bias_update_error
from .test_mtp import literal_losses, make_model
from .test_parity import cached_logits

Patch = pytest.MonkeyPatch
Mutation = Callable[[Pair, Patch], Any]


def the_pair(bias: str = "negative") -> Pair:
    """Everything switched on: YaRN, groups, two MTP modules, two shared experts."""
    cfg = small_config(rope_scaling=small_yarn(factor=40.0), num_nextn_predict_layers=2, n_shared_experts=2)
    return make_pair(cfg, seed=11, bias=bias)


def attentions(pair: Pair) -> list[MLA]:
    return [layer.self_attn for layer in pair.ours.model.layers]


# Mistakes that are other weights


def wrong_latent_eps(pair: Pair, patch: Patch) -> None:
    for mla in attentions(pair):
        mla.q_a_layernorm.eps = mla.kv_a_layernorm.eps = pair.cfg.rms_norm_eps


def half_split_rope(pair: Pair, patch: Patch) -> None:
    """Turning (x_j, x_{j+R/2}) is turning neighbours after the rows have been dealt out like cards."""
    cfg = pair.cfg
    dealt = torch.arange(cfg.qk_rope_head_dim).view(2, -1).T.flatten()
    for mla in attentions(pair):
        query = mla.q_b_proj.weight.data.view(cfg.num_attention_heads, cfg.qk_head_dim, -1)
        query[:, cfg.qk_nope_head_dim :] = query[:, cfg.qk_nope_head_dim + dealt]
        key = mla.kv_a_proj_with_mqa.weight.data
        key[cfg.kv_lora_rank :] = key[cfg.kv_lora_rank + dealt]


def mscale_on_cos_and_sin(pair: Pair, patch: Patch) -> None:
    """mscale in cos and sin reaches the rotary part of the scores only: the content part is mscale^2 too small."""
    cfg = pair.cfg
    mscale = 0.1 * math.log(cfg.rope_scaling.factor) + 1
    for mla in attentions(pair):
        query = mla.q_b_proj.weight.data.view(cfg.num_attention_heads, cfg.qk_head_dim, -1)
        query[:, : cfg.qk_nope_head_dim] /= mscale**2


def no_mscale(pair: Pair, patch: Patch) -> None:
    for mla in attentions(pair):
        mla.q_b_proj.weight.data /= (0.1 * math.log(pair.cfg.rope_scaling.factor) + 1) ** 2


def swapped_gate_and_up(pair: Pair, patch: Patch) -> None:
    for module in pair.ours.modules():
        if hasattr(module, "gate_up_proj"):
            module.gate_up_proj.data = module.gate_up_proj.data.roll(pair.cfg.moe_intermediate_size, 1)


def scale_on_the_shared_experts_too(pair: Pair, patch: Patch) -> None:
    for layer in pair.ours.model.layers:
        if hasattr(layer.mlp, "shared_experts"):
            layer.mlp.shared_experts.down_proj.weight.data *= pair.cfg.routed_scaling_factor


def no_scaling_factor(pair: Pair, patch: Patch) -> None:
    for router in pair.ours.routers:
        router.scaling = 1.0


def bias_missing(pair: Pair, patch: Patch) -> None:
    for router in pair.ours.routers:
        router.e_score_correction_bias.zero_()


def swapped_eh_proj(pair: Pair, patch: Patch) -> None:
    """[hnorm(h); enorm(Emb)], the order that Eq. 21 prints (D13)."""
    for module in pair.ours.mtp_modules:
        module.eh_proj.weight.data = module.eh_proj.weight.data.roll(pair.cfg.hidden_size, 1)


def swapped_enorm_and_hnorm(pair: Pair, patch: Patch) -> None:
    for module in pair.ours.mtp_modules:
        enorm, hnorm = module.enorm.weight, module.hnorm.weight
        enorm.data, hnorm.data = hnorm.data, enorm.data


# Mistakes made on the way


def mtp_from_before_the_final_norm(pair: Pair, patch: Patch) -> None:
    seen: list[Tensor] = []
    pair.ours.model.norm.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    pair.ours.mtp_modules[0].hnorm.register_forward_pre_hook(lambda m, args: (seen[-1][:, : args[0].shape[1]],))


def mtp_chained_before_its_norm(pair: Pair, patch: Patch) -> None:
    first, second = pair.ours.mtp_modules
    seen: list[Tensor] = []
    first.shared_head.norm.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    second.hnorm.register_forward_pre_hook(lambda m, args: (seen[-1][:, : args[0].shape[1]],))


def mtp_fed_its_own_target(pair: Pair, patch: Patch) -> None:
    """Position i of depth k is given t_{i+k+1}, the very token that it has to predict."""
    for module in pair.ours.mtp_modules:
        module.enorm.register_forward_pre_hook(lambda m, args: (args[0].roll(-1, 1),))


def mtp_fed_its_own_position(pair: Pair, patch: Patch) -> None:
    """Position i of depth k is given t_{i+k-1}."""
    for module in pair.ours.mtp_modules:
        module.enorm.register_forward_pre_hook(lambda m, args: (args[0].roll(1, 1),))


def router_mistake(mistake: str) -> Mutation:
    def mutate(pair: Pair, patch: Patch) -> None:
        patch.setattr(Router, "forward", lambda self, x: literal_router(self, pair.cfg, x, {mistake}))

    return mutate


def mla_mistake(mistake: str) -> Mutation:
    def mutate(pair: Pair, patch: Patch) -> None:
        def forward(self: MLA, x: Tensor, cos: Tensor, sin: Tensor, *args: object) -> Tensor:
            return literal_mla(self, pair.cfg, x, cos, sin, {mistake}).float()

        patch.setattr(MLA, "forward", forward)

    return mutate


# What each mistake costs in main logits and in MTP logits, as measured with `the_pair`; 0: it cannot show there.
MUTATIONS: dict[str, tuple[Mutation, float, float]] = {
    # Attention
    "epsilon of the block norms in the latent norms": (wrong_latent_eps, 5.3e-4, 9.6e-4),
    "half-split instead of interleaved RoPE": (half_split_rope, 2.7, 2.9),
    "mscale on cos and sin instead of the softmax scale": (mscale_on_cos_and_sin, 2.3, 3.9),
    "no mscale at all": (no_mscale, 3.4, 2.5),
    "softmax scale of the content width only": (mla_mistake("scale of nope only"), 1.7, 2.6),
    "rotary key per head, out of the latent": (mla_mistake("rope key per head"), 3.4, 3.9),
    "rotary key normalised": (mla_mistake("rope key normalised"), 2.9, 2.6),
    "latent not normalised": (mla_mistake("latent not normalised"), 4.3, 3.8),
    "no causal mask": (mla_mistake("no causal mask"), 4.1, 3.6),
    # Router
    "routing bias missing": (bias_missing, 2.6, 3.3),
    "routing bias subtracted": (router_mistake("bias sign"), 3.4, 3.6),
    "routing bias leaking into the gate weights": (router_mistake("bias in weights"), 2.0, 3.1),
    "routing bias forgotten in the group ranks": (router_mistake("bias not in groups"), 2.7, 3.4),
    "mask 0 instead of -inf under negative biases": (router_mistake("mask 0"), 3.5, 4.6),
    "groups ranked by their best expert": (router_mistake("group max"), 2.4, 2.7),
    "gate weights not normalised": (router_mistake("not normalised"), 2.5, 4.5),
    "every token to expert 0": (router_mistake("all to expert 0"), 4.1, 4.2),
    # Experts
    "scaling factor on the shared experts too": (scale_on_the_shared_experts_too, 2.2, 3.9),
    "scaling factor missing": (no_scaling_factor, 2.0, 2.7),
    "gate and up rows swapped": (swapped_gate_and_up, 2.8, 3.4),
    # MTP
    "projection of [h; Emb] instead of [Emb; h]": (swapped_eh_proj, 0.0, 5.1),
    "enorm and hnorm swapped": (swapped_enorm_and_hnorm, 0.0, 3.1),
    "state from before the final norm": (mtp_from_before_the_final_norm, 0.0, 1.8),
    "second module fed from before the first one's norm": (mtp_chained_before_its_norm, 0.0, 2.2),
    "module fed its own target": (mtp_fed_its_own_target, 0.0, 4.3),
    "module fed the token of its own position": (mtp_fed_its_own_position, 0.0, 5.5),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_parity_of_logits_notices(name: str, monkeypatch: Patch) -> None:
    mutate, main_cost, mtp_cost = MUTATIONS[name]
    pair = the_pair()
    with torch.no_grad():
        mutate(pair, monkeypatch)
    main, mtp = logits_distance(pair, random_tokens(pair.cfg))
    assert (main > LOGITS_TOLERANCE) == (main_cost > 0) and mtp > LOGITS_TOLERANCE
    # And it stays as visible as it was: a pair that hides a mistake would no longer be a sharp test.
    assert main >= main_cost / 2 and mtp >= mtp_cost / 2


@pytest.mark.parametrize("control", [None, router_mistake("none"), mla_mistake("none")], ids=["as is", "router", "mla"])
def test_controls(control: Mutation | None, monkeypatch: Patch) -> None:
    # The literal versions without a mistake pass: what the mutations cost is the mistake and not the replacement.
    pair = the_pair()
    if control is not None:
        control(pair, monkeypatch)
    assert max(logits_distance(pair, random_tokens(pair.cfg))) <= LOGITS_TOLERANCE


# Decoding


def positions_restart(pair: Pair, patch: Patch) -> None:
    begin = LatentCache.begin
    patch.setattr(LatentCache, "begin", lambda self, new, **more: begin(self, new, **more) * 0 + torch.arange(new))


def verify_without_mask(pair: Pair, patch: Patch) -> None:
    """Several new tokens that all see each other: right for single steps, wrong for verifying drafts."""
    begin = LatentCache.begin

    def broken(self: LatentCache, new: int, **more: int) -> Tensor:
        positions = begin(self, new, **more)
        self.hidden = None
        return positions

    patch.setattr(LatentCache, "begin", broken)


def cache_before_the_norm(pair: Pair, patch: Patch) -> None:
    def compress(self: MLA, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        latent, k_pe = self.kv_a_proj_with_mqa(x).split((self.latent_dim, self.rope_dim), dim=-1)
        return latent, apply_rope(k_pe.unsqueeze(-2), cos, sin).squeeze(-2)

    patch.setattr(MLA, "compress", compress)


def cached_key_not_rotated(pair: Pair, patch: Patch) -> None:
    def compress(self: MLA, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        latent, k_pe = self.kv_a_proj_with_mqa(x).split((self.latent_dim, self.rope_dim), dim=-1)
        return self.kv_a_layernorm(latent), k_pe

    patch.setattr(MLA, "compress", compress)


@torch.no_grad()
@pytest.mark.parametrize(
    ("mutate", "chunks", "cost"),
    [
        (positions_restart, [11] + [1] * 12, 2.7),
        (verify_without_mask, [9, 3, 1, 4, 2, 4], 2.7),
        (cache_before_the_norm, [11] + [1] * 12, 4.3),
        (cached_key_not_rotated, [11] + [1] * 12, 3.6),
    ],
)
def test_parity_of_decoding_notices(mutate: Mutation, chunks: list[int], cost: float, monkeypatch: Patch) -> None:
    pair, tokens = the_pair(), random_tokens(the_pair().cfg)
    mutate(pair, monkeypatch)
    assert max_diff(cached_logits(pair, tokens, chunks), hf_forward(pair, tokens)[0]) >= cost / 2


@torch.no_grad()
def test_losslessness_notices_a_forgotten_crop(monkeypatch: Patch) -> None:
    monkeypatch.setattr(LatentCache, "crop", lambda self, lengths: None)
    with pytest.raises(AssertionError):
        test_parity.test_rejected_drafts_leave_no_trace()


# Gradients: the forward pass is right, the backward pass is not.


def gates_detached(pair: Pair, patch: Patch) -> None:
    original = Router.gate_weights
    patch.setattr(Router, "gate_weights", lambda self, scores, ids: original(self, scores.detach(), ids))


def mtp_embedding_detached(pair: Pair, patch: Patch) -> None:
    for module in pair.ours.mtp_modules:
        module.enorm.register_forward_pre_hook(lambda m, args: (args[0].detach(),))


def mtp_state_detached(pair: Pair, patch: Patch) -> None:
    for module in pair.ours.mtp_modules:
        module.hnorm.register_forward_pre_hook(lambda m, args: (args[0].detach(),))


@pytest.mark.parametrize(
    ("mutate", "parameter"),
    [
        (gates_detached, "model.layers.1.mlp.gate.weight"),
        (mtp_embedding_detached, "model.embed_tokens.weight"),
        (mtp_state_detached, "model.norm.weight"),
    ],
)
def test_parity_of_gradients_notices(mutate: Mutation, parameter: str, monkeypatch: Patch) -> None:
    pair = the_pair()
    mutate(pair, monkeypatch)
    tokens = random_tokens(pair.cfg)
    assert max(logits_distance(pair, tokens)) <= LOGITS_TOLERANCE  # nothing to see in the forward pass
    assert gradient_distances(pair, tokens)[parameter] > 0.1


# Losses and the bias update, measured by the functions that `test_balance` and `test_mtp` assert with


@pytest.mark.parametrize(
    "mistake",
    [
        lambda scores, k: sequence_balance_loss(scores, k).detach(),
        lambda scores, k: sequence_balance_loss(scores.flatten(0, 1)[None], k),  # over the batch, not the sequence
        lambda scores, k: sequence_balance_loss(scores.softmax(-1), k),
        lambda scores, k: sequence_balance_loss(scores, k + 1),
        lambda scores, k: -sequence_balance_loss(scores, k),
    ],
    ids=["detached", "over the batch", "softmax", "one expert more", "wrong sign"],
)
def test_gradient_of_the_balance_loss_notices(mistake: Callable[[Tensor, int], Tensor]) -> None:
    assert balance_gradient_error(mistake) > 0.01


@pytest.mark.parametrize(
    "mistake",
    [
        lambda scores, k: batch_balance_loss(scores, k).detach(),
        sequence_balance_loss,
        lambda scores, k: sequence_balance_loss(scores.transpose(0, 1), k),  # over the batch at each position
        lambda scores, k: batch_balance_loss(scores.transpose(1, 2), k),  # over the experts instead of the tokens
        lambda scores, k: -batch_balance_loss(scores, k),
    ],
    ids=["detached", "over each sequence", "over each position", "over the experts", "wrong sign"],
)
def test_gradient_of_the_batch_loss_notices(mistake: Callable[[Tensor, int], Tensor]) -> None:
    assert batch_gradient_error(mistake) > 0.01


@pytest.mark.parametrize(
    "mistake",
    [
        lambda routers, counts, speed: update_routing_bias(routers, counts, -speed),
        lambda routers, counts, speed: update_routing_bias(routers, counts, 2 * speed),
        lambda routers, counts, speed: update_routing_bias(routers[::-1], counts, speed),
        lambda routers, counts, speed: [
            r.e_score_correction_bias.add_(speed * (c.float().mean() - c)) for r, c in zip(routers, counts)
        ],
        lambda routers, counts, speed: [
            r.e_score_correction_bias.add_(speed * torch.sign(counts.float().mean() - c))
            for r, c in zip(routers, counts)
        ],
    ],
    ids=["busy experts get busier", "twice a step", "layers mixed up", "by the error", "mean over all layers"],
)
def test_the_bias_update_test_notices(mistake: Callable[[list[Router], Tensor, float], Any]) -> None:
    assert bias_update_error(mistake) >= 0.25


@torch.no_grad()
@pytest.mark.parametrize("name", ["divided by T - k", "last token of the text", "random numbers"])
def test_the_slow_loop_of_losses_notices(name: str, monkeypatch: Patch) -> None:
    model = make_model(1)
    text = random_tokens(model.cfg, length=12)
    tokens, targets = text[:, :-1], text[:, 1:]
    original = DeepSeekV3._losses

    def broken(self: DeepSeekV3, states: list[Tensor], targets: Tensor, routings: Any) -> dict[str, Tensor]:
        losses = original(self, states, targets, routings)
        if name == "divided by T - k":  # D15: 1.6 % at T = 64, ten times the tolerance of a careless test
            losses["mtp"] = losses["mtp"] * 11 / 10
        elif name == "last token of the text":  # the module judged on t_{i+k}, which it was given
            shifted = original(self, [states[0], states[1]], targets.roll(1, 1), routings)
            losses["mtp"] = shifted["mtp"]
        else:
            losses = {key: torch.rand(()) + 4.0 for key in losses}
        return losses

    monkeypatch.setattr(DeepSeekV3, "_losses", broken)
    losses, literal = model(tokens, targets).losses, literal_losses(model, tokens, targets)
    assert abs(losses["mtp"].item() / literal["mtp"] - 1) > 1e-3
