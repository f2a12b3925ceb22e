"""Kills a training run again and again with SIGKILL, and each time lets it go on. `test_kills.py` runs this script.

    python killer.py '{"settings": {fields of TrainConfig}, "whole": FOLDER, "kills": 20, "seed": 0}'

First the run goes into the folder `whole` without a kill; then, with the same settings, into their `out`, where it dies
`kills` times. Every life is a fork of this process, which has torch imported and computes nothing itself. Half of the
deaths come from outside at a random time. Most of the time is computing, so the other half are by the run's own hand,
just before a random one of its operations on files: of all of them, or of those that remove an old checkpoint. After
each death the folder is looked at: what has the name of a checkpoint is whole, no step is missing in a log or twice.

Prints one JSON list, an entry a death: how it was, steps in the log, step of the newest checkpoint, leftovers.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # two seconds that the first optimizer of every life would take otherwise

from dsv3_mini.config import ModelConfig
from dsv3_mini.train import loop, report
from dsv3_mini.train.checkpoint import find_damage, list_checkpoints
from dsv3_mini.train.config import TrainConfig

LONGEST_LIFE = 6  # steps; nobody waits longer for a kill
REMOVALS = ("os.rmdir", "os.remove", "shutil.rmtree")
OPERATIONS = (*REMOVALS, "os.rename", "os.mkdir", "os.chmod", "open", "fsync")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_operation(number: int, kinds: tuple[str, ...], run: Path) -> None:
    """From now on count operations of these kinds, and die just before the one with this number."""
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event in kinds and (event != "open" or str(args[0]).startswith(str(run))):
            count += 1
            if count == number:
                die()

    fsync = os.fsync  # does not tell the hooks by itself

    def audited_fsync(handle: int) -> None:
        sys.audit("fsync")
        fsync(handle)

    os.fsync = audited_fsync
    sys.addaudithook(hook)


def live(cfg: TrainConfig, on_step: Callable[[dict[str, Any]], None] | None = None) -> int:
    """Train in a fork of this process; gives its id."""
    child = os.fork()
    if child == 0:
        try:
            loop.train(cfg, progress=False, on_step=on_step)
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    return child


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at_a_moment(cfg: TrainConfig, seconds: float) -> None:
    """One life that is ended from outside, so long after its first step."""
    reader, writer = os.pipe()
    steps = []

    def tell(record: dict[str, Any]) -> None:
        steps.append(record["step"])
        os.write(writer, b".")
        if len(steps) == LONGEST_LIFE:
            time.sleep(600)

    child = live(cfg, tell)
    os.close(writer)
    os.read(reader, 1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.close(reader)
    assert wait(child) == -signal.SIGKILL


def die_in_a_save(cfg: TrainConfig, operation: int, kinds: tuple[str, ...]) -> None:
    """One life that ends by its own hand, so many operations on files after its first step."""
    steps = []

    def count(record: dict[str, Any]) -> None:
        steps.append(record["step"])
        if len(steps) == 1:
            die_at_operation(operation, kinds, cfg.out)
        if len(steps) == LONGEST_LIFE:
            die()

    assert wait(live(cfg, count)) == -signal.SIGKILL


def look(run: Path, death: str) -> dict[str, Any]:
    """Check what a dead run left."""
    checkpoints = list_checkpoints(run)
    for checkpoint in checkpoints:
        assert find_damage(checkpoint) is None, f"{death}: {checkpoint.name} is not whole: {find_damage(checkpoint)}"
    steps = {}
    for name in ("metrics.jsonl", "routing.jsonl"):
        whole_lines = (run / name).read_bytes().split(b"\n")[:-1]
        steps[name] = [json.loads(line)["step"] for line in whole_lines]
        assert steps[name] == list(range(1, len(steps[name]) + 1)), f"{death}: {name} has {steps[name]}"
        newest = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
        assert len(steps[name]) >= newest, f"{death}: the checkpoint knows steps that {name} does not"
    leftovers = [path.name for path in run.glob("checkpoints/.*")]
    return {"death": death, "steps": len(steps["metrics.jsonl"]), "checkpoint": newest, "leftovers": leftovers}


def main() -> None:
    order = json.loads(sys.argv[1])
    settings = {**order["settings"], "model": ModelConfig(**order["settings"]["model"])}
    torch.set_num_threads(1)  # the same number of threads: the same order of additions
    loop.evaluate_model = lambda *args, **kwargs: {"bits_per_byte": {}}
    report.peak_flops = lambda *args: 1e12
    cfg = TrainConfig(**settings)
    assert wait(live(dataclasses.replace(cfg, out=Path(order["whole"]), checkpoint_every=cfg.steps))) == 0

    rng, deaths = random.Random(order["seed"]), []
    for number in range(order["kills"]):
        life = dataclasses.replace(cfg, resume=(cfg.out / "run.json").exists())
        if number % 2 == 0:
            seconds = rng.random() * 0.15
            die_at_a_moment(life, seconds)
            death = f"{seconds:.3f} s"
        elif number % 4 == 1:
            operation = rng.randint(1, 90)
            die_in_a_save(life, operation, OPERATIONS)
            death = f"operation {operation}"
        else:
            operation = rng.randint(1, 9)
            die_in_a_save(life, operation, REMOVALS)
            death = f"removal {operation}"
        deaths.append(look(cfg.out, death))
    assert wait(live(dataclasses.replace(cfg, resume=True))) == 0
    print(json.dumps(deaths))


if __name__ == "__main__":
    main()
