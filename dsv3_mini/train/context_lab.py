"""The report's extension of the context (§4.3) scaled down, and needle maps before and after it.

A model of a quarter million parameters, so that everything takes minutes: trained with T = 256 tokens, then two short
phases with YaRN on, at 4 T and 16 T. The proportions are the report's: 4K to 32K and 128K there, s = 40 for 32 times
the length; s = 20 for 16 times here, the same in both phases.

    short      64 tokens, from scratch: in short windows full of needles a model learns soonest to look things up
    trained    256 tokens, from `short`: this is T
    before     256 tokens, from `trained`, with the settings of phase 1 but its length: the control
    phase-1    1024 tokens and YaRN, from `trained`
    phase-2    4096 tokens, from `phase-1`

In all of them a share of the windows holds planted lines (`needle_windows`): a model this small, trained this briefly,
otherwise looks up nothing at any length. `before` and `phase-1` differ in the length of a window and in YaRN alone.
The map "yarn" is that of `before` with YaRN switched on and no further training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsv3_mini.config import ModelConfig
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.interop.save import write_checkpoint
from dsv3_mini.model.long_context import extended
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.paths import data_dir
from dsv3_mini.train import run_folder
from dsv3_mini.train.checkpoint import latest_checkpoint, write_json
from dsv3_mini.train.config import TrainConfig
from dsv3_mini.train.data import load_corpus
from dsv3_mini.train.documents import Corpus
from dsv3_mini.train.evaluate import bits_per_byte, select_documents
from dsv3_mini.train.extend import beginning
from dsv3_mini.train.loop import train
from dsv3_mini.train.needle import CHANCE, needle_map
from dsv3_mini.train.tokenizer import Tokenizer

TRAINED, FACTOR = 256, 20.0  # T, and YaRN's s
BATCH = 4096  # tokens in a step
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
DEPTHS = (0.0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0)
MAPS = {
    "before": "before: plain positions",
    "yarn": "YaRN on, not trained further",
    "phase-1": "after phase 1, at 1024 tokens",
    "phase-2": "after phase 2, at 4096 tokens",
}

# MLA with every part of V3's, dense throughout: this experiment is about positions.
LOOKUP = ModelConfig(
    vocab_size=512, hidden_size=64, num_hidden_layers=3, first_k_dense_replace=3, intermediate_size=128,
    num_nextn_predict_layers=0, num_attention_heads=4, q_lora_rank=None, kv_lora_rank=48,
    qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16,
    n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, max_position_embeddings=4096,
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One run of training."""

    seq_len: int
    steps: int
    lr: float
    begins_with: str | None = None
    yarn: bool = False
    needle_share: float = 0.5
    warmup: int | None = None  # steps; None: the report's share of the steps


STAGES = {
    "short": Stage(64, 600, 3e-3, needle_share=0.9),
    "trained": Stage(TRAINED, 500, 2e-3, "short"),
    "before": Stage(TRAINED, 400, 1e-3, "trained"),
    "phase-1": Stage(4 * TRAINED, 400, 1e-3, "trained", yarn=True),
    "phase-2": Stage(16 * TRAINED, 100, 1e-4, "phase-1", warmup=20),
}


def run_context(
    cache: str | Path,
    *,
    base: TrainConfig | None = None,
    steps: int | None = None,
    seeds: Sequence[int] = (0,),
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
    count: int = 10,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train every stage with every seed and draw the maps: {"maps": {name: as `needle_map`}, "bits_per_byte", ..}.

    base: settings that all stages share, for tests; `steps` replaces the steps of every stage. Runs are kept below
    `cache`: stopped and started again, it does only what is missing.
    """
    by_seed = []
    for seed in seeds:
        folders: dict[str, Path] = {}
        seconds: dict[str, float] = {}
        for name, stage in STAGES.items():
            folders[name], seconds[name] = _run(Path(cache), name, stage, folders, base, steps, seed, say)
        by_seed.append(_measure(folders, base, lengths, depths, count, say) | {"seed": seed, "cpu_seconds": seconds})
    return {
        "trained": TRAINED,
        "factor": FACTOR,
        "chance": CHANCE,
        "seeds": list(seeds),
        "stages": {name: {**vars(stage), "steps": steps or stage.steps} for name, stage in STAGES.items()},
        "batch_tokens": BATCH,
        "parameters": DeepSeekV3(LOOKUP if base is None or base.model is None else base.model).num_parameters(),
        "maps": {name: _mean([found["maps"][name] for found in by_seed]) for name in MAPS},
        "runs": by_seed,
    }


def _run(
    cache: Path, name: str, stage: Stage, folders: dict[str, Path], base: TrainConfig | None, steps: int | None,
    seed: int, say: Callable[[str], None],
) -> tuple[Path, float]:  # fmt: skip
    """Train one stage, or continue or find what is there; its folder and processor seconds."""
    folder = cache / f"context-{name}-steps{steps or stage.steps}-seed{seed}"
    if (folder / "seconds.json").is_file():
        return folder, float((folder / "seconds.json").read_text())
    begun = (folder / run_folder.RUN_FILE).exists()
    settings: dict[str, Any] = dict(
        preset="nano", model=LOOKUP, batch_tokens=BATCH, micro_batch_tokens=BATCH, eval_bytes=50_000, baselines=False,
        routing_every=0, checkpoint_every=100, keep_checkpoints=1, precision="fp32", device="cpu",
    )  # fmt: skip
    if base is not None:
        settings |= {key: value for key, value in vars(base).items() if value is not None and key != "out"}
    settings |= dict(
        seq_len=stage.seq_len, steps=steps or stage.steps, lr=stage.lr, needle_share=stage.needle_share,
        warmup_steps=stage.warmup,
    )  # fmt: skip
    if stage.begins_with is not None:
        settings |= beginning(folders[stage.begins_with], FACTOR if stage.yarn else None)
    say(f"{'continuing' if begun else 'training'} {folder.name}")
    started = time.process_time()
    train(TrainConfig(**{**settings, "out": folder, "seed": seed, "resume": begun}), progress=False)
    seconds = round(time.process_time() - started, 1)
    write_json(folder / "seconds.json", seconds)  # of the last part, where a run was continued
    return folder, seconds


def _measure(
    folders: dict[str, Path], base: TrainConfig | None, lengths: Sequence[int], depths: Sequence[float], count: int,
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Maps of the four models, and bits per byte of ordinary held-out text in windows of each length of training."""
    heldout = load_corpus(None if base is None else base.text).heldout
    documents = select_documents(heldout, 50_000)
    maps, bits = {}, {}
    for name in MAPS:
        model, tokenizer = _load(latest_checkpoint(folders["before" if name == "yarn" else name]))
        if name == "yarn":
            model = extended(model, FACTOR, TRAINED)
        say(f"map {name!r}")
        maps[name] = needle_map(model, tokenizer, heldout, lengths=lengths, depths=depths, count=count, say=say)
        windows = sorted({stage.seq_len for stage in STAGES.values() if TRAINED <= stage.seq_len <= max(lengths)})
        bits[name] = {
            str(length): round(bits_per_byte(model, tokenizer, documents, length)["all"], 4) for length in windows
        }
    return {"maps": maps, "bits_per_byte": bits}


def _mean(maps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    mean = {name: np.mean([found[name] for found in maps], axis=0).round(4).tolist() for name in ("found", "digits")}
    return {**maps[0], **mean, "count": maps[0]["count"]}


def share_found(found: dict[str, Any], length: int) -> float:
    """Share of a map found at one length, over all depths."""
    column = found["lengths"].index(length)
    return float(np.mean([line[column] for line in found["found"]]))


# -- the models that come with the course --

SHIPPED = ("before", "phase-1", "phase-2")
_COMMAND = "python tests/benchmarks/run.py needle --seeds 0"


@lru_cache
def corpus() -> Corpus:
    """The embedded corpus, read once: everything that a lesson shows is about the same held-out files."""
    return load_corpus()


def ship_models(cache: str | Path, seed: int = 0, steps: int | None = None, folder: Path | None = None) -> None:
    """Put the models of a finished `run_context` where the lesson finds them."""
    folder = folder or data_dir() / "long_context"
    for name in SHIPPED:
        run = Path(cache) / f"context-{name}-steps{steps or STAGES[name].steps}-seed{seed}"
        model, tokenizer = _load(latest_checkpoint(run))
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_checkpoint(model, folder / name, tokenizer)
        record = run_folder.read_run(run)
        for field in ("out", "init_from"):  # where a reader who repeats it will find them
            record["config"][field] = f"runs/experiments/{Path(record['config'][field]).name}"
        write_json(folder / name / run_folder.RUN_FILE, {**record, "command": _COMMAND.split()})


def load_models() -> tuple[dict[str, DeepSeekV3], Tokenizer]:
    """The four models of the maps, by name, and their tokenizer."""
    models = {}
    for name in SHIPPED:
        models[name], tokenizer = _load(data_dir() / "long_context" / name)
    models["yarn"] = extended(models["before"], FACTOR, TRAINED)
    return {name: models[name] for name in MAPS}, tokenizer


def _load(checkpoint: Path) -> tuple[DeepSeekV3, Tokenizer]:
    return load_pretrained(checkpoint, dtype=torch.float32), Tokenizer.load(checkpoint)
