"""The lessons, in their order: number, file, title, and what each one builds. Everything else asks here.

What a lesson asks (`Lesson.asks`) is read from the text of its twin and of its definitions, without running them: that
is quick and needs no torch.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from dsv3_mini.errors import InputError
from dsv3_mini.paths import repo_root


@dataclass(frozen=True)
class Asked:
    """What a lesson asks of a learner.

    Attributes:
        exercises: titles by id.
        predictions: ids of the guesses (those of exhibits are not among them).
        exhibits: titles of the exhibits of the bug museum by id.
    """

    exercises: dict[str, str]
    predictions: tuple[str, ...]
    exhibits: dict[str, str]


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

    def asks(self) -> Asked:
        """Its exercises, guesses and exhibits; nothing as long as it has not been written."""
        twin = repo_root() / "notebooks" / "src" / f"{self.number}_{self.slug}.py"
        guesses = _PREDICTION.findall(twin.read_text(encoding="utf-8")) if twin.is_file() else []
        module = f"lesson_{self.number}"
        return Asked(
            exercises=_titles(_HERE / "exercises" / module, "Exercise"),
            predictions=tuple(guesses),
            exhibits=_titles(_HERE / "museum" / module, "Exhibit"),
        )


_HERE = Path(__file__).resolve().parent
_PREDICTION = re.compile(r"""\bpredict\(\s*["'](\d+\.p\d+)["']""")


def _titles(module: Path, kind: str) -> dict[str, str]:
    """By id, the titles of each `Exercise(id=..., title=...)` in a module or a package; nothing is run."""
    files = [module.with_suffix(".py")] if module.with_suffix(".py").is_file() else sorted(module.glob("*.py"))
    calls = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    found = {}
    for call in calls:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == kind:
            given = {word.arg: word.value for word in call.keywords}
            given |= dict(zip(_ORDER[kind], call.args))
            name, title = (ast.literal_eval(given[field]) for field in ("id", "title"))
            found[name] = title
    return dict(sorted(found.items()))


_ORDER = {"Exercise": ("id", "idea", "title"), "Exhibit": ("id", "title")}  # their first fields


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
    Lesson("12", "speculative", "Speculative decoding", "draft with MTP, verify, roll back"),
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
