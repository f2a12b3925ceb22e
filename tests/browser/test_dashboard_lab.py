"""The dashboard in a real JupyterLab: start a run, watch its numbers move, click Stop, and go on from the checkpoint.

Stop is clicked twice: while the notebook is idle, and while a cell waits for the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import nbformat
import pytest

from dsv3_mini.train.checkpoint import latest_checkpoint
from dsv3_mini.train.metrics import read_metrics

from .conftest import BROWSER_ARGUMENTS
from .notebook_page import NotebookPage

if TYPE_CHECKING:
    from playwright.sync_api import Locator

    from .conftest import LabServer

pytestmark = pytest.mark.browser

NOTEBOOK = "dashboard.ipynb"
SECONDS = 150
CELLS = (
    """\
import os
from pathlib import Path
os.environ["DSV3_MINI_CACHE"] = str(Path("cache").absolute())
Path("counting.txt").write_text("\\n".join(f"{n} times {n + 3} is {n * (n + 3)}, as they say.\\n" for n in range(300)))
from dsv3_mini import ModelConfig
from dsv3_mini.train.config import TrainConfig
from dsv3_mini.viz.dashboard import Dashboard
model = ModelConfig.preset(
    "nano", vocab_size=320, hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=2,
    q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, n_routed_experts=8,
    num_experts_per_tok=2, moe_intermediate_size=16, n_group=2, topk_group=1, max_position_embeddings=64,
)
settings = TrainConfig(
    out="trained", steps=200_000, text="counting.txt", device="cpu", seq_len=16, batch_tokens=64, eval_bytes=500,
    eval_every=20, routing_every=5, checkpoint_every=100_000, baselines=False, model=model,
)
dashboard = Dashboard(settings)
dashboard""",
    "dashboard.start()",
    "result = await dashboard.until_end(100)\nprint('waited', result is not None and result.stopped)",
    "looked_at = Dashboard(run='trained')\nlooked_at",
)


@pytest.fixture(scope="module")
def notebook(lab_server: LabServer, chromium: str) -> Iterator[NotebookPage]:
    from playwright.sync_api import sync_playwright

    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), lab_server.root / NOTEBOOK)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER_ARGUMENTS)
        try:
            page = browser.new_page(viewport={"width": 1300, "height": 1400}, reduced_motion="reduce")
            page.set_default_timeout(SECONDS * 1000)
            opened = NotebookPage(page, lab_server.url)
            opened.open(NOTEBOOK)
            yield opened
        finally:
            browser.close()


def wait_for_state(notebook: NotebookPage, shown: Locator, *states: str) -> None:
    notebook.page.wait_for_function(
        "([root, states]) => states.includes(root.dataset.state)", arg=[shown.element_handle(), states]
    )


def step(shown: Locator) -> int:
    number = shown.locator("[data-testid=dashboard-number][data-name=step]")
    return int(number.inner_text().split(" of ")[0].replace(",", ""))


def wait_for_step(notebook: NotebookPage, shown: Locator, least: int) -> None:
    notebook.page.wait_for_function(
        """([root, least]) => {
            const step = root.querySelector("[data-testid=dashboard-number][data-name=step]");
            return parseInt(step.textContent.replaceAll(",", "")) >= least;
        }""",
        arg=[shown.element_handle(), least],
    )


def test_a_run_is_started_watched_stopped_and_continued(notebook: NotebookPage, lab_server: LabServer) -> None:
    notebook.run(0)
    shown = notebook.cell(0).get_by_test_id("dashboard")
    shown.and_(notebook.page.locator("[data-ready='true']")).wait_for()
    button = shown.get_by_test_id("dashboard-button")
    assert button.inner_text() == "Start"
    notebook.run(1)  # comes back at once: the notebook stays free
    wait_for_state(notebook, shown, "running")
    wait_for_step(notebook, shown, 25)
    first = step(shown)
    wait_for_step(notebook, shown, first + 5)  # the numbers move while nothing runs in the notebook
    for name in ("loss", "bits", "schedule", "maxvio", "bias"):
        assert shown.locator(f"[data-testid=dashboard-chart][data-name={name}] .db-line").count() >= 1
    assert notebook.python("print(1 + 1)") == 2  # and it answers
    button.click()
    wait_for_state(notebook, shown, "stopped")
    run = lab_server.root / "trained"
    done = len(read_metrics(run))
    assert latest_checkpoint(run).name == f"step-{done:06d}" and step(shown) == done
    assert button.inner_text() == "Continue"

    # Goes on from there; now a cell of the notebook is busy waiting, and Stop is heard all the same.
    button.click()
    wait_for_step(notebook, shown, done + 5)
    notebook.page.evaluate(
        "() => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = 2;"
        " window.jupyterapp.commands.execute('notebook:run-cell'); }"
    )
    notebook.page.wait_for_function("() => document.querySelectorAll('.jp-Notebook-cell')[2].innerText.includes('[*]')")
    wait_for_step(notebook, shown, step(shown) + 5)
    button.click()
    wait_for_state(notebook, shown, "stopped")
    notebook.cell(2).get_by_text("waited True").wait_for()
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)) and len(lines) > done
    assert latest_checkpoint(run).name == f"step-{len(lines):06d}"


def test_the_folder_of_a_run_is_shown_too(notebook: NotebookPage, lab_server: LabServer) -> None:
    notebook.run(3)
    shown = notebook.cell(3).get_by_test_id("dashboard")
    shown.and_(notebook.page.locator("[data-ready='true']")).wait_for()
    assert step(shown) == len(read_metrics(lab_server.root / "trained"))
    assert not shown.get_by_test_id("dashboard-button").is_visible()


def test_nothing_was_asked_of_the_network(notebook: NotebookPage) -> None:
    assert notebook.outside == []
