"""One optimizer step (§4.2).

For each micro-batch: forward, loss = main + lambda * MTP + alpha * balance, backward (gradients add up; the batch-wise
balance loss is that of the micro-batch, so it wants the batch in one piece). Then clip and AdamW; and then once, with
the expert counts of all micro-batches, the routing biases (§2.1.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv3_mini.model.balance import update_routing_bias
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.device import autocast
from dsv3_mini.train.optimizer import clip_gradients, set_learning_rate
from dsv3_mini.train.schedule import StepSettings


class TrainingDiverged(RuntimeError):
    """A loss or gradient is no number any more. The message names step and batch; the last checkpoint stands."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step found."""

    losses: dict[str, float]  # unweighted by name, and "total" as it was minimised
    grad_norm: float  # before clipping
    expert_counts: Tensor  # [MoE layers, E]


def train_step(
    model: DeepSeekV3,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    settings: StepSettings,
    *,
    micro_sequences: int,
    precision: str = "fp32",
    where: str = "",
) -> StepResult:
    """One optimizer step on inputs and targets, both [sequences, T], `micro_sequences` at a time.

    Raises `TrainingDiverged` before anything is changed if the loss or the gradient is not finite.
    """
    cfg, device = model.cfg, model.lm_head.weight.device
    weights = {
        "main": 1.0,
        "mtp": settings.mtp_weight,  # Eq. 25
        "balance": cfg.balance_loss_alpha,  # Eq. 17
        "batch_balance": cfg.batch_balance_loss_alpha,
    }
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(cfg.num_moe_layers, cfg.n_routed_experts, dtype=torch.long, device=device)
    for tokens, nexts in zip(inputs.split(micro_sequences), targets.split(micro_sequences), strict=True):
        with autocast(device, precision):
            out = model(tokens.to(device, non_blocking=True), nexts.to(device, non_blocking=True), keep_logits=False)
        # All sequences are equally long, so a micro-batch weighs as much as its share of the sequences.
        share = len(tokens) / len(inputs)
        total = torch.stack([weights[name] * loss for name, loss in out.losses.items()]).sum()
        (total * share).backward()
        for name, loss in {**out.losses, "total": total}.items():
            part = loss.detach() * share
            sums[name] = sums[name] + part if name in sums else part
        counts += out.expert_counts
    grad_norm = clip_gradients(model)
    # One wait for the device, for all numbers together.
    *values, norm = torch.stack([*sums.values(), grad_norm]).tolist()
    means = dict(zip(sums, values, strict=True))
    if not all(map(math.isfinite, (*values, norm))):
        raise TrainingDiverged(_diagnosis(model, means, norm, settings, where))
    set_learning_rate(optimizer, settings.lr)
    optimizer.step()
    if settings.bias_speed:
        update_routing_bias(model.routers, counts, settings.bias_speed)
    return StepResult(means, norm, counts)


def _diagnosis(model: DeepSeekV3, losses: dict[str, float], norm: float, settings: StepSettings, where: str) -> str:
    """One message for a loss or gradient that is not finite: where, how large things are, what to try."""
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    weights, name = max((p.detach().norm().item(), n) for n, p in model.named_parameters())
    found = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    return (
        f"training stopped before {where or 'this step'} changed anything: losses {found}; gradient norm {norm:.4g}, "
        f"not finite in {len(bad)} parameters{f' (first: {bad[0]})' if bad else ''}; largest weight norm {weights:.4g} "
        f"({name}); learning rate {settings.lr:.4g}. The checkpoints so far are untouched; a lower lr may help"
    )
