"""Checkpoints of a run of several processes, which any number of processes continues, one included.

A checkpoint is the folder that a single process writes (`train.checkpoint`), with one difference:

    model.safetensors, config.json, ...   the same: gathered and written by the first process, so the folder is a model
                                          in the Hugging Face layout that anybody can load
    training_state/*.safetensors          AdamW's moments, which are twice as large as the weights: every process writes
                                          its own shards at the same time (PyTorch's distributed checkpoint, `dcp`)

Each shard says which part of which tensor it is, by the name and the place in the whole. So a run continues on another
number of processes, and with another `expert_parallel`: everybody reads what now is theirs. `dcp`'s own format is a
pickle, which could run code when it is read; its safetensors format is used instead.

The state of random generators is not in there: nothing in a training step draws random numbers.

All hosts must see the run folder: on a cluster it belongs on the shared file system.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from dsv3_mini.errors import InputError
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.parallel.processes import Processes
from dsv3_mini.train.checkpoint import STATE_NUMBERS, STATE_SHARDS, load_training_state, save_checkpoint
from dsv3_mini.train.tokenizer import Tokenizer

_MOMENTS = ("exp_avg", "exp_avg_sq")


def gather_model(model: DeepSeekV3) -> DeepSeekV3 | None:
    """The whole of a sharded `model` on the CPU of the first process; None in the others, which have to call it too."""
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not state:
        return None
    with torch.device("meta"):  # without memory of its own: it takes over the tensors
        whole = DeepSeekV3(model.cfg)
    whole.load_state_dict(state, assign=True)
    return whole.train(model.training)


def save_sharded(
    run: Path,
    step: int,
    model: DeepSeekV3,
    tokenizer: Tokenizer | None,
    optimizer: torch.optim.Optimizer,
    numbers: dict[str, Any],
    processes: Processes,
) -> Path:
    """`train.checkpoint.save_checkpoint` for a sharded model; every process calls it."""
    moments = _moments(model, optimizer)

    def write(draft: Path | None) -> None:
        folder = processes.from_first(lambda: draft)
        if folder is None or processes.any(not folder.is_dir()):
            raise InputError(f"out = {run} must be on a file system that all hosts of the run share")
        dcp.save(moments, storage_writer=HuggingFaceStorageWriter(str(folder / STATE_SHARDS), save_distributed=True))

    whole = gather_model(model)
    if whole is None:
        write(None)
        return run / "checkpoints" / f"step-{step:06d}"
    return save_checkpoint(run, step, whole, tokenizer, optimizer, numbers, write_state=write)


def load_state(checkpoint: Path, model: DeepSeekV3, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`train.checkpoint.load_training_state` for checkpoints and models of both kinds, sharded and whole.

    Every process calls it. Raises `InputError` for a checkpoint without training state, or with that of another model.
    """
    if not (checkpoint / STATE_SHARDS).is_dir():
        numbers = load_training_state(checkpoint, model, optimizer)
        for parameter, state in optimizer.state.items():
            for key in _MOMENTS:
                state[key] = _like(parameter, state[key])
        return numbers

    steps = "cpu" if not optimizer.defaults.get("fused", False) else None  # where AdamW wants its step counter
    for parameter in model.parameters():
        state = {key: torch.zeros_like(parameter, requires_grad=False) for key in _MOMENTS}
        state["step"] = torch.zeros((), device=steps or parameter.device)
        optimizer.state[parameter] = state
    moments = _moments(model, optimizer)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # so it is, in a run of one process
            dcp.load(moments, storage_reader=HuggingFaceStorageReader(str(checkpoint / STATE_SHARDS)))
        numbers = json.loads((checkpoint / STATE_NUMBERS).read_text(encoding="utf-8"))
    except (CheckpointException, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{checkpoint} holds no training state to continue from: {error}") from None
    for name, parameter in model.named_parameters():
        optimizer.state[parameter]["step"].copy_(moments[f"step/{name}"].squeeze(0))
    return numbers


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What is saved, and loaded into: the moments by parameter name, and AdamW's step counters as vectors of one."""
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        found |= {f"{key}/{name}": state[key] for key in _MOMENTS}
        found[f"step/{name}"] = state["step"].detach().reshape(1).cpu()
    return found


def _like(parameter: Tensor, whole: Tensor) -> Tensor:
    """The part of `whole` that a process holds of `parameter`; everybody has the whole, so nothing is sent."""
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
