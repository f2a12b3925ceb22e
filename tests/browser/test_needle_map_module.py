"""The needle map's ES module in a bare page: choice, cells, keys, and text that stays text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from dsv3_mini.paths import repo_root
from dsv3_mini.train.documents import Document
from dsv3_mini.train.tokenizer import Tokenizer
from dsv3_mini.viz.needle_map import NeedleMap

from .widget_page import Open, widget_pages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

VIZ = repo_root() / "dsv3_mini" / "viz"
SYNCED = ("chosen", "line", "column", "_maps", "_lengths", "_depths", "_trained", "_shown")
HOSTILE = """<script>window.ran = 1</script><img src=x onerror="window.ran = 1">"""
CODE = "".join(f"def f_{n}(x):\n    return '{HOSTILE}' + {n}\n\n\n" for n in range(100))
FOUND = [[1.0, 0.5, 0.0], [0.9, 0.4, 0.1]]
MAP = {"lengths": [64, 128, 256], "depths": [0.0, 1.0], "count": 2, "found": FOUND, "digits": FOUND}


@pytest.fixture
def show(browser: Browser) -> Iterator[Open]:
    with widget_pages(browser, "needle_map", "needle-map", height=700) as open_page:

        def show(**traits: Any) -> Page:
            widget = NeedleMap({"before": MAP, HOSTILE: MAP}, {}, Tokenizer.train([CODE], 300),
                               [Document("code", "f.py", CODE)], trained=128, **traits)  # fmt: skip
            values = widget.get_state()
            return open_page({name: values[name] for name in SYNCED})

        yield show


def test_cells_carry_their_share_and_a_click_chooses(show: Open) -> None:
    page = show()
    assert page.locator("button[data-cell]").all_inner_texts() == ["100", "50", "0", "90", "40", "10"]
    page.locator("button[data-cell='1,2']").click()
    assert page.evaluate("[model.get('line'), model.get('column')]") == [1, 2]
    assert page.locator("button[aria-pressed=true]").get_attribute("data-cell") == "1,2"
    named = page.locator("button[data-cell='1,2']").get_attribute("aria-label")
    assert named == "256 tokens, depth 100 %: 10 % found"
    assert page.locator("th.nm-beyond").all_inner_texts() == ["256"]  # the first length beyond training


def test_arrow_keys_walk_and_stay_within_and_reach_no_notebook(show: Open) -> None:
    page = show()
    page.locator("button[data-cell='0,0']").focus()
    for key, cell in (("ArrowRight", "0,1"), ("ArrowDown", "1,1"), ("ArrowDown", "1,1"), ("ArrowLeft", "1,0"),
                      ("ArrowLeft", "1,0"), ("ArrowUp", "0,0")):  # fmt: skip
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.dataset.cell") == cell
    page.keyboard.press("x")
    assert page.evaluate("window.fromNotebook") == []


def test_the_text_is_shown_as_text_and_what_was_written_is_marked_in_words(show: Open) -> None:
    page = show(line=1, column=2)
    assert HOSTILE[:20] in page.get_by_test_id("needle-text").inner_text()
    assert page.evaluate("window.ran") is None
    expected = page.evaluate("model.get('_shown').expected")
    for written, word in ((expected, "✓ right"), ("000", "✗ wrong")):
        page.evaluate("written => model.set('_shown', {...model.get('_shown'), written})", written)
        assert f"the model writes {written}: {word}." in page.get_by_test_id("needle-head").inner_text()


def test_another_map_is_chosen_and_the_end_leaves_no_listener(show: Open) -> None:
    page = show()
    page.get_by_test_id("needle-choice").select_option(HOSTILE)
    assert page.evaluate("model.get('chosen')") == HOSTILE
    page.evaluate("end()")
    assert page.evaluate("model.listeners()") == 0
