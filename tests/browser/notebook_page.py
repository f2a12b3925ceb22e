"""A notebook in a real JupyterLab, driven as a learner does: open it, run cells, type into one, ask the kernel.

Every request of the page is counted, and one that wants to leave this machine is stopped: `outside` must stay empty.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Route

# Waits until the notebook is in front and its kernel is ready. A page of before may come back first: Lab remembers what
# was open. After a minute it gives the path of whatever is in front.
READY = """async path => {
    const pause = () => new Promise(done => setTimeout(done, 50));
    while (!window.jupyterapp) await pause();
    const app = window.jupyterapp;
    await app.restored;
    const context = () => app.shell.currentWidget?.context;
    for (let tries = 0; tries < 1200 && context()?.path !== path; tries++) await pause();
    if (!context()?.sessionContext) return context()?.path ?? "nothing";
    const panel = app.shell.currentWidget;
    await panel.context.ready;
    await panel.context.sessionContext.ready;
    await panel.context.sessionContext.session.kernel.info;
    await panel.revealed;
    return panel.context.path;
}"""
ASK = """async code => {
    const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
    let printed = "";
    const future = kernel.requestExecute({code});
    future.onIOPub = message => {
        if (message.header.msg_type === "stream") printed += message.content.text;
        if (message.header.msg_type === "error") printed += message.content.traceback.join("\\n");
    };
    await future.done;
    return printed;
}"""
SOURCES = "() => window.jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.model.sharedModel.getSource())"
WRITE = """([number, source]) => {
    window.jupyterapp.shell.currentWidget.content.widgets[number].model.sharedModel.setSource(source);
}"""
RUN_CELL = """async number => {
    const panel = window.jupyterapp.shell.currentWidget;
    panel.content.activeCellIndex = number;
    await panel.content.scrollToItem(number);
    await window.jupyterapp.commands.execute("notebook:run-cell");
}"""
RUN_ALL = """async () => {
    await window.jupyterapp.commands.execute("notebook:run-all-cells");
    const cells = window.jupyterapp.shell.currentWidget.content.widgets;
    const errors = [];
    cells.forEach((cell, number) => {
        if (cell.model.type !== "code") return;
        for (const output of cell.model.sharedModel.toJSON().outputs)
            if (output.output_type === "error") errors.push([number, output.ename, output.evalue]);
    });
    return errors;
}"""
SCROLL = "number => window.jupyterapp.shell.currentWidget.content.scrollToItem(number)"


ANSWER_SECONDS = 60  # for a message from the page to Python


class NotebookPage:
    """One notebook in one page."""

    def __init__(self, page: Page, server: str) -> None:
        self.page, self.server = page, server
        self.requests = 0
        self.outside: list[str] = []
        page.route("**/*", self._guard)

    def _guard(self, route: Route) -> None:
        self.requests += 1
        host = urlsplit(route.request.url).hostname
        if host in ("127.0.0.1", None):  # None: data: and blob: addresses
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()

    def open(self, path: str) -> None:
        self.page.goto(f"{self.server}/lab/tree/{path}")
        opened = self.page.evaluate(READY, path)
        assert opened == path, f"asked for {path}, Lab opened {opened}"

    def python(self, code: str) -> Any:
        """What `code` prints, read as JSON."""
        printed = self.page.evaluate(ASK, code)
        try:
            return json.loads(printed)
        except ValueError:
            raise AssertionError(f"{code!r} printed {printed!r}") from None

    def eventually(self, expression: str, wanted: Any) -> None:
        """Ask the kernel until `expression` has the value: a message of the page may still be on its way to it."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while (value := self.python(f"import json; print(json.dumps({expression}))")) != wanted:
            assert time.monotonic() < deadline, f"{expression} is {value!r}, not {wanted!r}"
            time.sleep(0.05)

    def run_all(self) -> None:
        errors = self.page.evaluate(RUN_ALL)
        assert errors == [], errors

    def find(self, text: str) -> int:
        """Number of the first cell whose source holds `text`."""
        sources = self.page.evaluate(SOURCES)
        found = [number for number, source in enumerate(sources) if text in source]
        assert found, f"no cell holds {text!r}"
        return found[0]

    def write(self, number: int, source: str) -> None:
        self.page.evaluate(WRITE, [number, source])

    def run(self, number: int) -> None:
        self.page.evaluate(RUN_CELL, number)

    def cell(self, number: int) -> Locator:
        """The cell, scrolled into view: Lab takes cells far away out of the page."""
        self.page.evaluate(SCROLL, number)
        return self.page.locator(f'.jp-Cell[data-windowed-list-index="{number}"]')
