"""The tokenizer: any text in, the very same text out, and no special token ever out of a text."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_mini.errors import InputError
from dsv3_mini.train.tokenizer import SMALLEST_VOCABULARY, SPECIAL_TOKENS, Tokenizer, _sample

CODE = """\
class Point:
    def __init__(self, x=0, y=12345):
        self.x = x
        self.y = y

    def __add__(self, other):
        if isinstance(other, Point):
            return Point(self.x + other.x, self.y + other.y)
        return NotImplemented


def main():
    for point in [Point(1, 2), Point(3, 4)]:
        print("the point:", point.x, point.y)
"""
TEXTS = [
    CODE,
    "What is 12 plus 7? 19\n",
    "Prose, with a sentence. And another: longer; one!\n\n",
    "naïve 日本語 🙂\n",
] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 600)


# Characters that tokenizers get wrong: marks that join others, line breaks of all kinds, the specials' own.
AWKWARD = (
    st.text(st.sampled_from("a1_ \n\r\t\v\f\x00\x85\xa0\u0301\u200d\u2028\ufeff\ufffd🙂e\u0327日<|>()[]:.,'\""))
    | st.text()
)
MIXED = st.lists(AWKWARD | st.sampled_from([*SPECIAL_TOKENS, CODE, "):\n        "])).map("".join)


@given(MIXED)
def test_lossless_for_any_text_and_never_special(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert not set(ids) & set(range(len(SPECIAL_TOKENS)))
    assert tokenizer.token_lengths[ids].sum() == len(text.encode())


@given(st.lists(MIXED, max_size=5))
def test_a_batch_is_its_texts(tokenizer, texts):
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_special_tokens_have_the_first_ids(tokenizer):
    ids = [tokenizer.eos_id, tokenizer.fim_begin_id, tokenizer.fim_hole_id, tokenizer.fim_end_id, tokenizer.pad_id]
    assert ids == [0, 1, 2, 3, 4]
    assert tokenizer.decode(ids) == "".join(SPECIAL_TOKENS)
    assert tokenizer.token_lengths[:5].sum() == 0, "they are no bytes of a text"


def test_digits_stand_alone(tokenizer):
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("x = 12345 + 12")]
    assert [piece for piece in pieces if any(c.isdigit() for c in piece)] == list("1234512")


def test_punctuation_joins_with_line_break_and_indentation(tokenizer):
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode(CODE)]
    assert any("):\n        " in piece for piece in pieces)
    assert "        " not in "".join(piece for piece in pieces if not piece.strip(" ")), "indentation is never alone"


def test_words_take_what_stands_before_them(tokenizer):
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("for point in (self.x, Point)")]
    assert {" point", ".x", " Point"} <= set(pieces)


@pytest.mark.parametrize("size", [SMALLEST_VOCABULARY, 300, 400])
def test_vocabulary_has_the_size_that_was_asked_for(size):
    tokenizer = Tokenizer.train(TEXTS, size)
    assert tokenizer.vocab_size == size
    assert len(set(tokenizer.token_bytes)) == size
    assert {bytes([b]) for b in range(256)} <= set(tokenizer.token_bytes)


def test_a_small_text_gives_a_smaller_vocabulary():
    tokenizer = Tokenizer.train(["ab ab"], 5000)
    assert SMALLEST_VOCABULARY < tokenizer.vocab_size < 300
    assert tokenizer.decode(tokenizer.encode("something else")) == "something else"


def test_equal_texts_give_equal_tokenizers_in_every_process(tokenizer):
    script = (
        "import sys, json; from dsv3_mini.train.tokenizer import Tokenizer;"
        "print(Tokenizer.train(json.load(sys.stdin), 600).fingerprint)"
    )
    for threads in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(TEXTS), capture_output=True, text=True, check=True,
            env={"RAYON_NUM_THREADS": threads, "PYTHONPATH": ":".join(sys.path)},
        )  # fmt: skip
        assert found.stdout.strip() == tokenizer.fingerprint
    assert Tokenizer.train([*TEXTS, "more"], 600).fingerprint != tokenizer.fingerprint


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new folder")
    for path in (tmp_path / "new folder", tmp_path / "new folder" / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.eos_id == tokenizer.eos_id and loaded.vocab_size == tokenizer.vocab_size
        for text in (*TEXTS, "".join(SPECIAL_TOKENS)):
            assert loaded.encode(text) == tokenizer.encode(text)
    assert sorted(p.name for p in (tmp_path / "new folder").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def auto_tokenizer(tokenizer, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_transformers_reads_the_saved_folder(tokenizer, auto_tokenizer):
    assert auto_tokenizer.eos_token_id == tokenizer.eos_id and auto_tokenizer.pad_token_id == tokenizer.pad_id
    assert len(auto_tokenizer) == tokenizer.vocab_size


@given(MIXED)
def test_transformers_gives_the_same_ids(tokenizer, auto_tokenizer, text):
    ids = tokenizer.encode(text)
    assert auto_tokenizer(text)["input_ids"] == ids
    assert auto_tokenizer.decode(ids) == text


def test_other_byte_level_tokenizers_load_too(tokenizer, tmp_path):
    """A released model names its own end token; what ours has beyond that is missed by name, when it is asked for."""
    content = json.loads(tokenizer.inner.to_str())
    names = {"<|eos_token|>": "<end of text>", "<|fim_hole|>": "<hole>"}
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    content["model"]["vocab"] = {names.get(k, k): v for k, v in content["model"]["vocab"].items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    for eos in ("<end of text>", {"content": "<end of text>", "lstrip": False}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
        other = Tokenizer.load(tmp_path)
        assert other.eos_id == 0
        assert other.decode(other.encode(CODE)) == CODE
        with pytest.raises(InputError, match=r"no token <\|fim_hole\|>"):
            _ = other.fim_hole_id


def test_bad_folders_are_one_message(tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"nowhere does not exist.*tokenizer\.json"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"tokenizer\.json does not exist"):
        Tokenizer.load(tmp_path)
    good = tokenizer.inner.to_str()
    for content in (b"", b"{}", b"\xff\xfe", good[: len(good) // 2].encode(), b"[1, 2]"):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer\.json"):
            Tokenizer.load(tmp_path)
    content = json.loads(good)
    content["decoder"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="not a byte-level tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(good)
    for config in ("{", "[]"):
        (tmp_path / "tokenizer_config.json").write_text(config)
        with pytest.raises(InputError, match=r"tokenizer_config\.json is not a JSON object"):
            Tokenizer.load(tmp_path)


def test_vocabulary_too_small_for_the_bytes():
    with pytest.raises(InputError, match="vocab_size = 260 cannot be: it must be at least 261"):
        Tokenizer.train(TEXTS, 260)


def test_half_a_surrogate_pair_is_named(tokenizer):
    with pytest.raises(InputError, match=r"character 3, '\\ud83d' is half of a surrogate pair"):
        tokenizer.encode("abc\ud83d")


def test_decoding_what_is_no_text(tokenizer):
    first_byte = tokenizer.encode("é")[:1]
    if len(tokenizer.encode("é")) > 1:
        assert tokenizer.decode(first_byte) == "\ufffd", "half a character"
    assert tokenizer.decode([tokenizer.vocab_size]) == "\ufffd"
    assert tokenizer.decode(np.array([300])) == tokenizer.decode([300])
    with pytest.raises(InputError, match="token id -100 cannot be"):
        tokenizer.decode([-100])


def test_large_corpora_are_sampled_evenly_and_the_same_way_every_time(monkeypatch):
    monkeypatch.setattr("dsv3_mini.train.tokenizer.TRAINING_BYTES", 5000)
    texts = [f"about {chr(ord('a') + n % 26) * 3}{n}\n" * 20 for n in range(100)]
    sample = _sample(texts)
    assert sum(map(len, sample)) <= 5000 and len(sample) > 10
    assert sample == _sample(list(texts)) and {texts[0], *sample} <= set(texts)
    assert Tokenizer.train(texts, 300).fingerprint == Tokenizer.train(iter(texts), 300).fingerprint
    assert _sample(["x" * 10_000]) == ["x" * 5000]
    assert _sample(["short", "", "texts"]) == ["short", "", "texts"]
    assert _sample([]) == []
