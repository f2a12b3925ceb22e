"""Mixture of experts against dense models, and MLA against plain attention: the report's two theses, at small size.

The report's claim is economic (§1, §2.1): for what a token costs, experts buy more quality than a dense network does,
and latent attention keeps the quality of many heads with a far smaller cache. Three experiments ask that of models
that train in minutes:

    run_twins      MoE against its dense twin (equal active parameters) and a dense model of equal total parameters
    run_crossing   the same pair at other sizes: where does the MoE come out ahead?
    run_attention  MLA against multi-head (MHA) and grouped-query attention (GQA) of equal parameters

Everybody sees the same data in the same order. "Equal steps" compares what is learned from equal data. "Equal time"
compares what is learned for equal money: the other model trains as many more (or fewer) steps as its step is cheaper,
as a run of its own, because the schedule scales with the length of a run. How long a step takes is measured by the
caller, in alternation (`tests/benchmarks/twins.py`), and kept, so that a stopped experiment goes on with the same
numbers. Runs are kept below a cache folder as in `balance_lab`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3_mini.config import ModelConfig
from dsv3_mini.model.count import attention_parameters, cache_bytes_per_token, count_parameters
from dsv3_mini.train.balance_lab import NANO_STEPS, lab_settings, run_one, summarise
from dsv3_mini.train.checkpoint import write_json
from dsv3_mini.train.config import TrainConfig
from dsv3_mini.train.metrics import training_flops_per_token

# Seconds of a training step of the first model over those of the second.
TimeRatio = Callable[[ModelConfig, ModelConfig], float]

# Sizes of `run_crossing`: changes to the preset, and how many times the steps. All use K = 4 experts for a token.
TIMES_STEPS = "times_steps"
SIZES: dict[str, dict[str, Any]] = {
    "nano": {},
    "64 experts": dict(n_routed_experts=64),
    "half as wide": dict(hidden_size=80, intermediate_size=200, moe_intermediate_size=40, q_lora_rank=40),
    "4 times the tokens": {TIMES_STEPS: 4},
}


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a model, and how long it trains."""

    name: str
    model: ModelConfig
    folder: str  # names the runs; arms that differ in nothing but their steps share it
    step_time: float | None = None  # a step of this model over one of the first; None: not measured
    equal_time: bool = False  # as many steps as fit into the time of the first arm


def run_twins(
    cache: str | Path,
    time_ratio: TimeRatio,
    base: TrainConfig | None = None,
    *,
    steps: int = NANO_STEPS,
    seeds: Sequence[int] = (0, 1, 2),
    evaluations: int = 4,
    eval_bytes: int = 50_000,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """MoE, dense twin and dense model of equal total; the two dense ones at equal steps and at equal time.

    Returns {"arms": {name: sizes, steps, time of a step}, "runs": [one record a run], "summary": {arm: ..},
    "minus_first": {arm: bits per byte less than those of the MoE, by seed}}.
    """
    base = lab_settings(base, steps, evaluations, eval_bytes)
    moe = base.model_config
    arms = [Arm("moe", moe, "moe")]
    for name, model in (("dense twin", moe.dense_twin()), ("dense, equal total", moe.dense_total())):
        folder = name.replace(", ", "-").replace(" ", "-")
        time = _kept_time(Path(cache), folder, lambda model=model: time_ratio(model, moe))  # type: ignore[misc]
        arms.append(Arm(name, model, folder, time))
        arms.append(Arm(f"{name}, equal time", model, folder, time, equal_time=True))
    return _compare(cache, base, arms, seeds, evaluations, say)


def run_crossing(
    cache: str | Path,
    time_ratio: TimeRatio,
    base: TrainConfig | None = None,
    *,
    sizes: Mapping[str, dict[str, Any]] = SIZES,
    steps: int = NANO_STEPS,
    seeds: Sequence[int] = (0, 1, 2),
    evaluations: int = 4,
    eval_bytes: int = 50_000,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """MoE and dense twin at several sizes, at equal steps and at equal time: {"sizes": {size: as from `run_twins`}}.

    sizes: name -> changes to the model; `TIMES_STEPS` among them trains so many times the steps.
    """
    preset, found = base, {}
    for size, changes in sizes.items():
        changes = dict(changes)
        base = lab_settings(preset, steps * changes.pop(TIMES_STEPS, 1), evaluations, eval_bytes)
        moe = base.model_config.replace(**changes)
        suffix = "".join(f"-{name}{value}" for name, value in changes.items())
        twin, folder = moe.dense_twin(), f"dense-twin{suffix}"
        # Experts that are never all used do not change the twin: its runs of the first size serve again.
        if twin.replace(n_routed_experts=base.model_config.n_routed_experts) == base.model_config.dense_twin():
            twin, twin_folder = base.model_config.dense_twin(), "dense-twin"
        else:
            twin_folder = folder
        time = _kept_time(Path(cache), folder, lambda moe=moe, twin=twin: time_ratio(twin, moe))  # type: ignore[misc]
        arms = [
            Arm("moe", moe, f"moe{suffix}"),
            Arm("dense twin", twin, twin_folder, time),
            Arm("dense twin, equal time", twin, twin_folder, time, equal_time=True),
        ]
        found[size] = _compare(cache, base, arms, seeds, evaluations, say)
    return {"sizes": found}


def run_attention(
    cache: str | Path,
    base: TrainConfig | None = None,
    *,
    steps: int = NANO_STEPS,
    seeds: Sequence[int] = (0, 1, 2),
    evaluations: int = 4,
    eval_bytes: int = 50_000,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The same MoE with MLA, MHA and GQA (half as many key/value heads), at equal parameters and equal steps."""
    base = lab_settings(base, steps, evaluations, eval_bytes)
    mla = base.model_config
    arms = [
        Arm("mla", mla, "moe"),
        Arm("mha", plain_attention(mla, mla.num_attention_heads), "mha"),
        Arm("gqa", plain_attention(mla, mla.num_attention_heads // 2), "gqa"),
    ]
    return _compare(cache, base, arms, seeds, evaluations, say)


def plain_attention(cfg: ModelConfig, kv_heads: int) -> ModelConfig:
    """`cfg` with plain attention of `kv_heads` key/value heads, as near to MLA's parameters as head widths allow.

    As many query heads as before; how wide heads are makes up the difference (an even number, because RoPE turns
    pairs). Raises `InputError` when `kv_heads` does not divide the query heads.
    """
    heads = cfg.num_attention_heads
    per_width = 2 * cfg.hidden_size * (heads + kv_heads)  # query and output, keys and values
    width = 2 * max(1, round(attention_parameters(cfg) / per_width / 2))
    return cfg.replace(
        plain_kv_heads=kv_heads, qk_nope_head_dim=0, qk_rope_head_dim=width, v_head_dim=width, rope_scaling=None
    )


def _compare(
    cache: str | Path,
    base: TrainConfig,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    evaluations: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    settings = {arm.name: _settings(base, arm, evaluations) for arm in arms}
    records = []
    for seed in seeds:  # seeds outside: the first results compare all arms
        for arm in arms:
            cfg = dataclasses.replace(settings[arm.name], seed=seed)
            records.append({"arm": arm.name, **run_one(cache, cfg, f"twins-{arm.folder}", say)})
    bits = {(run["arm"], run["seed"]): run["bits_per_byte"]["all"] for run in records}
    first = arms[0].name
    cfg = base.resolved()
    return {
        "preset": cfg.preset,
        "steps": cfg.steps,
        "batch_tokens": cfg.batch_tokens,
        "seeds": list(seeds),
        "heldout_bytes": cfg.eval_bytes,
        "arms": {arm.name: _describe(arm, settings[arm.name]) for arm in arms},
        # Paired by seed: below 0, better than the first arm on the same data.
        "minus_first": {
            arm.name: [round(bits[arm.name, seed] - bits[first, seed], 4) for seed in seeds] for arm in arms[1:]
        },
        "summary": summarise(records, "arm"),
        "runs": records,
    }


def _settings(base: TrainConfig, arm: Arm, evaluations: int) -> TrainConfig:
    steps = base.resolved().steps
    if arm.equal_time and arm.step_time is not None:
        steps = max(1, round(steps / arm.step_time))
    return dataclasses.replace(base, model=arm.model, steps=steps, eval_every=max(1, steps // evaluations))


def _describe(arm: Arm, cfg: TrainConfig) -> dict[str, Any]:
    count, settings = count_parameters(arm.model), cfg.resolved()
    return {
        "parameters": count.total,
        "active_without_embedding": count.active_without_embedding,
        "attention_parameters_per_layer": attention_parameters(arm.model),
        "cache_bytes_per_token": cache_bytes_per_token(arm.model),
        "training_flops_per_token": round(training_flops_per_token(arm.model, settings.seq_len)),
        "steps": settings.steps,
        "step_time": arm.step_time,
    }


def _kept_time(cache: Path, name: str, measure: Callable[[], float]) -> float:
    """The time ratio of this name: measured once, or the second run would have other steps than the first."""
    path = cache / "twins_step_times.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if name not in kept:
        kept[name] = round(measure(), 3)
        cache.mkdir(parents=True, exist_ok=True)
        write_json(path, kept)
    return kept[name]
