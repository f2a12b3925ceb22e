"""What this machine has and what it can do, for `dsv3-mini doctor`.

Is everything that the package and the lessons need installed, in one environment, and is there room to work? How fast
the machine is gets measured in `speed`.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dsv3_mini.errors import InputError
from dsv3_mini.lab import check_environment
from dsv3_mini.paths import repo_root
from dsv3_mini.speed import Speed, available_cores, measure, measure_flops

if TYPE_CHECKING:
    pass

GIB = 2**30
MEMORY_NEEDED = 3 * GIB  # peak of a nano run
DISK_NEEDED = 1 * GIB  # a few runs of nano; the installation itself is there already

Status = Literal["ok", "note", "missing"]


@dataclass(frozen=True)
class Check:
    """One line of the report. `advice` says what to do about a note or something missing."""

    name: str
    status: Status
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """All checks, and the speed if there is a torch to measure it with."""

    checks: tuple[Check, ...]
    speed: Speed | None

    @property
    def ok(self) -> bool:
        """Nothing that is needed is missing."""
        return all(check.status != "missing" for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        speed = None if self.speed is None else asdict(self.speed)
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks], "speed": speed}

    def as_text(self) -> str:
        """For a terminal."""
        lines = []
        for check in self.checks:
            lines.append(f"{check.status:8} {check.name:12} {check.found}")
            if check.advice:
                lines.append(f"{'':21} {check.advice}")
        if self.speed is not None:
            lines += ["", self.speed.as_text()]
        lines += ["", "Everything needed is here." if self.ok else "Something needed is missing: see above."]
        return "\n".join(lines)


def examine() -> Report:
    """Look at everything; never raises for what it finds."""
    checks = [_python(), *_libraries()]
    speed = None
    try:
        import torch
    except ImportError:  # reported above
        pass
    except OSError as problem:  # a library of the system that the build needs
        checks.append(Check("torch", "missing", "installed, but cannot be imported", str(problem)))
    else:
        speed = measure(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        checks += [_device(), _bf16()]
    checks += [_triton(), _lab(), _checkout(), _memory(), _disk()]
    return Report(tuple(checks), speed)


def _python() -> Check:
    # An older one could not have read this far: the package asks for 3.11 when it is installed.
    return Check("Python", "ok", f"{platform.python_version()} ({sys.executable})")


def _libraries() -> list[Check]:
    """torch on a line of its own; the rest of what the package imports together."""
    install = "run `make install`, or `pip install dsv3-mini`"
    versions = {name: _version(name) for name in ("torch", "numpy", "safetensors", "tokenizers", "tqdm", "psutil")}
    torch_version = versions.pop("torch")
    checks = []
    if torch_version is None:
        checks.append(Check("torch", "missing", "not installed", install))
    elif _numbers(torch_version) < (2, 11):
        checks.append(Check("torch", "missing", torch_version, "torch 2.11 or newer is needed: " + install))
    else:
        checks.append(Check("torch", "ok", torch_version))
    absent = [name for name, version in versions.items() if version is None]
    found = ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items())
    checks.append(Check("libraries", "missing" if absent else "ok", found, install if absent else ""))
    return checks


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        names = []
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            names.append(f"{properties.name} with {properties.total_memory / GIB:.0f} GiB")
        return Check("device", "ok", ", ".join(names))
    cores, threads = available_cores(), torch.get_num_threads()
    found = f"CPU, {cores} core{'s' if cores > 1 else ''}; torch uses {threads} thread{'s' if threads > 1 else ''}"
    if shutil.which("nvidia-smi"):
        return Check("device", "note", found, "there seems to be an NVIDIA GPU, but this torch does not see it")
    return Check("device", "ok", found)


def _bf16() -> Check:
    import torch

    from dsv3_mini.train.device import has_fast_bf16

    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported():
            return Check("bf16", "ok", "supported by the GPU, and used in training")
        return Check("bf16", "note", "not supported by this GPU", "training uses fp32 instead")
    cpu = torch.device("cpu")
    ratio = measure_flops(cpu, torch.bfloat16, seconds=0.1) / measure_flops(cpu, torch.float32, seconds=0.1)
    used = "and used in training" if has_fast_bf16(cpu) else "but not by this processor itself: training uses fp32"
    return Check("bf16", "ok", f"{ratio:.1f} times the fp32 matrix rate, {used}")


def _triton() -> Check:
    version = _version("triton")
    if version is not None:
        return Check("Triton", "ok", version)
    return Check("Triton", "note", "not installed", "only the kernel lesson needs it; it exists for Linux")


def _lab() -> Check:
    try:
        check_environment()
    except InputError as problem:
        return Check("JupyterLab", "missing", "no Lab with a kernel of this environment", str(problem))
    except Exception as problem:  # a broken Jupyter should be reported, not end the report
        return Check("JupyterLab", "missing", f"cannot be used: {problem}", "run `make install`")
    return Check("JupyterLab", "ok", f"{_version('jupyterlab')}, its kernel is this Python")


def _checkout() -> Check:
    try:
        return Check("checkout", "ok", str(repo_root()))
    except InputError as problem:
        return Check("checkout", "note", "none: no lessons, no data", str(problem))


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f} GiB"
    if memory.available >= MEMORY_NEEDED:
        return Check("memory", "ok", found)
    advice = "training nano takes up to 3 GiB: close something first, or train with --micro-batch-tokens 512"
    return Check("memory", "note", found, advice)


def _disk() -> Check:
    try:
        place = repo_root()
    except InputError:
        place = Path.cwd()
    free = shutil.disk_usage(place).free
    found = f"{free / GIB:.1f} GiB free at {place}"
    if free >= DISK_NEEDED:
        return Check("disk", "ok", found)
    return Check("disk", "missing", found, "a run needs room for its checkpoints: free 1 GiB")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
