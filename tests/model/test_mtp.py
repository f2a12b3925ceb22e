"""Multi-token prediction: which token predicts which, Eq. 21-25 step by step, and what is shared."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3_mini.generate.cache import LatentCache
from dsv3_mini.model.transformer import DeepSeekV3

from .reference import random_tokens, randomise, small_config


def make_model(depth: int = 2, seed: int = 0, **changes: object) -> DeepSeekV3:
    model = DeepSeekV3(small_config(num_nextn_predict_layers=depth, **changes)).eval()
    randomise(model, model.cfg.kv_lora_rank, seed)
    return model


@torch.no_grad()
@pytest.mark.parametrize("changed", range(7))
def test_worked_example_of_seven_tokens_who_sees_whom(changed: int) -> None:
    """Seven tokens t_0 .. t_6. Depth 1 at position i has seen t_0 .. t_{i+1} and predicts t_{i+2}; depth 2 one later.

    Replacing t_j must therefore reach depth k from position j - k on, and no position before.
    """
    model = make_model(depth=2)
    tokens = random_tokens(model.cfg, batch=1, length=7)
    other = tokens.clone()
    other[0, changed] = (other[0, changed] + 1) % model.cfg.vocab_size
    one, two = model(tokens), model(other)
    main = (one.logits - two.logits).abs().amax((0, 2))
    assert (main[:changed] < 1e-5).all() and (main[changed:] > 1e-4).all()
    for k in (1, 2):
        difference = (one.mtp_logits[k - 1] - two.mtp_logits[k - 1]).abs().amax((0, 2))
        assert difference.shape == (7 - k,)
        first = max(changed - k, 0)
        assert (difference[:first] < 1e-5).all() and (difference[first:] > 1e-4).all()


def literal_losses(model: DeepSeekV3, tokens: Tensor, targets: Tensor) -> dict[str, float]:
    """Main loss and Eq. 24-25 without lambda, one position after the other, from the logits."""
    out, length = model(tokens), tokens.shape[1]
    main, by_depth = 0.0, []
    for b in range(tokens.shape[0]):
        for i in range(length):
            main -= out.logits[b, i].double().log_softmax(-1)[targets[b, i]].item()
    for k, logits in enumerate(out.mtp_logits, start=1):
        total = 0.0
        for b in range(tokens.shape[0]):
            for i in range(length - k):  # position i of depth k predicts t_{i+k+1}, which is target i + k
                total -= logits[b, i].double().log_softmax(-1)[targets[b, i + k]].item()
        by_depth.append(total / (tokens.shape[0] * length))  # by T, not by T - k (D15)
    return {"main": main / tokens.numel(), "mtp": sum(by_depth) / max(len(by_depth), 1)}


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_losses_equal_the_slow_loop(depth: int) -> None:
    model = make_model(depth)
    text = random_tokens(model.cfg, length=12)
    tokens, targets = text[:, :-1], text[:, 1:]
    losses, literal = model(tokens, targets).losses, literal_losses(model, tokens, targets)
    assert losses["main"].item() == pytest.approx(literal["main"], rel=1e-5)
    assert losses["mtp"].item() == pytest.approx(literal["mtp"], rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2])
def test_a_module_that_knows_nothing_costs_log_v_times_its_share_of_positions(depth: int) -> None:
    # A head of zeros: all tokens equally likely, -log p = ln 61 each. Eq. 24 sums T - k of them and divides by T.
    model = make_model(depth)
    model.lm_head.weight.zero_()
    tokens = random_tokens(model.cfg, length=10)
    share = sum((10 - k) / 10 for k in range(1, depth + 1)) / depth
    losses = model(tokens, tokens).losses
    assert losses["mtp"].item() == pytest.approx(math.log(61) * share, rel=1e-5)
    assert losses["main"].item() == pytest.approx(math.log(61), rel=1e-5)


@torch.no_grad()
def test_ignored_targets_count_for_nothing() -> None:
    model = make_model(1)
    model.lm_head.weight.zero_()
    tokens = random_tokens(model.cfg, batch=1, length=10)
    targets = tokens.clone()
    targets[0, [0, 4, 5]] = -100
    losses = model(tokens, targets).losses
    assert losses["main"].item() == pytest.approx(math.log(61), rel=1e-5)
    # Depth 1 reads targets 1..9, of which 4 and 5 are ignored: 7 terms over the 7 counted targets.
    assert losses["mtp"].item() == pytest.approx(math.log(61) * 7 / 7, rel=1e-5)
    other = targets.clone()
    other[0, 3] = -100
    assert model(tokens, other).losses["mtp"].item() == pytest.approx(math.log(61) * 6 / 6, rel=1e-5)
    first_kept = tokens.clone()  # nothing ignored: 9 of 10
    assert model(tokens, first_kept).losses["mtp"].item() == pytest.approx(math.log(61) * 9 / 10, rel=1e-5)


@torch.no_grad()
def test_chain_step_by_step() -> None:
    """Eq. 21-23 from the parts: [enorm(Emb(t_{i+k})); hnorm(h)], projection, block, norm, the main model's head.

    h is the main model's state after its final norm, then the state after the module's own norm (D13, D14).
    """
    model = make_model(2)
    tokens = random_tokens(model.cfg, length=9)
    out = model(tokens)
    previous = out.hidden
    torch.testing.assert_close(model.lm_head(previous), out.logits, atol=0, rtol=0)
    for k, module in enumerate(model.mtp_modules, start=1):
        embedded = model.model.embed_tokens(tokens[:, k:])
        joined = torch.cat((module.enorm(embedded), module.hnorm(previous[:, : 9 - k])), dim=-1)
        cos, sin = model.model.rotary(torch.arange(9 - k))
        state, _ = module(F.linear(joined, module.eh_proj.weight), cos, sin)
        previous = module.shared_head.norm(state)
        expected = F.linear(previous, model.lm_head.weight)
        torch.testing.assert_close(out.mtp_logits[k - 1], expected, atol=3e-6, rtol=1e-5)


@torch.no_grad()
def test_the_main_model_does_not_notice_its_mtp_modules() -> None:
    model = make_model(2)
    tokens = random_tokens(model.cfg)
    with_mtp, without = model(tokens, tokens), model(tokens, tokens, mtp=False)
    assert torch.equal(with_mtp.logits, without.logits) and torch.equal(with_mtp.hidden, without.hidden)
    assert without.mtp_logits == [] and "mtp" not in without.losses
    assert torch.equal(with_mtp.losses["main"], without.losses["main"])
    for module in model.mtp_modules:
        for weight in module.parameters():
            weight.normal_()
    assert torch.equal(model(tokens).logits, with_mtp.logits)


@torch.no_grad()
def test_modules_run_unless_there_is_a_cache_or_none_of_them() -> None:
    model, tokens = make_model(2), torch.arange(12)[None]
    assert [tuple(m.shape) for m in model(tokens).mtp_logits] == [(1, 11, 61), (1, 10, 61)]
    assert model(tokens, cache=LatentCache(model.cfg, 1, 12)).mtp_logits == []
    alone = make_model(0)
    out = alone(tokens, tokens)
    assert out.mtp_logits == [] and set(out.losses) == {"main", "balance"}


def test_embedding_and_head_are_shared() -> None:
    model, without = make_model(1), make_model(0)
    extra = {name: p.shape for name, p in model.state_dict().items() if name not in without.state_dict()}
    assert all(name.startswith("model.layers.3.") for name in extra)
    assert not any("embed" in name or "head.weight" in name or "head.head" in name for name in extra)
    assert tuple(extra["model.layers.3.eh_proj.weight"]) == (32, 64)
    # One MoE block, the projection and three norms, and nothing else.
    block = sum(t.numel() for name, t in without.state_dict().items() if name.startswith("model.layers.2."))
    assert sum(shape.numel() for shape in extra.values()) == block + 32 * 64 + 3 * 32
    assert model.num_parameters() - model.num_parameters(include_mtp=False) == block + 32 * 64 + 3 * 32
    assert model.num_parameters(include_mtp=False) == without.num_parameters()


def test_the_mtp_loss_trains_the_shared_parts_and_every_main_layer() -> None:
    model = make_model(1)
    tokens = random_tokens(model.cfg)
    model(tokens, tokens).losses["mtp"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_the_main_loss_leaves_the_modules_alone() -> None:
    model = make_model(1)
    tokens = random_tokens(model.cfg)
    model(tokens, tokens).losses["main"].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.mtp_modules[0].parameters())


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("grad", [True, False])
def test_texts_shorter_than_the_depth(depth: int, length: int, grad: bool) -> None:
    model = make_model(depth)
    tokens = random_tokens(model.cfg, length=length)
    with torch.set_grad_enabled(grad):
        out = model(tokens, tokens, record_routing=True)
    assert [r.ids.shape[1] for r in out.routing[2:]] == [m.shape[1] for m in out.mtp_logits]
    assert [m.shape[1] for m in out.mtp_logits] == [max(length - k, 0) for k in range(1, depth + 1)]
    assert all(torch.isfinite(loss) for loss in out.losses.values())
    if length == 1:
        assert out.losses["mtp"] == 0
    if grad:
        sum(out.losses.values()).backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("dense", [0, 3])
def test_modules_are_moe_blocks_even_behind_dense_layers(dense: int) -> None:
    model = make_model(1, first_k_dense_replace=dense)
    assert "mlp.gate.weight" in dict(model.mtp_modules[0].named_parameters())
    assert len(model.routers) == 3 - dense + 1
