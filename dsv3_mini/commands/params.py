"""`dsv3-mini params`: how many parameters a model has, by component, and how many of them work for one token."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from dsv3_mini.commands.table import format_table
from dsv3_mini.config import PRESETS, ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.model.count import ParameterCount, cache_bytes_per_token, count_parameters


def run(args: argparse.Namespace) -> int:
    """Print the table of one model, or a line for each preset."""
    if args.model is None:
        configs = {name: ModelConfig.preset(name) for name in PRESETS}
        if args.json:
            print(json.dumps({"presets": {name: as_json(name, cfg) for name, cfg in configs.items()}}))
        else:
            print(_overview(configs))
            print("\n`dsv3-mini params NAME` shows one of them by component.")
        return 0
    cfg = _config_of(args.model)
    print(json.dumps(as_json(args.model, cfg)) if args.json else _table(args.model, cfg))
    return 0


def as_json(name: str, cfg: ModelConfig) -> dict[str, Any]:
    """The numbers of one model as plain JSON types."""
    count = count_parameters(cfg)
    return {
        "model": name,
        "components": [dataclasses.asdict(row) for row in count.components],
        "total": count.total,
        "active": count.active,
        "active_without_embedding": count.active_without_embedding,
        "mtp": {
            "components": [dataclasses.asdict(row) for row in count.mtp],
            "total": count.mtp_total,
            "active": count.mtp_active,
        },
        "cache_bytes_per_token": cache_bytes_per_token(cfg),
    }


def _config_of(model: str) -> ModelConfig:
    """The config called `model`: a preset, or the one in a checkpoint or run folder."""
    if model in PRESETS:
        return ModelConfig.preset(model)
    folder = Path(model)
    if not folder.is_dir():
        raise InputError(f"{model} is neither a preset ({', '.join(PRESETS)}) nor a folder with a model")
    from dsv3_mini.interop.config_json import config_from_hf

    if not (folder / "config.json").is_file():
        from dsv3_mini.train.checkpoint import latest_checkpoint

        folder = latest_checkpoint(folder)
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'} is not JSON in UTF-8: {error}") from None
    return config_from_hf(values, str(folder / "config.json"))


def _overview(configs: dict[str, ModelConfig]) -> str:
    rows = []
    for name, cfg in configs.items():
        count = count_parameters(cfg)
        rows.append([name, *map(_short, (count.total, count.active_without_embedding, count.mtp_total))])
        rows[-1].append(f"{cache_bytes_per_token(cfg):,}")
    return format_table(["preset", "parameters", "active per token", "MTP adds", "cache bytes per token"], rows)


def _table(name: str, cfg: ModelConfig) -> str:
    count = count_parameters(cfg)
    header = [name, "parameters", "share", "active per token"]
    rows = [
        [row.name, f"{row.total:,}", f"{row.total / count.total:.2%}", f"{row.active:,}"] for row in count.components
    ]
    rows.append(["all", f"{count.total:,}", "", f"{count.active:,}"])
    parts = [format_table(header, rows), _counting_rules(count)]
    if count.mtp:
        depth = cfg.num_nextn_predict_layers
        modules = "an MTP module" if depth == 1 else f"a chain of {depth} MTP modules"
        parts.append(
            f"Not in the table: {modules} with {count.mtp_total:,} parameters, {count.mtp_active:,} active,\n"
            "which uses the embedding and the output head of the main model."
        )
    cache = cache_bytes_per_token(cfg)
    parts.append(
        f"The latent cache grows by {cache:,} bytes per token in BF16: {cfg.num_hidden_layers} layers x "
        f"({cfg.kv_lora_rank} latent + {cfg.qk_rope_head_dim} rotary) x 2."
    )
    return "\n\n".join(parts)


def _counting_rules(count: ParameterCount) -> str:
    rest = _short(count.active_without_embedding)
    return (
        f"Active per token: {_short(count.active)} as in the table; {rest} without the input embedding, a lookup\n"
        "that multiplies nothing."
    )


def _short(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)
