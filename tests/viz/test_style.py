"""The look of figures: readable text, one background in both notebook themes, and settings that can be set again."""

from __future__ import annotations

from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_rgb

from dsv3_mini.viz import style


def contrast_with_paper(colour: str) -> float:
    """Contrast ratio of the WCAG: 3 is enough for lines and large marks, 4.5 for text."""

    def luminance(of: str) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(of)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    return (luminance(style.PAPER) + 0.05) / (luminance(colour) + 0.05)


@pytest.mark.parametrize("colour", style.LINES)
def test_lines_and_their_labels_can_be_seen(colour: str) -> None:
    assert contrast_with_paper(colour) >= 3
    assert contrast_with_paper(style.shade(colour)) >= 5.7
    assert contrast_with_paper(style.tint(colour)) < 1.5  # a fill behind dark text


def test_ink_and_grey_are_text_colours() -> None:
    assert contrast_with_paper(style.INK) >= 7
    assert contrast_with_paper(style.GREY) >= 4.5


def test_tint_goes_from_paper_to_the_colour_itself() -> None:
    assert style.tint(style.BLUE, 0).upper() == style.PAPER
    assert style.tint(style.BLUE, 1).upper() == style.BLUE
    shares = [contrast_with_paper(style.tint(style.BLUE, share / 10)) for share in range(11)]
    assert all(lighter < darker for lighter, darker in pairwise(shares))


def test_no_two_lines_share_colour_or_style_or_marker() -> None:
    for column in zip(*style.STYLES, strict=True):
        assert len(set(column)) == len(style.STYLES) == 4


def test_figures_have_their_own_background_and_size() -> None:
    with mpl.rc_context():
        style.use()
        once = dict(mpl.rcParams)
        style.use()
        assert dict(mpl.rcParams) == once
        figure, axes = plt.subplots()
        style.label_line(axes, 0, 0, "a line", style.GREEN)
        assert tuple(figure.get_size_inches()) == style.SIZE
        assert figure.dpi == style.DPI
        assert figure.get_facecolor() == axes.get_facecolor() == (1.0, 1.0, 1.0, 1.0)  # opaque, for dark themes
        assert axes.texts[0].get_color() == style.shade(style.GREEN)
        plt.close(figure)
