"""A widget's ES module in a bare page, with a model as anywidget gives it one: no notebook, no server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dsv3_mini.paths import repo_root

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

VIZ = repo_root() / "dsv3_mini" / "viz"

# What a test may ask of `model`: `saved`, the traits that Python would have heard of, and `sent`, its messages;
# `from_python` sets traits as Python does; `listeners()` are to be gone after `end()`. `fromNotebook` are the keys that
# the notebook around the widget would have got. With `number` widgets, `model` is the first one's.
MOUNT = """async ([state, source, css, number]) => {
    const style = document.createElement("style");
    style.textContent = css;
    document.head.append(style);
    const decode = value => value?.bytes === undefined ? value
        : new DataView(Uint8Array.from(atob(value.bytes), char => char.charCodeAt(0)).buffer);
    window.fromNotebook = [];
    document.addEventListener("keydown", event => window.fromNotebook.push(event.key));
    const main = document.querySelector("main");
    for (let i = 0; i < number; i++) {
        const heard = {}, own = {}, changed = new Set();
        for (const [name, value] of Object.entries(state)) own[name] = decode(value);
        const tell = name => { for (const listener of [...(heard[`change:${name}`] ?? [])]) listener(); };
        const model = {
            saved: {},
            sent: [],
            get: name => own[name],
            set(name, value) {
                if (JSON.stringify(own[name]) === JSON.stringify(value)) return;
                own[name] = value;
                changed.add(name);
                tell(name);
            },
            save_changes() { for (const name of changed) this.saved[name] = own[name]; changed.clear(); },
            send(content) { this.sent.push(content.ask); },
            from_python(values) {
                for (const [name, value] of Object.entries(values)) own[name] = decode(value);
                for (const name of Object.keys(values)) tell(name);
            },
            on: (name, listener) => (heard[name] ??= []).push(listener),
            off: (name, listener) => { heard[name] = heard[name].filter(other => other !== listener); },
            listeners: () => Object.values(heard).flat().length,
        };
        window.model ??= model;
        // Each widget loads the module anew, as in a notebook.
        const module = await import(URL.createObjectURL(new Blob([source], {type: "text/javascript"})));
        const place = number === 1 ? main : main.appendChild(document.createElement("div"));
        window.end = module.default.render({model, el: place});
    }
}"""
BODY = '<!doctype html><html lang="en"><head><title>widget</title></head><body><main></main></body></html>'

Open = Callable[..., "Page"]


@contextmanager
def widget_pages(browser: Browser, module: str, testid: str, height: int = 900) -> Iterator[Open]:
    """Gives `show(state, ...)`, which opens a page with `module` on these traits and waits until it is ready.

    `prepare` loads a page of the test's own. At the end no script may have failed.
    """
    pages: list[Page] = []
    failed: list[str] = []

    def show(
        state: dict[str, Any], width: int = 900, number: int = 1, prepare: Callable[[Page], Any] | None = None
    ) -> Page:
        page = browser.new_page(viewport={"width": width, "height": height})
        pages.append(page)
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: failed.append(str(error)))
        if prepare is None:
            page.set_content(BODY)
        else:
            prepare(page)
        source, css = ((VIZ / f"{module}.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
        page.evaluate(MOUNT, [json.loads(json.dumps(state)), source, css, number])
        page.wait_for_selector(f"[data-testid={testid}][data-ready=true]")
        return page

    yield show
    for page in pages:
        page.close()
    assert not failed
