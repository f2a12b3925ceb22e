"""The run folder: what one training run leaves, kept to one run and one process.

    RUN/run.json              settings, versions, machine, fingerprint of the data, command
    RUN/metrics.jsonl         one line a step
    RUN/routing.jsonl         load and routing bias every few steps, see `routing_log.py`
    RUN/checkpoints/          see `checkpoint.py`
    RUN/evaluation.json       bits per byte at the end

A folder that holds a run is only entered to continue exactly that run: a second run, other settings or other data
get an `InputError` that names what differs. A lock, which dies with its process, keeps two processes apart.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import dsv3_mini
from dsv3_mini.config import ModelConfig, YarnConfig
from dsv3_mini.errors import InputError
from dsv3_mini.train.checkpoint import write_json
from dsv3_mini.train.config import FREE_ON_RESUME, ResolvedConfig, TrainConfig
from dsv3_mini.train.device import describe_device, is_here, matrix_dtype, pick_device

if TYPE_CHECKING:
    from dsv3_mini.train.data import RunData

try:
    import fcntl
except ImportError:  # Windows, where runs are not kept apart
    fcntl = None  # type: ignore[assignment]

RUN_FILE = "run.json"


def enter(cfg: TrainConfig) -> ResolvedConfig:
    """Check, before anything is written, that `cfg.out` is free, or holds the run that `cfg` continues.

    Returns the settings with nothing left open: what `cfg` does not say comes from the run that is continued, else
    from the preset. A device and a precision that were "auto" are what the machine made of them, so that `run.json`
    names them and the run is continued with the same.
    """
    run = cfg.out
    if run.exists() and not run.is_dir():
        raise InputError(f"out = {run} is a file; give a folder for the run, which may be new")
    if not cfg.resume:
        for name in (RUN_FILE, "metrics.jsonl", "checkpoints"):
            if (run / name).exists():
                raise InputError(
                    f"out = {run} already holds a run ({name}): continue it with --resume, or name another folder"
                )
        return _on_this_machine(cfg.resolved())
    earlier = read_run(run)["config"]
    filled: dict[str, Any] = {"model": cfg.model or _model_of(run, earlier["model"])}
    for field in dataclasses.fields(cfg):
        # One corpus a run: where another is asked for, the earlier one is not put beside it.
        other_corpus = field.name in ("text", "dataset") and (cfg.text or cfg.dataset)
        if getattr(cfg, field.name) is None and field.name != "model" and not other_corpus:
            filled[field.name] = earlier.get(field.name)
    if cfg.precision == "auto":  # part of the mathematics, so the same on any machine
        filled["precision"] = earlier.get("precision", "auto")
    if cfg.device == "auto" and is_here(earlier.get("device", "auto")):
        filled["device"] = earlier.get("device", "auto")
    settings = dataclasses.replace(cfg, **filled).resolved()
    asked = json.loads(json.dumps(settings.to_json()))
    # A setting that is younger than the run had its default then.
    earlier = {**_defaults(TrainConfig), **earlier, "model": {**_defaults(ModelConfig), **earlier["model"]}}
    for name, value in asked.items():
        if name not in FREE_ON_RESUME and name != "model" and value != earlier.get(name):
            raise InputError(_differs(run, name, earlier.get(name), value))
    for name, value in asked["model"].items():
        if value != earlier["model"].get(name):
            raise InputError(_differs(run, f"the model's {name}", earlier["model"].get(name), value))
    return _on_this_machine(settings)


def begin(cfg: ResolvedConfig, data: RunData, say: Callable[[str], None] = lambda text: None) -> None:
    """Write `run.json`, or compare the data with that of the run that is continued, and say what else differs."""
    machine = {
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": describe_device(torch.device(cfg.device)),
    }
    versions = {
        "dsv3_mini": dsv3_mini.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if cfg.resume:
        record = read_run(cfg.out)
        earlier = record["data_fingerprint"]
        if earlier != data.fingerprint:
            raise InputError(
                f"{cfg.out} was trained on other data: its data_fingerprint is {earlier}, {data.corpus.source} has "
                f"{data.fingerprint}; continue with the text it began with (the embedded corpus: the same Python)"
            )
        changed = _changed(record, machine, versions)
        if changed:
            say(f"unlike the beginning of this run: {changed}; losses will agree within rounding, not bit for bit")
        return
    enter(cfg)  # once more, now that the lock is held
    write_json(
        cfg.out / RUN_FILE,
        {
            "config": cfg.to_json(),
            "corpus": data.corpus.source,
            "data_fingerprint": data.fingerprint,
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions,
            "machine": machine,
        },
    )


def read_run(run: Path) -> dict[str, Any]:
    """`run.json` of a run folder; `InputError` when there is none."""
    path = Path(run) / RUN_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["config"]["model"], record["data_fingerprint"]
        return record
    except FileNotFoundError:
        raise InputError(f"{run} holds no run to continue: {RUN_FILE} is missing") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} cannot be read: it is not what a training run wrote") from None


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the folder for this process. The system lets go of it when the process ends, however it ends."""
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "lock", "a+", encoding="utf-8") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise InputError(
                    f"out = {run} is in use by another process ({file.read()}) that trains into it"
                ) from None
        # Who it is, for that message only: what the file says counts for nothing once its process has ended.
        file.truncate(0)
        file.write(f"pid {os.getpid()}")
        file.flush()
        yield


def _model_of(run: Path, fields: dict[str, Any]) -> ModelConfig:
    """The model config that `run.json` holds."""
    try:
        yarn = fields.get("rope_scaling")
        return ModelConfig(**{**fields, "rope_scaling": yarn and YarnConfig(**yarn)})
    except TypeError as error:
        raise InputError(f"{run / RUN_FILE}: its model is not one of this version ({error})") from None


def _on_this_machine(cfg: ResolvedConfig) -> ResolvedConfig:
    """The same settings with the device and the precision that "auto" stands for here."""
    device = pick_device(cfg.device)
    precision = "bf16" if matrix_dtype(device, cfg.precision) == torch.bfloat16 else "fp32"
    return dataclasses.replace(cfg, device=str(device), precision=precision)


def _changed(record: dict[str, Any], machine: dict[str, Any], versions: dict[str, str]) -> str:
    """What decides about the last bits of a loss and is not as `run.json` has it; "" for nothing."""
    pairs = [
        ("device", record.get("machine", {}).get("device"), machine["device"]),
        ("torch", record.get("versions", {}).get("torch"), versions["torch"]),
    ]
    if machine["device"].startswith("cpu"):  # the order of additions
        pairs.append(("threads", record.get("machine", {}).get("threads"), machine["threads"]))
    return ", ".join(f"{name} {now} instead of {then}" for name, then, now in pairs if then not in (None, now))


def _defaults(kind: type) -> dict[str, Any]:
    """What the fields of a config are when nobody says anything."""
    return {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}


def _differs(run: Path, name: str, earlier: Any, now: Any) -> str:
    return f"{run} was started with {name} = {earlier!r}, not {now!r}: continue it with the same, or start a new run"
