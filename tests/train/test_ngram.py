"""The baselines: a counting model whose probabilities are probabilities, and xz."""

import lzma
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_mini.train.documents import Document
from dsv3_mini.train.ngram import (
    NGram,
    ngram_bits_per_byte,
    xz_after_training_bits_per_byte,
    xz_bits_per_byte,
)

TEXTS = st.lists(st.binary(max_size=40) | st.text("abc ").map(str.encode), max_size=5)


@settings(max_examples=40)
@given(TEXTS, st.binary(max_size=6))
def test_probabilities_are_positive_and_sum_to_one(texts, context):
    probability = NGram(texts).probabilities(context)
    assert probability.shape == (256,)
    assert (probability > 0).all()
    assert math.isclose(probability.sum(), 1.0, rel_tol=1e-12)


def slow_probability(texts: list[bytes], context: bytes, byte: int) -> float:
    """The formula of the module's docstring, word for word."""
    p = 1 / 256
    for order in range(4):
        tail = context[len(context) - order :] if order else b""
        after: Counter[int] = Counter()
        for text in texts:
            padded = b"\0\0\0" + text
            for i in range(3, len(padded)):
                if padded[i - order : i] == tail:
                    after[padded[i]] += 1
        total = sum(after.values())
        if total:
            p = (after[byte] + len(after) * p) / (total + len(after))
    return p


@settings(max_examples=40)
@given(TEXTS, st.text("abc ", min_size=3, max_size=3).map(str.encode), st.sampled_from(b"abc \0z"))
def test_equals_the_formula(texts, context, byte):
    assert math.isclose(
        NGram(texts).probabilities(context)[byte], slow_probability(texts, context, byte), rel_tol=1e-12
    )


@settings(max_examples=40)
@given(TEXTS, st.text("abc ", max_size=20).map(str.encode))
def test_bits_of_a_text_are_those_of_its_bytes_in_turn(texts, text):
    model = NGram(texts)
    steps = [-math.log2(model.probabilities(text[:i])[byte]) for i, byte in enumerate(text)]
    assert math.isclose(model.bits(text), sum(steps), rel_tol=1e-9, abs_tol=1e-12)


def test_contexts_do_not_reach_from_one_document_into_the_next():
    model = NGram([b"aaa", b"b"])
    assert model.probabilities(b"aaa")[ord("b")] < model.probabilities(b"")[ord("b")]


def test_knows_what_it_has_counted_and_admits_what_it_has_not():
    rng = random.Random(0)
    text = "".join(rng.choices("ab", k=20_000))
    train, test = [Document("text", "a", text[:16_000])], [Document("text", "b", text[16_000:])]
    assert ngram_bits_per_byte(train, test)["all"] == pytest.approx(1.0, abs=0.02), "a fair coin costs one bit"
    noise = NGram([text.encode()]).bits(bytes(range(256))) / 256
    assert 8 < noise < 32, "worse than knowing nothing, but never infinite"


def test_by_domain_and_over_all():
    train = [Document("x", "1", "abc " * 200), Document("y", "2", "0123456789" * 100)]
    test = [Document("x", "3", "abc " * 50), Document("y", "4", "0123456789" * 5), Document("y", "5", "9876543210")]
    result = ngram_bits_per_byte(train, test)
    assert list(result) == ["x", "y", "all"]
    assert result["all"] == pytest.approx((result["x"] * 200 + result["y"] * 60) / 260)
    assert result["x"] < 0.2 < result["y"]


def test_more_counting_helps():
    rng = np.random.default_rng(0)
    words = ["self", "return", "def", "import", "class", "for", "in", "x"]
    texts = [Document("code", str(n), " ".join(rng.choice(words, 50))) for n in range(60)]
    few, many = ngram_bits_per_byte(texts[:5], texts[50:]), ngram_bits_per_byte(texts[:50], texts[50:])
    assert many["all"] < few["all"]


def test_xz_is_the_size_that_xz_gives():
    documents = [Document("x", "1", "naïve text " * 100), Document("y", "2", "other text, other domain; " * 50)]
    result = xz_bits_per_byte(documents)
    assert list(result) == ["x", "y", "all"]
    size = len(lzma.compress(documents[0].text.encode(), preset=9 | lzma.PRESET_EXTREME))
    assert result["x"] == pytest.approx(8 * size / documents[0].num_bytes)
    assert result["all"] < (result["x"] * documents[0].num_bytes + result["y"] * documents[1].num_bytes) / sum(
        document.num_bytes for document in documents
    ), "one file for all shares its header and what it has seen"


def test_xz_after_training_knows_the_training_text():
    rng = random.Random(0)
    text = "".join(chr(rng.randrange(32, 127)) for _ in range(5000))
    document = Document("x", "1", text)
    assert xz_bits_per_byte([document])["all"] > 6
    assert xz_after_training_bits_per_byte([document], [document]) < 0.2
