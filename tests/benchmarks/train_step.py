"""Forward, backward and AdamW on one batch, ours against transformers'. No MTP, which theirs does not train.

Three comparisons in one process: in fp32; with matrix products in bf16 where the processor has them; and in fp32 with
the C library told to keep freed memory (`train.memory`), as `train` does. The last helps theirs as well, and more: who
frees more gains more by keeping it. `as_trained` is what a user sees: our step as `train` runs it, against theirs as it
comes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3_mini import ModelConfig
from dsv3_mini.train.device import autocast, has_fast_bf16
from dsv3_mini.train.memory import keep_freed_memory
from tests.benchmarks.pair import build_pair
from tests.benchmarks.run import Timed, alternate, clocked

SEQUENCES, LENGTH = 8, 256


def run(rounds: int) -> dict[str, Any]:
    """Training step of a nano-size model in fp32 (and bf16), 8 sequences of 256 tokens."""
    cfg = ModelConfig.preset("nano", num_nextn_predict_layers=0)
    fp32 = compare(cfg, "fp32", rounds)
    bf16 = compare(cfg, "bf16", rounds) if has_fast_bf16(torch.device("cpu")) else None
    kept = compare(cfg, "fp32", rounds) if keep_freed_memory() else None
    return {
        **fp32,
        "compared": "training step (forward, backward, fused AdamW), fp32, equal weights, against transformers "
        "(sdpa attention, grouped_mm experts)",
        "batch": [SEQUENCES, LENGTH],
        "preset": "nano without MTP",
        "clock": "processor time" if torch.get_num_threads() == 1 else "wall clock",
        "our_tokens_per_second": round(SEQUENCES * LENGTH / fp32["ours_seconds"]),
        "bf16": bf16,
        "fp32_memory_kept": kept,
        "as_trained": kept and round(fp32["theirs_seconds"] / kept["ours_seconds"], 3),
    }


def compare(cfg: ModelConfig, precision: str, rounds: int) -> dict[str, Any]:
    """Both sides in turn, with fresh models of equal weights."""
    print(f"{precision}:", file=sys.stderr)
    ours, theirs = build_pair(cfg)
    tokens = torch.randint(0, cfg.vocab_size, (SEQUENCES, LENGTH + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def our_loss() -> Tensor:
        losses = ours(inputs, targets, keep_logits=False).losses
        return losses["main"] + cfg.balance_loss_alpha * losses["balance"]  # theirs has no balance loss to compute

    def their_loss() -> Tensor:
        return F.cross_entropy(theirs(inputs).logits.flatten(0, 1).float(), targets.flatten())

    def both(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Timed:
        return clocked(step(model, loss, lambda: autocast(torch.device("cpu"), precision)))

    return alternate(both(ours, our_loss), both(theirs, their_loss), rounds)


def step(
    model: torch.nn.Module,
    loss: Callable[[], Tensor],
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Callable[[], None]:
    """One whole training step of `model`. A rate of 0 keeps the two sides equal from step to step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def work() -> None:
        with context():
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work
