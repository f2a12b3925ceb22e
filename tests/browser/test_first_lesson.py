"""Lesson 00 as a learner meets it: run all, walk the idea graph by mouse and by keys, answer an exercise, come back.

One page for all tests of this file, in the order in which a learner would do these things.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dsv3_mini.course import exercise
from dsv3_mini.lab import FIRST_LESSON

from .notebook_page import SOURCES, NotebookPage

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

    from .conftest import LabServer

pytestmark = pytest.mark.browser

EXERCISE = "0.1"
RUN_SECONDS = 240  # for all cells, on a busy machine


@pytest.fixture(scope="module")
def lesson(lab_server: LabServer, browser: Browser) -> NotebookPage:
    """Lesson 00, all cells run once."""
    lab_server.progress.unlink(missing_ok=True)
    page = browser.new_page(viewport={"width": 1400, "height": 1000}, reduced_motion="reduce")
    page.set_default_timeout(RUN_SECONDS * 1000)
    opened = NotebookPage(page, lab_server.url)
    opened.open(FIRST_LESSON)
    opened.run_all()
    return opened


def graph_of(lesson: NotebookPage) -> Locator:
    graph = lesson.cell(lesson.find("graph = IdeaGraph(")).get_by_test_id("idea-graph")
    graph.and_(lesson.page.locator('[data-ready="true"]')).wait_for()
    return graph


def node(graph: Locator, name: str) -> Locator:
    return graph.locator(f'[data-testid="idea-node"][data-id="{name}"]')


def number_of_cells(lesson: NotebookPage) -> int:
    return len(lesson.page.evaluate(SOURCES))


def test_every_cell_runs_and_nothing_is_attempted_yet(lesson: NotebookPage) -> None:
    checked = lesson.cell(lesson.find(f'exercise("{EXERCISE}").check(')).locator('.dsv3-panel[data-kind="open"]')
    checked.wait_for()  # Lab draws a cell when it comes into view
    assert f"Exercise {EXERCISE}: not attempted" in checked.inner_text()
    assert lesson.page.locator(".jp-Dialog").count() == 0


def test_a_click_on_an_idea_reaches_python_and_python_reaches_the_page(lesson: NotebookPage) -> None:
    graph = graph_of(lesson)
    node(graph, "mla").click()
    lesson.eventually("graph.selected", "mla")
    assert "Multi-head Latent Attention" in graph.inner_text()
    lesson.python('graph.selected = "mtp"\nprint("null")')
    node(graph, "mtp").and_(lesson.page.locator('[aria-pressed="true"]')).wait_for()


def test_the_wheel_zooms(lesson: NotebookPage) -> None:
    graph = graph_of(lesson)
    node(graph, "transformer_block").hover()
    lesson.eventually("graph.view['scale'] > 1", False)
    lesson.page.mouse.wheel(0, -300)
    lesson.eventually("graph.view['scale'] > 1", True)


def test_the_graph_can_be_walked_by_keyboard_alone_and_keeps_its_keys(lesson: NotebookPage) -> None:
    graph = graph_of(lesson)
    cells = number_of_cells(lesson)
    node(graph, "mtp").focus()
    press = lesson.page.keyboard.press
    press("0")
    lesson.eventually("graph.view['scale']", 1)
    press("Escape")  # closes the panel that is open, and the focus goes to its idea
    lesson.eventually("graph.selected", "")
    node(graph, "transformer_block").focus()
    press("ArrowUp")
    press("Enter")
    lesson.eventually("graph.selected", "mla")
    press("ArrowLeft")
    press("Enter")
    lesson.eventually("graph.selected", "rope_yarn")
    press("Escape")
    lesson.eventually("graph.selected", "")
    for key in "xdd":  # in Lab's command mode these cut and delete cells
        press(key)
    assert number_of_cells(lesson) == cells


def test_an_answer_wrong_then_right_changes_the_graph_and_the_progress_file(
    lesson: NotebookPage, lab_server: LabServer
) -> None:
    task = exercise(EXERCISE)
    stub, check = lesson.find(f"# Exercise {EXERCISE} "), lesson.find(f'exercise("{EXERCISE}").check(')
    graph = graph_of(lesson)
    state = node(graph, task.idea).get_attribute("data-state")
    assert state == "none"

    wrong = task.mistakes[0]
    lesson.python(
        f"from dsv3_mini.course import exercise\n{task.answer} = exercise({EXERCISE!r}).mistakes[0].wrong\nprint(0)"
    )
    lesson.run(check)
    shown = lesson.cell(check)
    shown.locator('.dsv3-panel[data-kind="wrong"]').wait_for()
    assert " ".join(wrong.message.split()) in " ".join(shown.inner_text().split())
    node(graph_of(lesson), task.idea).and_(lesson.page.locator('[data-state="begun"]')).wait_for()

    lesson.write(stub, task.solution_code())
    lesson.run(stub)
    lesson.run(check)
    lesson.cell(check).locator('.dsv3-panel[data-kind="right"]').wait_for()
    of_idea = f"[e.id for e in all_exercises() if e.idea == {task.idea!r}]"
    only_one = lesson.python(f"import json; from dsv3_mini.course import all_exercises; print(json.dumps({of_idea}))")
    wanted = "right" if only_one == [EXERCISE] else "begun"
    badge = node(graph_of(lesson), task.idea)
    badge.and_(lesson.page.locator(f'[data-state="{wanted}"]')).wait_for()
    assert f"1/{len(only_one)}" in (badge.text_content() or "")
    kept = json.loads(lab_server.progress.read_text())["exercises"][EXERCISE]
    assert kept["state"] == "right"
    assert kept["tries"] == 2


def test_axe_finds_nothing_in_what_the_course_shows(lesson: NotebookPage) -> None:
    import axe_playwright_python

    axe = Path(axe_playwright_python.__file__).parent / "axe.min.js"
    graph_of(lesson)
    lesson.page.evaluate(axe.read_text(encoding="utf-8") + "; undefined")
    for name in ("graph = IdeaGraph(", f'exercise("{EXERCISE}").check(', '"0.p1",', "ClaimsTable("):
        number = lesson.find(name)
        output = lesson.cell(number).locator(".jp-OutputArea-output").first
        output.evaluate("node => node.setAttribute('data-axe', '')")
        found = lesson.page.evaluate(
            """async () => (await axe.run("[data-axe]")).violations
                .map(v => [v.id, v.help, v.nodes.map(n => n.html.slice(0, 200))])"""
        )
        output.evaluate("node => node.removeAttribute('data-axe')")
        assert found == [], f"{name}: {found}"


def test_after_a_reload_the_progress_is_still_there(lesson: NotebookPage) -> None:
    task = exercise(EXERCISE)
    lesson.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    lesson.page.reload()
    lesson.open(FIRST_LESSON)
    code = "from dsv3_mini.course import progress; import json; "
    code += f"print(json.dumps(progress.read().exercises[{EXERCISE!r}]['state']))"
    assert lesson.python(code) == "right"
    lesson.run(lesson.find("ready"))
    lesson.run(lesson.find("graph = IdeaGraph("))
    assert "1/" in (node(graph_of(lesson), task.idea).text_content() or "")


def test_no_request_left_this_machine(lesson: NotebookPage) -> None:
    assert lesson.requests > 100  # the count works
    assert lesson.outside == []
