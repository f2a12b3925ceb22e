"""A training run as a picture that stands still: the charts of `run_view`, for readers without a kernel."""

from __future__ import annotations

from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture
from dsv3_mini.viz.run_view import RunView

_LOOK = [*((colour, line) for colour, line, _ in style.STYLES), (style.INK, "-")]


def draw_run(view: RunView) -> Picture | None:
    """All charts of a view, two a row; None before there is anything but a plan."""
    if len(view.charts) < 2:
        return None
    rows = -(-len(view.charts) // 2)
    figure = Picture(9.2, 2.7 * rows, layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).flatten()
    for axes, chart in zip(panels, view.charts):
        for (name, points), (colour, line) in zip(chart.lines.items(), _LOOK):
            steps, heights = zip(*points) if points else ((), ())
            axes.plot(steps, heights, color=colour, linestyle=line, label=name, marker="o" if len(points) < 9 else "")
        if chart.at:
            axes.axvline(chart.at, color=style.GREY, linewidth=1)
        axes.set_title(chart.title, fontsize=10)
        axes.set(xlim=(0, chart.last_step), xlabel="step")
        if chart.from_zero:
            axes.set_ylim(bottom=0)
        axes.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none")
    for axes in panels[len(view.charts) :]:
        axes.set_visible(False)
    return figure
