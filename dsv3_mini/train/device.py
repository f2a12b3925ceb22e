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


def is_here(name: str) -> bool:
    """Whether this machine has the device called `name`."""
    try:
        pick_device(name)
    except InputError:
        return False
    return True


def describe_device(device: torch.device) -> str:
    """The device with what decides which kernels torch takes on it: the GPU's name, the CPU's vector instructions."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.backends.cpu.get_cpu_capability()})"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices by itself, at about twice the rate of fp32 or more."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def matrix_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """The type of matrix products: bf16 for `bf16`, and for `auto` where the device is fast at it; else fp32."""
    fast = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, precision: str = "auto") -> contextlib.AbstractContextManager[Any]:
    """Matrix products in `matrix_dtype`, over fp32 master weights.

    Norms, router, softmax and losses stay in fp32 either way (§3.3.1 keeps the same parts in higher precision).
    """
    dtype = matrix_dtype(device, precision)
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
