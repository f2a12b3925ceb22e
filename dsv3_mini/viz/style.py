"""The look of every figure: one palette, one size, one explicit background.

Six colours that stay apart for colour-blind readers. Colour never stands alone: pair it with a line style, a marker
or a label written next to the thing (`STYLES` gives the pairs). The background is white on purpose, not transparent:
ink on a transparent figure vanishes in a dark notebook theme.
"""

from __future__ import annotations

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY = "#E69F00", "#56B4E9"  # too pale for lines and text on white: fills with an outline only
INK, GREY, PAPER = "#222222", "#666666", "#FFFFFF"

LINES = (BLUE, VERMILLION, GREEN, PURPLE)
STYLES = tuple(zip(LINES, ("-", "--", "-.", ":"), ("o", "s", "^", "D"), strict=True))  # (colour, line style, marker)
SEQUENTIAL = "cividis"

SIZE = (7.2, 3.6)  # inches
DPI = 110
FONT_SIZE = 11


def tint(colour: str, share: float = 0.18) -> str:
    """`colour` thinned with white to a fill that dark text stays readable on; share 0 is white, 1 the colour itself."""
    return _mix(PAPER, colour, share)


def shade(colour: str) -> str:
    """`colour` darkened to text on white: a contrast of 5.8 or more for each of `LINES`."""
    return _mix(colour, INK, 0.4)


def _mix(first: str, second: str, share: float) -> str:
    (r, g, b), (r2, g2, b2) = to_rgb(first), to_rgb(second)
    return to_hex((r + share * (r2 - r), g + share * (g2 - g), b + share * (b2 - b)))


def use() -> None:
    """Make this the style of all figures of this process. Safe to call again."""
    mpl.rcParams.update(
        {
            "figure.figsize": SIZE,
            "figure.dpi": DPI,
            "figure.facecolor": PAPER,
            "figure.constrained_layout.use": True,
            "savefig.facecolor": PAPER,
            "savefig.dpi": DPI,
            "font.size": FONT_SIZE,
            "axes.facecolor": PAPER,
            "axes.edgecolor": GREY,
            "axes.labelcolor": INK,
            "axes.titlesize": FONT_SIZE + 1,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=LINES, linestyle=[line for _, line, _ in STYLES]),
            "axes.grid": False,
            "grid.color": "#DDDDDD",
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "image.cmap": SEQUENTIAL,
        }
    )


def label_line(axes: Axes, x: float, y: float, text: str, colour: str, offset: tuple[float, float] = (5, 0)) -> None:
    """Write `text` beside the point (x, y) in the colour of its line; `offset` in points. Spares the eye a legend."""
    axes.annotate(
        text, (x, y), xytext=offset, textcoords="offset points", color=shade(colour), va="center", annotation_clip=False
    )
