"""The dashboard's ES module in a bare page: what it draws of a view, what the button asks, what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dsv3_mini.paths import repo_root
from dsv3_mini.viz.dashboard import STATES

from .widget_page import Open, widget_pages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

VIZ = repo_root() / "dsv3_mini" / "viz"
HOSTILE = """<script>window.ran = 1</script><img src=x onerror="window.ran = 1">"""


def view(points: int = 12, **changes: Any) -> dict[str, Any]:
    """What Python sends of a run: two charts, some numbers."""
    falling = [(step, 5 - step / 10) for step in range(1, points + 1)]
    chart = dict(last_step=20, words="from 5 to 4.", from_zero=False, at=None)
    charts = [
        {**chart, "name": "loss", "title": "Loss", "lines": {"main": falling, "mtp": [(s, h + 1) for s, h in falling]}},
        {**chart, "name": "schedule", "title": "Schedule", "lines": {"rate": [(1, 0), (20, 1)]}, "from_zero": True,
         "at": points},
    ]  # fmt: skip
    return {"progress": 0.6, "numbers": {"step": f"{points} of 20", "MFU": "25.0%"}, "charts": charts, **changes}


@pytest.fixture
def show(browser: Browser) -> Iterator[Open]:
    with widget_pages(browser, "dashboard", "dashboard") as open_page:

        def show(
            state: str = "running", shown: dict[str, Any] | None = None, message: str = "", title: str = "run"
        ) -> Page:
            shown = shown or view()
            return open_page({"state": state, "message": message, "_title": title, "_states": STATES, "_shown": shown})

        yield show


def test_the_button_asks_for_what_it_says(show: Open) -> None:
    page = show("ready")
    button = page.get_by_test_id("dashboard-button")
    for state, (words, action) in STATES.items():
        page.evaluate("state => model.set('state', state)", state)
        assert page.get_by_test_id("dashboard-state").inner_text() == words
        assert button.is_visible() == bool(action)
        if action:
            assert button.inner_text() == action
            button.click()
            assert page.evaluate("model.sent.pop()") == ("stop" if action == "Stop" else "start")
    assert page.evaluate("model.sent") == []


def test_numbers_lines_and_marks_are_those_that_were_sent_and_follow(show: Open) -> None:
    page = show()
    number = page.locator("[data-testid=dashboard-number][data-name=step]")
    assert number.inner_text() == "12 of 20" and page.locator("[data-testid=dashboard-number]").count() == 2
    assert page.get_by_test_id("dashboard-progress").evaluate("bar => bar.value") == pytest.approx(0.6)
    assert page.locator(".db-line[data-line=main]").get_attribute("data-points") == "12"
    x1 = float(page.locator("[data-at]").get_attribute("x1") or 0)
    page.evaluate("shown => model.set('_shown', shown)", view(15))
    assert number.inner_text() == "15 of 20"
    assert page.locator(".db-line[data-line=main]").get_attribute("data-points") == "15"
    assert float(page.locator("[data-at]").get_attribute("x1") or 0) > x1


def test_a_higher_value_stands_higher_and_a_later_step_farther_right(show: Open) -> None:
    page = show()
    points = page.locator(".db-line[data-line=main]").get_attribute("points") or ""
    xs, ys = zip(*(map(float, pair.split(",")) for pair in points.split()))
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys)  # the loss falls; y grows downwards
    other = page.locator(".db-line[data-line=mtp]").get_attribute("points") or ""
    assert all(float(pair.split(",")[1]) < y for pair, y in zip(other.split(), ys))


def test_charts_have_words_and_lines_differ_by_more_than_colour(show: Open) -> None:
    page = show()
    assert page.get_by_role("img", name="Loss: from 5 to 4.").count() == 1
    dashes = page.locator("[data-name=loss] svg[role=img] .db-line").evaluate_all(
        "all => all.map(line => line.getAttribute('stroke-dasharray'))"
    )
    assert len(set(dashes)) == 2
    assert page.locator("[data-name=loss] .db-legend").inner_text().split() == ["main", "mtp"]


@pytest.mark.parametrize("lines", [{}, {"main": []}, {"main": [(1, 2.0)]}, {"main": [(1, 2.0), (2, 2.0)]}])
def test_a_chart_of_little_or_nothing_is_drawn_without_an_error(show: Open, lines: dict[str, Any]) -> None:
    shown = view()
    shown["charts"][0]["lines"] = lines
    page = show(shown=shown)
    drawn = page.locator("[data-name=loss] svg[role=img]").inner_html()
    assert "NaN" not in drawn and "Infinity" not in drawn


def test_the_status_is_said_once_and_not_with_every_step(show: Open) -> None:
    page = show()
    page.evaluate(
        """() => {
            window.spoken = 0;
            const status = document.querySelector("[role=status]");
            const all = {childList: true, characterData: true, subtree: true};
            new MutationObserver(() => window.spoken++).observe(status, all);
        }"""
    )
    for points in (13, 14):
        page.evaluate("shown => model.set('_shown', shown)", view(points))
    page.wait_for_timeout(50)
    assert page.evaluate("spoken") == 0
    page.evaluate("model.set('state', 'stopping')")
    page.wait_for_function("spoken > 0")


def test_a_plain_key_does_not_reach_the_notebook_and_enter_presses(show: Open) -> None:
    page = show()
    page.get_by_test_id("dashboard-button").focus()
    for key in ("x", "d", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    assert page.evaluate("fromNotebook") == [] and page.evaluate("model.sent") == ["stop"]


def test_markup_stays_text_and_what_was_removed_listens_no_longer(show: Open) -> None:
    shown = view(numbers={HOSTILE: HOSTILE})
    shown["charts"][0] |= {"title": HOSTILE, "lines": {HOSTILE: [(1, 1), (2, 2)]}}
    page = show(title=HOSTILE, message=HOSTILE, shown=shown)
    assert page.locator("main").inner_text().count(HOSTILE) == 6
    assert page.locator("main script, main img").count() == 0 and page.evaluate("window.ran") is None
    page.evaluate("end()")
    assert page.evaluate("model.listeners()") == 0


def test_axe_finds_nothing_in_either_theme(show: Open) -> None:
    axe = pytest.importorskip("axe_playwright_python")
    page = show(message="Something is to be said.")
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    for light in ("true", "false"):
        if light == "false":
            page.add_style_tag(
                content="body { background: #111; --jp-ui-font-color1: #ddd; --jp-layout-color1: #212121; }"
            )
        page.evaluate("light => document.body.dataset.jpThemeLight = light", light)
        result = page.evaluate("axe.run(document.querySelector('main'))")
        assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in result["violations"]] == []
