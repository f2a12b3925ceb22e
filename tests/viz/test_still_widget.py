"""What stands in a saved notebook: words always, a picture when there is one, the live view beside both."""

from __future__ import annotations

import base64

import pytest

from dsv3_mini.viz.picture import Picture
from dsv3_mini.viz.still_widget import StillWidget

VIEW = "application/vnd.jupyter.widget-view+json"


class Drawn(StillWidget):
    _esm = "export default { render() {} }"
    drawn = Picture(1, 1)

    def summary(self) -> str:
        return "one square inch"

    def picture(self) -> Picture | None:
        return self.drawn


class Empty(Drawn):
    drawn = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("widget", "kinds"), [(Drawn, {"text/plain", "image/png", VIEW}), (Empty, {"text/plain", VIEW})]
)
def test_words_and_picture_stand_beside_the_live_view(widget: type[StillWidget], kinds: set[str]) -> None:
    data, _ = widget()._repr_mimebundle_()  # type: ignore[misc]
    assert set(data) == kinds
    assert data["text/plain"] == "one square inch"
    if "image/png" in data:
        assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
