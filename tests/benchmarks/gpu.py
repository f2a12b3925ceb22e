"""Everything that a GPU is needed to measure, in one go: `python tests/benchmarks/gpu.py [--keep]`, under 8 minutes.

The parts are in `gpu_parts.py` (`--list` names them). Each runs in a process of its own with a time limit: one that
fails, hangs or runs out of memory is recorded as {"error": ...}, one that lacks something as {"skipped": ...}, and the
others go on. The result is JSON on standard output; `--keep` also writes data/results/gpu.json.

`--toy` runs all parts in this process at toy size, on whatever there is: a check of the script, not a measurement.
If there is no data/results/gpu.json, this script has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks import gpu_parts  # noqa: E402 (found by the line above)
from tests.benchmarks.run import machine  # noqa: E402

TOTAL_SECONDS = 470  # of all parts together; what is left goes to none that has not begun
MARK = "RESULT "  # begins the line in which a part's process hands over its result


def run_part(name: str, *, toy: bool, report: Callable[[dict[str, Any]], None] = lambda found: None) -> dict[str, Any]:
    """One part in this process. Whatever goes wrong becomes its result. `report` hears of what there is so far."""
    started = time.perf_counter()
    try:
        result = gpu_parts.PARTS[name].run(gpu_parts.settings(toy, report))
    except gpu_parts.Skipped as why:
        result = {"skipped": str(why)}
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"[:500]}
    return {**result, "seconds": round(time.perf_counter() - started, 1)}


def run_part_apart(name: str, limit: float, *more: str) -> dict[str, Any]:
    """One part in a process of its own, for at most `limit` seconds. `more`: further arguments of it."""
    command = [sys.executable, __file__, "--only", name, *more]
    started = time.perf_counter()
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit, cwd=ROOT)
    except subprocess.TimeoutExpired as late:
        printed = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        return {**_last_result(printed), "error": f"not done after {limit:.0f} s"}
    found = _last_result(done.stdout)
    if done.returncode:
        found["error"] = f"its process ended with code {done.returncode}"
    return {**found, "process_seconds": round(time.perf_counter() - started, 1)}


def hand_over(found: dict[str, Any]) -> None:
    """Say to the process that waits for this one what there is; the last word counts."""
    print(MARK + json.dumps(found), flush=True)


def _last_result(printed: str) -> dict[str, Any]:
    lines = [line for line in printed.splitlines() if line.startswith(MARK)]
    return json.loads(lines[-1].removeprefix(MARK)) if lines else {}


def run_all(names: list[str], *, toy: bool) -> dict[str, Any]:
    """All parts named, in the order of `gpu_parts.PARTS`, by name; with what they were taken on."""
    end = time.perf_counter() + TOTAL_SECONDS
    parts: dict[str, Any] = {}
    for name in names:
        left = end - time.perf_counter()
        print(f"{name}: {gpu_parts.PARTS[name].title}", file=sys.stderr)
        if left < 10:
            parts[name] = {"skipped": f"the {TOTAL_SECONDS} s for all parts were used up"}
        elif toy:
            parts[name] = run_part(name, toy=True)
        else:
            parts[name] = run_part_apart(name, min(left, gpu_parts.PARTS[name].limit))
    on_gpu = torch.cuda.is_available()
    return {
        "name": "gpu",
        "measured_on_a_gpu": on_gpu and not toy,
        "note": "toy sizes: a check of the script, not a measurement" if toy else gpu_parts.NOTE,
        "parts": parts,
        "seconds": round(time.perf_counter() - end + TOTAL_SECONDS, 1),
        "command": "python tests/benchmarks/gpu.py " + " ".join(sys.argv[1:]),
        "machine": machine(),
    }


def main() -> int:
    """The command line; gives the exit code: 1 if a part failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name the parts and stop")
    parser.add_argument("--part", action="append", choices=gpu_parts.PARTS, help="only this one (may be repeated)")
    parser.add_argument("--toy", action="store_true", help="toy sizes, on whatever there is")
    parser.add_argument("--keep", action="store_true", help="write data/results/gpu.json")
    parser.add_argument("--only", choices=gpu_parts.PARTS, help=argparse.SUPPRESS)  # the process of one part
    args = parser.parse_args()
    if args.list:
        for name, part in gpu_parts.PARTS.items():
            print(f"{name:12s} {part.limit:4.0f} s  {part.title}")
        return 0
    if args.only:
        hand_over(run_part(args.only, toy=args.toy, report=hand_over))
        return 0
    if not args.toy and not torch.cuda.is_available():
        print("torch sees no CUDA device here; --toy tries the script on a CPU", file=sys.stderr)
        return 2
    result = run_all(args.part or list(gpu_parts.PARTS), toy=args.toy)
    if args.keep and not args.toy:
        path = ROOT / "data" / "results" / "gpu.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return int(any("error" in part for part in result["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
