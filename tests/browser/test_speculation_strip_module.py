"""The strip's ES module in a bare page: step, play, keys, a new prompt, and the signs that stand beside the colours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dsv3_mini.paths import repo_root
from dsv3_mini.viz.speculation_view import KINDS

from .widget_page import Open, widget_pages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

VIZ = repo_root() / "dsv3_mini" / "viz"
HOSTILE = """<script>window.ran = 1</script><img src=x onerror="window.ran = 1">"""


def steps_of(*rounds: list[tuple[str, str]], prompt: str = "x = ") -> list[dict[str, Any]]:
    """Prefill and rounds, as Python sends them."""
    found, text, made = [], prompt, 0
    for number, tokens in enumerate([[("1", "first")], *rounds]):
        kept = [label for label, kind in tokens if kind in ("first", "accepted", "bonus")]
        text, made = text + "".join(kept), made + len(kept)
        found.append(
            {"tokens": tokens, "words": f"What pass {number} gave.", "text": text, "made": made, "drafts": [number, 1]}
        )
    return found


ROUNDS = (
    [("2", "accepted"), ("3", "accepted"), ("4", "bonus")],
    [("9", "rejected"), ("8", "unjudged"), ("5", "bonus")],
    [("6", "accepted"), ("7", "rejected"), ("0", "bonus")],
)


@pytest.fixture
def show(browser: Browser) -> Iterator[Open]:
    with widget_pages(browser, "speculation_strip", "strip") as open_page:

        def show(**changes: Any) -> Page:
            state = {"prompt": "x = ", "depth": 2, "step": 0, "message": "", "_kinds": KINDS, "_depths": [1, 2, 3, 4]}
            return open_page(state | {"_steps": steps_of(*ROUNDS), "_words": "All in one sentence.", **changes})

        yield show


def seen(page: Page) -> list[str]:
    """Sign and label of each token that is visible."""
    return page.locator(".ss-stage .ss-token:visible").evaluate_all("all => all.map(e => e.innerText.trim())")


def test_buttons_and_keys_step_through_the_rounds(show: Open) -> None:
    page = show()
    assert seen(page) == [] and page.get_by_test_id("strip-back").is_disabled()
    page.get_by_test_id("strip-forth").click()
    page.get_by_test_id("strip-forth").click()
    assert page.evaluate("model.saved.step") == 2
    assert seen(page) == ["•1", "✓2", "✓3", "+4"]
    stage = page.get_by_test_id("strip-stage")
    stage.focus()
    for key, step in [
        ("ArrowRight", 3),
        ("ArrowLeft", 2),
        ("End", 4),
        ("ArrowRight", 4),
        ("Home", 0),
        ("ArrowLeft", 0),
    ]:
        page.keyboard.press(key)
        assert page.evaluate("model.saved.step") == step
        assert stage.get_attribute("aria-valuenow") == str(step)
    page.get_by_test_id("strip-last").click()
    assert seen(page)[4:] == ["✗9", "–8", "+5", "✓6", "✗7", "+0"]
    assert page.get_by_test_id("strip-text").inner_text() == "x = 1234560"
    assert "All in one sentence." in page.get_by_test_id("strip-words").inner_text()
    assert "rejected draft: 7" in stage.get_attribute("aria-valuetext")
    page.get_by_test_id("strip-first").click()
    assert seen(page) == []


def test_play_shows_drafts_before_their_verdict_and_ends_at_the_end(show: Open) -> None:
    page = show(step=1)
    page.get_by_test_id("strip-stage").focus()
    page.keyboard.press(" ")
    page.wait_for_selector(".ss-pending")
    assert page.locator(".ss-pending .ss-sign:visible").count() == 0, "the verdict is there before the model has read"
    page.wait_for_function("model.get('step') === 4")
    assert page.get_by_test_id("strip-play").inner_text() == "▶ Play"
    assert page.locator(".ss-pending").count() == 0
    page.get_by_test_id("strip-play").click()  # from the beginning
    page.wait_for_function("model.get('step') === 1")
    page.get_by_test_id("strip-play").click()
    page.wait_for_timeout(1500)
    assert page.evaluate("model.get('step')") == 1, "it went on after Pause"


def test_the_numbers_are_those_of_the_rounds_shown(show: Open) -> None:
    page = show(step=3)
    numbers = dict(
        page.locator("[data-testid=strip-numbers] dd").evaluate_all(
            "all => all.map(e => [e.dataset.name, e.innerText])"
        )
    )
    assert numbers == {"tokens": "5", "rounds": "2", "tokens per round": "2.00", "first drafts accepted": "1 of 2"}


def test_a_prompt_and_a_depth_are_sent_and_what_comes_back_is_played(show: Open) -> None:
    page = show(step=4)
    page.get_by_test_id("strip-prompt").fill("y =")
    assert page.evaluate("model.saved.prompt") is None, "sent while it is being typed"
    page.get_by_test_id("strip-decode").click()
    assert page.evaluate("model.saved.prompt") == "y ="
    page.evaluate("steps => { model.set('step', 0); model.set('_steps', steps); }", steps_of(*ROUNDS[:1], prompt="y ="))
    page.wait_for_function("model.get('step') === 2")
    assert seen(page) == ["•1", "✓2", "✓3", "+4"]
    page.get_by_test_id("strip-depth").select_option("4")
    assert page.evaluate("model.saved.depth") == 4


def test_a_message_stands_alone(show: Open) -> None:
    page = show(_steps=[], message="Prompt 0 is empty.")
    assert page.get_by_test_id("strip-message").inner_text() == "Prompt 0 is empty."
    assert not page.get_by_test_id("strip-stage").is_visible() and page.get_by_test_id("strip-decode").is_visible()


def test_a_plain_key_does_not_reach_the_notebook(show: Open) -> None:
    page = show(step=2)
    for place in ("strip-stage", "strip-forth", "strip-prompt"):
        page.get_by_test_id(place).focus()
        for key in ("x", "d", "ArrowDown", "Escape", " "):
            page.keyboard.press(key)
    assert page.evaluate("fromNotebook") == []
    assert page.get_by_test_id("strip-prompt").input_value().count("x") == 2


def test_markup_stays_text_and_what_was_removed_listens_no_longer(show: Open) -> None:
    page = show(_steps=steps_of([(HOSTILE, "rejected"), (HOSTILE, "bonus")], prompt=HOSTILE), prompt=HOSTILE, step=2)
    assert HOSTILE in page.get_by_test_id("strip-stage").inner_text()
    assert page.locator("main script, main img").count() == 0 and page.evaluate("window.ran") is None
    page.evaluate("end()")
    assert page.evaluate("model.listeners()") == 0


def test_axe_finds_nothing_in_either_theme(show: Open) -> None:
    axe = pytest.importorskip("axe_playwright_python")
    page = show(step=4)
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    for light in ("true", "false"):
        if light == "false":
            page.add_style_tag(
                content="body { background: #111; --jp-ui-font-color1: #ddd; --jp-layout-color1: #212121; }"
            )
        page.evaluate("light => document.body.dataset.jpThemeLight = light", light)
        result = page.evaluate("axe.run(document.querySelector('main'))")
        assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in result["violations"]] == []
