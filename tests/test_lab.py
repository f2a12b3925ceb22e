"""`dsv3-mini lab`: the right kernel, this machine only, one address with its token, and a clean end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dsv3_mini import lab
from dsv3_mini.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def make_spec(folder: Path, python: str) -> None:
    """A kernel called python3 in `folder`, as `ipykernel install` would leave it."""
    spec = folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "other", "language": "python"}))


@pytest.fixture
def other_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another Python's kernel called python3, in every place that a user can put one."""
    make_spec(tmp_path / "user", "/other/bin/python")
    make_spec(tmp_path / "path", "/other/bin/python")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "path"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")


@pytest.mark.parametrize(
    ("environ", "platform", "expected"),
    [
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({}, "linux", False),
        ({"DISPLAY": ""}, "linux", False),
        ({"DISPLAY": ":10", "SSH_CONNECTION": "10.0.0.1 5 10.0.0.2 22"}, "linux", False),
        ({"DISPLAY": ":0", "CI": "true"}, "linux", False),
        ({}, "darwin", True),
        ({"SSH_TTY": "/dev/ttys000"}, "darwin", False),
    ],
)
def test_browser_only_where_somebody_sees_it(environ: dict[str, str], platform: str, expected: bool) -> None:
    assert lab.has_screen(environ, platform) is expected


@pytest.mark.usefixtures("other_kernels")
def test_own_kernel_comes_before_any_other_of_that_name() -> None:
    assert lab.kernel_python() == sys.executable
    lab.check_environment()


@pytest.mark.usefixtures("other_kernels")
def test_server_finds_own_kernel_before_any_other_of_that_name(tmp_path: Path) -> None:
    environ = lab.lab_environment(os.environ, str(tmp_path / "config"))
    code = "from jupyter_client.kernelspec import get_kernel_spec as g; print(g('python3').argv[0])"
    found = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True).stdout
    assert found.strip() in ("python", sys.executable)
    # Without what `lab_environment` does, the other kernel would win: the test above is not empty.
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "/other/bin/python"


def test_foreign_kernel_inside_this_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "kernel_python", lambda: "/other/bin/python")
    with pytest.raises(InputError, match=r"starts /other/bin/python.*ipykernel install --sys-prefix"):
        lab.check_environment()


def test_missing_lab_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"jupyterlab and ipykernel are not installed.*dsv3-mini\[lab\]"):
        lab.check_environment()


def test_missing_lessons_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "repo_root", lambda: tmp_path)
    with pytest.raises(InputError, match=r"00_start_here\.ipynb does not exist.*make notebooks"):
        lab.run_lab()


def test_taken_or_impossible_port_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="cannot be used"):
            lab._check_port(taken.getsockname()[1])
    with pytest.raises(InputError, match="from 1 to 65535"):
        lab._check_port(65536)


@pytest.fixture
def running_lab(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A `dsv3-mini lab` without a screen on a checkout of one empty lesson; the process and the address it printed."""
    lesson = tmp_path / lab.FIRST_LESSON
    lesson.parent.mkdir()
    lesson.write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    code = f"import sys, pathlib, dsv3_mini.lab as lab; lab.repo_root = lambda: pathlib.Path({str(tmp_path)!r}); "
    code += "sys.exit(lab.run_lab(port=0))"
    environ = {**os.environ, "HOME": str(tmp_path), "CI": "true", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        printed = ""
        for line in process.stdout:
            printed += line
            if "Ctrl-C" in line:
                break
        found = re.findall(r"http://\S+", printed)
        assert len(found) == 1, printed
        yield process, found[0]
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        process.stdout.close()


def status(url: str) -> int:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_lab_serves_this_machine_only_and_ends_cleanly(running_lab: tuple[subprocess.Popen[str], str]) -> None:
    process, address = running_lab
    (server,) = (child for child in psutil.Process(process.pid).children() if "jupyterlab" in child.cmdline())
    listening = {c.laddr.ip for c in server.net_connections() if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}

    base, lesson, token = re.fullmatch(r"(http://127\.0\.0\.1:\d+/)lab/tree/(\S+)\?token=(\S+)", address).groups()
    assert lesson == lab.FIRST_LESSON
    assert len(token) >= 32 and not any(token in argument for argument in server.cmdline())
    assert status(f"{base}api/contents") == 403
    assert status(f"{base}api/contents/{lesson}?token={token}") == 200
    assert status(address) == 200

    start = urllib.request.Request(f"{base}api/kernels", b"{}", {"Authorization": f"token {token}"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(start, timeout=60) as answer:
        assert answer.status == 201
    (kernel,) = (child for child in server.children(recursive=True) if "ipykernel_launcher" in child.cmdline())
    assert kernel.cmdline()[0] == sys.executable

    process.send_signal(signal.SIGINT)  # Ctrl-C
    assert process.wait(60) == 0
    assert not psutil.wait_procs([server, kernel], timeout=30)[1], "the server or its kernel lives on"
