"""A guess before the result: kept, compared, and never in the way of whoever makes none."""

from __future__ import annotations

import builtins
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3_mini.course import predict, progress
from dsv3_mini.course.panel import Panel
from dsv3_mini.course.prediction import ASK_AGAIN, Prediction, Sketch, SketchReveal
from dsv3_mini.course.prediction_widget import Sliders, widget_for
from dsv3_mini.errors import InputError

SKETCH = Sketch(x=(1, 10, 100), low=0, high=8, x_name="tokens", y_name="seconds")
EVIL = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSV3_PROGRESS", str(tmp_path / "progress.json"))
    return tmp_path / "progress.json"


def choice(question: str = "What happens?") -> Prediction:
    return predict("3.p1", question, choices={"a": "nothing", "b": "all moves"})


def number() -> Prediction:
    return predict("3.p2", "How many?", unit="bytes")


def curve() -> Prediction:
    return predict("3.p3", "Which curve?", sketch=SKETCH)


# ---- guesses


@pytest.mark.parametrize(("make", "guess"), [(choice, "b"), (number, 70272), (number, 0.5), (curve, [1.0, 2.0, 8.0])])
def test_a_guess_is_kept_for_the_next_time(make: Any, guess: Any) -> None:
    assert make().guess is None
    make().guess = guess
    assert make().guess == guess
    make().guess = None
    assert make().guess is None and progress.read().predictions == {}


@pytest.mark.parametrize(
    ("make", "guess"),
    [(choice, "c"), (choice, 1), (choice, ["a"]), (choice, {}), (number, "12"), (number, True), (number, math.nan),
     (number, math.inf), (number, [1]), (number, 10**400), (curve, [1, 2]), (curve, 3), (curve, "abc"),
     (curve, [1, 2, math.nan])],
)  # fmt: skip
def test_what_cannot_be_a_guess_is_refused_and_one_kept_from_before_is_dropped(
    make: Any, guess: Any, file: Path
) -> None:
    prediction = make()
    with pytest.raises(InputError, match=prediction.name):
        prediction.guess = guess
    assert prediction.guess is None
    file.write_text(json.dumps({"schema": 1, "predictions": {prediction.name: {"guess": guess}}}))
    assert make().guess is None, "the question has changed since: it is asked again"


def test_numbers_of_numpy_are_numbers() -> None:
    prediction = number()
    prediction.guess = np.int64(3)
    assert prediction.guess == 3 and number().guess == 3
    prediction.guess = np.float32(0.5)
    assert number().guess == 0.5


def test_a_question_is_of_one_kind() -> None:
    with pytest.raises(InputError, match=r"3\.p1"):
        predict("3.p1", "?", choices={"a": "b"}, sketch=SKETCH)
    for x, low, high in (((1,), 0, 1), ((1, 2), 1, 1), ((1, 2), 2, 1)):
        with pytest.raises(InputError, match="two points"):
            Sketch(x, low, high, "x", "y")


# ---- reveal


def test_without_a_guess_the_answer_is_told_and_nothing_recorded(file: Path) -> None:
    for prediction, answer in ((choice(), "b"), (number(), 5), (curve(), [1, 2, 3])):
        said = " ".join(str(prediction.reveal(answer, "since it is so")).split())
        assert "no guess" in said and ASK_AGAIN in said and "since it is so" in said
    assert not file.exists()


def test_a_choice_is_right_or_a_surprise() -> None:
    prediction = choice()
    for guess, kind, word in (("b", "right", "right"), ("a", "wrong", "a surprise")):
        prediction.guess = guess
        panel = prediction.reveal("b", "they differ by 3e-7")
        assert isinstance(panel, Panel)
        assert (panel.kind, panel.heading) == (kind, f"Guess 3.1: {word}")
        assert panel.paragraphs[-1] == "It is (b) all moves: they differ by 3e-7"
        assert progress.read().predictions["3.p1"] == {"guess": guess, "right": guess == "b"}


@pytest.mark.parametrize(
    ("guess", "answer", "right", "words"),
    [(100, 100, True, ""), (110, 100, True, ""), (81, 100, True, ""), (130, 100, False, "1.3 times too large"),
     (50, 100, False, "2 times too small"), (-100, 100, False, "too small"), (0, 0, True, ""),
     (1, 0, False, "too large"),
     (-110, -100, True, ""), (0, 5, False, "too small")],
)  # fmt: skip
def test_a_number_is_right_within_a_factor(guess: float, answer: float, right: bool, words: str) -> None:
    prediction = number()
    prediction.guess = guess
    panel = prediction.reveal(answer)
    assert isinstance(panel, Panel)
    assert panel.kind == ("right" if right else "wrong")
    assert words in panel.paragraphs[0] and "bytes" in panel.paragraphs[1]


def test_what_counts_as_right_can_be_narrower() -> None:
    prediction = number()
    prediction.guess = 110
    assert prediction.reveal(100, within=1.05).kind == "wrong"


def test_an_answer_that_cannot_be_is_our_mistake() -> None:
    for prediction, answer in ((choice(), "z"), (number(), "x"), (curve(), [1])):
        with pytest.raises(InputError):
            prediction.reveal(answer)


def test_a_curve_is_shown_beside_the_right_one() -> None:
    prediction = curve()
    prediction.guess = [0, 4, 8]
    shown = prediction.reveal([0, 1, 8], "It is flat at first.")
    assert isinstance(shown, SketchReveal)
    (axes,) = shown.picture().axes
    right, guessed = axes.lines
    assert list(right.get_ydata()) == [0, 1, 8] and list(guessed.get_ydata()) == [0, 4, 8]
    assert right.get_linestyle() != guessed.get_linestyle() and right.get_marker() != guessed.get_marker()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "10", "100"]
    bundle = shown._repr_mimebundle_()
    assert "It is flat at first." in bundle["text/plain"] and "It is flat at first." in bundle["text/html"]
    assert "data:image/png;base64," in bundle["text/html"] and 'alt="' in bundle["text/html"]


def test_the_reveal_of_a_curve_without_a_guess_has_one_line() -> None:
    shown = curve().reveal([0, 1, 8])
    assert len(shown.picture().axes[0].lines) == 1 and ASK_AGAIN in str(shown)


# ---- what a notebook shows


@pytest.mark.parametrize("make", [choice, number, curve])
def test_without_widgets_there_is_text(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if "prediction_widget" in name:
            raise ModuleNotFoundError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    bundle = make()._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    assert make().question in bundle["text/plain"] and "Your guess: none yet" in bundle["text/plain"]


def test_with_widgets_text_and_html_are_there_too() -> None:
    bundle = choice(EVIL)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert EVIL in bundle["text/plain"] and EVIL not in bundle["text/html"]


def test_text_of_a_lesson_is_no_markup_in_the_controls() -> None:
    evil = predict("3.p1", EVIL, choices={"a": EVIL, "b": "x"})
    question = widget_for(evil).children[0]
    assert EVIL not in question.value and "&lt;script&gt;" in question.value
    sketch = Sketch((1, 2), 0, 1, EVIL, EVIL)
    above, _, below, _ = widget_for(predict("3.p4", "?", sketch=sketch)).children[1].children
    assert EVIL not in above.value + below.value


def test_choosing_records() -> None:
    prediction = choice()
    _, buttons, said = widget_for(prediction).children
    assert buttons.value is None and said.value == ""
    assert [label for label, _ in buttons.options] == ["(a) nothing", "(b) all moves"]
    buttons.value = "a"
    assert prediction.guess == "a" and choice().guess == "a" and "Recorded" in said.value
    _, buttons, said = widget_for(choice()).children
    assert buttons.value == "a" and "from before" in said.value


@pytest.mark.parametrize(
    ("typed", "guess"), [("70,272", 70272), (" 3.5 ", 3.5), ("-2", -2), ("1e3", 1000.0), ("70_272", 70272)]
)
def test_typing_a_number_records(typed: str, guess: float) -> None:
    prediction = number()
    _, row, said = widget_for(prediction).children
    field, unit = row.children
    assert field.description == "your guess" and unit.value == "bytes"
    field.value = typed
    assert prediction.guess == guess and type(prediction.guess) is type(guess) and "Recorded" in said.value
    _, row, _ = widget_for(number()).children
    row.children[0].value = ""
    assert number().guess is None


@pytest.mark.parametrize("typed", ["many", "²", "1 2", "nan", "inf", EVIL])
def test_typing_something_else_says_so(typed: str) -> None:
    prediction = number()
    _, row, said = widget_for(prediction).children
    row.children[0].value = typed
    assert prediction.guess is None and "is not a number" in said.value and EVIL not in said.value


def test_a_sketch_is_recorded_when_it_is_handed_in() -> None:
    prediction = curve()
    _, control, said = widget_for(prediction).children
    _, sliders, _, button = control.children
    assert isinstance(sliders, Sliders)
    assert sliders.heights == [4, 4, 4] and sliders.places == ["1", "10", "100"]
    assert sliders.names[1] == "seconds at 10 tokens"
    sliders.heights = [0, 1, 8]
    assert prediction.guess is None
    button.click()
    assert prediction.guess == [0, 1, 8] and "Recorded" in said.value
    _, control, _ = widget_for(curve()).children
    assert control.children[1].heights == [0, 1, 8]
