"""The script that measures on a GPU, tried at toy size: every part runs, and no part can take the others with it."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.benchmarks import gpu, gpu_parts  # noqa: E402 (found by the line above)


def errors(result: Any, path: str = "") -> list[str]:
    """Everything below `result` that is called "error"."""
    if not isinstance(result, dict):
        return []
    here = [f"{path}: {result['error']}"] if "error" in result else []
    return here + [found for name, part in result.items() for found in errors(part, f"{path}/{name}")]


def test_every_part_runs_at_toy_size() -> None:
    result = gpu.run_all(list(gpu_parts.PARTS), toy=True)
    assert errors(result["parts"]) == []
    json.dumps(result)
    assert list(result["parts"]) == list(gpu_parts.PARTS) and not result["measured_on_a_gpu"]
    training = result["parts"]["training"]
    assert {"eager", "eager, recomputed", "compiled", "compiled, recomputed"} <= set(training)
    assert 0 < training["eager"]["mfu"] < 1 and training["eager"]["predicted_peak_bytes"] > 0
    assert result["parts"]["transformers"]["eager"]["ratio"] > 0
    assert 0 <= result["parts"]["idle"]["idle_share"] < 1


def test_a_part_that_fails_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(settings: gpu_parts.Settings) -> dict[str, Any]:
        raise RuntimeError("out of everything")

    def lacks(settings: gpu_parts.Settings) -> dict[str, Any]:
        raise gpu_parts.Skipped("nothing to compare with")

    works = gpu_parts.Part(lambda settings: {"found": 1}, 1, "works")
    parts = {"fails": gpu_parts.Part(fails, 1, "fails"), "lacks": gpu_parts.Part(lacks, 1, "lacks"), "works": works}
    monkeypatch.setattr(gpu_parts, "PARTS", parts)
    found = gpu.run_all(list(parts), toy=True)["parts"]
    assert found["fails"]["error"] == "RuntimeError: out of everything"
    assert found["lacks"]["skipped"] == "nothing to compare with"
    assert found["works"]["found"] == 1


def test_a_part_apart_hands_over_its_result_and_what_it_had_when_its_time_was_up() -> None:
    done = gpu.run_part_apart("idle", 120, "--toy")
    assert 0 <= done["idle_share"] < 1
    late = gpu.run_part_apart("idle", 0.01, "--toy")
    assert late == {"error": "not done after 0 s"}
    assert gpu._last_result('noise\nRESULT {"a": 1}\nnoise\nRESULT {"a": 1, "b": 2}\nRESU') == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([(0, 1)], 0.0),
        ([(0, 1), (3, 4)], 0.5),
        ([(3, 4), (0, 1)], 0.5),
        ([(0, 10), (2, 3)], 0.0),  # one inside another
        ([(0, 4), (2, 6), (8, 10)], 0.2),
    ],
)
def test_idle_share(spans: list[tuple[float, float]], share: float) -> None:
    assert gpu_parts.idle_share(spans) == pytest.approx(share)


def test_waits_are_counted_where_they_happen() -> None:
    def work() -> None:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    assert [where.split(":")[0] for where in gpu_parts.waits_in(work)] == ["test_gpu.py"] * 2
