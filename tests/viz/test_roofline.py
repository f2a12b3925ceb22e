"""The roofline: every point lies on the roof, the ridge stands where the two limits meet, bad numbers are named."""

from __future__ import annotations

import math

import pytest

from dsv3_mini.errors import InputError
from dsv3_mini.viz.roofline import attainable, draw_roofline

PEAK, BANDWIDTH = 1e15, 4e12  # the ridge is at 250
POINTS = {"naive": 1.0, "absorbed": 240.0, "expanded": 29_000.0}


def test_memory_limits_left_of_the_ridge_and_arithmetic_right_of_it() -> None:
    assert attainable(10, PEAK, BANDWIDTH) == 4e13
    assert attainable(250, PEAK, BANDWIDTH) == PEAK
    assert attainable(1e6, PEAK, BANDWIDTH) == PEAK


def test_each_point_is_drawn_at_its_intensity_on_the_roof() -> None:
    axes = draw_roofline(POINTS, peak=PEAK, bandwidth=BANDWIDTH).axes[0]
    drawn = {
        line.get_label(): (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.lines
        if line.get_marker() in "os^D"
    }
    assert drawn == {"naive": (1.0, 4e12), "absorbed": (240.0, 9.6e14), "expanded": (29_000.0, 1e15)}


def test_points_differ_in_colour_and_in_marker() -> None:
    lines = [
        line
        for line in draw_roofline(POINTS, peak=PEAK, bandwidth=BANDWIDTH).axes[0].lines
        if len(line.get_xdata()) == 1
    ]
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 3


def test_the_roof_slants_with_the_bandwidth_and_is_flat_at_the_peak() -> None:
    axes = draw_roofline(POINTS, peak=PEAK, bandwidth=BANDWIDTH).axes[0]
    roof, ridge = axes.lines[0], axes.lines[1]
    x, y = roof.get_xdata(), roof.get_ydata()
    assert y[0] == pytest.approx(BANDWIDTH * x[0])
    assert y[-1] == PEAK
    assert ridge.get_xdata()[0] == 250
    low, high = axes.get_xlim()
    assert low < 1 and high > 29_000  # every point is inside


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf])
def test_a_number_that_cannot_be_is_named(bad: float) -> None:
    with pytest.raises(InputError, match="'absorbed'"):
        draw_roofline({"absorbed": bad}, peak=PEAK, bandwidth=BANDWIDTH)
    with pytest.raises(InputError, match="peak"):
        draw_roofline(POINTS, peak=bad, bandwidth=BANDWIDTH)
    with pytest.raises(InputError, match="bandwidth"):
        draw_roofline(POINTS, peak=PEAK, bandwidth=bad)


def test_more_points_than_can_be_told_apart_are_refused() -> None:
    with pytest.raises(InputError, match="5 points"):
        draw_roofline({str(i): i for i in range(1, 6)}, peak=PEAK, bandwidth=BANDWIDTH)


def test_the_title_stands_above() -> None:
    axes = draw_roofline(POINTS, peak=PEAK, bandwidth=BANDWIDTH, title="one layer").axes[0]
    assert axes.get_title(loc="left") == "one layer"
