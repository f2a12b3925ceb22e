"""Reading and writing checkpoint folders in the Hugging Face layout.

`config_json` translates `config.json`, and `positions` the RoPE settings in it; `names` maps tensors on disk to
parameters in memory; `atomic` makes a folder appear whole or not at all; `shards` opens safetensors files and distrusts
them; `fp8` undoes block-scaled FP8; `save` and `load` put these together. Names are looked up on first use: reading a
config needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "config_from_hf": "dsv3_mini.interop.config_json",
    "config_to_hf": "dsv3_mini.interop.config_json",
    "load_pretrained": "dsv3_mini.interop.load",
    "save_pretrained": "dsv3_mini.interop.save",
}

__all__ = ["config_from_hf", "config_to_hf", "load_pretrained", "save_pretrained"]

if TYPE_CHECKING:
    from dsv3_mini.interop.config_json import config_from_hf, config_to_hf
    from dsv3_mini.interop.load import load_pretrained
    from dsv3_mini.interop.save import save_pretrained


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'dsv3_mini.interop' has no attribute {name!r}")
