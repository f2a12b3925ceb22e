"""What there is to see of a training run, as numbers and words: the dashboard shows them live, a picture stands still.

    view = run_view(config, records, snapshots)

`config` is the one in `run.json`; `records` are the lines of `metrics.jsonl` so far; `snapshots` those of
`routing.jsonl`. Nothing is drawn here, and no model is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from dsv3_mini.train.schedule import Schedule, warmup_steps

POINTS = 200  # of a line; a longer run shows means
MOST_LAYERS = 5  # with more, mean and worst layer are shown instead of all
RECENT = 30  # steps from which the speed is taken

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Chart:
    """Lines over the steps. `lines` gives for each name its points (step, height)."""

    name: str
    title: str
    lines: dict[str, list[tuple[float, float]]]
    last_step: int  # the right end of the axis: so far, or of the whole plan
    words: str
    from_zero: bool = True  # whether the height axis begins at 0
    at: int | None = None  # a step to be marked


@dataclass(frozen=True)
class RunView:
    """The state of a run: the share of its tokens seen, `numbers` as {name: text}, and the charts."""

    progress: float = 0.0
    numbers: dict[str, str] = field(default_factory=dict)
    charts: tuple[Chart, ...] = ()

    def words(self) -> str:
        """Everything in words, one line a chart."""
        lines = [", ".join(f"{name} {value}" for name, value in self.numbers.items())]
        return "\n".join(filter(None, [*lines, *(f"{chart.title}: {chart.words}" for chart in self.charts)]))


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """The schedule of a run from its settings, as training makes it."""
    warmup = config.get("warmup_steps") or warmup_steps(config["steps"])
    return _schedule(
        config["steps"], config["batch_tokens"] // config["seq_len"], config["lr"], config["bias_update_speed"], warmup
    )


@lru_cache(maxsize=8)  # a schedule sums up its steps once; a view is made four times a second
def _schedule(*fields: Any) -> Schedule:
    return Schedule(*fields)


def run_view(config: Mapping[str, Any], records: Sequence[Record], snapshots: Sequence[Record] = ()) -> RunView:
    """The view of a run with these settings after these steps. Before the first step there is only the schedule."""
    schedule = schedule_of(config)
    planned = _schedule_chart(schedule, records[-1] if records else None)
    if not records:
        return RunView(numbers={"step": f"0 of {schedule.steps:,}"}, charts=(planned,))
    last, total = records[-1], schedule.total_sequences * config["seq_len"]
    charts = [_loss_chart(records), planned]
    if any("bits_per_byte" in record for record in records):
        charts.insert(1, _bits_chart(records))
    if last.get("maxvio"):
        charts.append(_maxvio_chart(records))
    if snapshots:
        charts.append(_bias_chart(snapshots, last["step"]))
    return RunView(last["tokens"] / total, _numbers(records, schedule, total), tuple(charts))


def thinned(steps: Sequence[float], heights: Any, points: int = POINTS) -> list[tuple[float, float]]:
    """At most `points` points of a line; each is the mean of its part, at the part's last step."""
    heights = np.asarray(heights, dtype=float)
    ends = np.unique(np.linspace(0, len(steps), min(points, len(steps)) + 1).round().astype(int))
    return [(float(steps[b - 1]), float(heights[a:b].mean())) for a, b in pairwise(ends)]


def clock(seconds: float) -> str:
    """ "42 s", "3 min 05 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _numbers(records: Sequence[Record], schedule: Schedule, total: int) -> dict[str, str]:
    last = records[-1]
    first = records[-min(RECENT, len(records))]
    seconds, tokens = last["seconds"] - first["seconds"], last["tokens"] - first["tokens"]
    speed = tokens / seconds if seconds > 0 else last["tokens_per_s"]
    recent = records[-RECENT:]
    numbers = {"step": f"{last['step']:,} of {schedule.steps:,}", "main loss": f"{_recent(recent, 'main'):.3f}"}
    if "mtp" in last["losses"]:
        numbers["MTP loss"] = f"{_recent(recent, 'mtp'):.3f}"
    measured = [record for record in records if "bits_per_byte" in record]
    if measured:
        numbers["held-out bits per byte"] = f"{measured[-1]['bits_per_byte']['all']:.3f}"
    numbers["learning rate"] = f"{last['lr']:.2e} ({_phase(last, schedule)})"
    numbers["batch"] = f"{last['batch_sequences']} of {schedule.full_batch} sequences"
    numbers["tokens per second"] = f"{speed:,.0f}"
    numbers["MFU"] = f"{np.mean([record['mfu'] for record in recent]):.1%}"
    numbers["time so far"] = clock(last["seconds"])
    if last["step"] < schedule.steps and speed > 0:
        numbers["time left"] = f"about {clock((total - last['tokens']) / speed)}"
    spikes = [record["step"] for record in records if "spike" in record]
    if spikes:
        numbers["loss spikes"] = "at step " + ", ".join(map(str, spikes[-3:]))
    return numbers


def _recent(records: Sequence[Record], name: str) -> float:
    return float(np.mean([record["losses"][name] for record in records]))


def _phase(record: Record, schedule: Schedule) -> str:
    """Where on the schedule of the report this step stands."""
    if record["step"] <= schedule.warmup:
        return "warm-up"
    share = record["lr"] / schedule.peak_rate
    if math.isclose(share, 1):
        return "constant"
    if share > 0.1 + 1e-9:
        return "cosine"
    return "a tenth of the peak" if math.isclose(share, 0.1) else "last part"


def _loss_chart(records: Sequence[Record]) -> Chart:
    steps = [record["step"] for record in records]
    names = [name for name in ("main", "mtp") if name in records[-1]["losses"]]
    lines = {name: thinned(steps, [record["losses"][name] for record in records]) for name in names}
    words = "; ".join(f"{name} from {line[0][1]:.2f} to {line[-1][1]:.2f}" for name, line in lines.items() if line)
    return Chart("loss", "Loss, nats a token", lines, steps[-1], f"{words}.", from_zero=False)


def _bits_chart(records: Sequence[Record]) -> Chart:
    points = [(float(r["step"]), float(r["bits_per_byte"]["all"])) for r in records if "bits_per_byte" in r]
    words = f"from {points[0][1]:.2f} at step {points[0][0]:.0f} to {points[-1][1]:.2f} at step {points[-1][0]:.0f}."
    return Chart("bits", "Held-out bits per byte", {"all domains": points}, records[-1]["step"], words, from_zero=False)


def _schedule_chart(schedule: Schedule, last: Record | None) -> Chart:
    words = f"peak learning rate {schedule.peak_rate:g}, full batch {schedule.full_batch} sequences"
    words += f"; now at step {last['step']}, {_phase(last, schedule)}." if last else "; not begun."
    title = "Schedule, shares of the largest"
    return Chart("schedule", title, _planned(schedule), schedule.steps, words, at=last["step"] if last else 0)


@lru_cache(maxsize=8)
def _planned(schedule: Schedule) -> dict[str, list[tuple[float, float]]]:
    shown = np.unique(np.linspace(0, len(schedule) - 1, min(POINTS, len(schedule))).round().astype(int)).tolist()
    return {
        "learning rate": [(step + 1.0, schedule[step].lr / schedule.peak_rate) for step in shown],
        "batch": [(step + 1.0, schedule[step].sequences / schedule.full_batch) for step in shown],
    }


def _maxvio_chart(records: Sequence[Record]) -> Chart:
    values = np.array([record["maxvio"] for record in records])  # [S, L]
    lines = _by_layer([record["step"] for record in records], values, range(1, values.shape[1] + 1), "MoE layer")
    words = f"mean of the layers {values[0].mean():.2f} at first, {values[-RECENT:].mean():.2f} in the last steps."
    return Chart("maxvio", "MaxVio by MoE layer", lines, records[-1]["step"], words)


def _bias_chart(snapshots: Sequence[Record], last_step: int) -> Chart:
    spread = np.array([[max(layer) - min(layer) for layer in snapshot["bias"]] for snapshot in snapshots])  # [S, L]
    steps = [snapshot["step"] for snapshot in snapshots]
    lines = _by_layer(steps, spread, range(1, spread.shape[1] + 1), "MoE layer")
    words = f"largest minus smallest, mean of the layers: {spread[-1].mean():.3f} at step {steps[-1]}."
    return Chart("bias", "Spread of the routing bias", lines, last_step, words)


def _by_layer(
    steps: Sequence[int], values: np.ndarray, names: Sequence[int], what: str
) -> dict[str, list[tuple[float, float]]]:
    """One line a layer, or mean and worst layer where there are many. values [S, L]."""
    if values.shape[1] > MOST_LAYERS:
        return {"mean": thinned(steps, values.mean(1)), "worst layer": thinned(steps, values.max(1))}
    return {f"{what} {name}": thinned(steps, values[:, row]) for row, name in enumerate(names)}
