"""Load by domain and its controls, on made-up routers whose answer is known, and on a real one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsv3_mini.errors import InputError
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train import specialisation
from dsv3_mini.train.documents import Document
from dsv3_mini.train.specialisation import (
    KINDS,
    RoutedTokens,
    chance_effect,
    effect,
    load_by_domain,
    load_by_kind,
    matching_weights,
    route_documents,
    shared_part,
    token_kind,
)
from dsv3_mini.train.tokenizer import Tokenizer

EXPERTS, LAYERS = 6, 2
KIND_OF_TOKEN = np.array([0, 0, 0, 1, 1, 2, 2, 4])  # of eight tokens


def made_up(choose, seed=0, documents=30, tokens=200):
    """Documents of two domains with very different tokens, routed by `choose(token, domain, previous)` -> 2 experts."""
    generator = np.random.default_rng(seed)
    often = np.array([[8, 6, 4, 1, 1, 2, 1, 1], [1, 1, 2, 9, 6, 1, 3, 1]], dtype=float)
    rows = []
    for document in range(documents):
        domain = document % 2
        drawn = generator.choice(8, size=tokens, p=often[domain] / often[domain].sum())
        for previous, token in zip(np.roll(drawn, 1), drawn):
            rows.append((token, domain, document, [choose(token, domain, previous)] * LAYERS))
    token, domain, document, chosen = map(np.array, zip(*rows))
    kinds = KIND_OF_TOKEN[token]
    return RoutedTokens(token, kinds, domain, document, chosen, ("prose", "math"), (1, 2), EXPERTS)


def by_token(token, domain, previous):
    return [token % 3, 3 + token % 2]


def by_kind(token, domain, previous):
    kind = KIND_OF_TOKEN[token]
    return [kind, 5]


def by_domain(token, domain, previous):
    return [domain, 2 + token % 3]


def test_a_router_that_looks_at_the_token_alone_shows_no_domain_after_matching_tokens():
    routed = made_up(by_token)
    assert (effect(load_by_domain(routed)) > 0.09).all(), "before: it looks like specialisation by topic"
    assert effect(load_by_domain(routed, "token")) == pytest.approx([0, 0], abs=1e-12)
    # Within a kind there are different tokens, so matching the kind alone does not explain it away.
    assert (effect(load_by_domain(routed, "kind")) > 0.01).all()


def test_a_router_that_looks_at_the_kind_alone_shows_no_domain_after_matching_kinds():
    routed = made_up(by_kind)
    assert (effect(load_by_domain(routed)) > 0.2).all()
    assert effect(load_by_domain(routed, "kind")) == pytest.approx([0, 0], abs=1e-12)
    assert effect(load_by_domain(routed, "token")) == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("match", [None, "kind", "token"])
def test_a_router_that_looks_at_the_domain_keeps_its_effect_whatever_is_matched(match):
    # One of the two choices is the domain's own expert: half of all choices differ, and the other half by its tokens.
    assert (effect(load_by_domain(made_up(by_domain), match)) >= 0.5 - 1e-12).all()
    only = load_by_domain(made_up(by_domain), match)
    assert only[0, :, 1] == pytest.approx([0, 0]) and only[1, :, 0] == pytest.approx([0, 0])
    assert only[0, :, 0] == pytest.approx([EXPERTS / 2] * 2), "half of the choices, where even is a sixth"


def test_matched_domains_have_the_same_mix_and_weigh_nothing_up():
    routed = made_up(by_token)
    for match, values, size in (("token", routed.tokens, 8), ("kind", routed.kinds, len(KINDS))):
        weights = matching_weights(routed, match)
        mixes = [
            np.bincount(values[routed.domains == domain], weights[routed.domains == domain], size) for domain in (0, 1)
        ]
        assert mixes[0] == pytest.approx(mixes[1]) and mixes[0].sum() == pytest.approx(1)
    assert matching_weights(routed, None) == pytest.approx(1 / 3000)


def test_the_common_mix_by_hand():
    # Domain 0: tokens 0 0 0 1; domain 1: tokens 0 1 1 2. Shares 3/4 1/4 0 and 1/4 1/2 1/4, common 1/4 1/4 0.
    tokens, domains = np.array([0, 0, 0, 1, 0, 1, 1, 2]), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    chosen = np.array([0, 1, 1, 1, 1, 0, 1, 0])[:, None, None]  # one layer, one expert a token, two experts
    routed = RoutedTokens(tokens, tokens * 0, domains, domains, chosen, ("a", "b"), (1,), 2)
    assert shared_part(routed, "token") == 0.5
    assert matching_weights(routed, "token") == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2, 1 / 2, 1 / 4, 1 / 4, 0])
    # Expert 0 in a: 1/6. In b: 1/4. Relative to an even half: twice that.
    assert load_by_domain(routed, "token")[:, 0, 0] == pytest.approx([1 / 3, 1 / 2])
    assert load_by_domain(routed)[:, 0, 0] == pytest.approx([1 / 2, 1])
    assert effect(load_by_domain(routed)) == pytest.approx([1 / 4])


def test_every_row_of_a_relative_load_has_mean_one():
    routed = made_up(by_token)
    for load in (load_by_domain(routed), load_by_domain(routed, "kind"), load_by_domain(routed, "token")):
        assert load.mean(-1) == pytest.approx(np.ones((2, LAYERS)))


def test_load_by_kind_separates_the_kinds_and_leaves_out_what_does_not_occur():
    load = load_by_kind(made_up(by_kind))
    assert load.shape == (len(KINDS), LAYERS, EXPERTS)
    for kind in (0, 1, 2, 4):
        assert load[kind, 0, kind] == pytest.approx(EXPERTS / 2)
    assert np.isnan(load[3]).all(), "white space does not occur here"
    assert effect(load) == pytest.approx([0.5, 0.5]), "half of the choices go to the expert of the kind"


def test_chance_is_far_below_a_real_effect_and_about_as_large_as_none():
    real, none = made_up(by_domain), made_up(lambda token, domain, previous: [previous % 3, 3 + previous % 2])
    assert (chance_effect(real) < 0.5 * effect(load_by_domain(real))).all()
    shuffled = made_up(lambda token, domain, previous: [np.random.default_rng(token).integers(3), 4])
    assert chance_effect(shuffled, "token") == pytest.approx(0, abs=1e-12), "the token alone: nothing left"
    assert (chance_effect(none) > 0).all(), "two samples of one text differ"
    assert (chance_effect(none, seed=1) == chance_effect(none, seed=1)).all()


@pytest.mark.parametrize(
    ("piece", "kind"),
    [
        (b" the", "word"), (b"self_", "word"), ("é".encode(), "word"), (b"7", "number"), (b" 42", "number"),
        (b"):\n        ", "punctuation"), (b" ==", "punctuation"), (b"   ", "space"), (b"\n\n", "space"),
        (b".join", "mixed"), (b"(x", "mixed"), (b"x1", "mixed"), (b"\xc3", "punctuation"), (b"", "space"),
    ],
)  # fmt: skip
def test_kinds_of_tokens(piece, kind):
    assert token_kind(piece) == kind


@pytest.fixture(scope="module")
def routed_by_a_model(tiny_model, tiny_text):
    tokenizer = Tokenizer.train([tiny_text.read_text(encoding="utf-8")], 300)
    torch.manual_seed(0)
    model = DeepSeekV3(tiny_model.replace(first_k_dense_replace=0))
    documents = [
        Document("prose", "a", "counting to seven takes seven steps, " * 6),
        Document("math", "b", "3 times 4 is 12\n" * 5),
        Document("math", "c", "x"),
    ]
    return model, tokenizer, documents, route_documents(model, tokenizer, documents, seq_len=16)


def test_every_token_but_the_last_of_a_document_is_counted_once(routed_by_a_model):
    _, tokenizer, documents, routed = routed_by_a_model
    ids = tokenizer.encode_batch([document.text for document in documents])
    assert len(ids[0]) > 40 and len(ids[2]) == 1, "more than one window, and a document of one token"
    for number in range(3):
        assert routed.tokens[routed.documents == number].tolist() == ids[number][:-1]
    assert routed.domain_names == ("math", "prose") and routed.layers == (0, 1)
    assert (routed.domains == np.where(routed.documents == 0, 1, 0)).all()
    assert routed.chosen.shape == (len(routed.tokens), 2, 2)


def test_the_experts_are_those_of_the_models_record(routed_by_a_model):
    model, tokenizer, documents, routed = routed_by_a_model
    ids = tokenizer.encode(documents[1].text)
    start = [tokenizer.eos_id, *ids[:15]]  # the first window
    with torch.no_grad():
        record = model(torch.tensor([start]), mtp=False, record_routing=True).routing
    expected = torch.stack([layer.ids[0, 1:] for layer in record], dim=1).numpy()
    assert (np.sort(routed.chosen[routed.documents == 1][:15]) == np.sort(expected)).all()


def test_bad_input_is_named(routed_by_a_model, tiny_model):
    model, tokenizer, documents, routed = routed_by_a_model
    with pytest.raises(InputError, match="dense"):
        route_documents(DeepSeekV3(tiny_model.replace(first_k_dense_replace=2)), tokenizer, documents)
    with pytest.raises(InputError, match="no text"):
        route_documents(model, tokenizer, documents[2:])
    with pytest.raises(InputError, match="match = 'topic'"):
        load_by_domain(routed, "topic")
    one = specialisation.replace(routed, domains=routed.domains * 0)
    with pytest.raises(InputError, match="'prose' has no tokens"):
        load_by_domain(one)
    apart = specialisation.replace(routed, kinds=routed.domains)
    with pytest.raises(InputError, match="no kind in common"):
        load_by_domain(apart, "kind")
    with pytest.raises(InputError, match="fewer than two groups"):
        effect(load_by_domain(routed)[:1])
