"""Forward, backward and AdamW on one batch, ours against transformers'. No MTP, which theirs does not train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3_mini import ModelConfig
from tests.benchmarks.pair import build_pair
from tests.benchmarks.run import alternate, timed

SEQUENCES, LENGTH = 8, 256


def run(rounds: int) -> dict[str, Any]:
    """Training step of a nano-size model in fp32, 8 sequences of 256 tokens."""
    cfg = ModelConfig.preset("nano", num_nextn_predict_layers=0)
    ours, theirs = build_pair(cfg)
    tokens = torch.randint(0, cfg.vocab_size, (SEQUENCES, LENGTH + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def our_loss() -> Tensor:
        losses = ours(inputs, targets, keep_logits=False).losses
        return losses["main"] + cfg.balance_loss_alpha * losses["balance"]  # theirs has no balance loss to compute

    def their_loss() -> Tensor:
        return F.cross_entropy(theirs(inputs).logits.flatten(0, 1), targets.flatten())

    result = alternate(timed(step(ours, our_loss)), timed(step(theirs, their_loss)), rounds)
    return {
        **result,
        "compared": "training step (forward, backward, fused AdamW), fp32, equal weights, against transformers "
        "(sdpa attention, grouped_mm experts)",
        "batch": [SEQUENCES, LENGTH],
        "preset": "nano without MTP",
        "our_tokens_per_second": round(SEQUENCES * LENGTH / result["ours_seconds"]),
    }


def step(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One whole training step of `model`. A rate of 0 keeps the two sides equal from step to step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def work() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return work
