"""What a training step reports: the metrics file, and how well the machine is used (MFU).

`RUN/metrics.jsonl` holds one JSON object a step. Only whole lines count: a run that is killed may leave half a line,
or lines of steps that its last checkpoint does not know; continuing cuts them off, so that no step is there twice.

Model FLOPs utilisation is the share of the machine's matrix rate that the model's own arithmetic accounts for:

    MFU = tokens/s * FLOPs per token / peak FLOP/s
    FLOPs per token = 6 * N + 6 * n_h * (d_qk + d_v) * (T + 1) / 2 per attention layer

N counts the weights in matrix products that one token meets: K_r routed experts and not all of them, the output head
once for the main model and once for each MTP module, no embedding table (a look-up). 6 is 2 for a multiply-add times
1 forward and 2 backward; a causal token looks at (T + 1) / 2 tokens on average. Recomputation, the optimizer and the
sorting of tokens cost time but count as nothing. The peak is the data sheet's for GPUs we know, else measured by
multiplying two matrices.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from dsv3_mini.config import ModelConfig
from dsv3_mini.model.count import attention_parameters

# Dense bf16 tensor-core FLOP/s with fp32 accumulation, from the vendor's data sheets. First match by name wins.
_PEAK_BF16 = (
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
)


def matmul_parameters(cfg: ModelConfig, *, mtp: bool = True) -> int:
    """N above: weights in matrix products that one token meets, with the MTP modules or without."""
    d = cfg.hidden_size
    attention = attention_parameters(cfg)
    if cfg.plain_kv_heads is None:  # MLA, whose two inner norms are no matrices
        attention -= (cfg.q_lora_rank or 0) + cfg.kv_lora_rank
    experts = cfg.num_experts_per_tok + cfg.n_shared_experts
    moe = 3 * d * cfg.moe_intermediate_size * experts + d * cfg.n_routed_experts
    dense = 3 * d * cfg.intermediate_size
    head = cfg.vocab_size * d
    ffns = [dense if layer < cfg.first_k_dense_replace else moe for layer in range(_layers(cfg))]
    total = cfg.num_hidden_layers * attention + sum(ffns[: cfg.num_hidden_layers]) + head
    if mtp:
        eh_proj = 2 * d * d
        total += cfg.num_nextn_predict_layers * (attention + eh_proj + head) + sum(ffns[cfg.num_hidden_layers :])
    return total


def training_flops_per_token(cfg: ModelConfig, seq_len: int) -> float:
    """Floating-point operations of one training token, forward and backward, in sequences of `seq_len` tokens."""
    scores_and_values = 6 * cfg.num_attention_heads * (cfg.qk_head_dim + cfg.v_head_dim) * (seq_len + 1) / 2
    return 6 * matmul_parameters(cfg) + _layers(cfg) * scores_and_values


def _layers(cfg: ModelConfig) -> int:
    return cfg.num_hidden_layers + cfg.num_nextn_predict_layers


def peak_flops(device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.5) -> float:
    """Matrix FLOP/s of `device` in `dtype`: of the data sheet for GPUs we know in bf16, else measured for `seconds`.

    Measured with the threads that torch uses now.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, flops in _PEAK_BF16:
            if known in name:
                return flops
    a = torch.ones(size, size, device=device, dtype=dtype)
    b = torch.ones(size, size, device=device, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:  # the best of many: another process can only slow a product down
        started = time.perf_counter()
        product = a @ b
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


class MetricsLog:
    """`metrics.jsonl` or a file like it (`routing_log`), open for appending. Steps count from 1."""

    def __init__(self, path: Path, *, keep_steps: int = 0) -> None:
        """Open, keeping only whole lines of steps up to `keep_steps`."""
        self.path = path
        kept = _whole_lines(path, keep_steps)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._file.truncate(kept)

    def write(self, **record: Any) -> None:
        """Add one line; it survives the death of this process from here on."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Make all lines survive the death of the machine too."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The steps of a run so far, oldest first; a half-written last line is left out."""
    path = Path(run) / "metrics.jsonl"
    text = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def _whole_lines(path: Path, keep_steps: int) -> int:
    """Bytes of `path` up to and including the line of step `keep_steps`."""
    kept = 0
    if path.exists():
        with open(path, "rb") as file:
            for line in file:
                try:
                    step = json.loads(line)["step"] if line.endswith(b"\n") else None
                except (ValueError, KeyError, TypeError):
                    step = None
                if not isinstance(step, int) or step > keep_steps:
                    break
                kept += len(line)
    return kept
