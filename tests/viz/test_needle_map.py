"""The needle map, Python's side: what is sent to the browser, what a cell shows, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dsv3_mini import DeepSeekV3, ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.train.documents import Document
from dsv3_mini.train.needle import Haystack
from dsv3_mini.train.tokenizer import Tokenizer
from dsv3_mini.viz.needle_map import NeedleMap, draw_needle_maps, map_in_words

CODE = "".join(f"def f_{n}(x):\n    return x + {n}\n\n\n" for n in range(300))
DOCUMENTS = [Document("code", "f.py", CODE)]
LENGTHS, DEPTHS = [64, 128, 256], [0.0, 0.5, 1.0]


def one_map(share: float) -> dict[str, object]:
    found = [[share, share / 2, 0.0]] * 3
    return {"lengths": LENGTHS, "depths": DEPTHS, "count": 2, "found": found, "digits": found}


MAPS = {"before": one_map(1.0), "after": one_map(0.5)}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([CODE], 300)


@pytest.fixture(scope="module")
def model() -> DeepSeekV3:
    torch.manual_seed(0)
    return DeepSeekV3(
        ModelConfig.preset("nano", vocab_size=300, hidden_size=32, num_hidden_layers=2, intermediate_size=48,
                           moe_intermediate_size=16, num_attention_heads=2, q_lora_rank=16, kv_lora_rank=16)
    ).eval()  # fmt: skip


def test_a_cell_shows_the_row_that_was_asked_and_what_the_model_writes(tokenizer: Tokenizer, model: DeepSeekV3) -> None:
    widget = NeedleMap(MAPS, {"before": model}, tokenizer, DOCUMENTS, trained=128, line=1, column=2)
    (row, _), (needle, _) = Haystack(tokenizer, DOCUMENTS).cell(256, 0.5, 2)
    shown = widget._shown
    assert (shown["needle"], shown["expected"]) == (needle.line, needle.value)
    assert shown["question"] == f"{needle.name} = "
    text = tokenizer.decode(row.tolist())
    assert shown["before"][-60:] + needle.line in text and needle.line + shown["after"][:60] in text
    assert len(shown["written"]) >= 1 and shown["share"] == 0.0
    widget.chosen, widget.column = "after", 0
    assert widget._shown["written"] is None  # no model of this map is there
    assert widget._shown["share"] == 0.5 and "64 tokens" in widget._shown["cell"]


def test_what_is_sent_is_plain_json_and_a_cell_beyond_the_map_is_its_border(
    tokenizer: Tokenizer, model: DeepSeekV3
) -> None:
    widget = NeedleMap(MAPS, {}, tokenizer, DOCUMENTS, trained=128)
    state = widget.get_state()
    sent = json.loads(json.dumps({name: state[name] for name in ("_maps", "_lengths", "_depths", "_shown")}))
    assert sent["_maps"]["after"] == MAPS["after"]["found"] and sent["_lengths"] == LENGTHS
    widget.set_state({"line": 99, "column": -4})
    assert (widget.line, widget.column) == (2, 0)
    widget.set_state({"chosen": "no such map"})
    assert widget.chosen == "before"


def test_the_summary_says_every_map_in_words(tokenizer: Tokenizer) -> None:
    summary = NeedleMap(MAPS, {}, tokenizer, DOCUMENTS, trained=128).summary()
    assert "before:" in summary and "after:" in summary
    assert "   64 tokens: 100% found; lowest 100% at depth 0%" in map_in_words(MAPS["before"])


def test_the_picture_has_a_panel_a_map_with_every_share_as_a_number() -> None:
    figure = draw_needle_maps(MAPS, 128)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == list(MAPS)
    written = [text.get_text() for text in panels[0].texts]
    assert written == ["100", "50", "0"] * 3
    assert np.asarray(panels[0].images[0].get_array()).tolist() == MAPS["before"]["found"]
    assert len(panels[0].lines) == 2  # the bar at the length of training, with its outline
    assert not draw_needle_maps(MAPS, 9999).axes[0].lines  # nowhere beyond it


def test_nothing_to_draw_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="no map to draw"):
        draw_needle_maps({}, 128)
    with pytest.raises(InputError, match="no map to show"):
        NeedleMap({}, {}, tokenizer, DOCUMENTS, trained=128)
