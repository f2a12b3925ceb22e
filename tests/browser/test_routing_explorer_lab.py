"""The routing explorer and the gate stepper in a real JupyterLab, on the shipped model and a run folder.

One page for all tests of this file: a learner types a sentence, follows a token by keyboard, scrubs a training run, and
steps through the gate of one token.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest
import torch

from dsv3_mini.config import ModelConfig
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.routing_log import RoutingRecorder

from .notebook_page import NotebookPage

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

    from .conftest import LabServer

pytestmark = pytest.mark.browser

NOTEBOOK = "routing.ipynb"
RUN_SECONDS = 240  # for all cells, on a busy machine
SNAPSHOTS = 12
CELLS = (
    "from dsv3_mini.viz.routing_explorer import RoutingExplorer\n"
    "from dsv3_mini.viz.gate_stepper import GateStepper\n"
    "explorer = RoutingExplorer(run='run')\n"
    "explorer",
    "empty = RoutingExplorer(text='', run='no_run')\nempty",
    "model, tokenizer = explorer.model, explorer.tokenizer\n"
    "stepper = GateStepper.of_token(model, tokenizer, 'def area(r):', layer=1, token=1)\n"
    "stepper",
)


def write_run(run: Path) -> None:
    """Snapshots as training leaves them: expert 0 has too much at first, and its bias goes down."""
    model = DeepSeekV3(ModelConfig.preset("nano"))
    recorder = RoutingRecorder(run, model, every=1, last_step=SNAPSHOTS)
    for step in range(1, SNAPSHOTS + 1):
        recorder.before(step)
        counts = torch.full((len(model.routers), 16), 100)
        counts[:, 0] += 25 * (SNAPSHOTS - step)
        recorder.after(counts)
        for router in model.routers:
            router.e_score_correction_bias[0] -= 0.01
    recorder.close()


@pytest.fixture(scope="module")
def notebook(lab_server: LabServer, browser: Browser) -> NotebookPage:
    for name in ("run", "no_run"):
        (lab_server.root / name).mkdir()
    write_run(lab_server.root / "run")
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    # Without a kernel named in it, Lab would ask for one.
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), lab_server.root / NOTEBOOK)
    page = browser.new_page(viewport={"width": 1300, "height": 1400}, reduced_motion="reduce")
    page.set_default_timeout(RUN_SECONDS * 1000)
    opened = NotebookPage(page, lab_server.url)
    opened.open(NOTEBOOK)
    opened.run_all()
    return opened


def shown(notebook: NotebookPage, cell: int, testid: str = "routing-explorer") -> Locator:
    found = notebook.cell(cell).get_by_test_id(testid)
    found.and_(notebook.page.locator("[data-ready='true']")).wait_for()
    return found


def test_a_sentence_that_is_typed_is_routed(notebook: NotebookPage) -> None:
    explorer = shown(notebook, 0)
    explorer.get_by_test_id("routing-text").fill("Two cats and 42 dogs.")
    notebook.eventually("explorer.text", "Two cats and 42 dogs.")
    tokens = notebook.python("import json; print(json.dumps(explorer._shown['tokens']))")
    stage = explorer.get_by_test_id("routing-tokens")
    notebook.page.wait_for_function(
        "([stage, count]) => stage.getAttribute('aria-valuemax') === count",
        arg=[stage.element_handle(), str(len(tokens))],
    )
    assert "".join(tokens) == "Two␣cats␣and␣42␣dogs."


def test_a_token_is_followed_by_keyboard_through_all_layers(notebook: NotebookPage) -> None:
    explorer = shown(notebook, 0)
    explorer.get_by_test_id("routing-tokens").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowLeft"):
        notebook.page.keyboard.press(key)
    notebook.eventually("[explorer.token, explorer.layer]", [2, 1])
    wanted = notebook.python(
        "import json; print(json.dumps({layer: explorer.view.experts(layer, 2) for layer in explorer.layers}))"
    )
    for layer, experts in wanted.items():
        chips = explorer.locator(f"[data-testid=routing-layer-row][data-layer='{layer}'] .rx-chip")
        assert chips.evaluate_all("all => all.map(e => Number(e.dataset.expert))") == experts
    notebook.page.keyboard.press("x")  # does not cut the cell
    notebook.page.keyboard.press("Escape")
    notebook.eventually("explorer.token", -1)
    assert shown(notebook, 0).count() == 1


def test_a_training_run_is_scrubbed_and_played(notebook: NotebookPage) -> None:
    explorer = shown(notebook, 0)
    slider = explorer.get_by_test_id("routing-step")
    slider.focus()
    for _ in range(3):
        notebook.page.keyboard.press("ArrowRight")
    notebook.eventually("explorer.snapshot", 3)
    assert explorer.get_by_test_id("routing-step-name").inner_text().startswith("4 · MaxVio ")
    label = explorer.get_by_test_id("routing-run").get_attribute("aria-label")
    assert "expert 0 has" in label and "−0.028" in label  # three updates of -0.01, against the mean of 16
    slider.press("End")
    notebook.eventually("explorer.snapshot", SNAPSHOTS - 1)
    assert explorer.get_by_test_id("routing-step-name").inner_text() == f"{SNAPSHOTS} · MaxVio 0.00"
    explorer.get_by_test_id("routing-play").click()  # from the beginning
    notebook.page.wait_for_function(
        "name => parseInt(name.textContent) === 2",
        arg=explorer.get_by_test_id("routing-step-name").element_handle(),
    )
    explorer.get_by_test_id("routing-play").click()
    assert explorer.get_by_test_id("routing-play").inner_text() == "▶ Play"


def test_what_a_cell_sets_shows_at_once(notebook: NotebookPage) -> None:
    explorer = shown(notebook, 0)
    notebook.python("explorer.token, explorer.colour = 1, 'type'; print(1)")
    followed = explorer.get_by_test_id("routing-followed")
    notebook.page.wait_for_function("e => e.textContent.startsWith('Token 2 of')", arg=followed.element_handle())
    assert explorer.get_by_test_id("routing-colour").input_value() == "type"


def test_what_is_missing_is_said_in_the_widget_without_a_traceback(notebook: NotebookPage) -> None:
    empty = shown(notebook, 1)
    assert "The text is empty" in empty.get_by_test_id("routing-message").inner_text()
    assert "routing.jsonl is missing" in empty.get_by_test_id("routing-run-message").inner_text()
    assert not empty.get_by_test_id("routing-tokens").is_visible()
    empty.get_by_test_id("routing-text").fill("x")
    empty.get_by_test_id("routing-tokens").wait_for()


def test_the_gate_is_stepped_through_by_keyboard(notebook: NotebookPage) -> None:
    stepper = shown(notebook, 2, "gate-stepper")
    stepper.get_by_test_id("gate-stage").focus()
    for _ in range(4):
        notebook.page.keyboard.press("ArrowRight")
    notebook.eventually("stepper.step", 5)
    chosen = stepper.locator(".gs-tick").evaluate_all("all => all.map(e => Number(e.parentNode.dataset.expert))")
    assert chosen == notebook.python("import json; print(json.dumps(sorted(stepper.right.ids.tolist())))")
    stepper.locator("[data-testid=gate-choice][data-name=group_limit]").check()
    notebook.eventually("stepper.without", "group_limit")
    assert "without the group limit" in stepper.get_by_test_id("gate-wrong").inner_text()


def test_nothing_was_asked_of_the_network(notebook: NotebookPage) -> None:
    assert notebook.outside == []
