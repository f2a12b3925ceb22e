"""The routing explorer's ES module in a bare page with a model of our own: what it draws, says and answers."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dsv3_mini.paths import repo_root
from dsv3_mini.viz.routing_view import ALLOWED, CHOSEN, NEXT, SHUT_OUT

from .widget_page import Open, widget_pages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

VIZ = repo_root() / "dsv3_mini" / "viz"
LAYERS, EXPERTS, GROUPS, TOP_K = [1, 2, 3], 16, 4, 4
HOSTILE = """<script>window.ran = 1</script><img src=x onerror="window.ran = 1">"""
PAGE = """<!doctype html><html lang="en"><head><title>routing</title></head><body><main></main></body></html>"""


# Sum of the alpha of a drawing, and a number that changes with any pixel.
PIXELS = """testid => {
    const canvas = document.querySelector(`[data-testid=${testid}]`);
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let sum = 0;
    for (let i = 0; i < data.length; i++) sum = (sum * 31 + data[i]) % 2147483647;
    return sum;
}"""


def packed(values: np.ndarray) -> dict[str, str]:
    return {"bytes": base64.b64encode(values.tobytes()).decode()}


def text_state(tokens: list[str], seed: int = 0, experts: int = EXPERTS) -> dict[str, Any]:
    """A routing of `tokens`: each may use two groups, has four experts, one next in line and one shut out."""
    random = np.random.default_rng(seed)
    shape = (len(LAYERS), len(tokens), experts)
    cells, weights = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    size = experts // GROUPS
    for layer in range(len(LAYERS)):
        for token in range(len(tokens)):
            groups = random.permutation(GROUPS)
            allowed = np.concatenate([np.arange(size) + size * g for g in groups[:2]])
            found = random.permutation(allowed)[: TOP_K + 1]
            cells[layer, token, allowed] = ALLOWED
            cells[layer, token, found[:TOP_K]] += CHOSEN
            cells[layer, token, found[TOP_K]] += NEXT
            cells[layer, token, groups[2] * size] = SHUT_OUT
            weights[layer, token, found[:TOP_K]] = 2.5 * random.dirichlet(np.ones(TOP_K))
    kinds = np.array([[i % 5 for i in range(len(tokens))], [i % 3 for i in range(len(tokens))]], np.uint8)
    return {
        "_shown": {
            "tokens": tokens, "layers": LAYERS, "experts": experts, "groups": GROUPS, "shared": 1, "top_k": TOP_K,
            "kept_groups": 2, "domain_note": "guessed",
            "kinds": {"type": ["letters", "digits", "punctuation", "space", "other"],
                      "domain": ["code", "prose", "arithmetic"]},
        },
        "_cells": packed(cells), "_weights": packed(weights),
        "_scores": packed(random.random(shape, np.float32)),
        "_bias": packed(np.full((len(LAYERS), experts), 0.25, np.float32)), "_kinds": packed(kinds),
        "cells": cells, "weights": weights,
    }  # fmt: skip


def run_state(snapshots: int = 20, experts: int = EXPERTS) -> dict[str, Any]:
    """A run in which expert 0 has all of the load at first, and none of it is too much in the end."""
    load = np.ones((snapshots, len(LAYERS), experts), np.float32)
    load[:, :, 0] += np.linspace(5, 0, snapshots)[:, None]
    load /= load.mean(-1, keepdims=True)
    bias = np.zeros_like(load)
    bias[:, :, 0] = -np.linspace(0, 1, snapshots)[:, None]
    return {
        "_run": {"steps": [10 * s for s in range(snapshots)], "layers": LAYERS, "experts": experts},
        "_run_load": packed(load), "_run_bias": packed(bias),
        "_run_violation": packed(load.max(-1) - 1),
    }  # fmt: skip


NO_RUN = {"_run": {}, **{name: packed(np.zeros(0)) for name in ("_run_load", "_run_bias", "_run_violation")}}
TOKENS = [f"tok{i}" for i in range(30)]


def state_of(tokens: list[str] = TOKENS, *, run: bool = False, experts: int = EXPERTS, **traits: Any) -> dict[str, Any]:
    state = {**text_state(tokens, experts=experts), **(run_state(experts=experts) if run else NO_RUN)}
    state = {key: value for key, value in state.items() if key not in ("cells", "weights")}
    first = {
        "text": "some text",
        "layer": 1,
        "token": -1,
        "colour": "weight",
        "snapshot": 0,
        "message": "",
        "run_message": "",
    }
    return {**first, **state, **traits}


@pytest.fixture
def show(browser: Browser) -> Iterator[Open]:
    """Opens a page with the explorer in it. At the end no script may have failed."""
    with widget_pages(browser, "routing_explorer", "routing-explorer", height=1100) as open_page:
        yield lambda state, width=900: open_page(state, width, prepare=lambda page: page.set_content(PAGE))


def words(page: Page, testid: str) -> str:
    return page.get_by_test_id(testid).inner_text()


def get(page: Page, name: str) -> Any:
    return page.evaluate("name => model.get(name)", name)


def heard(page: Page, name: str, value: Any) -> None:
    """Waits until Python would have heard of it."""
    page.wait_for_function("([name, value]) => model.saved[name] === value", arg=[name, value])


def from_python(page: Page, **values: Any) -> None:
    page.evaluate("async values => { model.from_python(values); await null; await null; }", values)


def pixels(page: Page, testid: str) -> int:
    return page.evaluate(PIXELS, testid)


def test_the_load_is_counted_and_said_with_mean_and_maxvio(show: Open) -> None:
    data, page = text_state(TOKENS), show(state_of(layer=2))
    load = (data["cells"][1] % ALLOWED == CHOSEN).sum(0)
    busiest = int(load.argmax())
    said = words(page, "routing-load-words")
    assert f"expert {busiest} is the busiest with {load[busiest]} tokens" in said
    assert f"the mean is {load.mean():.4g}." in said and f"MaxVio {load.max() / load.mean() - 1:.2f}." in said


def test_each_chosen_expert_is_a_filled_cell_and_others_are_not(show: Open) -> None:
    """A point of a cell beside any mark has the colour of a weight exactly where the expert was chosen."""
    data, page = text_state(TOKENS), show(state_of())
    filled = page.evaluate(
        """([rows, experts]) => {
            const canvas = document.querySelector("[data-testid=routing-grid]"), pen = canvas.getContext("2d");
            const cell = Math.min(40, (900 - 16 - 2 - 132 - 10 - 8 - 14) / 17), found = [];
            for (let t = 0; t < rows; t++) for (let e = 0; e < experts; e++) {
                const [r, g, b, a] = pen.getImageData(132 + (e + 0.2) * cell, 18 * t + 9, 1, 1).data;
                const grey = Math.max(r, g, b) - Math.min(r, g, b) < 3 && r > 200;
                found.push(a > 0 && !grey);
            }
            return found;
        }""",
        [20, EXPERTS],
    )
    expected = (data["cells"][0, :20] % ALLOWED == CHOSEN).flatten().tolist()
    assert filled == expected


def test_arrow_keys_lock_a_token_and_follow_it_through_all_layers(show: Open) -> None:
    data, page = text_state(TOKENS), show(state_of())
    stage = page.get_by_test_id("routing-tokens")
    stage.focus()
    for key, token in [("ArrowDown", 0), ("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", 29),
                       ("ArrowDown", 29), ("PageUp", 9), ("Home", 0), ("ArrowUp", 0), ("PageDown", 20)]:  # fmt: skip
        page.keyboard.press(key)
        assert get(page, "token") == token
    heard(page, "token", 20)
    assert words(page, "routing-followed").startswith("Token 21 of 30, tok20, through the layers")
    assert stage.get_attribute("aria-valuenow") == "21" and "tok20" in stage.get_attribute("aria-valuetext")
    for at, layer in enumerate(LAYERS):
        row = page.locator(f"[data-testid=routing-layer-row][data-layer='{layer}']")
        chosen = np.flatnonzero(data["cells"][at, 20] % ALLOWED == CHOSEN)
        by_weight = sorted(chosen, key=lambda e: -data["weights"][at, 20, e])
        assert row.locator(".rx-chip").all_inner_texts() == [f"{e} {data['weights'][at, 20, e]:.2f}" for e in by_weight]
        cells = row.locator("td").all_inner_texts()
        assert cells[1] == str(np.flatnonzero(data["cells"][at, 20] % ALLOWED == NEXT)[0])
        assert cells[2] == str(np.flatnonzero(data["cells"][at, 20] % ALLOWED == SHUT_OUT)[0])
    page.keyboard.press("Escape")
    heard(page, "token", -1)
    assert words(page, "routing-followed").startswith("Point at a token")


def test_the_locked_token_scrolls_into_sight(show: Open) -> None:
    page = show(state_of())
    stage = page.get_by_test_id("routing-tokens")
    stage.focus()
    page.keyboard.press("End")
    top, height = page.evaluate("(() => { const e = document.activeElement; return [e.scrollTop, e.clientHeight]; })()")
    assert top <= 29 * 18 and top + height >= 30 * 18
    page.keyboard.press("Home")
    assert page.evaluate("document.activeElement.scrollTop") == 0


def test_left_right_and_the_slider_change_the_layer_and_all_drawings(show: Open) -> None:
    page = show(state_of(token=0))
    names = ("routing-grid", "routing-load", "routing-strip")
    before = [pixels(page, name) for name in names]
    page.get_by_test_id("routing-tokens").focus()
    page.keyboard.press("ArrowRight")
    heard(page, "layer", 2)
    after = [pixels(page, name) for name in names]
    assert all(a != b for a, b in zip(before, after))
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # there is no layer before the first
    heard(page, "layer", 1)
    assert [pixels(page, name) for name in names] == before
    page.get_by_test_id("routing-layer").fill("2")
    heard(page, "layer", 3)
    assert words(page, "routing-layer-name") == "3 (3 layers with experts)"
    current = "[data-testid=routing-layer-row][aria-current=true]"
    assert page.locator(current).get_attribute("data-layer") == "3"


def test_the_pointer_follows_a_token_for_a_moment_and_a_click_locks_it(show: Open) -> None:
    page = show(state_of())
    box = page.get_by_test_id("routing-tokens").bounding_box()
    page.mouse.move(box["x"] + 135 + 5, box["y"] + 18 * 4 + 9)
    assert words(page, "routing-followed").startswith("Token 5 of 30, tok4")
    assert words(page, "routing-readout").startswith("Token 5, tok4, expert 0: ")
    assert get(page, "token") == -1
    page.mouse.click(box["x"] + 150, box["y"] + 18 * 4 + 9)
    heard(page, "token", 4)
    page.mouse.move(box["x"] + 150, box["y"] + 18 * 9 + 9)
    assert words(page, "routing-followed").startswith("Token 5 of 30")  # locked means locked
    page.mouse.click(box["x"] + 150, box["y"] + 18 * 4 + 9)
    heard(page, "token", -1)
    page.mouse.move(5, 5)
    assert words(page, "routing-followed").startswith("Point at a token")
    assert words(page, "routing-readout") == ""


def test_the_readout_gives_score_and_bias_of_the_cell_under_the_pointer(show: Open) -> None:
    data, page = text_state(TOKENS), show(state_of())
    scores = np.frombuffer(base64.b64decode(data["_scores"]["bytes"]), np.float32).reshape(data["cells"].shape)
    box = page.get_by_test_id("routing-tokens").bounding_box()
    cell = min(40, (900 - 16 - 2 - 132 - 10 - 8 - 14) / 17)
    for kind, name in (
        (CHOSEN, "chosen, gate weight"),
        (NEXT, "next in line"),
        (SHUT_OUT, "shut out"),
        (0, "not chosen"),
    ):
        expert = int(np.flatnonzero(data["cells"][0, 3] % ALLOWED == kind)[0])
        page.mouse.move(box["x"] + 132 + (expert + 0.5) * cell, box["y"] + 18 * 3 + 9)
        said, score = words(page, "routing-readout"), float(scores[0, 3, expert])
        assert said.startswith(f"Token 4, tok3, expert {expert}: {name}")
        assert said.endswith(f"score {score:.3f}, with the routing bias {score + 0.25:.3f}")


@pytest.mark.parametrize(
    ("colour", "names"), [("type", ["letters", "digits", "space"]), ("domain", ["code", "arithmetic"])]
)
def test_colours_by_kind_come_with_a_name_and_a_mark(show: Open, colour: str, names: list[str]) -> None:
    page = show(state_of())
    before = pixels(page, "routing-grid"), pixels(page, "routing-load")
    page.get_by_test_id("routing-colour").select_option(colour)
    heard(page, "colour", colour)
    after = pixels(page, "routing-grid"), pixels(page, "routing-load")
    assert before[0] != after[0] and before[1] != after[1]
    legend = words(page, "routing-legend")
    for name in names:
        assert name in legend
    assert ("guessed" in legend) == (colour == "domain")


def test_all_tokens_at_once_need_no_scrolling(show: Open) -> None:
    page = show(state_of([f"t{i}" for i in range(180)]))
    stage, scrolls = page.get_by_test_id("routing-tokens"), "e => e.scrollHeight > e.clientHeight"
    assert stage.evaluate(scrolls)
    page.get_by_test_id("routing-overview").check()
    assert not stage.evaluate(scrolls)


def test_typing_reaches_python_after_a_pause_and_its_answer_is_shown(show: Open) -> None:
    page = show(state_of())
    page.get_by_test_id("routing-text").fill("x")
    page.get_by_test_id("routing-text").press_sequentially(" + y")
    heard(page, "text", "x + y")
    answer = {k: v for k, v in text_state(["x", " +", " y"], seed=5).items() if k not in ("cells", "weights")}
    from_python(page, **answer)
    assert page.get_by_test_id("routing-tokens").get_attribute("aria-valuemax") == "3"
    from_python(page, text="set in a cell")
    assert page.get_by_test_id("routing-text").input_value() == "set in a cell"


def test_half_a_surrogate_pair_is_mended_before_it_is_sent(show: Open) -> None:
    page = show(state_of())
    page.evaluate("""() => {
        const text = document.querySelector("[data-testid=routing-text]");
        text.value = "half \\ud800";
        text.dispatchEvent(new Event("input"));
    }""")
    heard(page, "text", "half \ufffd")


def test_a_message_stands_alone_when_there_is_nothing_to_show(show: Open) -> None:
    nothing = {
        "_shown": {"tokens": [], "layers": []},
        **{n: packed(np.zeros(0)) for n in ("_cells", "_weights", "_scores", "_bias", "_kinds")},
    }
    page = show(state_of(run=True))
    from_python(page, **nothing, message="The text is empty.")
    assert words(page, "routing-message") == "The text is empty."
    assert not page.get_by_test_id("routing-tokens").is_visible() and page.get_by_test_id("routing-layer").is_disabled()
    page.get_by_test_id("routing-text").press("ArrowDown")
    page.get_by_test_id("routing-text").press("Escape")
    from_python(page, **{k: v for k, v in state_of().items() if k.startswith("_")}, message="")
    assert (
        page.get_by_test_id("routing-tokens").is_visible() and not page.get_by_test_id("routing-message").is_visible()
    )


def test_one_token_is_enough(show: Open) -> None:
    page = show(state_of(["x"]))
    page.get_by_test_id("routing-tokens").focus()
    page.keyboard.press("ArrowDown")
    assert words(page, "routing-followed").startswith("Token 1 of 1, x")
    assert "busiest with 1 token;" in words(page, "routing-load-words")


def test_markup_in_tokens_and_messages_stays_text(show: Open) -> None:
    page = show(state_of([HOSTILE, "\\xc3", "b"], message=HOSTILE, run_message=HOSTILE, text=HOSTILE, token=0))
    assert HOSTILE in words(page, "routing-followed") and words(page, "routing-message") == HOSTILE
    assert page.locator("main script, main img").count() == 0
    assert page.evaluate("window.ran") is None


def test_without_a_run_nothing_is_said_of_one_and_a_message_of_it_is_shown(show: Open) -> None:
    page = show(state_of())
    assert not page.get_by_test_id("routing-training").is_visible()
    from_python(page, run_message="RUN holds no snapshots.")
    assert words(page, "routing-run-message") == "RUN holds no snapshots."
    assert not page.get_by_test_id("routing-step").is_visible()


def test_scrubbing_moves_load_and_bias_together_and_says_where_it_is(show: Open) -> None:
    page = show(state_of(run=True))
    names = ("routing-run", "routing-trend")
    before = [pixels(page, name) for name in names]
    slider = page.get_by_test_id("routing-step")
    slider.focus()
    page.keyboard.press("End")
    heard(page, "snapshot", 19)
    assert words(page, "routing-step-name") == "190 · MaxVio 0.00"
    assert slider.get_attribute("aria-valuetext") == "step 190, MaxVio 0.00"
    assert all(a != b for a, b in zip(before, [pixels(page, name) for name in names]))
    label = page.get_by_test_id("routing-run").get_attribute("aria-label")
    assert label.startswith("Step 190: expert 0 has 1.00 times the mean load") and "−0.9" in label
    from_python(page, snapshot=0)
    assert words(page, "routing-step-name").startswith("0 · MaxVio 3.5")
    assert [pixels(page, name) for name in names] == before


def test_play_runs_to_the_end_and_stops_and_pause_stops(show: Open) -> None:
    page = show(state_of(run=True, snapshot=17))
    play = page.get_by_test_id("routing-play")
    play.click()
    assert play.inner_text() == "⏸ Pause"
    heard(page, "snapshot", 19)
    page.wait_for_function("document.querySelector('[data-testid=routing-play]').textContent === '▶ Play'")
    play.click()  # from the end it begins again
    page.wait_for_function("model.get('snapshot') > 0 && model.get('snapshot') < 10")
    play.click()
    stopped = get(page, "snapshot")
    heard(page, "snapshot", stopped)
    page.wait_for_timeout(900)  # longer than a step takes
    assert get(page, "snapshot") == stopped and play.inner_text() == "▶ Play"


def test_a_layer_that_the_run_did_not_record_has_no_slider(show: Open) -> None:
    state = state_of(run=True)
    state["_run"] = {**state["_run"], "layers": [7, 8, 9]}
    assert not show({**state, "run_message": "not recorded"}).get_by_test_id("routing-step").is_visible()


def test_a_plain_key_does_not_reach_the_notebook_and_a_command_of_lab_does(show: Open) -> None:
    page = show(state_of(run=True, token=1))
    for place in ("routing-text", "routing-tokens", "routing-layer", "routing-step", "routing-play"):
        page.get_by_test_id(place).focus()
        for key in ("x", "d", "Enter", "ArrowDown", "Shift+M", "Escape"):
            page.keyboard.press(key)
    assert page.evaluate("fromNotebook.filter(key => key !== 'Shift')") == []
    page.keyboard.press("Control+s")
    assert "s" in page.evaluate("fromNotebook")


def test_a_theme_that_turns_dark_is_painted_anew(show: Open) -> None:
    page = show(state_of(run=True, token=0))
    names = ("routing-grid", "routing-load", "routing-strip", "routing-run", "routing-trend")
    before = [pixels(page, name) for name in names]
    legend = page.evaluate("document.querySelector('.rx-scale').style.background")
    page.evaluate("document.body.dataset.jpThemeLight = 'false'")
    page.wait_for_function("light => document.querySelector('.rx-scale').style.background !== light", arg=legend)
    assert all(a != b for a, b in zip(before, [pixels(page, name) for name in names]))


def test_what_was_removed_listens_no_longer(show: Open) -> None:
    page = show(state_of(run=True))
    page.get_by_test_id("routing-play").click()
    page.evaluate("end()")
    at = get(page, "snapshot")
    page.wait_for_timeout(900)
    assert page.evaluate("model.listeners()") == 0 and get(page, "snapshot") == at


def test_axe_finds_nothing_in_either_theme(show: Open) -> None:
    axe = pytest.importorskip("axe_playwright_python")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    page = show(state_of(run=True, token=2, colour="type", message="A message.", run_message=""))
    for light in ("true", "false"):
        if light == "false":
            page.add_style_tag(content="body { background: #111; --jp-ui-font-color1: #ddd; --jp-layout-color0: #111; "
                                       "--jp-layout-color1: #212121; }")  # fmt: skip
        page.evaluate("light => document.body.dataset.jpThemeLight = light", light)
        page.evaluate(source)
        result = page.evaluate("axe.run(document.querySelector('main'))")
        assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in result["violations"]] == []
