"""Writing a model as a folder in the Hugging Face layout, which stock `AutoModelForCausalLM.from_pretrained` reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from dsv3_mini.errors import InputError
from dsv3_mini.interop.atomic import atomic_folder
from dsv3_mini.interop.config_json import config_to_hf
from dsv3_mini.interop.names import ROUTING_BIAS, Slot, disk_layout
from dsv3_mini.interop.shards import INDEX_FILE, SINGLE_FILE
from dsv3_mini.model.transformer import DeepSeekV3

MAX_SHARD_BYTES = 5_000_000_000  # of weights; the released checkpoint has shards of about this size


class SavesItself(Protocol):
    """A tokenizer, as far as saving goes: it writes its files into a folder."""

    def save(self, folder: Path) -> object: ...


def save_pretrained(
    model: DeepSeekV3,
    folder: str | os.PathLike[str],
    tokenizer: SavesItself | None = None,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Write config.json, the weights and, if given, the tokenizer to `folder`, all at once or not at all.

    `dtype` is the type of the weights on disk (None: as they are); routing biases stay fp32. Weights beyond
    `max_shard_bytes` are split into several files with an index. Raises `InputError` when the folder already holds
    something; with `overwrite=True` an earlier checkpoint there is replaced.
    """
    with atomic_folder(folder, overwrite=overwrite) as draft:
        write_checkpoint(model, draft, tokenizer, dtype=dtype, max_shard_bytes=max_shard_bytes)


def write_checkpoint(
    model: DeepSeekV3,
    folder: Path,
    tokenizer: SavesItself | None = None,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    mtp_copies: bool = True,
) -> None:
    """Write the files of a checkpoint into a folder that exists; for callers who add their own in `atomic_folder`.

    `mtp_copies=False` leaves out what an MTP module shares with the main model: neither we nor transformers need it.
    """
    if max_shard_bytes < 1:
        raise InputError(f"max_shard_bytes = {max_shard_bytes} cannot be: it must be at least 1")
    state = model.state_dict()
    dtype = state["model.embed_tokens.weight"].dtype if dtype is None else dtype
    if any(tensor.is_meta for tensor in state.values()):
        raise InputError("this model was built on the meta device and has no weights to save")
    layout = {n: slot for n, slot in disk_layout(state, model.cfg).items() if mtp_copies or not slot.is_copy}
    dtypes = {name: torch.float32 if name.endswith(ROUTING_BIAS) else dtype for name in layout}
    sizes = {name: torch.Size(slot.shape).numel() * dtypes[name].itemsize for name, slot in layout.items()}
    shards = list(_fill_shards(sizes, max_shard_bytes))

    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _on_disk(layout[name], state, dtypes[name]) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})
    _write_json(folder / "config.json", config_to_hf(model.cfg, str(dtype).removeprefix("torch.")))
    if tokenizer is not None:
        tokenizer.save(folder)


def _fill_shards(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Cut the names into runs of at most `limit` bytes; a tensor that is larger by itself gets a shard of its own."""
    run: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if run and filled + size > limit:
            yield run
            run, filled = [], 0
        run.append(name)
        filled += size
    yield run


def _on_disk(slot: Slot, state: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """One tensor as it goes to disk. Where type and place fit already this is a view, so a shard takes no memory."""
    tensor = slot.view(state[slot.key]).to(device="cpu", dtype=dtype).contiguous()
    # safetensors refuses two names for one piece of memory, which is what an MTP module's copies are.
    return tensor.clone() if slot.is_copy else tensor


def _write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
