"""A figure that a notebook shows where a cell ends on it, whatever was drawn before and whichever backend is on.

IPython shows a plain matplotlib figure as a picture only after pyplot has been used once in the session, and shows one
that pyplot knows twice. The drawing functions of this package return a `Picture`, which pyplot does not know.
"""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure

from dsv3_mini.viz import style


class Picture(Figure):
    """A matplotlib figure in the look of the course."""

    def __init__(self, width: float, height: float, **options: Any) -> None:
        super().__init__(figsize=(width, height), dpi=style.DPI, facecolor=style.PAPER, **options)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", bbox_inches="tight")
        return buffer.getvalue()
