"""Where a run computes, and in which number format."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from dsv3_mini.errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" takes the GPU if there is one. `InputError` if there is no such device here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device = {name!r}: torch sees {torch.cuda.device_count()} CUDA devices here; use cpu or auto"
        )
    return device


def autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bf16 matrix products on a GPU that has them, over fp32 master weights; plain fp32 elsewhere."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", torch.bfloat16)
    return contextlib.nullcontext()
