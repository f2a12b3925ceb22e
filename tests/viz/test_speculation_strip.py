"""The strip of drafts, Python's side: what each round shows, that it is plain decoding's text, what stands still."""

from __future__ import annotations

import json

import pytest

from dsv3_mini.errors import InputError
from dsv3_mini.generate.decode import generate
from dsv3_mini.paths import data_dir
from dsv3_mini.viz.routing import token_label
from dsv3_mini.viz.routing_view import open_model
from dsv3_mini.viz.speculation_strip import SpeculationStrip
from dsv3_mini.viz.speculation_view import KINDS, MOST_LINES, draw_rounds, speculate

PROMPT, NEW = "import os\n\n\ndef read(path):\n", 24


@pytest.fixture(scope="module")
def shipped():
    return open_model(data_dir() / "checkpoints" / "nano", None)


@pytest.mark.parametrize("depth", [1, 3])
def test_what_is_kept_is_the_text_of_plain_decoding(shipped, depth) -> None:
    model, tokenizer = shipped
    result = speculate(model, tokenizer, PROMPT, depth=depth, new_tokens=NEW)
    ids = tokenizer.encode(PROMPT)
    (plain,) = generate(model, [ids], NEW)
    kept = [label for step in result.steps for label, kind in step.tokens if kind in ("first", "accepted", "bonus")]
    assert kept == [token_label(tokenizer.token_bytes[token]) for token in plain]
    assert result.as_plain and result.steps[-1].text == tokenizer.decode(ids + plain)
    assert result.steps[-1].made == NEW and len(result.steps) - 1 == result.stats.rounds
    assert result.steps[-1].drafts == result.stats.by_depth[0]


def test_each_round_is_accepted_drafts_one_rejected_and_then_the_bonus(shipped) -> None:
    kinds_seen = set()
    for step in speculate(*shipped, PROMPT, depth=3, new_tokens=NEW).steps[1:]:
        kinds = [kind for _, kind in step.tokens]
        accepted = kinds.count("accepted")
        behind = len(kinds) - 1 - accepted
        assert kinds == ["accepted"] * accepted + (["rejected"] + ["unjudged"] * behind)[:behind] + ["bonus"]
        kinds_seen |= set(kinds)
    assert kinds_seen == set(KINDS) - {"first"}, "a prompt that does not show every kind tests little"


def test_the_browser_is_sent_all_steps_as_plain_json(shipped) -> None:
    strip = SpeculationStrip(*shipped, PROMPT, depth=2, new_tokens=NEW)
    state = json.loads(
        json.dumps({k: v for k, v in strip.get_state().items() if not k.startswith("_esm")}, default=str)
    )
    assert len(state["_steps"]) == len(strip.result.steps) and state["step"] == 0
    assert state["_steps"][0]["tokens"][0][1] == "first"
    assert {kind for step in state["_steps"] for _, kind in step["tokens"]} <= set(state["_kinds"])
    signs = [sign for sign, _ in KINDS.values()]
    assert len(set(signs)) == len(signs), "two kinds of token with one sign"


def test_another_prompt_or_depth_decodes_anew(shipped) -> None:
    strip = SpeculationStrip(*shipped, PROMPT, depth=1, new_tokens=NEW)
    strip.step = 99
    assert strip.step == len(strip.result.steps)
    before = strip.result
    strip.set_state({"prompt": "Return the", "depth": 2})  # what a browser sends
    assert strip.result is not before and strip.step == 0
    assert strip.result.steps[0].text.startswith("Return the")
    assert max(len(step.tokens) for step in strip.result.steps) == 3


def test_what_cannot_be_decoded_is_said_in_the_widget(shipped) -> None:
    strip = SpeculationStrip(*shipped, "", new_tokens=NEW)
    assert strip.result is None and strip.message.startswith("Prompt 0 is empty") and strip.summary() == strip.message
    assert strip._repr_mimebundle_()[0].keys() & {"image/png"} == set()
    strip.prompt = "x" * 20_000
    assert "context" in strip.message
    strip.prompt = PROMPT
    assert strip.message == "" and strip.result is not None
    with pytest.raises(InputError, match="depth = 5 must be one of 1, 2, 3, 4"):
        strip.depth = 5
    assert strip.depth == 2


def test_without_a_kernel_a_picture_and_words_are_left(shipped) -> None:
    strip = SpeculationStrip(*shipped, PROMPT, new_tokens=NEW)
    data, _ = strip._repr_mimebundle_()
    assert data["image/png"].startswith("iVBOR")
    for sign, words in KINDS.values():
        assert f"{sign} {words}" in data["text/plain"]
    assert "the same tokens" in data["text/plain"]


def test_the_picture_has_a_box_for_each_token_and_says_what_it_leaves_out(shipped) -> None:
    steps = speculate(*shipped, "price = $5 + $", depth=1, new_tokens=40).steps
    assert len(steps) > MOST_LINES
    axes = draw_rounds(steps).axes[0]
    assert len(axes.patches) == sum(len(step.tokens) for step in steps[:MOST_LINES])
    assert any(text.get_text() == f"and {len(steps) - MOST_LINES} more rounds" for text in axes.texts)
