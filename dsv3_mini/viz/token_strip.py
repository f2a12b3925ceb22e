"""What a text becomes: its tokens side by side, and how many bytes each holds.

`TokenStrip(tokenizer, text)` at the end of a cell shows the tokens of one tokenizer. `TokenExplorer(tokenizers, text)`
adds a field to type in, a slider over the vocabulary sizes, and the curve of bytes per token; without a kernel the
strip and the curve of the given text stay as they are.

The text is somebody's: it reaches the page as text, never as markup.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from dsv3_mini.errors import InputError
from dsv3_mini.train.tokenizer import Tokenizer
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

MOST = 2_000  # characters that are shown
_VISIBLE = {" ": "·", "\t": "⇥", "\n": "⏎", "\r": "␍"}


class TokenStrip:
    """The tokens of a text.

    Attributes:
        ids: their numbers.
        pieces: what each stands for, with white space made visible; bytes that are no whole character as `\\xc3`.
        note: what was left out, or "".

    Raises:
        InputError: for a text that UTF-8 cannot write.
    """

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self.note = f"Only the first {MOST:,} characters are shown." if len(text) > MOST else ""
        shown = text[:MOST]
        self.ids = tokenizer.encode(shown)
        contents = [tokenizer.token_bytes[i] for i in self.ids]
        self.pieces = [_visible(content) for content in contents]
        self._breaks = [content.endswith((b"\n", b"\r")) or b"\n" in content for content in contents]
        self.num_bytes = len(shown.encode())

    @property
    def bytes_per_token(self) -> float:
        """Of the text as shown; 0 for an empty one."""
        return self.num_bytes / len(self.ids) if self.ids else 0.0

    @property
    def summary(self) -> str:
        return (
            f"{self.num_bytes:,} bytes, {len(self.ids):,} tokens: {self.bytes_per_token:.2f} bytes per token"
            if self.ids
            else "no text, no tokens"
        )

    def __str__(self) -> str:
        lines = [""]
        for piece, ends_line in zip(self.pieces, self._breaks):
            lines[-1] += f"{piece}|"
            if ends_line:
                lines.append("")
        return "\n".join(filter(None, [self.summary, *lines, self.note]))

    __repr__ = __str__

    def html(self) -> str:
        """The strip as HTML; every token has an outline, so that colour does not stand alone."""
        tints = [style.tint(colour) for colour in style.LINES]
        boxes = []
        for place, (number, piece) in enumerate(zip(self.ids, self.pieces)):
            boxes.append(
                f'<span title="token {number}" style="background: {tints[place % len(tints)]}; color: {style.INK}; '
                "border: 1px solid #888; border-radius: 3px; padding: 0 2px; margin: 1px; display: inline-block; "
                f'white-space: pre">{html.escape(piece)}</span>'
            )
            if self._breaks[place]:
                boxes.append("<br>")
        words = " ".join(filter(None, (self.summary, self.note)))
        return (
            '<div style="font-family: var(--jp-code-font-family, monospace); line-height: 1.7; max-width: 60em">'
            f'{"".join(boxes)}</div><p style="margin: 0.3em 0">{html.escape(words)}</p>'
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self.html()}


class TokenExplorer:
    """Type a text, and see what tokenizers of several vocabulary sizes make of it.

    Args:
        tokenizers: by vocabulary size, at least one.
        text: the text to begin with.
        curves: bytes per token of other texts, by name, one number for each size; drawn beside the curve of the text.
        size: the vocabulary of the strip; by default the largest.

    `text` and `size` follow what is typed and chosen in the widget.

    Raises:
        InputError: without a tokenizer, for a `size` that none has, or a curve of another length.
    """

    def __init__(
        self,
        tokenizers: Mapping[int, Tokenizer],
        text: str,
        curves: Mapping[str, Sequence[float]] | None = None,
        size: int | None = None,
    ) -> None:
        self.tokenizers = dict(sorted(tokenizers.items()))
        if not self.tokenizers:
            raise InputError("tokenizers is empty: give at least one, {vocabulary size: Tokenizer}")
        self.curves = dict(curves or {})
        for name, curve in self.curves.items():
            if len(curve) != len(self.tokenizers):
                raise InputError(
                    f"curve {name!r} has {len(curve)} numbers; there are {len(self.tokenizers)} tokenizers"
                )
        self.text = text
        self.size = max(self.tokenizers) if size is None else size
        if self.size not in self.tokenizers:
            sizes = ", ".join(map(str, self.tokenizers))
            raise InputError(f"size = {size} cannot be: the tokenizers have {sizes} tokens")

    def strip(self) -> TokenStrip:
        """The tokens of the text with the chosen vocabulary."""
        return TokenStrip(self.tokenizers[self.size], self.text)

    def own_curve(self) -> list[float]:
        """Bytes per token of the text for each size."""
        return [TokenStrip(tokenizer, self.text).bytes_per_token for tokenizer in self.tokenizers.values()]

    def picture(self) -> Picture:
        """Bytes per token over the vocabulary size: the curves, and the text's own."""
        figure = Picture(*style.SIZE, layout="constrained")
        ax = figure.subplots()
        sizes = list(self.tokenizers)
        for (name, curve), (colour, line, marker) in zip(self.curves.items(), style.STYLES):
            ax.plot(sizes, curve, color=colour, linestyle=line, marker=marker, label=name)
        if self.text:
            ax.plot(
                sizes, self.own_curve(), color=style.INK, linewidth=2.5, marker="*", markersize=10, label="your text"
            )
        ax.axvline(self.size, color=style.GREY, linewidth=1, linestyle=":")
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
        ax.minorticks_off()
        ax.set(xlabel="vocabulary", ylabel="bytes per token", ylim=(0, None))
        ax.set_title("How much text a token holds")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
        return figure

    def __str__(self) -> str:
        return f"vocabulary of {self.size:,}: {self.strip()}"

    __repr__ = __str__

    def html(self) -> str:
        """Strip and curves; what is wrong with the text, if something is."""
        try:
            strip, picture, own = self.strip().html(), self.picture(), self.own_curve()
        except InputError as error:
            return f"<p>{html.escape(str(error))}</p>"
        code = base64.b64encode(picture._repr_png_()).decode()
        words = ", ".join(f"{value:.2f} with {size:,} tokens" for size, value in zip(self.tokenizers, own))
        return (
            f'<p style="margin: 0.3em 0">With a vocabulary of {self.size:,} tokens:</p>{strip}'
            f'<img src="data:image/png;base64,{code}" style="max-width: 100%" alt="Bytes per token: {words}.">'
        )

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = {"text/plain": str(self), "text/html": self.html()}
        try:
            view = self.widget()._repr_mimebundle_(**options) or {}
        except ModuleNotFoundError:  # no ipywidgets: strip and curve are there all the same
            return bundle
        return {**bundle, **{mime: data for mime, data in view.items() if mime.startswith("application/")}}

    def widget(self) -> Any:
        """A field for the text, a slider over the sizes, and below them what `html` gives."""
        import ipywidgets

        field = ipywidgets.Textarea(
            value=self.text, description="Your text", rows=3, layout=ipywidgets.Layout(width="60em", max_width="98%")
        )
        slider = ipywidgets.SelectionSlider(
            options=[(f"{size:,}", size) for size in self.tokenizers], value=self.size, description="Vocabulary"
        )
        shown = ipywidgets.HTML(self.html())

        def show(_: Any) -> None:
            self.text, self.size = field.value, slider.value
            shown.value = self.html()

        field.observe(show, names="value")
        slider.observe(show, names="value")
        return ipywidgets.VBox([field, slider, shown])


def _visible(content: bytes) -> str:
    """The text of a token with its white space made visible."""
    text = content.decode("utf-8", errors="backslashreplace")
    return "".join(_VISIBLE.get(character, character) for character in text)
