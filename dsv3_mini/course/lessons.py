"""The lessons, in their order: number, file, title, and what each one builds. Everything else asks here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dsv3_mini.errors import InputError
from dsv3_mini.paths import repo_root


@dataclass(frozen=True)
class Lesson:
    """One lesson. `notebook` is None as long as it has not been written."""

    number: str  # "03"
    slug: str  # "positions"
    title: str
    builds: str

    @property
    def file(self) -> str:
        """Name of the notebook, in `notebooks/`."""
        return f"{self.number}_{self.slug}.ipynb"

    @property
    def notebook(self) -> Path | None:
        path = repo_root() / "notebooks" / self.file
        return path if path.is_file() else None


LESSONS = (
    Lesson("00", "start_here", "Start here", "a tour"),
    Lesson("01", "attention", "Attention", "causal multi-head attention"),
    Lesson("02", "kv_cache", "The KV cache", "prefill and decode; MHA, GQA, MQA"),
    Lesson("03", "positions", "Positions", "rotary positions, both layouts"),
    Lesson("04", "mla", "MLA", "latent attention with a key of its own for the position"),
    Lesson("05", "absorption", "Absorption", "decoding inside the latent"),
    Lesson("06", "mixture_of_experts", "Mixture of experts", "gate, shared and routed experts"),
    Lesson("07", "balance", "Balance", "collapse, auxiliary loss, routing bias, node limit"),
    Lesson("08", "whole_model", "The whole model", "block, stack, parameter count"),
    Lesson("09", "mtp", "Multi-token prediction", "the MTP module and its loss"),
    Lesson("10", "data", "Data", "byte-level BPE, packing, fill-in-the-middle"),
    Lesson("11", "train", "Train it", "schedule, optimizer, dashboard"),
    Lesson("12", "speculative_decoding", "Speculative decoding", "draft with MTP, verify, roll back"),
    Lesson("13", "fp8", "FP8", "8-bit floats in tiles and blocks, accumulation"),
    Lesson("14", "kernels", "Kernels", "Triton: quantise, matrix products, decoding"),
    Lesson("15", "long_context", "Long context", "YaRN, needle in a haystack"),
    Lesson("16", "parallelism", "Parallelism", "DualPipe, expert parallelism"),
    Lesson("17", "post_training", "Post-training", "fine-tuning, GRPO, distillation"),
    Lesson("18", "serving_and_claims", "Serving, cost, and what was claimed", "deployment, price, a check of claims"),
)


def lesson(number: str) -> Lesson:
    """The lesson with a number, such as "03". Raises `InputError` when there is none."""
    for entry in LESSONS:
        if entry.number == number:
            return entry
    raise InputError(f"there is no lesson {number!r}; the lessons are 00 to {LESSONS[-1].number}")
