"""The controls of a guess in JupyterLab: radio buttons, a field for a number, or sliders for a curve.

Each control has a name that a screen reader says, and works with the keyboard alone.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anywidget
import ipywidgets as w
import traitlets as t

from dsv3_mini.errors import InputError

if TYPE_CHECKING:
    from dsv3_mini.course.prediction import Prediction

_STYLE = """<style>
.dsv3-predict { max-width: 60em }
.dsv3-predict .widget-html-content, .dsv3-predict label { font-size: var(--jp-content-font-size1) }
.dsv3-predict .widget-radio { width: auto; height: auto; display: block }
.dsv3-predict .widget-radio-box label { display: block; height: auto; line-height: 1.4; white-space: normal;
  padding: 2px 0 2px 1.7em; position: relative }
.dsv3-predict .widget-radio-box input { position: absolute; left: 0.1em; top: 0.25em; margin: 0 }
</style>"""


def widget_for(prediction: Prediction) -> w.Widget:
    """Controls that set `prediction.guess`, with the question above them and what was recorded below."""
    said = w.HTML()

    def record(value: Any) -> None:
        try:
            prediction.guess = value
        except InputError as error:
            said.value = _text(str(error))
        else:
            recorded = prediction.guess is not None
            said.value = _text("Recorded. Read on: it is compared with the result below." if recorded else "")

    if prediction.choices:
        control = _choices(prediction, record)
    elif prediction.sketch is not None:
        control = _sliders(prediction, record)
    else:
        control = _number(prediction, record)
    if prediction.guess is not None:
        said.value = _text("This is your guess from before; you can change it.")
    box = w.VBox([w.HTML(_STYLE + _text(prediction.question)), control, said])
    box.add_class("dsv3-predict")
    return box


def _choices(prediction: Prediction, record: Callable[[Any], None]) -> w.Widget:
    options = [(f"({key}) {text}", key) for key, text in prediction.choices.items()]
    buttons = w.RadioButtons(options=options, value=prediction.guess)  # None: nothing is chosen yet
    buttons.observe(lambda change: record(change["new"]), names="value")
    return buttons


def _number(prediction: Prediction, record: Callable[[Any], None]) -> w.Widget:
    field = w.Text(
        value="" if prediction.guess is None else f"{prediction.guess:.15g}",
        placeholder="a number",
        description="your guess",
        continuous_update=False,
    )

    def parse(change: Any) -> None:
        text = change["new"].strip().replace(",", "").replace("_", "")
        try:
            record(int(text) if text.lstrip("+-").isdecimal() else float(text) if text else None)
        except ValueError:
            record(text)  # says that this is not a number

    field.observe(parse, names="value")
    return w.HBox([field, w.Label(prediction.unit)])


class Sliders(anywidget.AnyWidget):
    """Sliders side by side, whose handles draw a curve. (Those of ipywidgets have no name for a screen reader.)

    Attributes:
        heights: of the points, from `low` to `high`.
        places: what stands under each slider.
        names: what a screen reader says to each.
    """

    _esm = """
    function render({ model, el }) {
      const box = document.createElement("div");
      box.style.cssText = "display: flex; gap: 1.2em; flex-wrap: wrap; margin: 0.4em 0";
      // A plain key must not reach the notebook, where x cuts the cell.
      box.addEventListener("keydown", event => event.stopPropagation());
      model.get("heights").forEach((height, place) => {
        const label = document.createElement("label");
        label.style.cssText = "display: flex; flex-direction: column; align-items: center; min-width: 4em";
        const shown = document.createElement("span"), under = document.createElement("span");
        const slider = document.createElement("input");
        const [low, high] = [model.get("low"), model.get("high")];
        Object.assign(slider, { type: "range", min: low, max: high, step: (high - low) / 100, value: height });
        slider.style.cssText = "writing-mode: vertical-lr; direction: rtl; height: 140px";
        slider.setAttribute("aria-label", model.get("names")[place]);
        const show = () => { shown.textContent = Number(Number(slider.value).toPrecision(3)); };
        slider.addEventListener("input", () => {
          const heights = [...model.get("heights")];
          heights[place] = Number(slider.value);
          model.set("heights", heights);
          model.save_changes();
          show();
        });
        under.textContent = model.get("places")[place];
        show();
        label.append(shown, slider, under);
        box.append(label);
      });
      el.append(box);
    }
    export default { render };
    """

    heights = t.List(t.Float()).tag(sync=True)
    low = t.Float().tag(sync=True)
    high = t.Float().tag(sync=True)
    places = t.List(t.Unicode()).tag(sync=True)
    names = t.List(t.Unicode()).tag(sync=True)


def _sliders(prediction: Prediction, record: Callable[[Any], None]) -> w.Widget:
    sketch = prediction.sketch
    assert sketch is not None
    middle = (sketch.low + sketch.high) / 2
    sliders = Sliders(
        heights=[float(height) for height in prediction.guess or [middle] * len(sketch.x)],
        low=sketch.low,
        high=sketch.high,
        places=[f"{x:g}" for x in sketch.x],
        names=[f"{sketch.y_name} at {x:g} {sketch.x_name}" for x in sketch.x],
    )
    layout = w.Layout(width="auto", align_self="flex-start")
    button = w.Button(description="That is my guess", button_style="primary", layout=layout)
    button.on_click(lambda _: record(list(sliders.heights)))
    above = w.HTML(_text(f"{sketch.y_name}, from {sketch.low:g} to {sketch.high:g}:"))
    return w.VBox([above, sliders, w.HTML(_text(sketch.x_name)), button])


def _text(text: str) -> str:
    return f'<div style="max-width: 60em; line-height: 1.4">{html.escape(text)}</div>'
