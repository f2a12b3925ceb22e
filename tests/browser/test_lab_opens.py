"""A learner's first minute: the first lesson opens in a browser, and its kernel is this environment."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from dsv3_mini.lab import FIRST_LESSON

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from .conftest import LabServer

pytestmark = pytest.mark.browser

# Waits for the notebook in front and for its kernel, runs `code` there and gives what it printed.
RUN_IN_KERNEL = """async code => {
    const pause = () => new Promise(done => setTimeout(done, 50));
    while (!window.jupyterapp) await pause();
    const app = window.jupyterapp;
    await app.restored;
    while (!app.shell.currentWidget?.context?.sessionContext) await pause();
    const context = app.shell.currentWidget.context;
    await context.ready;
    await context.sessionContext.ready;
    const kernel = context.sessionContext.session.kernel;
    await kernel.info;
    let printed = "";
    const future = kernel.requestExecute({code});
    future.onIOPub = message => {
        if (message.header.msg_type === "stream") printed += message.content.text;
        if (message.header.msg_type === "error") printed += message.content.traceback.join("\\n");
    };
    await future.done;
    return {path: context.path, printed};
}"""


def test_first_lesson_opens_with_a_kernel_of_this_environment(lab_server: LabServer, page: Page) -> None:
    hosts = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    page.goto(f"{lab_server.url}/lab/tree/{FIRST_LESSON}")
    code = "import dsv3_mini, json, sys; print(json.dumps([sys.prefix, dsv3_mini.__version__]))"
    found = page.evaluate(RUN_IN_KERNEL, code)
    assert found["path"] == FIRST_LESSON
    import dsv3_mini

    assert json.loads(found["printed"]) == [sys.prefix, dsv3_mini.__version__]
    assert page.locator(".jp-Notebook .jp-Cell").count() > 1
    assert page.locator(".jp-Dialog").count() == 0, "Lab greets a learner with a question"
    assert hosts <= {"127.0.0.1", None}, f"the page asked {hosts}"  # None: data: and blob: addresses
