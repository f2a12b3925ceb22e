"""The idea graph's ES module in a bare page with a model of our own: what it draws, says and answers. Needs no Lab."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dsv3_mini import course
from dsv3_mini.course.idea_graph import load_idea_graph, needed_before
from dsv3_mini.paths import data_dir
from dsv3_mini.viz.idea_graph_widget import MAX_SCALE, IdeaGraph

from .widget_page import Open, widget_pages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser

ADDRESS = "http://127.0.0.1:1/lab/tree/notebooks/00_start_here.ipynb"  # nothing listens: every request is answered here
PAGE = """<!doctype html><html lang="en"><head><title>graph</title></head>
<body><main></main><div id="below" style="height: 3000px"></div></body></html>"""
SYNCED = ("face", "selected", "selected_link", "needed_for", "view", "states", "_faces", "_folders")
HOSTILE = """<script>window.ran = 1</script>"'`&<img src=x onerror="window.ran = 1">\u202eright\u200fto left\u202c"""


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(course, "all_exercises", list, raising=False)
    graph = IdeaGraph()
    state = graph.get_state()
    graph.close()
    return {name: json.loads(json.dumps(state[name])) for name in SYNCED}


@pytest.fixture
def show(browser: Browser, state: dict[str, Any]) -> Iterator[Open]:
    """Opens a page with the graph in it; traits given by name. At the end no script may have failed."""

    def prepare(page: Page) -> None:
        page.route("**/*", lambda route: route.fulfill(content_type="text/html", body=PAGE))
        page.goto(ADDRESS)

    with widget_pages(browser, "idea_graph", "idea-graph") as open_page:
        yield lambda width=1300, **traits: open_page({**state, **traits}, width, prepare=prepare)


def node(page: Page, name: str) -> Locator:
    return page.locator(f"[data-testid=idea-node][data-id='{name}']")


def link(page: Page, name: str) -> Locator:
    return page.locator(f"[data-testid=idea-link][data-id='{name}']")


def panel(page: Page) -> str:
    return page.get_by_test_id("idea-panel").inner_text()


def saved(page: Page) -> dict[str, Any]:
    return page.evaluate("model.saved")


def set_trait(page: Page, name: str, value: Any) -> None:
    """As if Python had set it. The module looks once for all changes of a moment, hence the pause."""
    page.evaluate("async ([name, value]) => { model.set(name, value); await null; await null; }", [name, value])


def focused(page: Page) -> str | None:
    return page.evaluate("document.activeElement.getAttribute('data-id')")


def test_both_faces_show_fifteen_ideas_and_fifteen_links(show: Open) -> None:
    page = show()
    for face in ("report", "summary"):
        page.get_by_test_id(f"face-{face}").click()
        graph = load_idea_graph(face)
        assert page.get_by_test_id("idea-node").evaluate_all("all => all.map(e => e.dataset.id)") == list(graph)
        links = page.get_by_test_id("idea-link").evaluate_all("all => all.map(e => e.dataset.id)")
        assert links == [f"{start}->{end}" for start, end in graph.edges]


def test_a_click_opens_an_idea_and_python_hears_of_it(show: Open) -> None:
    page = show()
    node(page, "mla").click()
    assert saved(page)["selected"] == "mla"
    fields = load_idea_graph().nodes["mla"]
    words = panel(page)
    for part in (fields["label"], fields["sentence"], fields["explanation"], fields["where"], "mla.py:"):
        assert part in words
    assert page.locator("[data-row='Before it'] li").all_inner_texts() == [
        load_idea_graph().nodes[name]["label"] for name in needed_before("mla")
    ]
    assert node(page, "mla").get_attribute("aria-pressed") == "true"


def test_an_idea_without_code_says_so(show: Open) -> None:
    assert "Not in the package yet: lesson 17 builds it." in panel(show(selected="posttraining"))


def test_traits_set_by_python_show_in_the_page(show: Open) -> None:
    page = show()
    set_trait(page, "selected", "fp8")
    assert "Fine-grained FP8 training" in panel(page)
    set_trait(page, "view", {"x": 200, "y": 100, "scale": 2})
    box = page.get_by_test_id("idea-drawing").get_attribute("viewBox").split()
    width = page.evaluate("model.get('_faces').report.width")
    assert float(box[0]) == 200 - width / 4 and float(box[2]) == width / 2
    set_trait(page, "face", "summary")
    set_trait(page, "selected_link", "deepseekmoe->mla")
    assert "wrong" in panel(page)


@pytest.mark.parametrize(
    ("server_root", "folders", "path"),
    [
        (None, [], "more lessons/04_mla.ipynb"),  # from the page's address, which names notebooks/00_start_here.ipynb
        ("/lab/course", ["/lab/course/my notes/deep"], "my notes/more lessons/04_mla.ipynb"),
        ("~/course/", ["/home/me/course/notebooks", "~/course/notebooks"], "more lessons/04_mla.ipynb"),
        ("/lab/course", ["/lab/course-of-mine/notebooks"], "more lessons/04_mla.ipynb"),  # not below: the address again
    ],
)
def test_a_lesson_is_a_link_that_lab_opens_and_one_not_written_is_none(
    show: Open, state: dict[str, Any], server_root: str | None, folders: list[str], path: str
) -> None:
    lessons = [{"number": "04", "title": "MLA", "file": "../more lessons/04_mla.ipynb"},
               {"number": "05", "title": "Absorption", "file": ""}]  # fmt: skip
    state["_faces"]["report"]["nodes"]["mla"]["lessons"] = lessons
    page = show(_folders=folders)
    if server_root is not None:
        page.evaluate(
            """config => document.body.append(Object.assign(document.createElement("script"),
                {id: "jupyter-config-data", type: "application/json", textContent: JSON.stringify(config)}))""",
            {"serverRoot": server_root, "baseUrl": "/base/"},
        )
    node(page, "mla").click()
    written = page.locator("[data-lesson='04']")
    assert written.get_attribute("data-commandlinker-command") == "docmanager:open"
    assert json.loads(written.get_attribute("data-commandlinker-args")) == {"path": path}
    base = "/" if server_root is None else "/base/"
    assert written.get_attribute("href") == f"{base}lab/tree/{path.replace(' ', '%20')}"
    assert page.locator("[data-lesson='05']").count() == 0
    assert "05 Absorption (not written yet)" in panel(page)


def test_dragging_moves_the_drawing_and_opens_nothing(show: Open) -> None:
    page = show()
    box = node(page, "mla").bounding_box()
    before = page.evaluate("model.get('view')")
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 80, box["y"] + 60, steps=4)
    page.mouse.up()
    page.wait_for_function("model.saved.view")
    after = saved(page)["view"]
    assert after["x"] < before["x"] and after["y"] < before["y"] and after["scale"] == before["scale"]
    moved = node(page, "mla").bounding_box()
    assert moved["x"] - box["x"] == pytest.approx(60, abs=1) and moved["y"] - box["y"] == pytest.approx(40, abs=1)
    assert page.evaluate("model.get('selected')") == ""
    node(page, "kv_cache").click()  # and the next click is one again
    assert page.evaluate("model.get('selected')") == "kv_cache"


def test_the_wheel_zooms_at_the_pointer_and_scrolls_the_page_where_zoom_has_its_end(show: Open) -> None:
    page = show()
    box = node(page, "mla").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.wheel(0, -300)
    page.wait_for_function("model.saved.view?.scale > 1.3")
    assert page.evaluate("scrollY") == 0
    box = node(page, "mla").bounding_box()
    assert box["x"] + box["width"] / 2 == pytest.approx(x, abs=1)
    assert box["y"] + box["height"] / 2 == pytest.approx(y, abs=1)
    page.mouse.wheel(0, 2000)
    page.wait_for_function("model.saved.view.scale === 1")
    assert page.evaluate("scrollY") == 0
    page.mouse.wheel(0, 100)  # the whole graph is seen: now the page moves on
    page.wait_for_function("scrollY > 0")
    assert page.evaluate("model.get('view').scale") == 1
    page.evaluate("window.scrollTo(0, 100)")
    set_trait(page, "view", {"x": 300, "y": 200, "scale": MAX_SCALE})
    page.mouse.wheel(0, -100)
    page.wait_for_function("scrollY < 100")


def test_plus_minus_and_zero_zoom(show: Open) -> None:
    page = show()
    node(page, "mla").focus()
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert page.evaluate("model.get('view').scale") == pytest.approx(1.25**2)
    page.keyboard.press("-")
    assert page.evaluate("model.get('view').scale") == pytest.approx(1.25)
    page.keyboard.press("0")
    page.wait_for_function("model.saved.view?.scale === 1")
    page.get_by_test_id("zoom-in").click()
    assert page.evaluate("model.get('view').scale") == pytest.approx(1.25)


def test_arrow_keys_walk_by_where_things_stand_enter_opens_and_escape_closes(show: Open) -> None:
    page = show()
    node(page, "rope_yarn").focus()
    for key, there in [("Right", "mla"), ("Right", "specdec"), ("Down", "mtp"), ("Left", "transformer_block"),
                       ("Right", "mtp"), ("Down", "dualpipe"), ("Left", "deepseekmoe"), ("Up", "transformer_block"),
                       ("Left", "kv_cache"), ("Left", "kv_cache")]:  # fmt: skip
        page.keyboard.press(f"Arrow{key}")
        assert focused(page) == there
    page.keyboard.press("Enter")
    assert saved(page)["selected"] == "kv_cache" and focused(page) == "kv_cache"
    page.keyboard.press("Escape")
    assert saved(page)["selected"] == "" and focused(page) == "kv_cache"


def test_links_are_walked_and_opened_by_keyboard_too(show: Open) -> None:
    page = show(face="summary", view={"x": 506, "y": 339, "scale": 1})
    link(page, "deepseekmoe->mixture_of_experts").focus()
    page.keyboard.press("ArrowDown")
    assert focused(page) == "ablations->mla"
    page.keyboard.press("Enter")
    assert saved(page)["selected_link"] == "ablations->mla"
    assert page.get_by_test_id("idea-verdict").inner_text().startswith("✗ wrong")
    page.keyboard.press("Escape")
    assert saved(page)["selected_link"] == ""


def test_a_step_out_of_sight_moves_the_view(show: Open) -> None:
    page = show(view={"x": 106, "y": 63, "scale": 4})
    node(page, "rope_yarn").focus()
    page.keyboard.press("ArrowRight")
    stage, box = page.get_by_test_id("idea-drawing").bounding_box(), node(page, "mla").bounding_box()
    assert stage["x"] <= box["x"] + 20 and box["x"] + box["width"] <= stage["x"] + stage["width"] + 20


def test_tab_stops_once_at_the_ideas_and_once_at_the_links_and_the_focus_is_seen(show: Open) -> None:
    page = show(selected="mtp")
    stops = "all => all.filter(e => e.tabIndex === 0).map(e => e.dataset.id)"
    assert page.get_by_test_id("idea-node").evaluate_all(stops) == ["mtp"]
    assert len(page.get_by_test_id("idea-link").evaluate_all(stops)) == 1
    page.get_by_test_id("zoom-reset").focus()
    ring = "() => getComputedStyle(document.activeElement.querySelector('.ig-ring, .ig-hit')).stroke"
    page.keyboard.press("Tab")
    assert "->" in focused(page) and page.evaluate(ring) == "rgb(25, 118, 210)"
    page.keyboard.press("Tab")
    assert focused(page) == "mtp" and page.evaluate(ring) == "rgb(25, 118, 210)"


def test_a_plain_key_does_not_reach_the_notebook_and_a_command_of_lab_does(show: Open) -> None:
    page = show()
    for place in (node(page, "mla"), page.get_by_test_id("idea-search"), page.get_by_test_id("idea-panel")):
        place.focus()
        for key in ("x", "d", "Enter", "ArrowDown", "Shift+M", "Escape"):
            page.keyboard.press(key)
    assert page.evaluate("fromNotebook.filter(key => key !== 'Shift')") == []
    page.keyboard.press("Control+s")
    assert "s" in page.evaluate("fromNotebook")


def test_hovering_shows_the_sentence_of_an_idea(show: Open) -> None:
    page = show()
    tip = page.get_by_test_id("idea-tip")
    assert not tip.is_visible()
    node(page, "lossfree").hover()
    assert tip.inner_text() == load_idea_graph().nodes["lossfree"]["sentence"]
    page.mouse.move(5, 880)
    assert not tip.is_visible()
    node(page, "mla").focus()
    assert tip.inner_text() == load_idea_graph().nodes["mla"]["sentence"]
    assert node(page, "mla").get_attribute("aria-describedby") == tip.get_attribute("id")


def test_exercise_states_change_fill_mark_and_words_while_the_page_stays_open(show: Open) -> None:
    page = show(selected="mla")
    fill = "e => getComputedStyle(e.querySelector('.ig-box')).fill"
    page.emulate_media(reduced_motion="reduce")
    seen = []
    for state, words, count in [("none", "2 exercises, not begun", "0/2"), ("begun", "1 of 2 exercises right", "1/2"),
                                ("right", "2 of 2 exercises right", "2/2")]:  # fmt: skip
        exercises = [{"id": "4.1", "title": "Compress", "lesson": "04", "state": "wrong so far"}]
        about = {"state": state, "words": words, "count": count, "exercises": exercises}
        set_trait(page, "states", {"mla": about})
        assert node(page, "mla").get_attribute("data-state") == state
        assert words in node(page, "mla").get_attribute("aria-label")
        seen.append((node(page, "mla").evaluate(fill), node(page, "mla").get_by_test_id("idea-badge").text_content()))
    assert len({colour for colour, _ in seen}) == 3
    assert [mark for _, mark in seen] == ["○ 0/2", "◐ 1/2", "✓ 2/2"]
    assert "✗ 4.1 Compress: wrong so far" in panel(page)


def test_the_other_face_opens_on_the_same_idea_and_says_what_is_conjecture(show: Open) -> None:
    page = show(selected="cost")
    page.get_by_test_id("face-summary").click()
    assert saved(page)["face"] == "summary" and saved(page)["selected"] == "training_cost"
    assert "$6M Training Cost" in panel(page) and "conjecture" in panel(page)
    assert "every link is conjecture" in page.get_by_test_id("idea-conjecture").inner_text()
    dashes = page.get_by_test_id("idea-link").evaluate_all(
        "all => all.map(e => getComputedStyle(e.querySelector('.ig-line')).strokeDasharray)"
    )
    assert set(dashes) == {"6px, 4px"}
    dashed = page.locator(".ig-node.ig-conjecture").evaluate_all("all => all.map(e => e.dataset.id)")
    assert dashed == [name for name, fields in load_idea_graph("summary").nodes(data=True) if fields["conjecture"]]
    page.get_by_test_id("other-face").click()
    assert saved(page)["face"] == "report" and saved(page)["selected"] == "cost"


@pytest.mark.parametrize(
    ("face", "name", "verdict"),
    [
        ("summary", "deepseekmoe->mla", "✗ wrong"),
        ("summary", "mixture_of_experts->sparse_activation", "✓ faithful"),
        ("summary", "training_cost->democratisation", "∅ outside"),
        ("report", "lossfree->sigmoid_gate", "– missing"),
        ("report", "mtp->specdec", "✗ wrong"),
    ],
)
def test_a_link_where_the_faces_meet_says_verdict_and_reason(show: Open, face: str, name: str, verdict: str) -> None:
    page = show(face=face)
    link(page, name).locator("text").first.click()
    assert saved(page)["selected_link"] == name
    assert page.get_by_test_id("idea-verdict").inner_text().startswith(verdict)
    fields = load_idea_graph(face).edges[tuple(name.split("->"))]
    assert page.get_by_test_id("idea-reason").inner_text() == fields.get("in_summary", fields)["reason"]
    assert fields["where"] in panel(page)
    assert ("conjecture" in panel(page)) == (face == "summary")


def test_what_is_needed_before_an_idea_is_lit_in_its_order(show: Open) -> None:
    page = show(selected="specdec")
    button = page.get_by_test_id("needs-button")
    button.click()
    assert saved(page)["needed_for"] == "specdec"
    lit = page.locator(".ig-node.ig-lit").evaluate_all("all => all.map(e => e.dataset.id)")
    order = [*needed_before("specdec"), "specdec"]
    assert sorted(lit) == sorted(order)
    assert page.locator(".ig-node.ig-faint").count() == 15 - len(order)
    for number, name in enumerate(order, 1):
        assert f"step {number} of {len(order)}" in node(page, name).get_attribute("aria-label")
        assert node(page, name).get_by_test_id("idea-badge").text_content() == f"{number}."
    button.click()
    assert page.locator(".ig-lit").count() == 0 and button.get_attribute("aria-pressed") == "false"
    page.get_by_test_id("face-summary").click()
    assert button.is_disabled()


def test_searching_dims_what_does_not_fit_and_enter_opens_the_best(show: Open) -> None:
    page = show()
    search = page.get_by_test_id("idea-search")
    search.fill("speculative")
    assert page.locator(".ig-node:not(.ig-faint)").evaluate_all("all => all.map(e => e.dataset.id)") == ["specdec"]
    search.press("Enter")
    assert saved(page)["selected"] == "specdec"
    search.press("Escape")
    assert search.input_value() == "" and page.locator(".ig-faint").count() == 0


def test_the_chain_marks_what_came_after_the_report(show: Open) -> None:
    page = show(face="summary")
    page.get_by_test_id("idea-chain").locator("summary").click()
    rows = page.get_by_test_id("idea-chain").locator("li")
    assert rows.count() == 5
    after = [words for words in rows.all_inner_texts() if "after the report" in words]
    assert [words.split(":")[0] for words in after] == ["DAPO", "DeepSeek-R1"]
    assert "2025-03-18" in after[0] and "2025-01-22" in after[1]


def test_markup_in_data_and_in_exercise_titles_is_text_and_nothing_runs(
    show: Open, state: dict[str, Any], tmp_path: Path
) -> None:
    whole = json.loads((data_dir() / "idea_graph.json").read_text(encoding="utf-8"))
    for face in whole["faces"].values():
        face["title"] = face["source"] = face["conjecture"] = HOSTILE
        for entry in face["nodes"]:
            entry |= dict.fromkeys(("label", "sentence", "explanation"), HOSTILE)
            entry |= {key: HOSTILE for key in ("where", "section", "code_note") if key in entry}
        for entry in face["edges"]:
            entry |= dict.fromkeys(("relation", "where"), HOSTILE) | ({"reason": HOSTILE} if "reason" in entry else {})
            if "in_summary" in entry:
                entry["in_summary"] |= {"reason": HOSTILE, "claims": [HOSTILE]}
    for chain in whole["prerequisites"].values():
        chain["title"] = HOSTILE
        for work in chain["works"]:
            work |= dict.fromkeys(("topic", "reference", "where"), HOSTILE)
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(whole), encoding="utf-8")
    graph = IdeaGraph(path=path)
    graph.close()
    exercises = [{"id": HOSTILE, "title": HOSTILE, "lesson": "04", "state": "right"}]
    states = {"mla": {"state": "right", "words": HOSTILE, "count": "1/1", "exercises": exercises}}
    page = show(_faces=json.loads(json.dumps(graph._faces)), states=states, selected="mla")
    words = page.get_by_test_id("idea-panel").text_content()
    assert words.count(HOSTILE) >= 8
    node(page, "mla").hover()
    assert page.get_by_test_id("idea-tip").text_content() == HOSTILE
    set_trait(page, "selected", "")
    set_trait(page, "selected_link", "mla->kv_cache")
    assert page.get_by_test_id("idea-reason").text_content() == HOSTILE
    page.get_by_test_id("face-summary").click()
    set_trait(page, "selected", "mla")
    assert HOSTILE in page.get_by_test_id("idea-panel").text_content()
    page.get_by_test_id("idea-chain").locator("summary").click()
    main = page.locator("main")
    assert main.locator("script, img").count() == 0
    assert page.evaluate("window.ran") is None
    kinds = set(main.evaluate("e => [...e.querySelectorAll('*')].map(e => e.localName)"))
    drawn, written = "svg defs marker path g line text rect", "p dl dt dd ul ol li span i b strong a code"
    assert kinds <= set(f"div button input details summary {drawn} {written}".split())


@pytest.mark.parametrize("face", ["report", "summary"])
def test_all_words_of_an_idea_stay_inside_its_box_and_inside_the_drawing(show: Open, face: str) -> None:
    page = show(face=face)
    outside = page.evaluate("""() => {
        const drawing = document.querySelector("[data-testid=idea-drawing]").viewBox.baseVal, found = [];
        const inside = (a, b) => a.x >= b.x && a.y >= b.y
            && a.x + a.width <= b.x + b.width && a.y + a.height <= b.y + b.height;
        for (const node of document.querySelectorAll("[data-testid=idea-node]"))
            for (const text of node.querySelectorAll(".ig-label, .ig-foot"))
                if (!inside(text.getBBox(), node.querySelector(".ig-box").getBBox())) found.push(text.textContent);
        for (const text of document.querySelectorAll("[data-testid=idea-link] text"))
            if (!inside(text.getBBox(), drawing)) found.push(text.textContent);
        return found;
    }""")
    assert outside == []


def test_a_wide_page_has_the_panel_beside_the_drawing_and_a_narrow_one_below(show: Open) -> None:
    for width, beside in [(1300, True), (700, False)]:
        page = show(width, selected="mla")
        drawing = page.get_by_test_id("idea-drawing").bounding_box()
        words = page.get_by_test_id("idea-panel").bounding_box()
        assert (words["x"] >= drawing["x"] + drawing["width"]) == beside
        assert (words["y"] >= drawing["y"] + drawing["height"]) == (not beside)


def test_less_motion_means_none(show: Open) -> None:
    page = show()
    duration = "e => getComputedStyle(e).transitionDuration"
    assert node(page, "mla").evaluate(duration) != "0s"
    page.emulate_media(reduced_motion="reduce")
    assert node(page, "mla").evaluate(duration) == "0s"


def test_colours_follow_the_theme_of_lab(show: Open) -> None:
    page = show()
    ink = "() => getComputedStyle(document.querySelector('.ig-label')).fill"
    frame = "() => getComputedStyle(document.querySelector('.ig-model .ig-box')).stroke"
    light = page.evaluate(ink), page.evaluate(frame)
    page.evaluate("""() => {
        document.body.dataset.jpThemeLight = "false";
        document.body.style.setProperty("--jp-ui-font-color1", "rgb(250, 250, 250)");
    }""")
    assert (page.evaluate(ink), page.evaluate(frame)) == ("rgb(250, 250, 250)", "rgb(86, 180, 233)")
    assert light == ("rgb(34, 34, 34)", "rgb(0, 114, 178)")


def test_the_graph_is_named_for_those_who_do_not_see_it(show: Open) -> None:
    page = show()
    assert page.get_by_role("group", name="Idea graph", exact=True).count() == 1
    assert page.get_by_role("button", name="Multi-head Latent Attention, §2.1.1").count() == 1
    name = "Multi-head Latent Attention shrinks KV cache (576 values/token/layer), in the summary missing"
    assert page.get_by_role("button", name=name).count() == 1
    assert page.get_by_test_id("idea-panel").get_attribute("aria-live") == "polite"
    page.get_by_test_id("face-summary").click()
    name = "DeepSeekMoE Architecture integrates Multi-head Latent Attention, conjecture, wrong"
    assert page.get_by_role("button", name=name).count() == 1


def test_a_graph_that_is_taken_away_listens_no_longer(show: Open) -> None:
    page = show()
    assert page.evaluate("model.listeners()") > 0
    page.evaluate("end()")
    assert page.evaluate("model.listeners()") == 0
