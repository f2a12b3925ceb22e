"""Splitting joined tokens: the same text, in the tokens that a prompt and its continuation would have."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_mini.errors import InputError
from dsv3_mini.train.joined_tokens import joints, split_joined_tokens
from dsv3_mini.train.tokenizer import Tokenizer

CODE = "def f(x):\n    if x:\n        return [\n            x,\n        ]\n\n\ndef g(x):\n    return x\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([CODE, CODE.replace("f", "h"), "(x): h (x):\nh", "a b  return"] * 3, 400)


def pieces(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    return [tokenizer.decode([i]) for i in ids.tolist()]


def test_joints_are_between_punctuation_line_breaks_and_indentation(tokenizer):
    found = {tokenizer.decode([token]): places for token, places in joints(tokenizer).items()}
    assert found["):\n    "] == [2, 3]
    assert found["\n    "] == [1]
    assert "\n\n\n" not in found and "):" not in found
    assert all(text[:place] and text[place:] for text, places in found.items() for place in places)
    assert not any(text.isalnum() for text in found)


@settings(max_examples=40)
@given(st.lists(st.sampled_from([CODE, "x = [\n\n  1]\n", "日本\n  🙂", "a b  return", "):\n    "])), st.floats(0, 1))
def test_the_text_stays_the_same(tokenizer, texts, rate):
    ids = np.array(tokenizer.encode("".join(texts)), dtype=np.uint16)
    split = split_joined_tokens(ids, tokenizer, np.random.default_rng(0), rate)
    assert split.dtype == ids.dtype
    assert tokenizer.decode_bytes(split.tolist()) == tokenizer.decode_bytes(ids.tolist())


def test_both_sides_are_tokenized_as_prompt_and_continuation(tokenizer):
    ids = np.array(tokenizer.encode(CODE), dtype=np.uint16)
    assert pieces(tokenizer, ids)[:4] == ["def", " f", "(x", "):\n    "]
    seen = set()
    for seed in range(20):
        split = pieces(tokenizer, split_joined_tokens(ids, tokenizer, np.random.default_rng(seed), 1.0))
        assert "):\n    " not in split[:5]
        seen.add(tuple(split[3:5]))
    assert ("):", "\n    ") in seen, "split before the line break"
    assert any(first == "):\n" for first, _ in seen), "split after the line break"


def test_rate_is_respected_and_zero_changes_nothing(tokenizer):
    ids = np.array(tokenizer.encode("):\n    x" * 4000), dtype=np.uint16)
    assert np.array_equal(split_joined_tokens(ids, tokenizer, np.random.default_rng(0), 0.0), ids)
    joined = next(token for token in joints(tokenizer) if tokenizer.decode([token]) == "):\n    ")
    before, after = (
        int((stream == joined).sum())
        for stream in (ids, split_joined_tokens(ids, tokenizer, np.random.default_rng(0), 0.1))
    )
    assert 0.85 < after / before < 0.95


def test_the_end_of_a_document_is_never_moved(tokenizer):
    """A joined token right before eos has no continuation in its document."""
    document = [*tokenizer.encode("f(x):\n    "), tokenizer.eos_id]
    ids = np.array(document * 50, dtype=np.uint16)
    split = split_joined_tokens(ids, tokenizer, np.random.default_rng(0), 1.0)
    assert np.array_equal(split, ids)


def test_equal_seeds_give_equal_ids(tokenizer):
    ids = np.array(tokenizer.encode(CODE * 20), dtype=np.uint16)
    runs = [split_joined_tokens(ids, tokenizer, np.random.default_rng(seed), 0.3).tolist() for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_short_streams(tokenizer):
    for ids in ([], [7]):
        stream = np.array(ids, dtype=np.uint16)
        assert split_joined_tokens(stream, tokenizer, np.random.default_rng(0), 1.0).tolist() == ids


def test_a_rate_that_is_no_probability(tokenizer):
    with pytest.raises(InputError, match="split_rate = 2 cannot be"):
        split_joined_tokens(np.array([7, 8]), tokenizer, np.random.default_rng(0), 2)
