"""How fast this machine multiplies matrices, and how long training takes on it (for `dsv3-mini doctor`).

For a third of a second two matrices are multiplied, which gives the machine's matrix rate; training the `nano` preset
is so many multiplications (`train.metrics`); and what share of the matrix rate a training step reaches was measured
once and stands below as a constant. The answer is an estimate, good to a factor of two.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MEASURE_SECONDS = 0.3
LEAST_PRODUCTS = 5

# The share of the matrix rate that a training step of nano reaches, optimizer included: its matrices are small, and
# norms, softmax and the sorting of tokens take time without multiplying. Measured in fp32: 0.50 with one thread, of
# which several threads lose some to waiting for each other.
CPU_SHARE = 0.45
# On a GPU nano is too small to fill it: a step takes as long as Python needs to start its few thousand kernels, however
# fast they run. An assumption, not a measurement.
GPU_STEP_SECONDS = 0.05
# Reading the corpus, training the tokenizer, and the evaluation at the end.
SURROUNDINGS_SECONDS = 30.0

# Above this fp32 rate a machine without a GPU is no longer laptop class: some eight modern cores.
WORKSTATION_FLOPS = 500e9


@dataclass(frozen=True)
class Speed:
    """What was measured, and what it means."""

    tier: str
    device: str
    matmul_gflops: float  # best rate of the dtype that training uses here
    train_minutes: float  # `make train`, from start to end
    busy: bool  # other programs were using the cores while it was measured

    def as_text(self) -> str:
        """A sentence or two for a terminal."""
        minutes = max(1, round(self.train_minutes))
        kind = "bf16" if self.device == "cuda" else "fp32"
        lines = [
            f"This machine ({self.tier}) multiplies matrices at {self.matmul_gflops:,.0f} GFLOP/s in {kind}.",
            f"`make train` (the nano model) should take about {minutes} minute{'s' if minutes > 1 else ''} here.",
        ]
        if self.busy:
            lines.append("Other programs keep its cores busy right now; until they end it takes longer.")
        return "\n".join(lines)


def measure_flops(device: torch.device, dtype: torch.dtype, seconds: float = MEASURE_SECONDS) -> float:
    """Multiplications and additions per second of `device` in products of two square matrices.

    On a CPU one thread is measured and multiplied by the threads that torch uses: on a machine that is busy with
    something else, threads wait for each other, and what would be measured is the waiting.
    """
    import torch

    # On a CPU a product should be over before the system gives the core to somebody else; a GPU needs large ones.
    size = 4096 if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    threads = torch.get_num_threads()
    times: list[float] = []
    torch.set_num_threads(1)
    try:
        while len(times) < LEAST_PRODUCTS or sum(times) < seconds:
            started = time.perf_counter()
            (a @ b)[0, 0].item()  # waits for the device
            times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    rate = 2 * size**3 / min(times)  # the best: the first sets things up, and other programs only slow one down
    return rate if device.type == "cuda" else rate * threads


def train_minutes(flops: float, gpu: bool) -> float:
    """Minutes of `make train` on a machine with this matrix rate, in FLOP/s."""
    from dsv3_mini.train.config import TrainConfig
    from dsv3_mini.train.metrics import training_flops_per_token

    cfg = TrainConfig(preset="nano", out=Path("runs/nano")).resolved()
    assert cfg.steps and cfg.batch_tokens and cfg.seq_len  # resolved
    work = cfg.steps * cfg.batch_tokens * training_flops_per_token(cfg.model_config, cfg.seq_len)
    seconds = work / (flops * CPU_SHARE)
    if gpu:
        seconds = max(seconds, cfg.steps * GPU_STEP_SECONDS)
    return (seconds + SURROUNDINGS_SECONDS) / 60


def tier(flops: float, cores: int, gpus: int) -> str:
    """What kind of machine this is, in words."""
    if gpus:
        return "one GPU" if gpus == 1 else f"{gpus} GPUs"
    kind = "workstation CPU" if flops >= WORKSTATION_FLOPS else "laptop"
    return f"{kind}: {'one core' if cores == 1 else 'two cores' if cores == 2 else f'{cores} cores'}"


def measure(gpus: int) -> Speed:
    """Measure the device that training would take, the first of `gpus` or the CPU. About half a second."""
    import torch

    device = torch.device("cuda" if gpus else "cpu")
    dtype = torch.bfloat16 if gpus and torch.cuda.is_bf16_supported() else torch.float32
    flops = measure_flops(device, dtype)
    minutes = round(train_minutes(flops, bool(gpus)), 1)
    return Speed(tier(flops, available_cores(), gpus), device.type, round(flops / 1e9, 1), minutes, _busy())


def available_cores() -> int:
    """Cores that this process may use, which in a container or a job can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _busy() -> bool:
    """Whether, over the last minute, as many programs as there are cores wanted to run."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] >= (os.cpu_count() or 1)
