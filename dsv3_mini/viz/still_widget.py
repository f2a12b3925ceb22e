"""A widget with a picture that stands still, for places without a kernel: a notebook on a code host, a printed page."""

from __future__ import annotations

import base64
from typing import Any

import anywidget

from dsv3_mini.viz.picture import Picture


class StillWidget(anywidget.AnyWidget):
    """Shows `summary()` and `picture()` beside the live view; the front end takes the richest that it can show."""

    def summary(self) -> str:
        """What is shown, in words."""
        raise NotImplementedError

    def picture(self) -> Picture | None:
        """What is shown, as a picture; None when there is nothing to show."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        still = {"text/plain": self.summary()}
        picture = self.picture()
        if picture is not None:  # PNG, not SVG: Lab shows an SVG only in a notebook that it trusts
            still["image/png"] = base64.b64encode(picture._repr_png_()).decode()
        return {**data, **still}, metadata
