"""Four ways to balance: what each sets, and that the losses of the two auxiliary ways balance over their own scope."""

from __future__ import annotations

import pytest
import torch

from dsv3_mini.errors import InputError
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.balance_ways import LOSS_ALPHA, WAYS, balanced
from dsv3_mini.train.optimizer import build_optimizer
from dsv3_mini.train.schedule import StepSettings
from dsv3_mini.train.step import train_step

SETTINGS = StepSettings(progress=0.0, start=0, sequences=6, lr=1e-2, mtp_weight=0.3, bias_speed=0.0)


def test_each_way_sets_one_balance_and_switches_the_others_off(tiny_run):
    # (sequence-wise, batch-wise, speed of the bias); the tiny run has a speed of its own, 0.01.
    expected = {
        "none": (0.0, 0.0, 0.0),
        "sequence": (LOSS_ALPHA, 0.0, 0.0),
        "batch": (0.0, LOSS_ALPHA, 0.0),
        "bias": (1e-4, 0.0, 0.02),
    }
    assert set(expected) == set(WAYS)
    for way, values in expected.items():
        cfg = balanced(tiny_run(micro_batch_tokens=64), way, speed=0.02).resolved()
        found = cfg.model.balance_loss_alpha, cfg.model.batch_balance_loss_alpha, cfg.bias_update_speed
        assert found == values, way


def test_the_speed_of_the_bias_is_the_runs_unless_given(tiny_run):
    cfg = tiny_run(micro_batch_tokens=64, bias_update_speed=0.03)
    assert balanced(cfg, "bias").bias_update_speed == 0.03
    assert balanced(cfg, "batch", alpha=0.5).model.batch_balance_loss_alpha == 0.5


def test_an_unknown_way_is_answered_with_the_known_ones(tiny_run):
    with pytest.raises(InputError, match=r"way = 'magic'.*none, sequence, batch, bias"):
        balanced(tiny_run(), "magic")


def test_the_batch_wise_loss_wants_the_batch_in_one_piece(tiny_run):
    with pytest.raises(InputError, match=r"micro_batch_tokens = 32.*at least batch_tokens = 64"):
        balanced(tiny_run(micro_batch_tokens=32), "batch")


@pytest.mark.parametrize("name", ["balance", "batch_balance"])
def test_the_losses_enter_the_total_and_reach_the_router_and_nothing_when_off(tiny_model, name):
    off = tiny_model.replace(balance_loss_alpha=0.0)
    on = off.replace(**{f"{name}_loss_alpha": 0.5})

    def step(cfg):
        torch.manual_seed(0)
        model = DeepSeekV3(cfg).train()
        tokens = torch.randint(5, 320, (6, 17))
        result = train_step(
            model, build_optimizer(model, 1e-2), tokens[:, :-1], tokens[:, 1:], SETTINGS, micro_sequences=6
        )
        return result.losses, model.model.layers[1].mlp.gate.weight.grad

    (without, plain), (losses, pulled) = step(off), step(on)
    assert set(without) == {"main", "mtp", "total"} and set(losses) == {"main", "mtp", "total", name}
    assert losses["total"] == pytest.approx(without["total"] + 0.5 * losses[name], rel=1e-5)
    assert not torch.allclose(plain, pulled)
