"""Guess first: a cell that records a guess before the result is shown, and a later one that shows both together.

    shuffled = predict("3.p1", "What happens to the outputs?", choices={"a": "all differ", "b": "the same, shuffled"})
    shuffled                        in Lab: buttons to choose with; elsewhere: set shuffled.guess = "b"
    ...
    shuffled.reveal("b", "they differ by 3e-7")

Three kinds of guess: one of `choices`; a number; a curve, sketched by its height at a few points (`sketch`). Nothing
waits for a guess: when all cells are run at once, guesses stay empty and the reveal says so. A recorded guess is kept
with the progress and is back when the lesson is opened again.
"""

from __future__ import annotations

import base64
import contextlib
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsv3_mini.course import progress
from dsv3_mini.course.panel import Panel
from dsv3_mini.errors import InputError

if TYPE_CHECKING:
    from dsv3_mini.viz.picture import Picture

ASK_AGAIN = "You made no guess: make one above, then run this cell again."


@dataclass(frozen=True)
class Sketch:
    """What a sketched curve is made of: its heights at `x`, each between `low` and `high`, on axes with these names."""

    x: tuple[float, ...]
    low: float
    high: float
    x_name: str
    y_name: str

    def __post_init__(self) -> None:
        if len(self.x) < 2 or not self.low < self.high:
            raise InputError(f"a sketch needs at least two points x and low < high, not {self}")


def predict(
    name: str,
    question: str,
    *,
    choices: Mapping[str, str] | None = None,
    sketch: Sketch | None = None,
    unit: str = "",
) -> Prediction:
    """Ask for a guess. With neither `choices` nor `sketch`, a number is asked for (in `unit`).

    Args:
        name: its id, "3.p1"; the progress file keeps the guess under it.
        question: what to guess.
        choices: {"a": "what a stands for", ...}.
        sketch: the points of a curve.
    """
    return Prediction(name, question, dict(choices or {}), sketch, unit)


class Prediction:
    """One guess: `guess` is None until it is made. See `predict`."""

    def __init__(
        self, name: str, question: str, choices: dict[str, str], sketch: Sketch | None = None, unit: str = ""
    ) -> None:
        if choices and sketch:
            raise InputError(f"prediction {name}: choices or a sketch, not both")
        self.name, self.question, self.choices, self.sketch, self.unit = name, question, choices, sketch, unit
        self._guess: Any = None
        kept = progress.read().predictions.get(name, {}).get("guess")
        with contextlib.suppress(InputError):  # the question has changed since: it is asked again
            self._guess = self._valid(kept)

    @property
    def guess(self) -> Any:
        """A key of `choices`, a number, or the heights of a sketch; None while there is none."""
        return self._guess

    @guess.setter
    def guess(self, value: Any) -> None:
        self._guess = self._valid(value)
        if self._guess is None:
            progress.forget_prediction(self.name)
        else:
            progress.record_prediction(self.name, guess=self._guess)

    def reveal(self, answer: Any, because: str = "", *, within: float = 1.25) -> Panel | SketchReveal:
        """Guess and answer, side by side.

        Args:
            answer: a key of `choices`, a number, or the right heights of a sketch.
            because: what was just measured, in words.
            within: a guessed number counts as right up to this factor.
        """
        answer = self._valid(answer)
        assert answer is not None
        if self.sketch is not None:
            return SketchReveal(self.name, self.sketch, self._guess, answer, because)
        it_is = f"It is {self._say(answer)}" + (f": {because}" if because else ".")
        heading = f"Guess {self.name.replace('.p', '.')}" if ".p" in self.name else f"Exhibit {self.name}"
        if self._guess is None:
            return Panel("open", f"{heading}: no guess", (it_is, ASK_AGAIN))
        right = self._is_right(answer, within)
        progress.record_prediction(self.name, guess=self._guess, right=right)
        said = f"You said {self._say(self._guess)}."
        if not self.choices and not right:
            said += f" That is {_apart(self._guess, answer)}."
        return Panel("right" if right else "wrong", f"{heading}: {'right' if right else 'a surprise'}", (said, it_is))

    def _is_right(self, answer: Any, within: float) -> bool:
        if self.choices:
            return bool(self._guess == answer)
        if self._guess == answer:
            return True
        ratio = self._guess / answer if answer else 0.0
        return bool(ratio > 0 and 1 / within <= ratio <= within)

    def _say(self, value: Any) -> str:
        if self.choices:
            return f"({value}) {self.choices[value]}"
        shown = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
        return f"{shown} {self.unit}".rstrip()

    def _valid(self, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, np.generic):
            value = value.item()
        if self.choices:
            if not isinstance(value, str) or value not in self.choices:
                raise InputError(f"guess {self.name}: {value!r} is not one of {', '.join(map(repr, self.choices))}")
            return value
        if self.sketch is not None:
            if not isinstance(value, Sequence) or len(value) != len(self.sketch.x) or not all(map(_is_finite, value)):
                raise InputError(f"guess {self.name}: a sketch is {len(self.sketch.x)} numbers, one for each point")
            return [float(v) for v in value]
        if not _is_finite(value):
            raise InputError(f"guess {self.name}: {value!r} is not a number")
        return value

    # -- what a notebook shows --

    def __repr__(self) -> str:
        lines = [self.question, *(f"  ({key}) {text}" for key, text in self.choices.items())]
        lines.append("Your guess: " + ("none yet" if self._guess is None else self._shown_guess()))
        return "\n".join(lines)

    def _shown_guess(self) -> str:
        return ", ".join(f"{v:g}" for v in self._guess) if self.sketch is not None else self._say(self._guess)

    def _html(self) -> str:
        items = "".join(f"<div>({html.escape(k)}) {html.escape(text)}</div>" for k, text in self.choices.items())
        guess = "none yet" if self._guess is None else self._shown_guess()
        return (
            f'<div class="dsv3-predict"><p>{html.escape(self.question)}</p>{items}'
            f"<p>Your guess: {html.escape(guess)}</p></div>"
        )

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = {"text/plain": repr(self), "text/html": self._html()}
        try:
            from dsv3_mini.course.prediction_widget import widget_for
        except ModuleNotFoundError:  # no ipywidgets: the text says how to go on without them
            return bundle
        view = widget_for(self)._repr_mimebundle_(**options) or {}
        return {**bundle, **{mime: data for mime, data in view.items() if mime.startswith("application/")}}


class SketchReveal:
    """A guessed curve and the right one in one picture, with the same in words."""

    def __init__(self, name: str, sketch: Sketch, guess: list[float] | None, answer: list[float], because: str) -> None:
        self.sketch, self.guess, self.answer = sketch, guess, answer
        heading = f"Guess {name.replace('.p', '.')}: {'no guess' if guess is None else 'your curve, and what it is'}"
        words = (because, "" if guess else ASK_AGAIN)
        self.panel = Panel("open" if guess is None else "note", heading, tuple(filter(None, words)))

    def __str__(self) -> str:
        return f"{self.panel}\n{self._table()}"

    __repr__ = __str__

    def _table(self) -> str:
        rows = [f"{self.sketch.x_name:>16}  {'guess':>9}  {'it is':>9}"]
        for x, said, right in zip(self.sketch.x, self.guess or [math.nan] * len(self.answer), self.answer):
            rows.append(f"{x:>16g}  {'-' if math.isnan(said) else f'{said:.4g}':>9}  {right:>9.4g}")
        return "\n".join(rows)

    def picture(self) -> Picture:
        """Both curves."""
        from dsv3_mini.viz import style
        from dsv3_mini.viz.picture import Picture

        figure = Picture(*style.SIZE)
        ax = figure.subplots()
        places = range(len(self.sketch.x))  # evenly, as they were sketched, whatever lies between them
        ax.plot(places, self.answer, color=style.BLUE, marker="o", label="it is")
        if self.guess is not None:
            ax.plot(places, self.guess, color=style.VERMILLION, linestyle="--", marker="s", label="your guess")
        ax.set_xticks(places, [f"{x:g}" for x in self.sketch.x])
        # At least the range that was sketched in: on a scale of its own a flat curve looks steep.
        ax.set_ylim(min(self.sketch.low, *self.answer), max(self.sketch.high, *self.answer))
        ax.set(xlabel=self.sketch.x_name, ylabel=self.sketch.y_name)
        ax.legend()
        return figure

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        # In HTML, since Lab shows one kind of output only, and the words would be lost beside a bare picture.
        code = base64.b64encode(self.picture()._repr_png_()).decode()
        image = f'<img src="data:image/png;base64,{code}" style="max-width: 100%" alt="{html.escape(self._table())}">'
        return {"text/plain": str(self), "text/html": self.panel._repr_mimebundle_()["text/html"] + image}


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300  # and not NaN


def _apart(guess: float, answer: float) -> str:
    if not answer or not guess or guess * answer < 0:
        return "too large" if guess > answer else "too small"
    ratio = guess / answer
    return f"{ratio:.3g} times too large" if ratio > 1 else f"{1 / ratio:.3g} times too small"
