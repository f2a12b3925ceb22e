"""`dsv3-mini params`: how many parameters a model has, by component, and how many of them work for one token.

With `--memory`: how much memory a training step takes, by part (`train.step_memory`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv3_mini.commands.table import format_table
from dsv3_mini.config import PRESETS, ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.model.count import ParameterCount, cache_bytes_per_token, count_parameters

if TYPE_CHECKING:
    from dsv3_mini.train.step_memory import StepMemory

MIB = 2**20


def run(args: argparse.Namespace) -> int:
    """Print the table of one model, or a line for each preset."""
    if args.memory:
        return _show_memory(args)
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


def _show_memory(args: argparse.Namespace) -> int:
    """The memory of a training step; settings that are not given are those of `dsv3-mini train`."""
    if args.model is None:
        raise InputError(f"--memory needs a MODEL: a preset ({', '.join(PRESETS)}) or a folder with a model")
    cfg = _config_of(args.model)
    from dsv3_mini.train.config import TRAIN_PRESETS
    from dsv3_mini.train.step_memory import predict_step_memory

    usual = TRAIN_PRESETS.get(args.model, {})
    seq_len = args.seq_len or usual.get("seq_len") or min(cfg.max_position_embeddings, 4096)
    tokens = args.micro_batch_tokens or max(usual.get("micro_batch_tokens", 0), seq_len)
    memory = [
        predict_step_memory(
            cfg, tokens=tokens, seq_len=seq_len, precision=args.precision, device=args.device, recompute=recompute
        )
        for recompute in (False, True)
    ]
    if args.json:
        print(json.dumps({"model": args.model, "steps": [dataclasses.asdict(step) for step in memory]}))
    else:
        print(_memory_table(args.model, *memory))
    return 0


def _memory_table(name: str, kept: StepMemory, recomputed: StepMemory) -> str:
    rows = [
        [part, _mib(size), f"{size / kept.peak:.1%}", _mib(recomputed.by_part[part])]
        for part, size in kept.by_part.items()
        if size or recomputed.by_part[part]
    ]
    rows.append(["peak", _mib(kept.peak), "", _mib(recomputed.peak)])
    layers = [[layer, *map(_mib, sizes)] for layer, sizes in _runs(kept.kept, recomputed.kept)]
    return "\n\n".join([
        f"One training step of {name} on {kept.device}: {kept.tokens:,} tokens at once in sequences of "
        f"{kept.seq_len:,}, matrix\nproducts in {kept.precision}. Predicted by dry runs, which take no memory: one "
        "keeps all activations, one\nrecomputes norms and MLA up-projections in the backward pass.",
        format_table(["alive at the peak", "MiB", "share", "recomputing"], rows),
        format_table(["activations kept for the backward pass", "MiB", "recomputing"], layers),
    ])  # fmt: skip


def _runs(*kept: dict[str, int]) -> list[tuple[str, tuple[int, ...]]]:
    """Layers of one kind and size that follow each other, in one line."""
    runs: list[tuple[str, list[str], tuple[int, ...]]] = []  # kind, the numbers of its layers, bytes of each
    for name in kept[0]:
        sizes = tuple(of[name] for of in kept)
        kind, _, number = name.rpartition(" ")
        if not number.isdigit():
            runs.append((name, [], sizes))
        elif runs and (runs[-1][0], runs[-1][2]) == (kind, sizes):
            runs[-1][1].append(number)
        else:
            runs.append((kind, [number], sizes))
    return [
        (f"{kind}s {numbers[0]} to {numbers[-1]}, each" if len(numbers) > 1 else " ".join([kind, *numbers]), sizes)
        for kind, numbers, sizes in runs
    ]


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f}"


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
    per_layer = f"({cfg.kv_lora_rank} latent + {cfg.qk_rope_head_dim} rotary)"
    if cfg.plain_kv_heads is not None:
        per_layer = f"{cfg.plain_kv_heads} heads x 2 x {cfg.v_head_dim}"
    parts.append(
        f"The {'latent' if cfg.plain_kv_heads is None else 'key/value'} cache grows by {cache:,} bytes per token in "
        f"BF16: {cfg.num_hidden_layers} layers x {per_layer} x 2."
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
