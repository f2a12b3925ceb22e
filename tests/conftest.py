"""Settings that all tests share: threads, Hypothesis, and what is skipped where a machine lacks something."""

from __future__ import annotations

import os
import shutil

# Before torch is imported anywhere: tests are small, and more threads than two make them slower and less repeatable.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said aloud, it does not warn after a fork
os.environ.setdefault("MPLBACKEND", "Agg")
# Nothing is fetched from a model hub, not even by mistake.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from hypothesis import settings

# Derandomised: a suite that fails today fails tomorrow on the same example.
settings.register_profile("suite", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("suite")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium (`DSV3_CHROMIUM`, else the first on the PATH). Without one: skip, or fail in CI."""
    named = os.environ.get("DSV3_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found and os.access(found, os.X_OK):
        return found
    missing = f"no browser: install Chromium (Debian: apt-get install chromium) or set DSV3_CHROMIUM ({named=})"
    if os.environ.get("DSV3_REQUIRE_BROWSER") == "1":
        pytest.fail(missing)
    pytest.skip(missing)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where torch sees no CUDA device."""
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _no_jupyter_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Jupyter of the person who runs the tests must not reach into theirs."""
    for name in [name for name in os.environ if name.startswith(("JUPYTER", "JPY_"))]:
        monkeypatch.delenv(name)
