"""The dashboard, Python's side: a run in a thread is watched, stopped, continued; a folder is read; errors are said."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.train import loop
from dsv3_mini.train.checkpoint import latest_checkpoint
from dsv3_mini.train.config import TrainConfig
from dsv3_mini.train.metrics import read_metrics
from dsv3_mini.train.routing_log import read_routing_log
from dsv3_mini.viz import dashboard as module
from dsv3_mini.viz.dashboard import STATES, Dashboard

MODEL = ModelConfig.preset(
    "nano", vocab_size=320, hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=2,
    q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, n_routed_experts=8,
    num_experts_per_tok=2, moe_intermediate_size=16, n_group=2, topk_group=1, max_position_embeddings=64,
)  # fmt: skip
Run = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "counting.txt"
    path.write_text("\n".join(f"{n} times {n + 3} is {n * (n + 3)}, so it is said.\n" for n in range(300)))
    return path


@pytest.fixture
def run(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DSV3_MINI_CACHE", str(text.parent / "cache"))

    def make(**changes: Any) -> TrainConfig:
        settings: dict[str, Any] = dict(
            out=tmp_path / "run", steps=8, text=text, device="cpu", seq_len=16, batch_tokens=64,
            checkpoint_every=100, routing_every=2, eval_every=4, eval_bytes=500, baselines=False, model=MODEL,
        )  # fmt: skip
        return TrainConfig(**{**settings, **changes})

    return make


def started(cfg: TrainConfig, until_step: int) -> Dashboard:
    """A dashboard whose run has done some steps."""
    dashboard = Dashboard(cfg)
    dashboard.start()
    wait_for(dashboard, until_step)
    return dashboard


def wait_for(dashboard: Dashboard, step: int) -> None:
    deadline = time.monotonic() + 60
    while len(dashboard.records) < step and dashboard.state != "failed" and time.monotonic() < deadline:
        time.sleep(0.002)
    assert len(dashboard.records) >= step, dashboard.summary()


def test_a_run_trains_beside_the_notebook_and_is_shown_as_its_folder_has_it(run: Run) -> None:
    dashboard = Dashboard(run())
    assert dashboard.state == "ready" and "0 of 8" in dashboard.summary() and dashboard.picture() is None
    before = threading.active_count()
    dashboard.start()
    assert threading.active_count() == before + 1
    result = dashboard.wait(60)
    assert result is not None and result.steps == 8 and dashboard.result is result
    assert dashboard.state == "finished" and dashboard.records == read_metrics(result.folder)
    assert f"all {result.bits_per_byte['all']:.3f}" in dashboard.message
    names = [chart["name"] for chart in json.loads(json.dumps(dashboard._shown, allow_nan=False))["charts"]]
    assert names == ["loss", "bits", "schedule", "maxvio", "bias"]
    bias = read_routing_log(result.folder).bias
    line = dashboard.view.charts[-1].lines["MoE layer 2"]
    assert [height for _, height in line] == pytest.approx((bias.max(-1) - bias.min(-1))[:, 1].tolist(), abs=1e-5)
    again = Dashboard(run=result.folder)
    assert again.state == "kept" and again.view == dashboard.view and again.message == dashboard.message


def test_what_it_shows_changes_nothing_of_what_is_trained(run: Run, tmp_path: Path) -> None:
    dashboard = Dashboard(run())
    dashboard.start()
    watched = dashboard.wait(60)
    plain = loop.train(run(out=tmp_path / "plain"), progress=False)
    assert watched is not None and [r["losses"] for r in dashboard.records] == [
        r["losses"] for r in read_metrics(plain.folder)
    ]


def test_stop_saves_and_start_goes_on_from_there(run: Run) -> None:
    dashboard = started(run(steps=400, eval_every=0), 3)
    dashboard.stop()
    result = dashboard.wait(60)
    assert result is not None and result.stopped and 3 <= result.steps < 400 and dashboard.state == "stopped"
    assert latest_checkpoint(result.folder).name == f"step-{result.steps:06d}"
    assert len(dashboard.records) == result.steps
    dashboard.start()
    wait_for(dashboard, result.steps + 3)
    dashboard.stop()
    more = dashboard.wait(60)
    assert more is not None and more.resumed_from == result.steps and more.steps > result.steps
    assert [record["step"] for record in dashboard.records] == list(range(1, more.steps + 1))


def test_the_button_does_what_the_methods_do(run: Run) -> None:
    dashboard = Dashboard(run(steps=400, eval_every=0))
    dashboard._handle_custom_msg({"ask": "start"}, [])
    wait_for(dashboard, 2)
    assert dashboard.state == "running"
    dashboard._handle_custom_msg({"ask": "stop"}, [])
    dashboard._handle_custom_msg({"ask": "something else"}, [])
    assert dashboard.wait(60).stopped  # type: ignore[union-attr]


def test_a_run_that_was_cut_off_is_shown_without_the_steps_that_were_lost(run: Run) -> None:
    first = started(run(steps=400, eval_every=0), 3)
    first.stop()
    kept = first.wait(60)
    assert kept is not None
    snapshots = [json.loads(line) for line in (kept.folder / "routing.jsonl").read_text().splitlines()]
    for file, last in (("metrics.jsonl", read_metrics(kept.folder)[-1]), ("routing.jsonl", snapshots[-1])):
        with open(kept.folder / file, "a") as lines:
            far = {"bias": [[0.0, 99.0]] * 2} if "bias" in last else {}
            lines.write(json.dumps({**last, "step": kept.steps + 1, "lost": True, **far}) + "\n")
    second = started(run(steps=400, eval_every=0, resume=True), kept.steps + 3)
    second.stop()
    second.wait(60)
    assert max(height for line in second.view.charts[-1].lines.values() for _, height in line) < 9
    assert not any("lost" in record for record in second.records)


def test_wait_gives_nothing_while_it_trains_and_an_interrupt_stops_the_run(run: Run) -> None:
    dashboard = started(run(steps=5000, eval_every=0), 1)
    assert dashboard.wait(0.01) is None and dashboard.state == "running"
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    result = dashboard.wait(60)
    assert result is not None and result.stopped


def test_a_cell_that_awaits_the_end_leaves_the_kernel_free_to_hear_stop(run: Run) -> None:
    dashboard = started(run(steps=5000, eval_every=0), 1)

    async def cell_and_button() -> Any:
        asyncio.get_running_loop().call_later(0.2, dashboard._handle_custom_msg, {"ask": "stop"}, [])
        return await dashboard.until_end(0.01), await dashboard.until_end(60)

    early, late = asyncio.run(cell_and_button())
    assert early is None and late.stopped


def test_updates_are_few_however_short_the_steps(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    monkeypatch.setattr(Dashboard, "_look", lambda self: looks.append(time.monotonic()))
    dashboard = started(run(steps=100000, eval_every=0, routing_every=0), 1)
    time.sleep(1.2)
    dashboard.stop()
    dashboard.wait(60)
    in_steps = looks[1:-1]  # without the first, before the run, and the last, at its end
    assert len(in_steps) >= 2 and min(b - a for a, b in pairwise(in_steps)) >= module.INTERVAL


def test_what_ends_a_run_is_said_and_raised(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **more: Any) -> None:
        raise RuntimeError("no such luck")

    dashboard = Dashboard(run())
    monkeypatch.setattr(loop, "train", fail)
    dashboard.start()
    with pytest.raises(RuntimeError, match="no such luck"):
        dashboard.wait(60)
    assert dashboard.state == "failed" and "no such luck" in dashboard.summary()
    monkeypatch.undo()


def test_what_cannot_be_is_one_message(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="either cfg"):
        Dashboard()
    with pytest.raises(InputError, match="either cfg"):
        Dashboard(run(), run=tmp_path)
    with pytest.raises(InputError, match=r"run\.json is missing"):
        Dashboard(run=tmp_path)
    dashboard = Dashboard(run(steps=2, eval_every=0))
    with pytest.raises(InputError, match="call start"):
        dashboard.wait()
    dashboard.start()
    dashboard.wait(60)
    with pytest.raises(InputError, match="all of its 2 steps"):
        dashboard.start()
    dashboard._handle_custom_msg({"ask": "start"}, [])  # from the browser: said, not raised
    assert "all of its 2 steps" in dashboard.message
    occupied = Dashboard(run(steps=2))
    occupied.start()
    with pytest.raises(InputError, match="already holds a run"):
        occupied.wait(60)
    assert occupied.state == "failed" and "already holds a run" in occupied.message
    kept = Dashboard(run=dashboard.folder)
    with pytest.raises(InputError, match="give it a TrainConfig"):
        kept.start()


def test_without_a_kernel_a_picture_and_words_are_left(run: Run) -> None:
    dashboard = Dashboard(run())
    data, _ = dashboard._repr_mimebundle_()
    assert "image/png" not in data and "not started" in data["text/plain"]
    dashboard.start()
    dashboard.wait(60)
    data, _ = dashboard._repr_mimebundle_()
    assert data["image/png"].startswith("iVBOR") and data["text/plain"] == dashboard.summary()
    assert set(STATES) == {"ready", "preparing", "running", "stopping", "measuring", "stopped", "finished", "failed",
                           "kept"}  # fmt: skip
