"""What a training run does in another way when several processes share it (`parallel`), beside the ordinary way.

The loop asks here instead of asking everywhere how many processes there are. What only shared runs need is imported
when one is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.parallel.processes import Processes
from dsv3_mini.train.checkpoint import STATE_SHARDS, load_training_state, save_checkpoint
from dsv3_mini.train.config import ResolvedConfig
from dsv3_mini.train.micro_batches import OneProcess
from dsv3_mini.train.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sharing:
    """How the processes of a run share its model."""

    processes: Processes
    expert_parallel: int = 1

    @property
    def alone(self) -> bool:
        return self.processes.world == 1

    def place(self, model: DeepSeekV3, device: torch.device) -> OneProcess:
        """Move `model` to `device`, sharded if it is shared; gives what `train_step` needs to know of that."""
        model.to(device)
        if self.alone:
            return OneProcess()
        from dsv3_mini.parallel.data_parallel import DataParallel, shard_model
        from dsv3_mini.parallel.mesh import build_mesh

        shard_model(model, build_mesh(device, self.processes.world, self.expert_parallel))
        return DataParallel(self.processes.rank, self.processes.world)

    def load_state(self, checkpoint: Path, model: DeepSeekV3, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Give the optimizer its state back, whoever wrote it; returns the numbers saved with it."""
        if self.alone and not (checkpoint / STATE_SHARDS).is_dir():
            return load_training_state(checkpoint, model, optimizer)
        from dsv3_mini.parallel.distributed_checkpoint import load_state

        return load_state(checkpoint, model, optimizer)

    def save(
        self,
        run: Path,
        step: int,
        model: DeepSeekV3,
        tokenizer: Tokenizer,
        optimizer: torch.optim.Optimizer,
        numbers: dict[str, Any],
    ) -> Path:
        """Write a checkpoint; every process calls this."""
        if self.alone:
            return save_checkpoint(run, step, model, tokenizer, optimizer, numbers)
        from dsv3_mini.parallel.distributed_checkpoint import save_sharded

        return save_sharded(run, step, model, tokenizer, optimizer, numbers, self.processes)

    def whole(self, model: DeepSeekV3, device: torch.device) -> DeepSeekV3:
        """The whole model, for the first process to use alone. All have to call this; the others keep their shards."""
        if self.alone:
            return model
        from dsv3_mini.parallel.distributed_checkpoint import gather_model

        gathered = gather_model(model)
        return model if gathered is None else gathered.to(device)

    @contextlib.contextmanager
    def notes(self, cfg: ResolvedConfig) -> Iterator[ResolvedConfig]:
        """`cfg` with the folder that this process writes its report into: the run's, for the first one.

        The others keep the same notes in a folder that is thrown away. They would not need the files; but what a run
        reports on depends on its steps so far, and some of it (a norm over all shards) every process has to work out
        or none.
        """
        if self.processes.first:
            yield cfg
            return
        with tempfile.TemporaryDirectory(prefix="dsv3-mini-") as folder:
            for file in cfg.out.glob("*.jsonl"):
                shutil.copy(file, folder)
            yield dataclasses.replace(cfg, out=Path(folder))
