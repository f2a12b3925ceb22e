"""Opening the lessons: JupyterLab, on this machine only, with a kernel of this very environment.

"Lab and kernel live in different environments" is what learners of notebook courses trip over most. So the server
is started by the Python that runs this, its kernels are looked up in this environment first, and which Python they
would be is checked before anything starts. A kernel called `python3` that somebody once installed for their user cannot
get in between.

The server keeps its token: other users of the machine can reach 127.0.0.1 too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from dsv3_mini.errors import InputError
from dsv3_mini.paths import repo_root

FIRST_LESSON = "notebooks/00_start_here.ipynb"
KERNEL_NAME = "python3"  # what the lessons' metadata ask for
START_SECONDS = 120  # a first start on a slow disk compiles a lot of Python
STOP_SECONDS = 15  # kernels get a moment to end

# Lab's start-up question about news would be the first thing that a learner sees, and its answer needs the network.
_PAGE_CONFIG = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}


def run_lab(port: int | None = None, browser: bool | None = None) -> int:
    """Start JupyterLab on the first lesson and wait until it ends; the exit code for the shell.

    port: of 127.0.0.1; None takes the first free one from 8888 on. browser: open one; None decides by `has_screen`.
    Raises `InputError` when Lab is not installed, its kernel would be another Python, or the port is taken.
    """
    root = repo_root()
    if not (root / FIRST_LESSON).is_file():
        raise InputError(f"{root / FIRST_LESSON} does not exist: the lessons are built by `make notebooks`")
    check_environment()
    if port is not None:
        _check_port(port)
    browser = has_screen() if browser is None else browser

    # A terminal that closes and a service manager that stops us should end the server like Ctrl-C does.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    with tempfile.TemporaryDirectory(prefix="dsv3-mini-lab-") as config:
        _write_page_config(Path(config))
        token = secrets.token_urlsafe(24)
        process = subprocess.Popen(
            _command(root, port, browser),
            env=lab_environment(os.environ, config) | {"JUPYTER_TOKEN": token},  # not an argument: `ps` shows those
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C comes to us alone, so that Lab does not ask "are you sure?"
        )
        try:
            address = _wait_until_ready(process)
            if address is None:
                print(f"JupyterLab ended with exit code {process.returncode} before it was ready.", file=sys.stderr)
                return 1
            _announce(address, browser)
            return process.wait()
        except KeyboardInterrupt:
            print("\nStopping JupyterLab.", flush=True)
            return 0
        finally:
            _stop(process)


def check_environment() -> None:
    """Raise `InputError` if Lab or its kernel is missing here, or the kernel would be another Python than this."""
    missing = [name for name in ("jupyterlab", "ipykernel") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed in {sys.prefix}: "
            "run `make install`, or `pip install 'dsv3-mini[lab]'`, which is the extra with JupyterLab"
        )
    found = kernel_python()
    if Path(found).parent.parent != Path(sys.executable).parent.parent:
        raise InputError(
            f"the kernel {KERNEL_NAME!r} of this environment starts {found}, which is another Python than this one: "
            f"repair it with `{sys.executable} -m ipykernel install --sys-prefix --name {KERNEL_NAME}`"
        )


def kernel_python() -> str:
    """The Python that Lab, started by `run_lab`, would run a lesson's kernel with."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_core.paths import jupyter_path

    own = str(Path(sys.prefix) / "share" / "jupyter" / "kernels")
    specs = KernelSpecManager(kernel_dirs=[own, *jupyter_path("kernels")])
    python = specs.get_kernel_spec(KERNEL_NAME).argv[0]
    # A bare name means "the Python of the server", whatever the PATH says (jupyter_client, format_kernel_cmd).
    bare = {"python", f"python{sys.version_info[0]}", f"python{sys.version_info[0]}.{sys.version_info[1]}"}
    return sys.executable if python in bare else python


def lab_environment(base: Mapping[str, str], config: str) -> dict[str, str]:
    """The environment variables of the server: `base`, with this environment's kernels and `config` in front."""
    own = str(Path(sys.prefix) / "share" / "jupyter")
    return {
        **base,
        "JUPYTER_PATH": os.pathsep.join(filter(None, [own, base.get("JUPYTER_PATH")])),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, [config, base.get("JUPYTER_CONFIG_PATH")])),
    }


def has_screen(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> bool:
    """Whether a browser that we open would be seen by the person who asked for it."""
    if any(environ.get(name) for name in ("CI", "SSH_CONNECTION", "SSH_TTY")):
        return False
    return not platform.startswith("linux") or any(environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _command(root: Path, port: int | None, browser: bool) -> list[str]:
    command = [
        *(sys.executable, "-m", "jupyterlab", "--log-level=WARN", "--LabApp.log_level=WARN"),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={root}",
        f"--LabApp.default_url=/lab/tree/{FIRST_LESSON}",
        f"--ServerApp.open_browser={browser}",
    ]
    if port is not None:
        command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # containers; Jupyter refuses otherwise
    return command


def _check_port(port: int) -> None:
    if not 0 <= port <= 65535:
        raise InputError(f"port = {port} cannot be: it must be from 1 to 65535, or 0 for any that is free")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that closed a moment ago is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"port = {port} cannot be used ({error.strerror}): name another, or leave --port out"
            ) from None


def _write_page_config(config: Path) -> None:
    (config / "labconfig").mkdir()
    (config / "labconfig" / "page_config.json").write_text(json.dumps(_PAGE_CONFIG), encoding="utf-8")


def _wait_until_ready(process: subprocess.Popen[bytes]) -> str | None:
    """The address to open, token included, once the server answers; None if it has ended instead."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None:
        for server in _servers():
            if server["pid"] == process.pid and _answers(server):
                query = f"?token={server['token']}" if server["token"] else ""
                return f"http://127.0.0.1:{server['port']}{server['base_url']}lab/tree/{FIRST_LESSON}{query}"
        if time.monotonic() > deadline:
            _stop(process)
            return None
        time.sleep(0.1)
    return None


def _servers() -> Iterator[dict[str, Any]]:
    from jupyter_server.serverapp import list_running_servers

    # A server that starts or ends elsewhere at this moment may take its file away under our hands.
    with contextlib.suppress(OSError):
        yield from list_running_servers()


def _answers(server: Mapping[str, Any]) -> bool:
    url = f"http://127.0.0.1:{server['port']}{server['base_url']}api/status?token={server['token']}"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # 127.0.0.1 is never behind a proxy
    try:
        with direct.open(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True  # it asks for a password: somebody configured one
    except OSError:
        return False


def _announce(address: str, browser: bool) -> None:
    opened = "A browser window opens with" if browser else "Open this address in a browser on this machine for"
    print(f"JupyterLab is ready. {opened} the first lesson:\n\n    {address}\n", flush=True)
    if os.environ.get("SSH_CONNECTION"):
        port = address.split(":")[2].split("/")[0]
        print(f"From the machine you sit at, first: ssh -N -L {port}:127.0.0.1:{port} THIS-MACHINE\n", flush=True)
    print("Ctrl-C here ends it. What you save in the notebooks stays.", flush=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its kernels; by force only if it does not listen."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
