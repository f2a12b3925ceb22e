"""`dsv3-mini train`: from a preset and a text to a run folder with checkpoints."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from dsv3_mini.commands.table import format_quality
from dsv3_mini.train.config import TrainConfig

# Arguments that are fields of TrainConfig under the same name. None means "as the preset says".
FIELDS = (
    "out steps text dataset resume device seq_len batch_tokens micro_batch_tokens lr checkpoint_every eval_every"
).split()
DEFAULT_PRESET, DEFAULT_SEED = "nano", 0


def run(args: argparse.Namespace) -> int:
    """Train, then show the quality reached and what to do next."""
    cfg = build_config(args)
    from dsv3_mini.train.loop import TrainingDiverged, train

    try:
        result = train(cfg)
    except TrainingDiverged as error:
        print(f"dsv3-mini: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if (cfg.out / "run.json").exists():
            print(f"\nStopped. Continue with: dsv3-mini train --out {_quoted(cfg.out)} --resume", file=sys.stderr)
        raise
    print(f"{result.steps:,} steps, {result.tokens:,} tokens, {result.seconds / 60:.1f} minutes: {result.checkpoint}\n")
    print(f"Held-out text, never trained on:\n\n{format_quality(result.evaluation)}\n")
    print(f"Next: dsv3-mini generate {_quoted(result.folder)} --prompt 'def main():'")
    return 0


def build_config(args: argparse.Namespace) -> TrainConfig:
    """The settings on the command line. When continuing a run, preset and seed are that run's unless given."""
    preset, seed = args.preset, args.seed
    if args.resume:
        from dsv3_mini.train.run_folder import read_run

        earlier = read_run(args.out)["config"]
        preset = preset or earlier.get("preset")
        seed = earlier.get("seed") if seed is None else seed
    settings = {name: getattr(args, name) for name in FIELDS if getattr(args, name) is not None}
    return TrainConfig(preset=preset or DEFAULT_PRESET, seed=DEFAULT_SEED if seed is None else seed, **settings)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
