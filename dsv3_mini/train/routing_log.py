"""Routing snapshots over a training run: where the tokens of a step went, and the biases that sent them there.

`RUN/routing.jsonl` holds one JSON object a snapshot, for the first step, every `routing_every`-th and the last:

    {"step": 10,                    steps count from 1, as in metrics.jsonl
     "layers": [1, 2, 3],           layers with a router; MTP modules come after the last layer of the main model
     "load": [[71, 38, ..], ..],    by layer: tokens per expert in this step, all micro-batches summed
     "bias": [[0.02, -0.01, ..], ..],   by layer: the routing biases that this step routed with, so before its update
     "maxvio": [0.41, ..]}          by layer: how far the busiest expert is above the mean

The counts are those that the training step needs anyway, so a snapshot costs one line of text. Like the metrics, a
line beyond the checkpoint that a run continues from is cut off, so that no step is there twice.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dsv3_mini.errors import InputError
from dsv3_mini.model.balance import max_violation
from dsv3_mini.model.moe import MoE
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.metrics import MetricsLog

ROUTING_FILE = "routing.jsonl"
_DIGITS = 6  # of a bias: its steps are a thousandth or more


@dataclass(frozen=True)
class RoutingLog:
    """The snapshots of a run: S snapshots, L layers with a router, E experts."""

    steps: np.ndarray  # [S] int64, rising
    load: np.ndarray  # [S, L, E] int64
    bias: np.ndarray  # [S, L, E] float32
    max_violation: np.ndarray  # [S, L] float32
    layers: np.ndarray  # [L] int64

    def __len__(self) -> int:
        return len(self.steps)


class RoutingRecorder:
    """Writes `routing.jsonl` while a model trains: `before(step)`, the step, `after(its counts)`."""

    def __init__(self, run: Path, model: DeepSeekV3, *, every: int, last_step: int, keep_steps: int = 0) -> None:
        """`every` 0 records nothing. Snapshots of steps up to `keep_steps`, which a run continues from, stay."""
        self.model, self.last_step = model, last_step
        self.layers = [i for i, layer in enumerate(model.model.layers) if isinstance(layer.mlp, MoE)]
        self.every = every if self.layers else 0
        self.step: int | None = None  # the step to be recorded
        self.bias: Tensor | None = None  # its biases [L, E]
        path = run / ROUTING_FILE
        # A file that is there is cut back to `keep_steps` even if nothing is to be added to it.
        self._log = MetricsLog(path, keep_steps=keep_steps) if self.every or path.exists() else None

    def before(self, step: int) -> None:
        """Keep the biases that this step will route with, if it is to be recorded."""
        wanted = self.every and (step in (1, self.last_step) or step % self.every == 0)
        self.step = step if wanted else None
        if wanted:
            self.bias = torch.stack([router.e_score_correction_bias for router in self.model.routers])

    def after(self, counts: Tensor) -> None:
        """Write the snapshot. counts [L, E]: tokens per expert in the step."""
        if self.step is None or self._log is None or self.bias is None:
            return
        self._log.write(
            step=self.step,
            layers=self.layers,
            load=counts.tolist(),
            bias=[[round(value, _DIGITS) for value in row] for row in self.bias.tolist()],
            maxvio=[round(value, 4) for value in max_violation(counts).tolist()],
        )

    def sync(self) -> None:
        """Make what was written survive the death of the machine."""
        if self._log is not None:
            self._log.sync()

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


def read_routing_log(run: str | Path) -> RoutingLog:
    """The snapshots of a run folder; a last line that is only half written is left out.

    Raises `InputError` when the folder holds no snapshots, and when the file is not what a run wrote.
    """
    path = Path(run) / ROUTING_FILE
    if not path.is_file():
        found = "holds a run without routing snapshots" if (path.parent / "run.json").is_file() else "is no run folder"
        raise InputError(
            f"{path.parent} {found}: {ROUTING_FILE} is missing. Train a model with routed experts into a new folder "
            "with routing_every = 10 (a snapshot every ten steps), which is what the preset nano does by itself"
        )
    text = path.read_bytes()
    try:
        lines = [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]
        if not lines:
            raise InputError(f"{path} holds no snapshot yet: the run has not finished its first step")
        log = RoutingLog(
            steps=np.array([line["step"] for line in lines], dtype=np.int64),
            load=np.array([line["load"] for line in lines], dtype=np.int64),
            bias=np.array([line["bias"] for line in lines], dtype=np.float32),
            max_violation=np.array([line["maxvio"] for line in lines], dtype=np.float32),
            layers=np.array(lines[0]["layers"], dtype=np.int64),
        )
        snapshots, layers = len(lines), len(log.layers)
        fits = (
            log.load.ndim == 3
            and log.load.shape == log.bias.shape
            and log.load.shape[:2] == log.max_violation.shape == (snapshots, layers)
            and bool((np.diff(log.steps) > 0).all())
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read: it is not what a training run wrote ({error!r})") from None
    if not fits:
        raise InputError(f"{path} cannot be read: its snapshots do not fit together")
    return log
