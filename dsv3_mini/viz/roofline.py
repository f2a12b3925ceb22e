"""A roofline: how fast a device can compute at best, by how many operations it does for each byte that it fetches.

Left of the ridge the roof slants: memory delivers `bandwidth` bytes a second, so the rate is bandwidth times intensity.
Right of it the roof is flat: the arithmetic is at its `peak`. A point on the roof is the best that work of this
intensity can reach.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dsv3_mini.errors import InputError
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture


def attainable(intensity: float, peak: float, bandwidth: float) -> float:
    """Operations per second under the roof: the smaller of peak and bandwidth * intensity."""
    return min(peak, bandwidth * intensity)


def draw_roofline(points: Mapping[str, float], *, peak: float, bandwidth: float, title: str = "") -> Picture:
    """Draw the roof and put each point on it.

    Args:
        points: name -> intensity, operations per byte; four at most, so that each has its own colour and marker.
        peak: operations per second.
        bandwidth: bytes per second.
        title: written above.

    Raises `InputError` for an intensity, peak or bandwidth that is not above 0, and for more than four points.
    """
    given = {"peak": peak, "bandwidth": bandwidth, **{f"the intensity of {name!r}": i for name, i in points.items()}}
    for name, value in given.items():
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} = {value!r} cannot be drawn: it must be a finite number above 0")
    if len(points) > len(style.STYLES):
        raise InputError(f"{len(points)} points were given; {len(style.STYLES)} can be told apart")

    ridge = peak / bandwidth
    low, high = min([ridge, *points.values()]) / 4, max([ridge, *points.values()]) * 12
    roof = np.geomspace(low, high, 200)
    figure = Picture(style.SIZE[0], 4.2, layout="constrained")
    axes = figure.subplots()
    axes.plot(roof, [attainable(x, peak, bandwidth) for x in roof], color=style.INK, linestyle="-", linewidth=1.5)
    axes.axvline(ridge, color=style.GREY, linestyle=":", linewidth=1)
    axes.annotate(
        f"ridge: {ridge:,.0f}", (ridge, 0), (3, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
        color=style.GREY, fontsize=style.FONT_SIZE - 2,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    for (name, intensity), (colour, _, marker) in zip(points.items(), style.STYLES):
        rate = attainable(intensity, peak, bandwidth)
        axes.plot([intensity], [rate], color=colour, marker=marker, markersize=9, linestyle="none", label=name)
    axes.set(
        xlabel="operations for each byte fetched", ylabel="operations per second, at best",
        xlim=(low, high), ylim=(attainable(low, peak, bandwidth), peak * 3),
    )  # fmt: skip
    axes.set_title(title, loc="left", fontweight="bold")
    axes.legend(loc="lower right")
    return figure
