"""Fill-in-the-middle: the order changes, the content never, and only at the rate that was asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_mini.errors import InputError
from dsv3_mini.train.fim import cut_in_three, fill_in_the_middle, to_psm
from dsv3_mini.train.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["def f(x):\n    return x + 1\n"] * 3, 300)


def put_back(ids: list[int], tokenizer: Tokenizer) -> str:
    """The document that prefix-suffix-middle ids were made from."""
    assert ids[0] == tokenizer.fim_begin_id and ids[-1] == tokenizer.eos_id
    hole, end = ids.index(tokenizer.fim_hole_id), ids.index(tokenizer.fim_end_id)
    prefix, suffix, middle = ids[1:hole], ids[hole + 1 : end], ids[end + 1 : -1]
    assert all(token >= 5 for token in prefix + suffix + middle), "no special token inside the text"
    return tokenizer.decode(prefix) + tokenizer.decode(middle) + tokenizer.decode(suffix)


def test_layout_is_the_report_s(tokenizer):
    told = tokenizer.decode(to_psm("def f", "(x)", ":\n", tokenizer))
    assert told == "<|fim_begin|>def f<|fim_hole|>:\n<|fim_end|>(x)<|eos_token|>"


@given(st.text(max_size=80), st.integers(0, 2**32))
def test_content_is_preserved(tokenizer, text, seed):
    (ids,) = fill_in_the_middle([text], tokenizer, np.random.default_rng(seed), rate=1.0)
    assert put_back(ids, tokenizer) == text


@given(st.text(max_size=30), st.integers(0, 2**32))
def test_three_pieces_are_the_text(text, seed):
    assert "".join(cut_in_three(text, np.random.default_rng(seed))) == text


def test_every_cut_occurs_both_ends_included():
    rng = np.random.default_rng(0)
    cuts = {tuple(map(len, cut_in_three("日本", rng))) for _ in range(500)}
    assert cuts == {(a, b, 2 - a - b) for a in range(3) for b in range(3 - a)}


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_rate_is_respected(tokenizer, rate):
    texts = [f"document {n}" for n in range(2000)]
    documents = fill_in_the_middle(texts, tokenizer, np.random.default_rng(1), rate)
    rearranged = [ids[0] == tokenizer.fim_begin_id for ids in documents]
    assert abs(np.mean(rearranged) - rate) <= 0.03 * (0 < rate < 1)
    for text, ids, moved in zip(texts, documents, rearranged):
        assert ids[-1] == tokenizer.eos_id
        if moved:
            assert put_back(ids, tokenizer) == text
        else:
            assert ids[:-1] == tokenizer.encode(text)


def test_equal_seeds_give_equal_ids(tokenizer):
    texts = [f"document {n}" for n in range(200)]
    runs = [fill_in_the_middle(texts, tokenizer, np.random.default_rng(seed), 0.5) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_probability(tokenizer, rate):
    with pytest.raises(InputError, match=r"fim_rate = .* between 0 and 1"):
        fill_in_the_middle(["x"], tokenizer, np.random.default_rng(0), rate)
