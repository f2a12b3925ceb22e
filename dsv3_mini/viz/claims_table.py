"""The claims of the popular summary as a table that the reader filters: by verdict, by element, by words.

The widget asks and shows, Python selects (`dsv3_mini.course.claims.select`): `verdict`, `element` and `text` go one
way, the ids of the rows to show come back in `visible`. All of them are traits, so a cell can set a filter or read
it.

Without a kernel the same table stands still: all claims, as HTML where a notebook is shown, and as plain text
elsewhere. A verdict is a word and a mark, never a colour alone, and all text goes to the browser as text.
"""

from __future__ import annotations

import dataclasses
import html
import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from dsv3_mini.course.claims import VERDICTS, Claim, load_claims, select
from dsv3_mini.errors import InputError

MARKS = {"faithful": "✓", "simplified": "≈", "wrong": "✗", "outside": "○"}
COLUMNS = {"id": "id", "element": "where on the page", "claim": "claim", "verdict": "verdict", "why": "why"}
PLAIN_WIDTH = 110


class ClaimsTable(anywidget.AnyWidget):
    """A table of claims with three filters.

    Args:
        claims: from `load_claims`; by default those of the project.
        verdict, element: show only these at first; "" shows all.
        text: show only claims that hold each of these words.

    Raises:
        InputError: for a verdict or an element that no claim can have.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")

    rows = traitlets.List(traitlets.Dict()).tag(sync=True)
    verdicts = traitlets.List(traitlets.Dict()).tag(sync=True)
    elements = traitlets.List(traitlets.Unicode()).tag(sync=True)
    verdict = traitlets.Unicode("").tag(sync=True)
    element = traitlets.Unicode("").tag(sync=True)
    text = traitlets.Unicode("").tag(sync=True)
    visible = traitlets.List(traitlets.Unicode()).tag(sync=True)
    count = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self, claims: Iterable[Claim] | None = None, *, verdict: str = "", element: str = "", text: str = ""
    ) -> None:
        self.claims = tuple(load_claims() if claims is None else claims)
        elements = list(dict.fromkeys(claim.element for claim in self.claims))
        if verdict and verdict not in VERDICTS:
            raise InputError(f"verdict = {verdict!r} must be one of {', '.join(VERDICTS)}, or empty for all")
        if element and element not in elements:
            raise InputError(f"element = {element!r} must be one of {', '.join(elements)}, or empty for all")
        super().__init__(
            rows=[{**dataclasses.asdict(claim), "mark": MARKS[claim.verdict]} for claim in self.claims],
            verdicts=[{"name": name, "mark": mark} for name, mark in MARKS.items()],
            elements=elements,
        )
        self.observe(self._select, names=["verdict", "element", "text"])
        self.set_trait("verdict", verdict)
        self.set_trait("element", element)
        self.set_trait("text", text)
        self._select()

    def selected(self) -> list[Claim]:
        """The claims that the filters leave."""
        return select(self.claims, self.verdict, self.element, self.text)

    def _select(self, change: Any = None) -> None:
        found = self.selected()
        with self.hold_sync():  # the rows and their number arrive together
            self.visible = [claim.id for claim in found]
            means = f" ({self.verdict}: {VERDICTS[self.verdict]})" if self.verdict in VERDICTS else ""
            self.count = f"{len(found)} of {len(self.claims)} claims{means}"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        return {**data, "text/html": as_html(self.selected()), "text/plain": as_text(self.selected())}, metadata


def as_html(claims: Iterable[Claim]) -> str:
    """A table without filters, for places without a kernel; every text is escaped."""
    claims = list(claims)
    heads = "".join(f'<th scope="col">{title}</th>' for title in COLUMNS.values())
    rows = []
    for claim in claims:
        fields = {name: html.escape(text) for name, text in dataclasses.asdict(claim).items()}
        verdict = f"{MARKS[claim.verdict]} {fields['verdict']}"
        cells = (fields["element"], fields["claim"], verdict, f"{fields['why']} <em>({fields['place']})</em>")
        rows.append(
            f'<tr><th scope="row">{fields["id"]}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        )
    caption = html.escape(_summary(claims))
    body = "\n".join(rows)
    return f"<table><caption>{caption}</caption><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"


def as_text(claims: Iterable[Claim]) -> str:
    """One line a claim: its verdict, id, claim and place."""
    claims = list(claims)
    lines = [_summary(claims)]
    for claim in claims:
        head = f"{MARKS[claim.verdict]} {claim.verdict:<10}  {claim.id:<4}  "
        room = PLAIN_WIDTH - len(head) - len(claim.place) - 3
        lines.append(f"{head}{textwrap.shorten(claim.claim, max(room, 30), placeholder='...')} ({claim.place})")
    return "\n".join(lines)


def _summary(claims: list[Claim]) -> str:
    counts = Counter(claim.verdict for claim in claims)
    parts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return f"{len(claims)} claims: {parts}" if claims else "no claims"
