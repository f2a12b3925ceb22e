"""`dsv3-mini train`: from a preset and a text to a run folder with checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from dsv3_mini.commands.table import format_quality
from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.train.config import TrainConfig

# Arguments that are fields of TrainConfig under the same name. None means "as the preset says".
FIELDS = (
    "preset seed out steps text dataset init_from resume device seq_len batch_tokens micro_batch_tokens lr "
    "checkpoint_every eval_every expert_parallel needle_share"
).split()


def run(args: argparse.Namespace) -> int:
    """Train, then show the quality reached and what to do next."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return _train(build_config(args))
    return _run_with_others(args)


def _run_with_others(args: argparse.Namespace) -> int:
    """One of the processes that `torchrun` started: the first one speaks for all."""
    from dsv3_mini.parallel.processes import SharedError, joined

    with joined() as processes:
        if not processes.first:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (to the end of this process)
        try:
            with processes.agreed():
                cfg = build_config(args)
            code = _train(cfg, first=processes.first)
        except SharedError as error:
            if processes.first:
                print(f"dsv3-mini train: {error}", file=sys.stderr)
            code = 2
        # torchrun ends everybody as soon as one has left with an error: not before the message is out.
        processes.wait()
    return code


def _train(cfg: TrainConfig, first: bool = True) -> int:
    from dsv3_mini.train.loop import Interrupted, TrainingDiverged, train

    try:
        result = train(cfg)
    except TrainingDiverged as error:
        if first:
            print(f"dsv3-mini: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        if first and (cfg.out / "run.json").exists():
            what = f"{stop}." if isinstance(stop, Interrupted) else "stopped."
            print(f"\n{what} Continue with: dsv3-mini train --out {_quoted(cfg.out)} --resume", file=sys.stderr)
        if isinstance(stop, Interrupted):
            return 128 + stop.number  # as shells count: 130 for Ctrl-C, 143 for SIGTERM
        raise
    print(f"{result.steps:,} steps, {result.tokens:,} tokens, {result.seconds / 60:.1f} minutes: {result.checkpoint}\n")
    print(f"Held-out text, never trained on:\n\n{format_quality(result.evaluation)}\n")
    print(f"Next: dsv3-mini generate {_quoted(result.folder)} --prompt 'def main():'")
    return 0


def build_config(args: argparse.Namespace) -> TrainConfig:
    """The settings on the command line. When continuing a run, what is not given stays as it was."""
    settings = {name: getattr(args, name) for name in FIELDS if getattr(args, name) is not None}
    if args.resume:
        from dsv3_mini.train.run_folder import read_run

        earlier = read_run(args.out)["config"]
        for field in dataclasses.fields(TrainConfig):
            # A default of None, and "auto", are filled in from the run by whoever continues it.
            has_default = field.default not in (None, "auto", dataclasses.MISSING)
            # How many processes share the work is said anew each time: it may be continued with other ones.
            if has_default and field.name in earlier and field.name != "expert_parallel":
                settings.setdefault(field.name, earlier[field.name])
    if args.init_from is not None:
        settings |= _beginning(args)
    elif args.yarn_factor is not None:
        raise InputError("--yarn-factor extends a trained model: name its folder with --init-from")
    if args.dense_twin:
        settings["model"] = ModelConfig.preset(settings.get("preset", TrainConfig.preset)).dense_twin()
    return TrainConfig(**settings)


def _beginning(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that follow from the model with which a run begins."""
    from dsv3_mini.train.extend import beginning

    for flag, given in (("--preset", args.preset is not None), ("--dense-twin", args.dense_twin)):
        if given:
            raise InputError(f"{flag} cannot be combined with --init-from: the model is the one in {args.init_from}")
    return beginning(args.init_from, args.yarn_factor)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
