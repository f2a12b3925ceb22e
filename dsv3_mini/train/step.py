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
from dsv3_mini.train.micro_batches import OneProcess
from dsv3_mini.train.optimizer import norm_of, set_learning_rate
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
    parallel: OneProcess | None = None,
) -> StepResult:
    """One optimizer step on inputs and targets, both [sequences, T], `micro_sequences` at a time.

    `parallel`: how several processes share the step; all of them call this with the same whole batch.

    Raises `TrainingDiverged` before anything is changed if the loss or the gradient is not finite.
    """
    cfg, device, parallel = model.cfg, model.lm_head.weight.device, parallel or OneProcess()
    weights = {
        "main": 1.0,
        "mtp": settings.mtp_weight,  # Eq. 25
        "balance": cfg.balance_loss_alpha,  # Eq. 17
        "batch_balance": cfg.batch_balance_loss_alpha,
    }
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(cfg.num_moe_layers, cfg.n_routed_experts, dtype=torch.long, device=device)
    for micro in parallel.split(inputs, targets, micro_sequences):
        tokens, nexts = (part.to(device, non_blocking=True) for part in (micro.inputs, micro.targets))
        with autocast(device, precision):
            out = model(tokens, nexts, keep_logits=False)
        total = torch.stack([weights[name] * loss for name, loss in out.losses.items()]).sum()
        (total * micro.weight).backward()
        for name, loss in {**out.losses, "total": total}.items():
            part = loss.detach() * micro.weight
            sums[name] = sums[name] + part if name in sums else part
        if micro.weight:
            counts += out.expert_counts
    losses = torch.stack([*sums.values()])
    parallel.add_up(losses, counts)
    grad_norm = parallel.clip_gradients(model)
    # One wait for the device, for all numbers together.
    *values, norm = torch.cat([losses, grad_norm.unsqueeze(0)]).tolist()
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
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not math.isfinite(norm_of(p.grad))]
    weights, name = max((norm_of(p), n) for n, p in model.named_parameters())
    found = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    return (
        f"training stopped before {where or 'this step'} changed anything: losses {found}; gradient norm {norm:.4g}, "
        f"not finite in {len(bad)} parameters{f' (first: {bad[0]})' if bad else ''}; largest weight norm {weights:.4g} "
        f"({name}); learning rate {settings.lr:.4g}. The checkpoints so far are untouched; a lower lr may help"
    )
