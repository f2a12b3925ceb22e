"""The routing explorer, Python's side: what goes to the browser, what is refused, and what is said to be missing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.paths import data_dir
from dsv3_mini.train.tokenizer import Tokenizer
from dsv3_mini.viz.routing_explorer import TEXT, RoutingExplorer
from dsv3_mini.viz.routing_view import open_model, view_text
from dsv3_mini.viz.token_kinds import TYPES

NANO = data_dir() / "checkpoints" / "nano"


@pytest.fixture(scope="module")
def shipped() -> tuple[DeepSeekV3, Tokenizer]:
    return open_model(NANO, None)


def made_up_run(snapshots: int = 3, layers: tuple[int, ...] = (1, 2), experts: int = 16) -> SimpleNamespace:
    """What `read_routing_log` gives, with numbers of our own."""
    shape = (snapshots, len(layers), experts)
    load = np.arange(np.prod(shape)).reshape(shape) % 7 + 1
    return SimpleNamespace(
        steps=np.arange(snapshots) * 10 + 1, load=load, bias=np.linspace(-1, 1, load.size).reshape(shape),
        max_violation=load.max(-1) / load.mean(-1) - 1, layers=np.array(layers),
    )  # fmt: skip


def test_the_browser_is_sent_the_numbers_as_bytes_in_the_shapes_it_is_told(shipped: Any) -> None:
    state = RoutingExplorer(*shipped).get_state()
    view, shown = view_text(*shipped, TEXT), json.loads(json.dumps(state["_shown"]))
    shape = (len(shown["layers"]), len(shown["tokens"]), shown["experts"])
    assert shape == (2, len(view.pieces), 16)
    for name, expected in [("_cells", view.cells), ("_weights", view.weights), ("_scores", view.scores)]:
        assert np.array_equal(np.frombuffer(state[name], dtype=expected.dtype).reshape(shape), expected)
    assert np.array_equal(np.frombuffer(state["_bias"], np.float32).reshape(2, 16), view.bias)
    assert [shown[key] for key in ("groups", "kept_groups", "top_k", "shared")] == [4, 2, 4, 1]
    types, domains = np.frombuffer(state["_kinds"], np.uint8).reshape(2, -1)
    assert TYPES[types[0]] == "letters" and TYPES[types[-1]] == "digits"
    assert shown["kinds"]["domain"][domains[0]] == "code" and shown["kinds"]["domain"][domains[-1]] == "arithmetic"


def test_a_new_text_is_computed_at_once_and_a_locked_token_stays_within_it(shipped: Any) -> None:
    explorer = RoutingExplorer(*shipped, token=9, layer=1)
    explorer.set_state({"text": "one two"})  # as the browser does
    assert explorer._shown["tokens"] == view_text(*shipped, "one two").labels
    assert explorer.token == len(explorer._shown["tokens"]) - 1 and explorer.layer == 1
    explorer.token = -7
    assert explorer.token == -1


def test_numbers_and_their_sizes_reach_the_browser_in_one_message(shipped: Any) -> None:
    explorer = RoutingExplorer(*shipped)
    sent: list[set[str]] = []
    explorer.send_state = lambda key=None: sent.append({key} if isinstance(key, str) else set(key or ()))
    explorer.text = "one two"
    assert any({"_shown", "_cells", "_weights", "_scores", "_kinds"} <= names for names in sent)
    assert not [names for names in sent if names & {"_shown", "_cells"} and not {"_shown", "_cells"} <= names]


@pytest.mark.parametrize(
    ("trait", "value", "message"),
    [("layer", 0, "layers with experts: 1, 2"), ("layer", 3, "layers with experts"), ("colour", "red", "weight, type")],
)
def test_what_does_not_exist_is_refused(shipped: Any, trait: str, value: Any, message: str) -> None:
    explorer = RoutingExplorer(*shipped)
    before = getattr(explorer, trait)
    with pytest.raises(InputError, match=message):
        setattr(explorer, trait, value)
    with pytest.raises(InputError, match=message):
        explorer.set_state({trait: value})
    assert getattr(explorer, trait) == before
    with pytest.raises(InputError, match=message):
        RoutingExplorer(*shipped, **{trait: value})


def test_an_unknown_argument_is_refused(shipped: Any) -> None:
    with pytest.raises(InputError, match="no trait 'color'"):
        RoutingExplorer(*shipped, color="type")


def test_an_empty_text_is_said_and_the_next_text_is_shown_in_the_same_layer(shipped: Any) -> None:
    explorer = RoutingExplorer(*shipped, layer=1, token=2)
    explorer.text = ""
    assert "text is empty" in explorer.message and explorer._cells == b"" and explorer._shown["tokens"] == []
    assert explorer.picture() is None and "image/png" not in explorer._repr_mimebundle_()[0]
    assert explorer.summary() == explorer.message
    explorer.text = "a"
    assert explorer.message == "" and explorer.layer == 1 and len(explorer._shown["tokens"]) == 1
    assert "Layer 1, 1 token, 16 experts" in explorer.summary()


def test_what_is_missing_is_said_in_the_widget(shipped: Any, tmp_path: Path) -> None:
    dense = DeepSeekV3(shipped[0].cfg.replace(first_k_dense_replace=3, num_nextn_predict_layers=0))
    for given, words in [
        ((dense, shipped[1]), "This model is dense"),
        ((tmp_path / "gone",), "does not exist"),
        ((tmp_path,), "has no checkpoint"),
        ((shipped[0], tmp_path), "does not exist: a tokenizer is a folder"),
    ]:
        explorer = RoutingExplorer(*given)
        assert words in explorer.message and words in explorer.summary()
        explorer.text = "still no traceback"
        assert words in explorer.message
    explorer = RoutingExplorer(*shipped, run=tmp_path)
    assert "routing.jsonl is missing" in explorer.run_message and explorer.message == ""
    assert "image/png" in explorer._repr_mimebundle_()[0]


def test_a_text_beyond_the_context_is_cut_and_this_is_said(shipped: Any) -> None:
    cfg = shipped[0].cfg.replace(max_position_embeddings=5)
    explorer = RoutingExplorer(DeepSeekV3(cfg), shipped[1])
    assert len(explorer._shown["tokens"]) == 5 and "holds 5" in explorer.message
    assert explorer.summary().startswith(explorer.message)


def test_domains_are_known_where_the_text_came_in_parts_and_guessed_once_it_is_edited(shipped: Any) -> None:
    parts = {"a poem": "It is caf\u00e9.", "a sum": "1 + 1", "a song": "la la"}
    explorer = RoutingExplorer(*shipped, text=parts)
    names, kinds = explorer._shown["kinds"]["domain"], np.frombuffer(explorer._kinds, np.uint8).reshape(2, -1)[1]
    assert names == list(parts)
    pieces = view_text(*shipped, explorer.text).pieces
    for number, part in enumerate(parts.values()):
        mine = b"".join(piece for piece, kind in zip(pieces, kinds) if kind == number)
        assert part.encode() in mine.rstrip() or part.encode().startswith(mine.strip())
    assert "named" in explorer._shown["domain_note"]
    explorer.text += "!"
    assert explorer._shown["kinds"]["domain"] == ["code", "prose", "arithmetic"]
    assert "guessed" in explorer._shown["domain_note"]


def test_a_run_is_sent_in_shares_of_the_mean(shipped: Any) -> None:
    run = made_up_run()
    explorer = RoutingExplorer(*shipped, run=run, snapshot=1)
    assert explorer._run == {"steps": [1, 11, 21], "layers": [1, 2], "experts": 16}
    shares = np.frombuffer(explorer._run_load, np.float32).reshape(3, 2, 16)
    np.testing.assert_allclose(shares, run.load / run.load.mean(-1, keepdims=True), rtol=1e-6)
    bias = np.frombuffer(explorer._run_bias, np.float32).reshape(3, 2, 16)
    np.testing.assert_allclose(bias, run.bias, rtol=1e-6)
    assert np.frombuffer(explorer._run_violation, np.float32).size == 6
    assert "step 11 (snapshot 2 of 3), layer 2: MaxVio" in explorer.summary()
    explorer.snapshot = 99
    assert explorer.snapshot == 2
    explorer.snapshot = -1
    assert explorer.snapshot == 0


def test_a_step_without_any_token_has_a_load_of_zero(shipped: Any) -> None:
    run = made_up_run()
    run.load[0] = 0
    assert not np.frombuffer(RoutingExplorer(*shipped, run=run)._run_load, np.float32)[:32].any()


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (made_up_run(experts=8), "8 experts and this model 16"),
        (made_up_run(layers=(1,)), "this model also has"),
        (made_up_run(snapshots=0), "no routing snapshot yet"),
    ],
)
def test_a_run_that_does_not_fit_is_said(shipped: Any, run: Any, words: str) -> None:
    explorer = RoutingExplorer(*shipped, run=run)
    assert words in explorer.run_message and words in explorer.summary()
    assert explorer.message == ""


def test_a_run_folder_is_read(shipped: Any, tmp_path: Path) -> None:
    line = {"step": 1, "layers": [1, 2], "load": [[1] * 16] * 2, "bias": [[0.0] * 16] * 2, "maxvio": [0.0, 0.0]}
    (tmp_path / "routing.jsonl").write_text(json.dumps(line) + "\n")
    explorer = RoutingExplorer(*shipped, run=str(tmp_path))
    assert explorer._run["steps"] == [1] and explorer.run_message == ""


def test_the_summary_names_the_load_and_the_followed_token(shipped: Any) -> None:
    explorer = RoutingExplorer(*shipped, token=3, layer=2)
    view = view_text(*shipped, TEXT)
    words = explorer.summary()
    assert f"MaxVio {view.max_violation(2):.2f}" in words
    assert f"Token 4 of {len(view.pieces)}, {view.labels[3]}" in words
    first = view.experts(1, 3)[0]
    assert f"layer 1: experts {first} (" in words and "shut out by the group limit" in words


def test_without_a_kernel_a_picture_and_words_are_left(shipped: Any) -> None:
    explorer = RoutingExplorer(*shipped)
    data, _ = explorer._repr_mimebundle_()
    assert data["image/png"].startswith("iVBOR") and data["text/plain"] == explorer.summary()


def test_after_more_training_refresh_shows_the_new_routing() -> None:
    model, tokenizer = DeepSeekV3(ModelConfig.preset("nano")), Tokenizer.load(NANO)
    explorer = RoutingExplorer(model, tokenizer, layer=1)
    before = explorer._cells
    model.routers[0].e_score_correction_bias[:4] += 5.0
    explorer.refresh()
    assert explorer._cells != before
    load = view_text(model, tokenizer, TEXT).load(1)
    assert load[:4].sum() == load.sum()  # all tokens go where the bias sends them
