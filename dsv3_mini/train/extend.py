"""Training that begins with a trained model: the phases in which the report extends the context (§4.3).

    phase 1   dsv3-mini train --init-from runs/mini --yarn-factor 20 --seq-len 1024 --out runs/mini-4x
    phase 2   dsv3-mini train --init-from runs/mini-4x --seq-len 4096 --out runs/mini-16x

Weights and tokenizer are those of the folder, the optimizer starts afresh, and the schedule is that of a short phase at
one rate (`schedule.ExtensionSchedule`). YaRN is said once: both phases of the report have the same settings, so the
second inherits them from the checkpoint of the first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.interop.config_json import config_from_hf, read_json_object
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.checkpoint import latest_checkpoint, list_checkpoints
from dsv3_mini.train.config import TRAIN_PRESETS, ResolvedConfig, TrainConfig
from dsv3_mini.train.run_folder import RUN_FILE, read_run
from dsv3_mini.train.tokenizer import Tokenizer


def beginning(folder: str | Path, yarn_factor: float | None = None) -> dict[str, Any]:
    """The fields of a `TrainConfig` that follow from beginning with the model in `folder`: model, preset, init_from.

    yarn_factor: switch YaRN on. A model that has YaRN keeps it, and the length that it was first trained with. Raises
    `InputError` when there is no checkpoint in `folder`, or when YaRN is asked for and nothing says that length.
    """
    folder = Path(folder)
    checkpoint = latest_checkpoint(folder)
    model = config_from_hf(read_json_object(checkpoint / "config.json"), str(checkpoint / "config.json"))
    run = _run_of(checkpoint)
    if yarn_factor is not None:
        model = _with_yarn(model, yarn_factor, run.get("seq_len"), folder)
    preset = run.get("preset")
    preset = preset if preset in TRAIN_PRESETS else TrainConfig.preset
    return {"init_from": folder, "model": model, "preset": preset}


def _with_yarn(model: ModelConfig, factor: float, trained: int | None, folder: Path) -> ModelConfig:
    if model.rope_scaling is not None:
        original = model.rope_scaling.original_max_position_embeddings
        if factor != model.rope_scaling.factor:
            raise InputError(
                f"yarn_factor = {factor:g}: the model in {folder} has YaRN with factor {model.rope_scaling.factor:g} "
                f"already, over {original} tokens; all phases share one setting, so leave it out"
            )
        return model
    if trained is None:
        raise InputError(
            f"{folder} has no {RUN_FILE} that says with which seq_len it was trained, and YaRN needs that length"
        )
    return model.with_yarn(factor, trained)


def load_start(model: DeepSeekV3, folder: Path) -> None:
    """Give `model` the weights in `folder`. Raises `InputError` when they do not fit its config."""
    start = load_pretrained(latest_checkpoint(folder), dtype=torch.float32)
    free = {"rope_scaling": None, "max_position_embeddings": 1, "eos_token_id": None}  # no weight depends on these
    ours, theirs = vars(model.cfg.replace(**free)), vars(start.cfg.replace(**free))
    different = [name for name, value in theirs.items() if ours[name] != value]
    if different:
        name = different[0]
        raise InputError(f"init_from = {folder}: its model has {name} = {theirs[name]}, not {ours[name]}")
    model.load_state_dict(start.state_dict())


def tokenizer_of_start(cfg: ResolvedConfig) -> Tokenizer:
    """The tokenizer that the weights were trained with. A run that is continued has it in its own checkpoints."""
    assert cfg.init_from is not None
    own = cfg.resume and list_checkpoints(cfg.out)
    folder = latest_checkpoint(cfg.out if own else cfg.init_from)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > cfg.model.vocab_size:
        raise InputError(
            f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, more than the model's vocab_size = "
            f"{cfg.model.vocab_size}; the two do not belong together"
        )
    return tokenizer


def _run_of(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that left `checkpoint`; {} when nothing says them."""
    for folder in (checkpoint, checkpoint.parent.parent):
        if (folder / RUN_FILE).is_file():
            return read_run(folder)["config"]
    return {}
