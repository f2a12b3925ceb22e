"""Freed memory stays with the process, so that the next step need not ask the system for it again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COUNT_PAGE_FAULTS = """
import resource, sys
import torch
from dsv3_mini.train.memory import keep_freed_memory

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(1 << 23)  # 32 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(2)
without = faults(10)
agreed = keep_freed_memory()
faults(30)  # until the heap has its working size
print(int(agreed), without, faults(10))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_a_step_finds_the_pages_of_the_step_before() -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    out = subprocess.run(
        [sys.executable, "-c", COUNT_PAGE_FAULTS], env=plain, capture_output=True, text=True, check=True
    )
    agreed, without, kept = map(int, out.stdout.split())
    if not agreed or without < 1000:
        pytest.skip("this C library keeps memory by itself, or offers no way to ask it to")
    assert kept < without / 10
