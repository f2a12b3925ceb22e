"""The balance laboratory: the same model trained in several ways, with how even its experts were and how good it got.

A run is one folder below `cache`, an ordinary training run. A finished one is read instead of trained again and one
that was interrupted is continued, so a laboratory of an hour may be stopped and started at will. What comes out is
plain JSON: `data/results/balance_lab.json` is that of the report's question (`balance_ways`, after Table 5 and
§4.5.3), `bias_speed.json` that of the speed gamma; lessons load them (`load_lab`).

MaxVio is (busiest expert - mean) / mean. Here it is said of two loads: of the tokens of one step, averaged over
steps, which is what a machine feels; and of all tokens of the last fifth of the run together, which leaves out the
chance of small batches.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsv3_mini.errors import InputError
from dsv3_mini.model.balance import max_violation
from dsv3_mini.paths import data_dir
from dsv3_mini.train import run_folder
from dsv3_mini.train.balance_ways import LOSS_ALPHA, WAYS, balanced
from dsv3_mini.train.config import TrainConfig
from dsv3_mini.train.loop import train
from dsv3_mini.train.metrics import read_metrics
from dsv3_mini.train.routing_log import read_routing_log

NANO_STEPS = 1300  # the whole run of the preset
POINTS = 40  # of a curve over a run

Record = dict[str, Any]  # one run
Say = Callable[[str], None]


def run_lab(
    cache: str | Path,
    base: TrainConfig | None = None,
    *,
    steps: int = NANO_STEPS,
    seeds: Sequence[int] = (0, 1, 2),
    ways: Sequence[str] = tuple(WAYS),
    alpha: float = LOSS_ALPHA,
    evaluations: int = 5,
    eval_bytes: int = 100_000,
    say: Say = print,
) -> dict[str, Any]:
    """Train every way with every seed for equally many steps, on the same data in the same order.

    base: settings that all runs share (None: the preset nano). evaluations: how often a run is measured on
    `eval_bytes` of held-out text, the end included. Returns {"runs": [one record a run], "summary": {way: ..}}.
    """
    base = lab_settings(base, steps, evaluations, eval_bytes)
    records = []
    for seed in seeds:  # seeds outside: the first results compare all ways
        for way in ways:
            cfg = balanced(dataclasses.replace(base, seed=seed), way, alpha=alpha)
            records.append({"way": way, **run_one(cache, cfg, f"{way}{_strength(way, alpha)}", say)})
    return {"alpha": alpha, **_shared(base, seeds), "runs": records, "summary": summarise(records, "way")}


def run_speeds(
    cache: str | Path,
    base: TrainConfig | None = None,
    *,
    speeds: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1),
    steps: int = NANO_STEPS,
    seeds: Sequence[int] = (0, 1, 2),
    evaluations: int = 5,
    eval_bytes: int = 100_000,
    say: Say = print,
) -> dict[str, Any]:
    """The way "bias" at several speeds gamma; like `run_lab`, with {"summary": {speed: ..}}."""
    base = lab_settings(base, steps, evaluations, eval_bytes)
    usual = base.resolved().bias_update_speed
    records = []
    for seed in seeds:
        for speed in speeds:
            cfg = balanced(dataclasses.replace(base, seed=seed), "bias", speed=speed)
            name = "bias" if speed == usual else f"bias-speed{speed:g}"  # the usual one is a run of `run_lab` too
            records.append({"speed": speed, **run_one(cache, cfg, name, say)})
    return {"speeds": list(speeds), **_shared(base, seeds), "runs": records, "summary": summarise(records, "speed")}


def run_one(cache: str | Path, cfg: TrainConfig, name: str, say: Say = print) -> Record:
    """Train `cfg` into a folder of its own below `cache`, or continue or read what is there, and describe the run.

    Raises `InputError` when the folder holds a run with other settings.
    """
    folder = Path(cache) / f"{name}-steps{cfg.resolved().steps}-seed{cfg.seed}"
    begun = (folder / run_folder.RUN_FILE).exists()
    cfg = dataclasses.replace(cfg, out=folder, resume=begun)
    if begun:
        run_folder.enter(cfg)  # are the settings the same?
    if not _finished(folder, cfg.resolved().steps):
        say(f"{'continuing' if begun else 'training'} {folder.name}")
        train(cfg, progress=False)
    return {"folder": folder.name, **describe(folder)}


def lab_settings(base: TrainConfig | None, steps: int, evaluations: int, eval_bytes: int) -> TrainConfig:
    """What all runs of a laboratory have in common: `base`, or the preset nano. `out` is set run by run."""
    return dataclasses.replace(
        base or TrainConfig(preset="nano", out=Path("unused")),
        steps=steps,
        eval_every=max(1, steps // evaluations),
        eval_bytes=eval_bytes,
        baselines=False,
        routing_every=max(1, steps // 100),
        checkpoint_every=max(1, steps // 4),
        keep_checkpoints=1,
    )


def describe(folder: Path) -> Record:
    """What one run showed, as plain JSON: curves of at most `POINTS` points, and where it ended.

    A run of a dense model has nothing about balance: no "layers" and no "maxvio..".
    """
    config = run_folder.read_run(folder)["config"]
    lines = read_metrics(folder)
    losses = np.array([line["losses"]["main"] for line in lines])
    ends = np.unique(np.linspace(0, len(lines), min(POINTS, len(lines)) + 1).round().astype(int))
    parts = list(pairwise(ends))  # the steps that one point of a curve is the mean of
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return {
        "seed": config["seed"],
        "steps": ends[1:].tolist(),
        "loss": _rounded([losses[a:b].mean() for a, b in parts]),
        **(_describe_balance(folder, lines, parts) if lines[0]["maxvio"] else {}),
        "evaluations": [[line["step"], line["bits_per_byte"]] for line in lines if "bits_per_byte" in line],
        "bits_per_byte": {domain: round(bits, 4) for domain, bits in evaluation["bits_per_byte"].items()},
        "seconds": round(lines[-1]["seconds"], 1),
    }


def _describe_balance(folder: Path, lines: Sequence[Record], parts: Sequence[tuple[int, int]]) -> Record:
    violation = np.array([line["maxvio"] for line in lines])  # [steps, L]
    log = read_routing_log(folder)
    late = log.steps > 0.8 * len(lines)
    return {
        "layers": log.layers.tolist(),
        "maxvio": [_rounded(violation[a:b].mean(0)) for a, b in parts],
        "maxvio_last_fifth": _rounded(violation[len(lines) - max(1, len(lines) // 5) :].mean(0)),
        "maxvio_of_last_fifth_together": _rounded(max_violation(torch.from_numpy(log.load[late].sum(0))).tolist()),
    }


def summarise(records: Sequence[Record], key: str) -> dict[str, Any]:
    """Mean, lowest and highest over the seeds, by `key`: MaxVio (mean over layers), and bits per byte by domain.

    Dense models have no MaxVio.
    """
    summary: dict[str, Any] = {}
    for value in dict.fromkeys(record[key] for record in records):
        chosen = [record for record in records if record[key] == value]
        balance = [name for name in ("maxvio_last_fifth", "maxvio_of_last_fifth_together") if name in chosen[0]]
        summary[f"{value}"] = {
            **{name: _spread([_mean(r[name]) for r in chosen]) for name in balance},
            "bits_per_byte": {
                domain: _spread([r["bits_per_byte"][domain] for r in chosen]) for domain in chosen[0]["bits_per_byte"]
            },
        }
    return summary


def curve(lab: dict[str, Any], value: Any, what: str = "maxvio", key: str = "way") -> dict[str, list[float]]:
    """A curve with its band over the seeds: {"steps", "mean", "low", "high"}, each as long as the curve.

    what: "maxvio" (mean over the layers), "loss", or a domain of the held-out text ("all", "code", ..) for bits per
    byte. Raises `InputError` when the laboratory has no such run or curve.
    """
    chosen = [record for record in lab["runs"] if record[key] == value]
    if not chosen:
        known = ", ".join(str(v) for v in dict.fromkeys(record[key] for record in lab["runs"]))
        raise InputError(f"{key} = {value!r} cannot be: this laboratory has {known}")
    first = chosen[0]
    domains = first["bits_per_byte"]
    if what == "maxvio":
        steps, rows = first["steps"], [np.mean(record["maxvio"], axis=1) for record in chosen]
    elif what == "loss":
        steps, rows = first["steps"], [np.asarray(record["loss"]) for record in chosen]
    elif what in domains:
        steps = [step for step, _ in first["evaluations"]]
        rows = [np.array([bits[what] for _, bits in record["evaluations"]]) for record in chosen]
    else:
        raise InputError(f"what = {what!r} cannot be: it must be maxvio, loss, {', '.join(domains)}")
    values = np.stack(rows)  # [seeds, points]
    return {
        "steps": list(steps),
        "mean": values.mean(0).tolist(),
        "low": values.min(0).tolist(),
        "high": values.max(0).tolist(),
    }


def load_lab(name: str = "balance_lab") -> dict[str, Any]:
    """A laboratory that was run before: `data/results/NAME.json`. `InputError` when it is not there."""
    path = data_dir() / "results" / f"{name}.json"
    if not path.is_file():
        raise InputError(f"{path} is missing; `python tests/benchmarks/run.py {name} --keep` makes it")
    return json.loads(path.read_text(encoding="utf-8"))


def _shared(base: TrainConfig, seeds: Sequence[int]) -> dict[str, Any]:
    cfg = base.resolved()
    return {
        "preset": cfg.preset,
        "steps": cfg.steps,
        "batch_tokens": cfg.batch_tokens,
        "seeds": list(seeds),
        "usual_speed": cfg.bias_update_speed,
        "heldout_bytes": cfg.eval_bytes,
    }


def _strength(way: str, alpha: float) -> str:
    return f"{alpha:g}" if way in ("sequence", "batch") else ""


def _finished(folder: Path, steps: int) -> bool:
    """Whether a run got as far as its evaluation, which is the last thing that is written."""
    path = folder / "evaluation.json"
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["step"] == steps


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {name: round(float(f(values)), 4) for name, f in (("mean", np.mean), ("low", np.min), ("high", np.max))}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]
