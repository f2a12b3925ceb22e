"""One training step: recomputation changes what is kept, not what is learned."""

from __future__ import annotations

import pytest
import torch

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.config import TrainConfig
from dsv3_mini.train.optimizer import build_optimizer
from dsv3_mini.train.schedule import StepSettings
from dsv3_mini.train.step import train_step

SETTINGS = StepSettings(0.0, 0, 4, 1e-3, 0.3, 1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_with_recomputation_learns_the_same(tiny_model: ModelConfig, precision: str) -> None:
    tokens = torch.randint(0, tiny_model.vocab_size, (4, 17), generator=torch.Generator().manual_seed(0))
    weights, losses, norms = [], [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = DeepSeekV3(tiny_model)
        model.set_recompute(recompute)
        result = train_step(
            model, build_optimizer(model, 1e-3), tokens[:, :-1], tokens[:, 1:], SETTINGS,
            micro_sequences=2, precision=precision,
        )  # fmt: skip
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        losses.append(result.losses["total"])
        norms.append(result.grad_norm)
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    assert losses[1] == pytest.approx(losses[0], rel=tolerance) and norms[1] == pytest.approx(norms[0], rel=tolerance)
    # AdamW's first step moves a weight by the sign of its gradient: a gradient near 0 may go either way.
    assert ((weights[0] - weights[1]).abs() > 1e-4).float().mean() < (0.001 if precision == "fp32" else 0.05)


def test_recompute_must_be_yes_or_no(tmp_path) -> None:
    with pytest.raises(InputError, match=r"recompute = 'norms'.*True or False"):
        TrainConfig(out=tmp_path, recompute="norms")
