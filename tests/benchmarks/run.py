"""Run a benchmark or an experiment: `python tests/benchmarks/run.py NAME [--json]`; without a name, list them.

A benchmark compares ours with theirs in one process, alternately (A B A B ...), because machines are shared and drift;
what counts is the ratio. The last line with `--json` is one JSON object with `ratio` (theirs over ours in time: above
1, ours is faster), `spread`, what was compared, and on what. `--keep` also writes it to data/results/NAME.json.

An experiment trains models, with several seeds, and says what came out. Its runs are kept below `--cache`: stopped and
started again, it does only what is missing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

Timed = Callable[[], float]  # does the work once, gives the seconds it took


def alternate(ours: Timed, theirs: Timed, rounds: int) -> dict[str, Any]:
    """Both in turn, after a warm-up. Ratio of the medians, and the spread of the ratios by round."""
    ours(), theirs()
    pairs = []
    for done in range(1, rounds + 1):
        pairs.append((ours(), theirs()))
        print(f"  round {done}/{rounds}: ours {pairs[-1][0]:.3f} s, theirs {pairs[-1][1]:.3f} s", file=sys.stderr)
    mine, others = zip(*pairs, strict=True)
    by_round = sorted(b / a for a, b in pairs)
    return {
        "ratio": round(statistics.median(others) / statistics.median(mine), 3),
        "spread": [round(by_round[0], 3), round(by_round[-1], 3)],
        "ours_seconds": round(statistics.median(mine), 4),
        "theirs_seconds": round(statistics.median(others), 4),
        "rounds": rounds,
    }


def timed(work: Callable[[], Any], device: torch.device | None = None) -> Timed:
    """`work` as something that gives its wall-clock seconds, on a GPU until it has done everything."""

    def run() -> float:
        started = time.perf_counter()
        work()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    return run


def clocked(work: Callable[[], Any]) -> Timed:
    """Processor time with one thread, which other programs on the machine disturb less; else the wall clock."""
    if torch.get_num_threads() > 1:
        return timed(work)

    def run() -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    return run


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    gpus = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "date": date.today().isoformat(),
        "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        **gpus,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def benchmarks() -> dict[str, Callable[..., dict[str, Any]]]:
    """By name. Imported late, so that listing is quick."""
    from tests.benchmarks import decode, expert_scaling, routing_record, speculation, train_step

    return {
        "train_step": train_step.run,
        "expert_scaling": expert_scaling.run,
        "decode": decode.run,
        "routing_record": routing_record.run,
        "speculation": speculation.run,
    }


def experiments() -> dict[str, Callable[..., dict[str, Any]]]:
    """By name."""
    from tests.benchmarks import balance_lab, bias_speed, mtp_effect, needle, twins

    return {
        "balance_lab": balance_lab.run,
        "bias_speed": bias_speed.run,
        "mtp_effect": mtp_effect.run,
        "needle": needle.run,
        "twins": twins.run,
        "twins_sizes": twins.run_sizes,
        "twins_attention": twins.run_kinds_of_attention,
    }


def main() -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line at the end")
    parser.add_argument("--keep", action="store_true", help="write data/results/NAME.json")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="processor threads for both sides (default: torch's)")
    runs = parser.add_argument_group("experiments")
    runs.add_argument("--steps", type=int, help="of every training run (default: the whole nano run)")
    runs.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runs.add_argument("--cache", type=Path, default=Path("runs/experiments"), help="where the runs are kept")
    args = parser.parse_args()
    known = {**benchmarks(), **experiments()}
    if args.name is None:
        for name, run in known.items():
            print(f"{name:14s} {(run.__doc__ or '').splitlines()[0]}")
        return 0
    if args.name not in known:
        print(f"no benchmark is called {args.name!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    if args.threads:
        torch.set_num_threads(args.threads)
    command = re.sub(r" --cache \S+", "", "python tests/benchmarks/run.py " + " ".join(sys.argv[1:]))
    experiment = args.name in experiments()
    found = known[args.name](args.cache, args.steps, args.seeds) if experiment else known[args.name](args.rounds)
    result = {"name": args.name, **found, "command": command, "machine": machine()}
    if args.keep:
        path = ROOT / "data" / "results" / f"{args.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    if args.json:
        print(json.dumps(result))
    elif experiment:
        print(json.dumps({name: value for name, value in result.items() if name != "runs"}, indent=1))
    else:
        low, high = result["spread"]
        print(f"{args.name}: {result['ratio']} times as fast as theirs (rounds from {low} to {high})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
