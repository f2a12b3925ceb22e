"""Checkpoints that survive a `kill -9` at any moment, and that a run continues from to the same losses.

A checkpoint is a folder `RUN/checkpoints/step-XXXXXX/` in the Hugging Face layout (weights, routing biases, config,
tokenizer: whoever loads models can load it) plus what training needs to go on:

    training_state.safetensors   AdamW's moments by parameter name, states of the random generators
    training_state.json          steps done, sequences consumed, seconds spent
    training_state/              the tensors in shards instead, from a run of several processes
                                 (`parallel.distributed_checkpoint`)
    complete.json                every file above with its size and SHA-256; written last

It is written under another name, synced to the disk and then renamed, so a folder with the final name is whole. If
one is not (a copy that broke off, an edited file), `complete.json` tells, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dsv3_mini.errors import InputError
from dsv3_mini.interop.atomic import atomic_folder
from dsv3_mini.interop.names import disk_layout
from dsv3_mini.interop.save import write_checkpoint
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.disk import free_bytes, full_disk_explained, readable
from dsv3_mini.train.tokenizer import Tokenizer

MARKER = "complete.json"
_STATE_TENSORS = "training_state.safetensors"
STATE_NUMBERS = "training_state.json"
STATE_SHARDS = "training_state"  # a folder: the tensors of a run of several processes
_TEXT_BYTES = 500_000  # tokenizer and configs, roughly
_STEP_FOLDER = re.compile(r"step-(\d{6,})")


def save_checkpoint(
    run: Path,
    step: int,
    model: DeepSeekV3,
    tokenizer: Tokenizer | None,
    optimizer: torch.optim.Optimizer,
    numbers: dict[str, Any],
    *,
    write_state: Callable[[Path], None] | None = None,
) -> Path:
    """Write `run`/checkpoints/step-XXXXXX and return it. `numbers`: plain values to find again after loading.

    `write_state(folder)` writes the optimizer's state in another way (`parallel.distributed_checkpoint`).

    Raises `InputError` when there is no room; nothing is left of the attempt then.
    """
    final = run / "checkpoints" / f"step-{step:06d}"
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():  # a broken one: the run continued from one before it
        final.rename(_hidden(final))
    with full_disk_explained(final, checkpoint_bytes(model)), atomic_folder(final) as draft:
        write_checkpoint(model, draft, tokenizer)
        if write_state is not None:
            write_state(draft)
        else:
            save_file(_training_tensors(model, optimizer), draft / _STATE_TENSORS)
        (draft / STATE_NUMBERS).write_text(json.dumps({"step": step, **numbers}, indent=2) + "\n", encoding="utf-8")
        written = sorted(path for path in draft.rglob("*") if path.is_file())
        files = {path.relative_to(draft).as_posix(): _fingerprint(path) for path in written}
        (draft / MARKER).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    return final


def checkpoint_bytes(model: DeepSeekV3) -> int:
    """About how large a checkpoint will be: the weights as they go to disk and two moments of AdamW for each, fp32."""
    weights = sum(math.prod(slot.shape) for slot in disk_layout(model.state_dict(), model.cfg).values())
    moments = 2 * sum(param.numel() for param in model.parameters())
    return 4 * (weights + moments) + _TEXT_BYTES


def little_room(run: Path, model: DeepSeekV3, keep: int) -> str | None:
    """What to say before the first step, and not after hours, if the disk has no room for the checkpoints of a run."""
    # One more than are kept: the oldest goes when the newest stands.
    missing = max(0, keep + 1 - len(list_checkpoints(run)))
    needed, free = missing * checkpoint_bytes(model), free_bytes(run)
    if needed <= free:
        return None
    return (
        f"{run}: {readable(free)} are free, its checkpoints need about {readable(needed)} more "
        f"(keep_checkpoints = {keep}, and one while it is written)"
    )


def load_training_state(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Give the optimizer its moments and torch its random states back; returns the `numbers` saved with them."""
    try:
        tensors = load_file(checkpoint / _STATE_TENSORS)
        numbers = json.loads((checkpoint / STATE_NUMBERS).read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{checkpoint} holds no training state to continue from: {error}") from None
    optimizer.state.clear()
    for name, param in model.named_parameters():
        keys = {key: f"{key}/{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
        if not tensors.keys() >= set(keys.values()):
            continue  # never had a gradient
        moments = {key: tensors[stored] for key, stored in keys.items()}
        if moments["exp_avg"].shape != param.shape or moments["exp_avg_sq"].shape != param.shape:
            raise InputError(
                f"{checkpoint / _STATE_TENSORS}: the moments of {name} do not have its shape {param.shape}"
            )
        # AdamW keeps its step counter on the CPU unless it is fused, and torch does not move it by itself.
        fused = optimizer.defaults.get("fused", False)
        moved = {key: moment.to(param.device) for key, moment in moments.items() if key != "step"}
        optimizer.state[param] = {"step": moments["step"].to(param.device if fused else "cpu"), **moved}
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])
    return numbers


def latest_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint of a run folder, or `folder` itself if it is one.

    A folder in the Hugging Face layout without our marker (a released or shipped model) is taken as it is. Raises
    `InputError` when there is no checkpoint, and when there is none that is whole.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file() or (folder / MARKER).is_file():
        if (folder / MARKER).is_file():
            damage = find_damage(folder)
            if damage:
                raise InputError(f"{folder} is not a whole checkpoint: {damage}")
        return folder
    if not folder.exists():
        raise InputError(f"{folder} does not exist; give a run folder or a checkpoint folder")
    damages = []
    for checkpoint in reversed(list_checkpoints(folder)):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint
        damages.append(f"{checkpoint.name}: {damage}")
    if damages:
        raise InputError(
            f"{folder} has no whole checkpoint ({'; '.join(damages)}): put a copy of one back, or train into another "
            "folder"
        )
    raise InputError(f"{folder} has no checkpoint: neither a config.json nor a checkpoints/step-XXXXXX folder")


def list_checkpoints(run: Path) -> list[Path]:
    """Folders with the name of a checkpoint, oldest first, whole or not."""
    parent = Path(run) / "checkpoints"
    found = [p for p in parent.iterdir() if _STEP_FOLDER.fullmatch(p.name)] if parent.is_dir() else []
    return sorted(found, key=_step)


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint of ours, by its marker; None when every file is what was written."""
    try:
        files = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))["files"]
        if "config.json" not in files:
            return f"{MARKER} does not name config.json"
        for name, written in files.items():
            path = checkpoint / name
            if Path(name).is_absolute() or ".." in Path(name).parts:
                return f"{MARKER} names {name}, which is outside the folder"
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != written["bytes"]:
                return f"{name} has {path.stat().st_size} bytes where {written['bytes']} were written"
            if _fingerprint(path) != written:
                return f"{name} is not what was written: its SHA-256 differs from {MARKER}"
    except FileNotFoundError:
        return f"{MARKER} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MARKER} cannot be read"
    return None


def prune_checkpoints(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for checkpoint in list_checkpoints(run)[:-keep]:
        # Renamed first: killed half-way, what is left does not look like a checkpoint.
        checkpoint.rename(_hidden(checkpoint))
    remove_leftovers(run)


def remove_later_checkpoints(checkpoint: Path) -> list[str]:
    """Remove what the run of `checkpoint` has beyond it, and say what was wrong with each.

    They are broken, or `checkpoint` would not be the one to continue from. Left where they are they would count as
    the newest, and pruning would keep them instead of a whole one.
    """
    reasons = []
    for later in list_checkpoints(checkpoint.parent.parent):
        if _step(later) > _step(checkpoint):
            reasons.append(f"{later.name} is not whole ({find_damage(later)})")
            later.rename(_hidden(later))
    remove_leftovers(checkpoint.parent.parent)
    return reasons


def remove_leftovers(run: Path) -> None:
    """Remove what a killed run left, hidden entries all: checkpoints half written or half removed."""
    for path in (Path(run) / "checkpoints").glob(".step-*"):
        shutil.rmtree(path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that at any moment either the old or the new one is there, whole."""
    partial = path.with_name(f".{path.name}.writing")
    text = json.dumps(value, indent=2) + "\n"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    for name, param in model.named_parameters():
        for key, value in optimizer.state.get(param, {}).items():
            tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
    return tensors


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _hidden(checkpoint: Path) -> Path:
    return checkpoint.with_name(f".{checkpoint.name}.removed")


def _fingerprint(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
