"""How the course speaks in a notebook: a short panel in Lab, plain text elsewhere.

A panel is a heading, some paragraphs and at most one block of code. Colours come from the theme of JupyterLab, so both
themes work; what a colour says is also said by a mark and a word. All text is inserted as text, never as markup.
"""

from __future__ import annotations

import html
import re
import textwrap
from dataclasses import dataclass
from typing import Any

# kind: (mark, CSS colour with a fallback for places without a JupyterLab theme)
_KINDS = {
    "right": ("✓", "var(--jp-success-color0, #1b5e20)"),
    "wrong": ("✗", "var(--jp-error-color1, #b3261e)"),
    "open": ("○", "var(--jp-ui-font-color2, #555555)"),
    "hint": ("→", "var(--jp-info-color0, #00528c)"),
    "note": ("•", "var(--jp-ui-font-color2, #555555)"),
}


@dataclass(frozen=True)
class Panel:
    """What `check`, `hint`, `solution` and the museum show."""

    kind: str  # a key of _KINDS
    heading: str
    paragraphs: tuple[str, ...] = ()
    code: str = ""

    def __str__(self) -> str:
        lines = [self.heading, *map(_filled, self.paragraphs)]
        if self.code:
            lines += ["", textwrap.indent(self.code.rstrip(), "    ")]
        return "\n".join(lines)

    __repr__ = __str__  # a value on the last line of a cell, in a terminal

    def _html(self) -> str:
        mark, colour = _KINDS[self.kind]
        parts = [
            f'<div role="status" class="dsv3-panel" data-kind="{self.kind}" style="border-left: 4px solid {colour}; '
            'padding: 0.3em 0.9em; margin: 0.2em 0; color: var(--jp-ui-font-color1, #222); max-width: 60em">',
            f'<strong><span aria-hidden="true" style="color: {colour}">{mark}</span> {html.escape(self.heading)}'
            "</strong>",
        ]
        parts += [f'<p style="margin: 0.3em 0">{_marked_up(text)}</p>' for text in self.paragraphs]
        if self.code:
            parts.append(
                '<pre tabindex="0" aria-label="code" style="margin: 0.4em 0; padding: 0.5em 0.7em; overflow: auto; '
                'white-space: pre; color: inherit; background: var(--jp-layout-color2, #f0f0f0)">'
                f"{html.escape(self.code.rstrip())}</pre>"
            )
        return "".join(parts) + "</div>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self._html()}


def _filled(text: str) -> str:
    """Wrapped for a terminal. Names of files and tests stay whole, so that they can be copied."""
    return textwrap.fill(text, 100, break_on_hyphens=False, break_long_words=False)


def _marked_up(text: str) -> str:
    """Text as HTML text; what stands in `backticks` is shown as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
