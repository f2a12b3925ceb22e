"""`dsv3-mini doctor`: honest about what is missing, and a time estimate that follows from what it measured."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
from types import SimpleNamespace

import pytest

from dsv3_mini import cli, doctor, speed
from dsv3_mini.errors import InputError


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures for a moment only: most tests are not about the number."""
    monkeypatch.setattr(speed, "MEASURE_SECONDS", 0.0)


def by_name(report: doctor.Report) -> dict[str, doctor.Check]:
    return {check.name: check for check in report.checks}


def test_this_environment_has_all_that_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    checks = {check["name"]: check for check in report["checks"]}
    assert checks.keys() >= {"Python", "torch", "libraries", "device", "bf16", "Triton", "JupyterLab", "memory", "disk"}
    assert importlib.metadata.version("torch") in checks["torch"]["found"]
    assert report["speed"]["matmul_gflops"] > 1 and report["speed"]["train_minutes"] > 0
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "Everything needed is here." in printed and "`make train`" in printed


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("gone", ["torch", "tokenizers"])
def test_missing_library_is_1_and_named(gone: str, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == gone:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert any(line.startswith("missing") and gone in line for line in printed.splitlines())
    assert "make install" in printed and "Something needed is missing" in printed


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("version", ["2.10.3", "1.13"])
def test_old_torch_is_missing(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: version if name == "torch" else "1.0")
    assert by_name(doctor.examine())["torch"].status == "missing"
    monkeypatch.setattr(doctor, "_version", lambda name: "2.11.0+cu130" if name == "torch" else "1.0")
    assert by_name(doctor.examine())["torch"].status == "ok"


@pytest.mark.usefixtures("quick")
def test_kernel_of_another_environment_is_missing_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def foreign() -> None:
        raise InputError("the kernel starts /other/bin/python")

    monkeypatch.setattr(doctor, "check_environment", foreign)
    report = doctor.examine()
    check = by_name(report)["JupyterLab"]
    assert check.status == "missing" and check.advice == "the kernel starts /other/bin/python"
    assert not report.ok


@pytest.mark.usefixtures("quick")
def test_little_memory_is_a_note_and_no_disk_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    little = SimpleNamespace(available=2 * doctor.GIB, total=4 * doctor.GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=100 * 2**20))
    checks = by_name(doctor.examine())
    assert (checks["memory"].status, checks["disk"].status) == ("note", "missing")
    assert "--micro-batch-tokens" in checks["memory"].advice


def test_minutes_follow_the_matrix_rate() -> None:
    surroundings = speed.SURROUNDINGS_SECONDS / 60
    slow, fast = (speed.train_minutes(rate, gpu=False) - surroundings for rate in (50e9, 100e9))
    assert slow == pytest.approx(2 * fast)
    # A GPU is limited by how fast kernels can be started, however fast it multiplies.
    assert speed.train_minutes(1e15, gpu=True) > speed.train_minutes(1e15, gpu=False)


@pytest.mark.parametrize(
    ("flops", "cores", "gpus", "expected"),
    [
        (100e9, 2, 0, "laptop: two cores"),
        (90e9, 1, 0, "laptop: one core"),
        (300e9, 8, 0, "laptop: 8 cores"),
        (2e12, 64, 0, "workstation CPU: 64 cores"),
        (4e14, 16, 1, "one GPU"),
        (4e14, 16, 8, "8 GPUs"),
    ],
)
def test_tiers(flops: float, cores: int, gpus: int, expected: str) -> None:
    assert speed.tier(flops, cores, gpus) == expected


def test_measured_rate_counts_all_threads_and_leaves_them_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    clock = itertools.count()
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock) / 1000)  # every product takes a millisecond
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            rate = speed.measure_flops(torch.device("cpu"), torch.float32)
            assert rate == pytest.approx(threads * 2 * 512**3 / 1e-3)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
def test_gpu_is_named_and_measured() -> None:
    import torch

    report = doctor.examine()
    assert torch.cuda.get_device_name() in by_name(report)["device"].found
    assert report.speed is not None and report.speed.device == "cuda" and report.speed.matmul_gflops > 1000
