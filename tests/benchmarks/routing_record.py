"""What routing snapshots cost: training steps of the preset nano without them against steps with them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from dsv3_mini import DeepSeekV3, ModelConfig
from dsv3_mini.train.optimizer import build_optimizer
from dsv3_mini.train.routing_log import ROUTING_FILE, RoutingRecorder
from dsv3_mini.train.schedule import StepSettings
from dsv3_mini.train.step import train_step
from tests.benchmarks.run import Timed, alternate, clocked

STEPS, SEQUENCES, LENGTH = 10, 4, 256  # steps in one measurement; the batch of the preset
SETTINGS = StepSettings(progress=0.5, start=0, sequences=SEQUENCES, lr=1e-3, mtp_weight=0.3, bias_speed=0.01)


def run(rounds: int) -> dict[str, Any]:
    """Ten training steps of nano with a snapshot at every step (ours) against none (theirs)."""
    with tempfile.TemporaryDirectory() as folder:
        result = alternate(_steps(Path(folder), every=1), _steps(Path(folder, "without"), every=0), rounds)
        size = (Path(folder) / ROUTING_FILE).stat().st_size
        lines = (Path(folder) / ROUTING_FILE).read_bytes().count(b"\n")
    return {
        **result,
        "overhead": round(1 / result["ratio"] - 1, 4),
        "compared": "training steps with a routing snapshot at each against none; the preset nano takes one in ten",
        "batch": [SEQUENCES, LENGTH],
        "bytes_per_snapshot": round(size / lines),
        "target": "under 10 % when on",
    }


def _steps(folder: Path, every: int) -> Timed:
    """`STEPS` steps on one batch of a model of its own; both sides begin with the same weights."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = DeepSeekV3(ModelConfig.preset("nano")).train()
    optimizer = build_optimizer(model, SETTINGS.lr)
    tokens = torch.randint(0, model.cfg.vocab_size, (SEQUENCES, LENGTH + 1))
    recorder = RoutingRecorder(folder, model, every=every, last_step=10**9)
    done = 0

    def work() -> None:
        nonlocal done
        for _ in range(STEPS):
            done += 1
            recorder.before(done)
            found = train_step(model, optimizer, tokens[:, :-1], tokens[:, 1:], SETTINGS, micro_sequences=SEQUENCES)
            recorder.after(found.expert_counts)

    return clocked(work)
