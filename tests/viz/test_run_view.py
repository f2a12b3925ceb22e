"""What a dashboard says of a run: numbers, phases of the schedule, charts, thinning. No run is trained here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dsv3_mini.train.schedule import Schedule
from dsv3_mini.viz.run_picture import draw_run
from dsv3_mini.viz.run_view import POINTS, clock, run_view, schedule_of, thinned

CONFIG = dict(steps=100, seq_len=16, batch_tokens=160, lr=2e-3, bias_update_speed=0.01, warmup_steps=4)


def records(count: int, layers: int = 2, **changes: Any) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl` as a run with CONFIG leaves them; a step takes half a second."""
    schedule, lines = schedule_of(CONFIG), []
    for step in range(1, count + 1):
        settings = schedule[step - 1]
        line: dict[str, Any] = dict(
            step=step, losses={"main": 5 - step / 50, "mtp": 6 - step / 50}, lr=settings.lr, mfu=0.25,
            maxvio=[1 / step] * layers, batch_sequences=settings.sequences, seconds=step / 2,
            tokens=(settings.start + settings.sequences) * 16, tokens_per_s=settings.sequences * 32,
        )  # fmt: skip
        lines.append({**line, **changes})
    return lines


def chart(view: Any, name: str) -> Any:
    return next(chart for chart in view.charts if chart.name == name)


def test_the_schedule_is_that_of_the_training_loop() -> None:
    assert schedule_of(CONFIG) == Schedule(steps=100, full_batch=10, peak_rate=2e-3, peak_bias_speed=0.01, warmup=4)
    assert schedule_of({**CONFIG, "warmup_steps": None}).warmup == 1  # the report's share of the steps


def test_before_the_first_step_there_is_the_plan() -> None:
    view = run_view(CONFIG, [])
    assert view.numbers == {"step": "0 of 100"} and view.progress == 0
    assert [c.name for c in view.charts] == ["schedule"] and "not begun" in view.words()
    assert draw_run(view) is None


@pytest.mark.parametrize(
    ("step", "phase"), [(1, "warm-up"), (4, "warm-up"), (5, "constant"), (90, "cosine"), (98, "tenth"), (100, "last")]
)
def test_the_phase_is_where_the_learning_rate_stands(step: int, phase: str) -> None:
    view = run_view(CONFIG, records(step))
    assert phase in view.numbers["learning rate"], view.numbers["learning rate"]
    assert chart(view, "schedule").at == step


def test_numbers_say_how_far_how_fast_and_how_long() -> None:
    numbers = run_view(CONFIG, records(40)).numbers
    assert numbers["step"] == "40 of 100" and numbers["MFU"] == "25.0%" and numbers["time so far"] == "20 s"
    assert numbers["tokens per second"] == "320"  # 160 tokens in half a second
    # What is left follows the tokens, not the steps; here every step that is left has as many tokens.
    assert numbers["time left"] == "about 30 s"
    assert numbers["main loss"] == f"{5 - np.mean(range(11, 41)) / 50:.3f}"  # of the last 30 steps
    assert "time left" not in run_view(CONFIG, records(100)).numbers
    assert run_view(CONFIG, records(100)).progress == 1


def test_a_spike_and_a_measurement_are_shown_where_there_are_some() -> None:
    plain = run_view(CONFIG, records(10))
    assert "loss spikes" not in plain.numbers and "bits" not in [c.name for c in plain.charts]
    lines = records(10)
    lines[3]["spike"] = {"loss": 9}
    for step, bits in ((5, 3.0), (10, 2.5)):
        lines[step - 1]["bits_per_byte"] = {"code": 1.0, "all": bits}
    view = run_view(CONFIG, lines)
    assert view.numbers["loss spikes"] == "at step 4" and view.numbers["held-out bits per byte"] == "2.500"
    assert chart(view, "bits").lines == {"all domains": [(5.0, 3.0), (10.0, 2.5)]}


def test_balance_has_a_line_for_each_layer_or_mean_and_worst_of_many() -> None:
    snapshots = [{"step": 1, "bias": [[0.0, 0.0], [0.0, 0.0]]}, {"step": 10, "bias": [[-0.1, 0.2], [0.5, 0.1]]}]
    view = run_view(CONFIG, records(10), snapshots)
    assert list(chart(view, "maxvio").lines) == ["MoE layer 1", "MoE layer 2"]
    spread = chart(view, "bias").lines
    assert spread["MoE layer 1"][-1] == (10, pytest.approx(0.3)) and spread["MoE layer 2"][-1][1] == pytest.approx(0.4)
    many = records(10, layers=9)
    many[-1]["maxvio"] = [0.0] * 8 + [9.0]
    lines = chart(run_view(CONFIG, many), "maxvio").lines
    assert lines["mean"][-1][1] == pytest.approx(1.0) and lines["worst layer"][-1][1] == 9


def test_a_dense_model_has_no_charts_of_balance_and_one_without_mtp_no_line_for_it() -> None:
    lines = records(3, maxvio=[])
    for line in lines:
        del line["losses"]["mtp"]
    view = run_view(CONFIG, lines)
    assert [c.name for c in view.charts] == ["loss", "schedule"] and list(chart(view, "loss").lines) == ["main"]
    assert "MTP loss" not in view.numbers


def test_a_long_line_is_thinned_to_means() -> None:
    steps, heights = list(range(1, 1001)), np.arange(1000.0)
    points = thinned(steps, heights)
    assert len(points) == POINTS and points[-1] == (1000, 997.0) and points[0] == (5, 2.0)
    assert thinned([1, 2], [3.0, 4.0]) == [(1, 3.0), (2, 4.0)]


@pytest.mark.parametrize(("seconds", "said"), [(59.4, "59 s"), (59.6, "1 min 00 s"), (3725, "1 h 02 min")])
def test_a_clock_is_read_easily(seconds: float, said: str) -> None:
    assert clock(seconds) == said


def test_the_picture_has_every_chart() -> None:
    lines = records(20)
    lines[9]["bits_per_byte"] = {"all": 3.0}
    view = run_view(CONFIG, lines, [{"step": 1, "bias": [[0.0, 0.1]]}])
    picture = draw_run(view)
    assert picture is not None
    titles = [axes.get_title() for axes in picture.axes if axes.get_visible()]
    assert titles == [c.title for c in view.charts] and len(titles) == 5
    drawn = picture.axes[0].lines[0]
    assert drawn.get_label() == "main" and drawn.get_ydata()[-1] == pytest.approx(4.6)
