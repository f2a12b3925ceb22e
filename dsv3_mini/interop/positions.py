"""Position settings in `config.json`: one content, two spellings.

The released model writes `rope_theta` and `rope_scaling`; transformers 5 writes `rope_parameters`, with both in it. We
write both spellings, which every reader that we know takes the same way, and read either. What absent and null values
mean is transformers' word: its answer is the one that our logits are compared with.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, NoReturn

from dsv3_mini.config import ModelConfig, YarnConfig
from dsv3_mini.errors import InputError


def positions_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The fields of a config.json that say where RoPE turns, and how YaRN stretches it (§4.3)."""
    theta = float(cfg.rope_theta)
    if cfg.rope_scaling is None:
        plain = {"rope_type": "default", "rope_theta": theta}
        return {"rope_theta": theta, "rope_scaling": None, "rope_parameters": plain}
    yarn = _yarn_to_hf(cfg.rope_scaling)
    return {
        "rope_theta": theta,
        # The released code looks for "type", transformers for "rope_type"; each passes over the other.
        "rope_scaling": {"type": "yarn", **yarn},
        "rope_parameters": {**yarn, "rope_theta": theta},
    }


def _yarn_to_hf(yarn: YarnConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"rope_type": "yarn"}
    for field in dataclasses.fields(yarn):
        value = getattr(yarn, field.name)
        values[field.name] = value if field.name == "original_max_position_embeddings" else float(value)
    for name in ("mscale", "mscale_all_dim"):
        if not values[name]:  # 0 says "absent" in ours; readers differ on a written 0 and agree on an absent key
            del values[name]
    return values


def positions_from_hf(values: dict[str, Any], source: str) -> tuple[float, YarnConfig | None]:
    """(rope_theta, YaRN or None) from either spelling. A file with both must say the same twice.

    transformers reads such a file by `rope_scaling` alone and says nothing: whoever edits the other place is not heard.
    """
    outside = values.get("rope_theta")
    default_theta = 10000.0 if outside is None else _number(outside, "rope_theta", source)
    found: dict[str, tuple[float, YarnConfig | None]] = {}
    for spelling in ("rope_scaling", "rope_parameters"):
        block = values.get(spelling)
        if block is None or block == {}:
            continue
        if not isinstance(block, dict):
            refuse(source, spelling, block, "an object, or null for plain RoPE")
        theta = _number(block.get("rope_theta", default_theta), f"{spelling}.rope_theta", source)
        if outside is not None and theta != default_theta:
            both = f"rope_theta = {default_theta} and {spelling}.rope_theta = {theta}"
            raise InputError(f"{source}: {both} disagree; they must be equal")
        found[spelling] = (theta, _yarn_from_hf(block, spelling, values, source))
    if len(set(found.values())) > 1:
        raise InputError(
            f"{source}: rope_scaling and rope_parameters say different things about positions; "
            "make them agree, or keep only one of the two"
        )
    return next(iter(found.values()), (default_theta, None))


def _yarn_from_hf(block: dict[str, Any], spelling: str, values: dict[str, Any], source: str) -> YarnConfig | None:
    """One block of position settings, with the meaning that transformers gives to absent and null values."""
    kind = block.get("rope_type", block.get("type", "default"))
    nested = [name for name, value in block.items() if isinstance(value, dict)]
    if nested:
        refuse(source, f"{spelling}.{nested[0]}", block[nested[0]], "absent: all layers use the same positions here")
    if block.get("partial_rotary_factor") not in (1, None):
        refuse(source, f"{spelling}.partial_rotary_factor", block["partial_rotary_factor"], "1 or absent")
    if kind == "default":
        return None
    if kind != "yarn":
        refuse(source, f"{spelling}.rope_type", kind, '"default" or "yarn", the one extension that DeepSeek-V3 uses')
    if not block.get("truncate", True):
        refuse(source, f"{spelling}.truncate", block["truncate"], "true: the bounds of the ramp are whole pairs here")
    if block.get("attention_factor") is not None:
        right = "absent: here it follows from factor, mscale and mscale_all_dim"
        refuse(source, f"{spelling}.attention_factor", block["attention_factor"], right)
    if "factor" not in block:
        raise InputError(f"{source}: {spelling}.factor is missing; YaRN needs it")

    # transformers lets a top-level field win over the one in the block, and falls back on the whole context.
    name = "original_max_position_embeddings"
    original: Any = values.get(name) or block.get(name, values.get("max_position_embeddings"))
    numbers = {
        "factor": block["factor"],
        "beta_fast": block.get("beta_fast") or 32,
        "beta_slow": block.get("beta_slow") or 1,
    }
    numbers |= {field: block.get(field) or 0 for field in ("mscale", "mscale_all_dim")}
    checked = {field: _number(value, f"{spelling}.{field}", source) for field, value in numbers.items()}
    try:
        return YarnConfig(original_max_position_embeddings=original, **checked)
    except InputError as error:
        raise InputError(f"{source}: {str(error).replace('rope_scaling', spelling)}") from None


def _number(value: Any, field: str, source: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        refuse(source, field, value, "a number")
    try:
        number = float(value)
    except OverflowError:  # JSON knows whole numbers of any length
        number = math.inf
    if not math.isfinite(number):
        refuse(source, field, value, "a finite number")
    return number


def refuse(source: str, field: str, value: Any, right: str) -> NoReturn:
    """Raise the `InputError` for a value that no model of ours has; the value is shown as it stands in the file."""
    shown = json.dumps(value, default=repr)
    shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
    raise InputError(f"{source}: {field} = {shown} cannot be honoured: it must be {right}")
