"""The gate stepper's ES module in a bare page: buttons, keys, what a step shows and what a missing step changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dsv3_mini.config import ModelConfig
from dsv3_mini.paths import repo_root
from dsv3_mini.viz.gate_stepper import GateStepper

from .widget_page import Open, widget_pages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

VIZ = repo_root() / "dsv3_mini" / "viz"
SYNCED = ("step", "without", "_title", "_groups", "_ways", "_changes")
HOSTILE = """<script>window.ran = 1</script><img src=x onerror="window.ran = 1">"""


def stepper(**traits: Any) -> GateStepper:
    generator = torch.Generator().manual_seed(3)
    scores, bias = torch.rand(16, generator=generator), 0.3 * torch.randn(16, generator=generator)
    return GateStepper(scores, bias, ModelConfig.preset("nano"), **traits)


@pytest.fixture
def show(browser: Browser) -> Iterator[Open]:
    with widget_pages(browser, "gate_stepper", "gate-stepper") as open_page:

        def show(number: int = 1, **traits: Any) -> Page:
            values = stepper(**traits).get_state()
            return open_page({name: values[name] for name in SYNCED}, number=number)

        yield show


def experts(page: Page, selector: str) -> list[int]:
    return page.locator(selector).evaluate_all("all => all.map(e => Number(e.closest('.gs-expert').dataset.expert))")


def test_buttons_and_keys_walk_from_the_first_step_to_the_last(show: Open) -> None:
    page = show()
    assert page.get_by_test_id("gate-previous").is_disabled()
    page.get_by_test_id("gate-next").click()
    assert page.get_by_test_id("gate-head").inner_text() == "Step 2 of 6: Plus the routing bias"
    assert page.evaluate("model.saved.step") == 2
    stage = page.get_by_test_id("gate-stage")
    stage.focus()
    for key, step in [
        ("ArrowRight", 3),
        ("ArrowLeft", 2),
        ("End", 6),
        ("ArrowRight", 6),
        ("Home", 1),
        ("ArrowLeft", 1),
    ]:
        page.keyboard.press(key)
        assert page.evaluate("model.saved.step") == step
        assert stage.get_attribute("aria-valuenow") == str(step)
    page.keyboard.press("End")
    assert page.get_by_test_id("gate-next").is_disabled()


def test_each_step_shows_its_numbers(show: Open) -> None:
    page, steps = show(), stepper().right
    values = {1: steps.scores, 2: steps.biased, 3: steps.biased, 4: steps.masked, 5: steps.masked}
    for step in range(1, 7):
        page.evaluate("step => model.set('step', step)", step)
        shown = page.locator(".gs-expert").evaluate_all("all => all.map(e => e.dataset.value)")
        if step < 6:
            expected = [value if value > float("-inf") else None for value in values[step].tolist()]
        else:
            gates = dict(zip(steps.ids.tolist(), steps.weights.tolist()))
            expected = [gates.get(expert) for expert in range(16)]
        assert [float(text) if text else None for text in shown] == [
            v if v is None else pytest.approx(v) for v in expected
        ]
    kept = page.locator(".gs-group").evaluate_all("all => all.map(e => e.dataset.kept === 'true')")
    assert kept == steps.kept.tolist()
    assert experts(page, ".gs-tick") == sorted(steps.ids.tolist())
    page.evaluate("model.set('step', 3)")
    assert len(experts(page, ".gs-strong .gs-bar-value")) == 2 * 4  # two of each group make its score


def test_a_missing_step_is_chosen_computed_and_named(show: Open) -> None:
    page, ours = show(step=5), stepper()
    for change in ours.changes:
        page.locator(f"[data-testid=gate-choice][data-name={change.name}]").check()
        assert page.evaluate("model.saved.without") == change.name
        assert experts(page, ".gs-tick") == sorted(change.steps.ids.tolist())
        assert change.words in page.get_by_test_id("gate-wrong").inner_text()
    page.locator("[data-testid=gate-choice][data-name=none]").check()
    assert not page.get_by_test_id("gate-wrong").is_visible()
    assert experts(page, ".gs-tick") == sorted(ours.right.ids.tolist())


def test_two_steppers_on_a_page_choose_for_themselves(show: Open) -> None:
    page = show(number=2)
    first, second = page.get_by_test_id("gate-stepper").all()
    second.locator("[data-name=bias]").check()
    assert first.locator("[data-name=none]").is_checked() and second.locator("[data-name=bias]").is_checked()


def test_a_plain_key_does_not_reach_the_notebook(show: Open) -> None:
    page = show()
    for place in ("gate-stage", "gate-next"):
        page.get_by_test_id(place).focus()
        for key in ("x", "d", "ArrowDown", "Escape"):
            page.keyboard.press(key)
    assert page.evaluate("fromNotebook") == []


def test_markup_stays_text_and_what_was_removed_listens_no_longer(show: Open) -> None:
    page = show(title=HOSTILE)
    assert HOSTILE in page.locator("main").inner_text()
    assert page.locator("main script, main img").count() == 0 and page.evaluate("window.ran") is None
    page.evaluate("end()")
    assert page.evaluate("model.listeners()") == 0


def test_axe_finds_nothing_in_either_theme(show: Open) -> None:
    axe = pytest.importorskip("axe_playwright_python")
    page = show(step=4, without="bias", title="A token")
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    for light in ("true", "false"):
        if light == "false":
            page.add_style_tag(
                content="body { background: #111; --jp-ui-font-color1: #ddd; --jp-layout-color1: #212121; }"
            )
        page.evaluate("light => document.body.dataset.jpThemeLight = light", light)
        result = page.evaluate("axe.run(document.querySelector('main'))")
        assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in result["violations"]] == []
