"""A JupyterLab of this environment on a copy of the lessons, and a browser page on it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120

# Without these Chromium asks its maker's servers for updates and field trials.
BROWSER_ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# The debugger made the end of a session flaky; the news ask a question and want the network.
DISABLED = ("@jupyterlab/debugger-extension", "@jupyterlab/apputils-extension:announcements")


@dataclass(frozen=True)
class LabServer:
    """Where the server is, and the folder it serves: a copy with `notebooks/` in it."""

    url: str
    root: Path
    progress: Path  # the learner's progress file


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[LabServer]:
    """One server for all browser tests, without a token (only ever on 127.0.0.1), with settings of its own."""
    root = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    own = {name: root / "jupyter" / name for name in ("config", "data", "runtime", "settings", "workspaces")}
    (own["config"] / "labconfig").mkdir(parents=True)
    page_config = {"disabledExtensions": dict.fromkeys(DISABLED, True)}
    (own["config"] / "labconfig" / "page_config.json").write_text(json.dumps(page_config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1"),
        *(f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}"),
        *("--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", "--ServerApp.allow_root=True"),
        *("--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"),
    ]
    environ = {
        **os.environ,
        "DSV3_PROGRESS": str(root / "progress.json"),
        "JUPYTER_CONFIG_DIR": str(own["config"]),
        "JUPYTER_DATA_DIR": str(own["data"]),
        "JUPYTER_RUNTIME_DIR": str(own["runtime"]),
        "JUPYTERLAB_SETTINGS_DIR": str(own["settings"]),
        "JUPYTERLAB_WORKSPACES_DIR": str(own["workspaces"]),
    }
    log = root / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environ, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(process, f"{url}/api/status", log)
        yield LabServer(url, root, root / "progress.json")
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """One browser for a module. It ends with it: a playwright left open keeps an event loop running."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh page."""
    page = browser.new_page()
    page.set_default_timeout(START_SECONDS * 1000)
    yield page
    page.close()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            direct.open(url, timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")
        time.sleep(0.1)
