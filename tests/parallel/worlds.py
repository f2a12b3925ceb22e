"""Runs a function of `jobs.py` in several processes that find each other over gloo, with a limit on its time.

The processes are forked from a server that has imported torch once, which makes a world of four start in a second.
"""

from __future__ import annotations

import multiprocessing
import pickle
import runpy
import time
from pathlib import Path
from typing import Any

import pytest

JOBS = Path(__file__).with_name("jobs.py")
SECONDS = 90  # what a busy machine may need; a hang costs no more
_forks = multiprocessing.get_context("forkserver")
# torch._dynamo: FSDP imports it on first use, which takes longer than the tests themselves.
_forks.set_forkserver_preload(["torch._dynamo", "dsv3_mini.train.loop", "dsv3_mini.parallel.distributed_checkpoint"])


def run_world(folder: Path, processes: int, job: str, **arguments: Any) -> list[Any]:
    """What `job(processes: Processes, **arguments)` gave in each of the processes. Fails if one fails or all wait."""
    world = folder / f"{job}-{processes}-{time.monotonic_ns()}"
    world.mkdir(parents=True)
    running = [
        _forks.Process(
            target=runpy.run_path,
            args=(str(JOBS),),
            kwargs=dict(
                run_name="__job__",
                init_globals=dict(RANK=rank, WORLD=processes, FOLDER=world, JOB=job, ARGUMENTS=arguments),
            ),
        )
        for rank in range(processes)
    ]
    for process in running:
        process.start()
    end = time.monotonic() + SECONDS
    failed = None
    while failed is None and any(process.is_alive() for process in running):
        time.sleep(0.02)
        failed = next((rank for rank, process in enumerate(running) if process.exitcode), None)
        if time.monotonic() > end:
            failed = "time"
    for process in running:
        if failed is not None:
            process.kill()
        process.join()
    for rank in range(processes):
        if (world / f"{rank}.error").exists():
            pytest.fail(f"process {rank} of {processes}: {(world / f'{rank}.error').read_text()}")
    assert failed != "time", f"{job}: {processes} processes were not done after {SECONDS} s: somebody waits"
    assert failed is None, f"{job}: process {failed} ended without a word"
    return [pickle.loads((world / f"{rank}.result").read_bytes()) for rank in range(processes)]
