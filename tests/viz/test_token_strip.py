"""The token strip: every byte of the text is in it, as text; the explorer follows what is typed."""

from __future__ import annotations

import html
import re

import pytest

from dsv3_mini.errors import InputError
from dsv3_mini.train.tokenizer import Tokenizer
from dsv3_mini.viz.token_strip import MOST, TokenExplorer, TokenStrip

TEXT = "def area(r):\n    return 3 * r * r  # the area of a circle\n" * 8


@pytest.fixture(scope="module")
def tokenizers() -> dict[int, Tokenizer]:
    return {size: Tokenizer.train([TEXT], size) for size in (261, 300)}


def boxes(page: str) -> list[str]:
    return [html.unescape(found) for found in re.findall(r"<span [^>]*>(.*?)</span>", page)]


def test_strip_holds_the_text_token_by_token(tokenizers):
    strip = TokenStrip(tokenizers[300], "def area(r):\n    return 3")
    assert "".join(strip.pieces) == "def·area(r):⏎····return·3"
    assert boxes(strip.html()) == strip.pieces
    assert len(strip.ids) == len(strip.pieces) < len(TokenStrip(tokenizers[261], "def area(r):\n    return 3").ids)
    assert strip.bytes_per_token == 25 / len(strip.ids)
    assert f"{len(strip.ids)} tokens" in str(strip) and "25 bytes" in str(strip)


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "&lt;b&gt;"])
def test_markup_in_the_text_stays_text(tokenizers, text):
    for tokenizer in (tokenizers[261], Tokenizer.train([text * 9], 400)):  # by the byte, and in long tokens
        page = TokenStrip(tokenizer, text).html()
        assert set(re.findall(r"<(\w+)", page)) <= {"div", "span", "p", "br"}
        assert not re.search(r">[^<]*<(?!/?(?:div|span|p|br)\b)", page), "a bare < of the text"
        assert "".join(boxes(page)) == text.replace(" ", "·")


def test_half_a_character_is_shown_as_its_bytes(tokenizers):
    assert TokenStrip(tokenizers[261], "é").pieces == [r"\xc3", r"\xa9"]


def test_an_empty_text_and_a_long_one(tokenizers):
    assert TokenStrip(tokenizers[261], "").bytes_per_token == 0
    long = TokenStrip(tokenizers[261], "a" * (MOST + 5))
    assert long.num_bytes == MOST and f"{MOST:,}" in long.note and long.note in long.html()


def test_explorer_follows_the_field_and_the_slider(tokenizers):
    explorer = TokenExplorer(tokenizers, "area", {"code": [1.0, 2.0]})
    field, slider, shown = explorer.widget().children
    before = shown.value
    field.value = "return area"
    assert explorer.text == "return area" and boxes(shown.value) == explorer.strip().pieces
    slider.value = 261
    assert explorer.size == 261 and boxes(shown.value) == list("return·area") and shown.value != before
    field.value = "half of a pair: \ud800"
    assert "surrogate" in shown.value
    field.value = ""
    assert "no text" in shown.value


def test_explorer_is_readable_without_a_kernel(tokenizers):
    bundle = TokenExplorer(tokenizers, "return 3", size=300)._repr_mimebundle_()
    assert "return" in bundle["text/plain"] and "data:image/png" in bundle["text/html"]
    assert 'alt="Bytes per token' in bundle["text/html"]


def test_own_curve_has_a_point_for_each_size(tokenizers):
    explorer = TokenExplorer(tokenizers, "the area of a circle")
    assert explorer.own_curve() == [1.0, explorer.strip().bytes_per_token]
    lines = explorer.picture().axes[0].get_lines()
    assert list(lines[0].get_ydata()) == explorer.own_curve()


def test_what_cannot_be_is_one_message(tokenizers):
    with pytest.raises(InputError, match="tokenizers is empty"):
        TokenExplorer({}, "x")
    with pytest.raises(InputError, match=r"size = 7 .*261, 300"):
        TokenExplorer(tokenizers, "x", size=7)
    with pytest.raises(InputError, match=r"'code' has 1 numbers"):
        TokenExplorer(tokenizers, "x", {"code": [1.0]})
