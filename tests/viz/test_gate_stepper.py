"""The gate stepper, Python's side: what is sent to the browser, what is refused, and what stands still."""

from __future__ import annotations

import json

import pytest
import torch

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.paths import data_dir
from dsv3_mini.viz.gate_stepper import GateStepper, draw_gate_steps
from dsv3_mini.viz.gate_steps import WITHOUT, gate_steps
from dsv3_mini.viz.routing_view import open_model

CFG = ModelConfig.preset("nano")
GENERATOR = torch.Generator().manual_seed(3)
SCORES, BIAS = torch.rand(16, generator=GENERATOR), 0.3 * torch.randn(16, generator=GENERATOR)


def test_the_browser_is_sent_every_way_through_the_steps_as_plain_json() -> None:
    state = GateStepper(SCORES, BIAS, CFG, title="a token").get_state()
    ways = json.loads(json.dumps(state["_ways"], allow_nan=False))
    assert list(ways) == ["", *WITHOUT]
    for name, way in ways.items():
        steps = gate_steps(SCORES, BIAS, CFG, without=name)
        assert way["ids"] == steps.ids.tolist() and way["weights"] == pytest.approx(steps.weights.tolist())
        hidden = [value is None for value in way["masked"]]
        assert hidden == (~steps.masked.isfinite()).tolist()
        assert len(way["words"]) == 6
    assert [change["name"] for change in state["_changes"]] == list(WITHOUT)


def test_step_is_kept_within_six_and_an_unknown_way_is_refused() -> None:
    stepper = GateStepper(SCORES, BIAS, CFG)
    stepper.step = 9
    assert stepper.step == 6
    stepper.step = 0
    assert stepper.step == 1
    with pytest.raises(InputError, match="must be one of bias"):
        stepper.without = "luck"
    with pytest.raises(InputError):
        stepper.set_state({"without": "luck"})  # what a browser sends goes the same way
    assert stepper.without == ""


def test_the_steps_shown_follow_the_choice() -> None:
    stepper = GateStepper(SCORES, BIAS, CFG, without="group_limit", title="a token")
    assert stepper.steps.kept.all()
    assert "a token (without the group limit)" in stepper.summary() and "All groups stay" in stepper.summary()
    stepper.without = ""
    assert stepper.steps is stepper.right


def test_a_token_of_a_text_has_the_gate_that_the_model_gave_it() -> None:
    model, tokenizer = open_model(data_dir() / "checkpoints" / "nano", None)
    text = "def area(r):"
    stepper = GateStepper.of_token(model, tokenizer, text, layer=2, token=3)
    ids = torch.tensor([tokenizer.encode(text)])
    record = next(r for r in model(ids, record_routing=True, mtp=False).routing if r.layer == 2)
    assert set(stepper.right.ids.tolist()) == set(record.ids[0, 3].tolist())
    assert sorted(stepper.right.weights.tolist()) == pytest.approx(sorted(record.weights[0, 3].tolist()), abs=1e-5)
    assert "in layer 2" in stepper.summary()
    with pytest.raises(InputError, match="layers with experts: 1, 2"):
        GateStepper.of_token(model, tokenizer, text, layer=0, token=0)
    with pytest.raises(InputError, match=r"token = 99 is not in the text"):
        GateStepper.of_token(model, tokenizer, text, layer=1, token=99)


def test_without_a_kernel_a_picture_and_words_are_left() -> None:
    stepper = GateStepper(SCORES, BIAS, CFG)
    data, _ = stepper._repr_mimebundle_()
    assert data["image/png"].startswith("iVBOR") and data["text/plain"] == stepper.summary()
    for name in WITHOUT:
        assert WITHOUT[name] in data["text/plain"]


def test_the_picture_shows_the_six_steps() -> None:
    steps = gate_steps(SCORES, BIAS, CFG)
    panels = draw_gate_steps(steps, CFG).axes
    assert len(panels) == 6
    for panel, expected in ((0, SCORES), (1, SCORES + BIAS)):
        assert [bar.get_height() for bar in panels[panel].patches] == pytest.approx(expected.tolist())
    shown = {i: bar.get_height() for i, bar in enumerate(panels[5].patches) if bar.get_height()}
    assert shown == pytest.approx(dict(zip(steps.ids.tolist(), steps.weights.tolist())))
    hidden = [text.get_position()[0] for text in panels[3].texts]
    assert hidden == (~steps.masked.isfinite()).nonzero().flatten().tolist()
