"""Reading a folder in the Hugging Face layout: ours, one that transformers saved, or the released model's.

The order matters. First everything that can be known without reading weights is checked: the config, the files, the
name, shape and type of each tensor. Then the model is given memory, and filled tensor by tensor; besides the model
itself there is never more than one tensor in memory (two for a block-scaled FP8 one: stored and dequantised).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.interop.config_json import config_from_hf, read_json_object
from dsv3_mini.interop.fp8 import SCALE_SUFFIX, block_size, dequantise, scale_shape
from dsv3_mini.interop.names import Slot, disk_layout, layer_of, mtp_layers
from dsv3_mini.interop.shards import Stored, list_tensors, open_shard
from dsv3_mini.model.transformer import DeepSeekV3

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_FP8 = "F8_E4M3"


def load_pretrained(
    folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> DeepSeekV3:
    """The model in `folder`, in eval mode, on `device`, with weights of `dtype` (None: of the type the folder names).

    Routing biases are fp32 always. Block-scaled FP8 weights are dequantised. When the config speaks of MTP modules but
    the folder has no tensor of them (transformers leaves them out when it saves), the model is built without, and a
    warning says so. Raises `InputError` that names the file for anything missing, extra, or of the wrong shape or type.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder}: {what}; give the folder of a checkpoint (config.json and model.safetensors)")
    config_file = folder / "config.json"
    values = read_json_object(config_file)
    written = config_from_hf(values, source=str(config_file))
    block = block_size(values, str(config_file))
    held = list_tensors(folder)
    cfg = _without_absent_mtp(written, held)
    _check_proportions(cfg, held, folder)

    model = _build(cfg, config_file)
    layout = disk_layout(model.state_dict(), cfg)
    _check_names(layout, held, folder)
    for name, slot in layout.items():
        if name in held:
            _check_tensor(name, slot, held, block)
    model.to(_choose_dtype(dtype, values, held, config_file))
    model.to_empty(device=device)
    _fill(model, layout, held, block)
    if cfg != written:
        warnings.warn(
            f"{folder}: config.json says num_nextn_predict_layers = {written.num_nextn_predict_layers}, but the folder "
            "has no tensors of such modules; the model is built without multi-token prediction",
            stacklevel=2,
        )
    return model.eval()


def _without_absent_mtp(cfg: ModelConfig, held: dict[str, Stored]) -> ModelConfig:
    """The config without MTP if the folder has nothing of any MTP module. Some but not all is an error, found later."""
    layers = {layer_of(name) for name in held} - {None}
    if not cfg.num_nextn_predict_layers or any(layer in mtp_layers(cfg) for layer in layers):
        return cfg
    dense = min(cfg.first_k_dense_replace, cfg.num_hidden_layers)  # counts the modules too where they are dense
    return cfg.replace(num_nextn_predict_layers=0, first_k_dense_replace=dense)


def _check_proportions(cfg: ModelConfig, held: dict[str, Stored], folder: Path) -> None:
    """Compare the counts of the config with the folder before anything is built by them.

    A config that says a billion layers would otherwise be found wrong only after a billion layers.
    """
    layers = cfg.num_hidden_layers + cfg.num_nextn_predict_layers
    last = {"num_hidden_layers": f"model.layers.{cfg.num_hidden_layers - 1}.input_layernorm.weight"}
    if cfg.num_nextn_predict_layers:
        last["num_nextn_predict_layers"] = f"model.layers.{layers - 1}.eh_proj.weight"
    if cfg.num_moe_layers:
        expert = cfg.n_routed_experts - 1
        last["n_routed_experts"] = f"model.layers.{layers - 1}.mlp.experts.{expert}.down_proj.weight"
    for field, name in last.items():
        if name not in held:
            place = next(iter(held.values())).file if held else folder
            raise InputError(
                f"{place}: tensor {name} is missing, which config.json promises by {field} = {getattr(cfg, field)}"
            )


def _build(cfg: ModelConfig, config_file: Path) -> DeepSeekV3:
    """The model without memory."""
    try:
        with torch.device("meta"):
            return DeepSeekV3(cfg)
    except (RuntimeError, ArithmeticError, TypeError) as error:  # sizes beyond any tensor, a theta of 1 with YaRN
        raise InputError(f"{config_file}: a model of these sizes cannot be built ({error})") from None


def _check_names(layout: dict[str, Slot], held: dict[str, Stored], folder: Path) -> None:
    scales = {name + SCALE_SUFFIX for name, stored in held.items() if stored.dtype == _FP8}
    missing = [name for name in layout if name not in held and not layout[name].is_copy]
    missing += sorted(scales - held.keys())
    extra = [name for name in held if name not in layout and name not in scales]
    files = sorted({stored.file for stored in held.values()})
    where = files[0] if len(files) == 1 else folder
    if missing:
        raise InputError(f"{where}: {_some(missing)} missing; a model of this config.json needs them all")
    if extra:
        raise InputError(f"{held[extra[0]].file}: {_some(extra)} not part of a model of this config.json")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    noun, verb = ("tensor", "is") if len(names) == 1 else ("tensors", "are")
    return f"{noun} {', '.join(names[:3])}{more} {verb}"


def _check_tensor(name: str, slot: Slot, held: dict[str, Stored], block: tuple[int, int]) -> None:
    """Shape and type of one tensor, and of its scales if it is FP8."""
    stored = held[name]
    if stored.shape != slot.shape:
        raise InputError(
            f"{stored.file}: {name} has shape {list(stored.shape)}, by config.json it must be {list(slot.shape)}"
        )
    if stored.dtype in _STORED_DTYPES:
        return
    if stored.dtype != _FP8 or len(slot.shape) != 2:
        right = "F32, BF16, F16, F64, or F8_E4M3 with block scales for a matrix"
        raise InputError(f"{stored.file}: {name} is stored as {stored.dtype}; readable are {right}")
    scale = held[name + SCALE_SUFFIX]
    if scale.shape != scale_shape(slot.shape, block) or scale.dtype != "F32":
        raise InputError(
            f"{scale.file}: {name}{SCALE_SUFFIX} is {scale.dtype} {list(scale.shape)}; for blocks of {list(block)} it "
            f"must be F32 {list(scale_shape(slot.shape, block))}"
        )


def _choose_dtype(
    asked: torch.dtype | None, values: dict[str, Any], held: dict[str, Stored], config_file: Path
) -> torch.dtype:
    """What the caller asks for, else what config.json says, else what the embedding is stored in."""
    if asked is not None:
        if asked not in _DTYPES.values():
            raise InputError(f"dtype = {asked} cannot be: it must be one of {', '.join(map(str, _DTYPES.values()))}")
        return asked
    for field in ("dtype", "torch_dtype"):
        name = values.get(field)
        if name is not None:
            if not isinstance(name, str) or name not in _DTYPES:
                raise InputError(f"{config_file}: {field} = {name!r} cannot be: it must be one of {', '.join(_DTYPES)}")
            return _DTYPES[name]
    return _STORED_DTYPES.get(held["model.embed_tokens.weight"].dtype, torch.bfloat16)


@torch.no_grad()
def _fill(model: DeepSeekV3, layout: dict[str, Slot], held: dict[str, Stored], block: tuple[int, int]) -> None:
    """Copy every tensor from its file to its place in the model, file by file."""
    state = model.state_dict()
    by_file: dict[Path, list[str]] = {}
    for name, slot in layout.items():
        if not slot.is_copy:  # the shared matrix itself is read under its own name
            by_file.setdefault(held[name].file, []).append(name)
    for file, names in by_file.items():
        with open_shard(file) as shard:
            for name in names:
                tensor = shard.get_tensor(name)
                if held[name].dtype == _FP8:
                    scale_name = name + SCALE_SUFFIX
                    scale_file = held[scale_name].file  # the shard of the weights, as a rule
                    scale = shard.get_tensor(scale_name) if scale_file == file else _read_one(scale_file, scale_name)
                    tensor = dequantise(tensor, scale, block)
                layout[name].view(state[layout[name].key]).copy_(tensor)


def _read_one(file: Path, name: str) -> Tensor:
    """One tensor of a file that is not open yet."""
    with open_shard(file) as shard:
        return shard.get_tensor(name)
