"""What more experts cost at equal active parameters: the training step of one model with 16, 64 and 256 of them.

A token reads as many weights whatever the number of experts, so its time should hardly depend on it. What does grow is
the router, the memory that AdamW passes over, and the number of small products per step.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import torch

from dsv3_mini import DeepSeekV3, ModelConfig
from tests.benchmarks.run import clocked
from tests.benchmarks.train_step import step

EXPERTS = (16, 64, 256)
SEQUENCES, LENGTH = 16, 256


def run(rounds: int) -> dict[str, Any]:
    """Time per token of the training step with 16, 64 and 256 experts, equal active parameters, fp32."""
    works, parameters = {}, {}
    tokens = torch.randint(0, 4096, (SEQUENCES, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    for experts in EXPERTS:
        cfg = ModelConfig.preset("nano", n_routed_experts=experts, num_nextn_predict_layers=0)
        torch.manual_seed(0)
        model = DeepSeekV3(cfg)

        def loss(model: DeepSeekV3 = model) -> torch.Tensor:
            losses = model(tokens[:, :-1], tokens[:, 1:], keep_logits=False).losses
            return losses["main"] + model.cfg.balance_loss_alpha * losses["balance"]

        works[experts] = clocked(step(model, loss))
        parameters[experts] = model.num_parameters()
    for work in works.values():
        work()
    seconds: dict[int, list[float]] = {experts: [] for experts in EXPERTS}
    for done in range(1, rounds + 1):
        for experts, work in works.items():
            seconds[experts].append(work())
        print(
            f"  round {done}/{rounds}: " + ", ".join(f"{e}: {s[-1]:.3f} s" for e, s in seconds.items()), file=sys.stderr
        )
    medians = {experts: statistics.median(times) for experts, times in seconds.items()}
    first, last = EXPERTS[0], EXPERTS[-1]
    by_round = sorted(a / b for a, b in zip(seconds[first], seconds[last], strict=True))
    return {
        "ratio": round(medians[first] / medians[last], 3),
        "spread": [round(by_round[0], 3), round(by_round[-1], 3)],
        "compared": f"training step with {first} experts against {last}, equal top-k and expert width, fp32: below 1, "
        "more experts are slower",
        "cost_of_256_over_16": round(medians[last] / medians[first], 3),
        "microseconds_per_token": {str(e): round(1e6 * s / (SEQUENCES * LENGTH), 1) for e, s in medians.items()},
        "parameters": {str(e): n for e, n in parameters.items()},
        "batch": [SEQUENCES, LENGTH],
        "preset": "nano without MTP, n_routed_experts varied",
        "clock": "processor time" if torch.get_num_threads() == 1 else "wall clock",
        "rounds": rounds,
    }
