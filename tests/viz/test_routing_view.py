"""What the explorer shows is what the model did: chosen experts and weights from its record, the almost chosen ones
found again by plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.paths import data_dir
from dsv3_mini.train.tokenizer import Tokenizer
from dsv3_mini.viz.routing_view import ALLOWED, CHOSEN, MAX_TOKENS, NEXT, SHUT_OUT, open_model, view_text

NANO = data_dir() / "checkpoints" / "nano"
TEXT = "def area(r): return 3 * r * r  # The area of a circle. 12 + 30 = 42"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(NANO)


def small(**changes: Any) -> DeepSeekV3:
    """An untrained model with the vocabulary of the shipped tokenizer and biases of both signs."""
    small = dict(hidden_size=32, intermediate_size=32, moe_intermediate_size=8, num_nextn_predict_layers=0)
    cfg = ModelConfig.preset("nano").replace(**small, **changes)
    model = DeepSeekV3(cfg)
    model.reset_parameters(torch.Generator().manual_seed(1))
    for router in model.routers:
        noise = torch.randn(cfg.n_routed_experts, generator=torch.Generator().manual_seed(2))
        router.e_score_correction_bias.copy_(0.4 * noise)
    return model


def test_chosen_experts_and_weights_are_those_of_the_record(tokenizer: Tokenizer) -> None:
    model = small()
    view = view_text(model, tokenizer, TEXT)
    ids = tokenizer.encode(TEXT)
    records = model(torch.tensor([ids]), record_routing=True, mtp=False).routing
    assert view.layers == [record.layer for record in records] == [1, 2]
    assert b"".join(view.pieces).decode() == TEXT
    for layer, record in enumerate(records):
        for token in range(len(ids)):
            chosen = record.ids[0, token].tolist()
            assert set(np.flatnonzero(view.cells[layer, token] % ALLOWED == CHOSEN)) == set(chosen)
            assert view.weights[layer, token, chosen].tolist() == pytest.approx(record.weights[0, token].tolist())
            assert view.experts(record.layer, token) == sorted(chosen, key=lambda e: -view.weights[layer, token, e])
        assert np.count_nonzero(view.weights[layer]) == len(ids) * model.cfg.num_experts_per_tok
        np.testing.assert_allclose(view.scores[layer], record.scores[0].numpy(), atol=1e-6)
        assert view.load(record.layer).tolist() == np.bincount(record.ids.flatten(), minlength=16).tolist()
        load = view.load(record.layer)
        assert view.max_violation(record.layer) == pytest.approx(load.max() / load.mean() - 1)
    assert (view.cells.dtype, view.weights.dtype, view.scores.dtype) == (np.uint8, np.float32, np.float32)


@pytest.mark.parametrize(("n_group", "topk_group"), [(4, 2), (4, 1), (2, 1), (1, 1), (4, 4)])
def test_almost_chosen_experts_are_those_that_loops_find(tokenizer: Tokenizer, n_group: int, topk_group: int) -> None:
    model = small(n_group=n_group, topk_group=topk_group)
    view = view_text(model, tokenizer, TEXT)
    size, top_k = 16 // n_group, model.cfg.num_experts_per_tok
    for layer in range(2):
        for token in range(len(view.pieces)):
            biased = view.scores[layer, token] + view.bias[layer]
            groups = sorted(range(n_group), key=lambda g: -np.sort(biased[g * size : (g + 1) * size])[-2:].sum())
            allowed = [e for e in range(16) if n_group == 1 or e // size in groups[:topk_group]]
            by_rank = sorted(allowed, key=lambda e: -biased[e])
            shut_out = set(np.argsort(-biased)[:top_k].tolist()) - set(allowed)
            cells = view.cells[layer, token]
            assert np.flatnonzero(cells >= ALLOWED).tolist() == allowed
            assert np.flatnonzero(cells % ALLOWED == CHOSEN).tolist() == sorted(by_rank[:top_k])
            assert np.flatnonzero(cells % ALLOWED == NEXT).tolist() == by_rank[top_k : top_k + 1]
            assert set(np.flatnonzero(cells % ALLOWED == SHUT_OUT).tolist()) == shut_out


def test_a_text_longer_than_the_context_is_cut_and_the_note_says_so(tokenizer: Tokenizer) -> None:
    view = view_text(small(max_position_embeddings=8), tokenizer, TEXT)
    assert len(view.pieces) == 8
    assert view.note == (
        f"The text has {len(tokenizer.encode(TEXT))} tokens; the context of this model holds 8: these are the first 8."
    )
    assert view_text(small(), tokenizer, TEXT).note == ""


def test_a_very_long_text_is_cut_even_where_the_context_holds_it(tokenizer: Tokenizer) -> None:
    view = view_text(small(), tokenizer, "7" * (MAX_TOKENS + 1))
    assert len(view.pieces) == MAX_TOKENS and f"the explorer shows at most {MAX_TOKENS}" in view.note


@pytest.mark.parametrize(
    ("changes", "text", "message"),
    [
        ({}, "", "the text is empty"),
        ({"first_k_dense_replace": 3}, TEXT, "this model is dense: first_k_dense_replace = 3"),
        ({"vocab_size": 300, "eos_token_id": 0}, TEXT, "vocab_size = 300"),
        ({}, "half \ud800", "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_shown_is_refused(tokenizer: Tokenizer, changes: dict, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        view_text(small(**changes), tokenizer, text)


def test_labels_of_markup_and_of_pieces_of_characters_show_what_they_are(tokenizer: Tokenizer) -> None:
    view = view_text(small(), tokenizer, "<b>&\u4f60")
    assert "".join(view.labels).startswith("<b>&")
    assert any(label.startswith("\\x") for label in view.labels)


def test_a_model_comes_as_an_object_a_folder_or_the_shipped_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = small()
    assert open_model(model, tokenizer) == (model, tokenizer)
    assert open_model(model, NANO)[0] is model
    for given in (None, NANO, str(NANO)):
        loaded, its_tokenizer = open_model(given, None)
        assert loaded.cfg.n_routed_experts == 16 and its_tokenizer.vocab_size == tokenizer.vocab_size
        assert loaded.lm_head.weight.dtype == torch.float32
    with pytest.raises(InputError, match="tokenizer is missing"):
        open_model(model, None)
    with pytest.raises(InputError, match="no checkpoint"):
        open_model(tmp_path, None)
