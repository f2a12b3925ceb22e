"""Block-scaled FP8 weights, as the released checkpoint stores them, read back to ordinary numbers (§3.3.2).

A matrix `X.weight` [out, in] in E4M3 comes with `X.weight_scale_inv`, one fp32 number per block of 128 x 128 weights.
Despite its name it is what a stored value is *multiplied* by: weight = stored * scale. A side that 128 does not divide
ends in a smaller block, which has a scale of its own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dsv3_mini.errors import InputError

SCALE_SUFFIX = "_scale_inv"
DEFAULT_BLOCK = (128, 128)


def scale_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
    """Shape of the scales of a matrix [out, in]: one per block, ragged blocks included."""
    return math.ceil(shape[0] / block[0]), math.ceil(shape[1] / block[1])


def dequantise(weight: Tensor, scale: Tensor, block: tuple[int, int] = DEFAULT_BLOCK) -> Tensor:
    """weight [out, in] E4M3 times scale [ceil(out / block), ceil(in / block)] fp32 -> [out, in] fp32."""
    result = weight.to(torch.float32)
    rows, columns = block
    for start, row_scale in zip(range(0, weight.shape[0], rows), scale, strict=True):
        # One band of blocks at a time: the scales of the whole matrix, spread out, would be a second matrix.
        result[start : start + rows] *= row_scale.repeat_interleave(columns)[: weight.shape[1]]  # [in]
    return result


def block_size(config: dict[str, Any], source: str) -> tuple[int, int]:
    """Rows and columns of a block by the `quantization_config` of a config.json; 128 x 128 if it says nothing.

    Raises `InputError` for any other kind of quantisation: reading its numbers as weights would give noise.
    """
    quantization = config.get("quantization_config")
    if quantization is None:
        return DEFAULT_BLOCK
    field = f"{source}: quantization_config"
    if not isinstance(quantization, dict):
        raise InputError(f"{field} = {quantization!r} must be an object")
    method, number_format = quantization.get("quant_method"), quantization.get("fmt", "e4m3")
    if method != "fp8" or number_format != "e4m3":
        raise InputError(
            f"{field} has quant_method {method!r} and fmt {number_format!r}; only 'fp8' with 'e4m3', "
            "the form of the released model, can be read"
        )
    block = quantization.get("weight_block_size", list(DEFAULT_BLOCK))
    whole = isinstance(block, list) and all(type(side) is int and side > 0 for side in block)
    if not whole or len(block) != 2:
        raise InputError(f"{field}.weight_block_size = {block!r} must be two whole numbers, [128, 128] in the release")
    return block[0], block[1]
