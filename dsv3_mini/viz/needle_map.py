"""Maps of the needle test: depth by length, and a widget in which a cell shows the text behind it.

`draw_needle_maps(result)` draws maps side by side, with the share in each cell as a number. `NeedleMap` shows one map
at a time: choose it, walk over its cells with the mouse or the arrow keys, and read what a model was given and what it
wrote. The pictures travel beside the widget, for notebooks that are read without a kernel.

python -m dsv3_mini.viz.needle_map        draws data/results/needle.json into data/results/needle.png
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import traitlets
from matplotlib.axes import Axes

from dsv3_mini.errors import InputError
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.paths import data_dir
from dsv3_mini.train.documents import Document
from dsv3_mini.train.needle import DIGITS, Haystack, written
from dsv3_mini.train.tokenizer import Tokenizer
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture
from dsv3_mini.viz.still_widget import StillWidget

_AROUND = 120  # characters of code shown on each side of needle and question


def draw_needle_maps(maps: Mapping[str, dict[str, Any]], trained: int, columns: int = 2) -> Picture:
    """Each map of `maps` (as `needle_map` gives it) under its name. A line marks `trained`, the length of training."""
    if not maps:
        raise InputError("there is no map to draw")
    lines = -(-len(maps) // columns)
    figure = Picture(4.6 * min(columns, len(maps)), 2.9 * lines, layout="constrained")
    panels = figure.subplots(lines, min(columns, len(maps)), squeeze=False).flatten()
    for axes, (name, found) in zip(panels, maps.items()):
        _draw_map(axes, found, trained)
        axes.set_title(name, fontsize=10)
    for axes in panels[len(maps) :]:
        axes.set_axis_off()
    return figure


def _draw_map(axes: Axes, found: dict[str, Any], trained: int) -> None:
    shares, lengths, depths = np.array(found["found"]), found["lengths"], found["depths"]
    axes.imshow(shares, cmap=style.SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
    for (line, column), share in np.ndenumerate(shares):
        ink = style.INK if share > 0.5 else style.PAPER
        axes.text(column, line, f"{share:.0%}".rstrip("%"), ha="center", va="center", color=ink, fontsize=8.5)
    axes.set_xticks(range(len(lengths)), [str(length) for length in lengths], fontsize=9)
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths], fontsize=9)
    axes.set(xlabel="tokens in the row", ylabel="depth")
    within = sum(length <= trained for length in lengths)
    if 0 < within < len(lengths):
        axes.axvline(within - 0.5, color=style.PAPER, linewidth=4)
        axes.axvline(within - 0.5, color=style.VERMILLION, linewidth=2, linestyle="--")


def map_in_words(found: dict[str, Any]) -> str:
    """A line a length: the share found over all depths, and where it was lowest."""
    shares, lines = np.array(found["found"]), []
    for column, length in enumerate(found["lengths"]):
        worst = int(shares[:, column].argmin())
        lines.append(
            f"  {length:>5} tokens: {shares[:, column].mean():4.0%} found; "
            f"lowest {shares[worst, column]:.0%} at depth {found['depths'][worst]:.0%}"
        )
    return "\n".join(lines)


class NeedleMap(StillWidget):
    """One map at a time, and the text behind the chosen cell.

    Args:
        maps: by name, as `needle_map` gives them, all over the same lengths and depths.
        models: by the same names, those that are there to be asked; a map without its model shows the text alone.
        tokenizer, documents: of the models, and what the haystack is made of.
        trained: the length of training.
        seed: as of the maps, so that the text shown is one that was asked.
        traits: first values of the traits below.

    Traits, in both directions: `chosen` (name of a map), `line` and `column` (the cell, counted from 0).
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")

    chosen = traitlets.Unicode("").tag(sync=True)
    line = traitlets.Int(0).tag(sync=True)
    column = traitlets.Int(0).tag(sync=True)
    _maps: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)
    _lengths: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _depths: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _trained = traitlets.Int(0).tag(sync=True)
    _shown: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)

    def __init__(
        self, maps: Mapping[str, dict[str, Any]], models: Mapping[str, DeepSeekV3], tokenizer: Tokenizer,
        documents: Sequence[Document], *, trained: int, seed: int = 0, **traits: Any,
    ) -> None:  # fmt: skip
        if not maps:
            raise InputError("there is no map to show")
        self.maps, self.models, self.tokenizer, self.seed = dict(maps), dict(models), tokenizer, seed
        self.haystack = Haystack(tokenizer, documents)
        first = next(iter(maps.values()))
        super().__init__(
            chosen=traits.pop("chosen", next(iter(maps))),
            _maps={name: found["found"] for name, found in maps.items()},
            _lengths=first["lengths"],
            _depths=first["depths"],
            _trained=trained,
            **traits,
        )
        self._look()
        self.observe(lambda _: self._look(), ["chosen", "line", "column"])

    @traitlets.validate("chosen")
    def _valid_chosen(self, proposal: Any) -> str:
        return proposal.value if proposal.value in self.maps else next(iter(self.maps))

    @traitlets.validate("line", "column")
    def _valid_cell(self, proposal: Any) -> int:
        found = next(iter(self.maps.values()))
        most = len(found["depths" if proposal.trait.name == "line" else "lengths"]) - 1
        return min(max(proposal.value, 0), most)

    def _look(self) -> None:
        """Show the first needle of the chosen cell, and what the model of the map writes."""
        found = self.maps[self.chosen]
        length, depth = found["lengths"][self.column], found["depths"][self.line]
        rows, needles = self.haystack.cell(length, depth, found["count"], self.seed)
        needle, model = needles[0], self.models.get(self.chosen)
        text = self.tokenizer.decode(rows[0, :-DIGITS].tolist())
        place = text.index(needle.line)
        after = text[place + len(needle.line) : -len(needle.question)]
        self._shown = {
            "cell": f"{length} tokens, needle at a depth of {depth:.0%}",
            "before": _cut(text[:place], keep="end"),
            "needle": needle.line,
            "after": _cut(after, keep="both"),
            "question": needle.question.strip("\n"),
            "expected": needle.value,
            "written": None if model is None else self.tokenizer.decode(written(model, rows[:1])[0].tolist()),
            "share": found["found"][self.line][self.column],
        }

    def summary(self) -> str:
        """Every map in words, and the chosen cell."""
        lines = []
        for name, found in self.maps.items():
            lines += [f"{name}:", map_in_words(found)]
        shown = self._shown
        lines.append(f"{self.chosen}, {shown['cell']}: {shown['share']:.0%} found. One of its rows:")
        said = "" if shown["written"] is None else f"; the model writes {shown['written']}"
        lines.append(f"  {shown['needle']} … {shown['question']}{said}")
        return "\n".join(lines)

    def picture(self) -> Picture:
        """All maps side by side."""
        return draw_needle_maps(self.maps, self._trained)


def _cut(text: str, keep: str) -> str:
    """The end of a long text, or both its ends, with the number of characters that were left out."""
    most = _AROUND if keep == "end" else 2 * _AROUND
    if len(text) <= most + 40:
        return text
    left_out = f"[… {len(text) - most:,} characters …]"
    if keep == "end":
        return f"{left_out}\n{text[-_AROUND:]}"
    return f"{text[:_AROUND]}\n{left_out}\n{text[-_AROUND:]}"


def main() -> int:
    """Draw the maps of the kept result; gives the exit code."""
    from dsv3_mini.train.balance_lab import load_lab
    from dsv3_mini.train.context_lab import MAPS

    result = load_lab("needle")
    style.use()
    path = data_dir() / "results" / "needle.png"
    maps = {MAPS[name]: found for name, found in result["maps"].items()}
    path.write_bytes(draw_needle_maps(maps, result["trained"])._repr_png_())
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
