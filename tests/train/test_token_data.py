"""Batches that depend on seed and position alone, and held-out windows that ask for every token once."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_mini.errors import InputError
from dsv3_mini.train.documents import Corpus, Document
from dsv3_mini.train.token_data import IGNORE, TokenDataset, held_out_windows, prepare
from dsv3_mini.train.tokenizer import Tokenizer


def make_corpus(documents: int = 40) -> Corpus:
    texts = [
        f"def f{n}(x):\n    return [x + {n},\n        'é']\n\n\nclass A{n}:\n    pass\n" * 3 for n in range(documents)
    ]
    train = [Document("code", f"{n}.py", text) for n, text in enumerate(texts)]
    heldout = [Document("code", "a", texts[0] + "# ä\n"), Document("prose", "b", "Some words.\n" * 30)]
    return Corpus(tuple(train), (*heldout, Document("code", "c", "x = 1\n")), "a test")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([document.text for document in make_corpus().train], 330)


def test_batches_are_windows_with_targets_one_ahead():
    dataset = TokenDataset(np.arange(100, dtype=np.uint16), seq_len=8, seed=0)
    inputs, targets = dataset.batch(0, 12)
    assert inputs.shape == targets.shape == (12, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)
    assert (inputs[:, 0] % 8 == 0).all()


@settings(max_examples=40)
@given(
    length=st.integers(9, 200), seq_len=st.integers(1, 8), seed=st.integers(0, 5),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
)  # fmt: skip
def test_what_a_step_gets_depends_on_its_position_alone(length, seq_len, seed, sizes):
    """However the sequences are grouped into steps (a ramp, a resumed run), sequence n is the same."""
    tokens = np.arange(length, dtype=np.uint16)
    in_one = TokenDataset(tokens, seq_len, seed).batch(0, sum(sizes))
    position, rows = 0, []
    for size in sizes:
        resumed = TokenDataset(tokens, seq_len, seed)  # made anew each time, as after a kill
        rows.append(resumed.batch(position, size))
        position += size
    assert torch.equal(torch.cat([inputs for inputs, _ in rows]), in_one[0])
    assert torch.equal(torch.cat([targets for _, targets in rows]), in_one[1])


@given(length=st.integers(2, 120), seq_len=st.integers(1, 9), epoch=st.integers(0, 3))
def test_every_epoch_visits_every_token_once(length, seq_len, epoch):
    if length < seq_len + 1:
        return
    dataset = TokenDataset(np.arange(length, dtype=np.uint32), seq_len, seed=1)
    windows = (length - 1) // seq_len
    assert dataset.num_windows == windows
    _, targets = dataset.batch(epoch * windows, windows)
    assert sorted(targets.flatten().tolist()) == list(range(1, windows * seq_len + 1))


def test_epochs_and_seeds_have_their_own_order():
    tokens = np.arange(1001, dtype=np.uint16)
    dataset, other = TokenDataset(tokens, 10, seed=0), TokenDataset(tokens, 10, seed=1)
    first, second = dataset.batch(0, 100)[0], dataset.batch(100, 100)[0]
    assert not torch.equal(first, second)
    assert not torch.equal(first, other.batch(0, 100)[0])
    assert first[:, 0].tolist() != sorted(first[:, 0].tolist())


def test_a_corpus_too_small_for_a_window():
    with pytest.raises(InputError, match=r"8 tokens to train on, too few for one window of seq_len = 8"):
        TokenDataset(np.arange(8), 8)
    with pytest.raises(InputError, match="seq_len = 0 cannot be"):
        TokenDataset(np.arange(8), 0)
    assert TokenDataset(np.arange(9), 8).num_windows == 1


@given(
    texts=st.lists(st.text("ab\n é日", max_size=60), max_size=6), seq_len=st.integers(1, 12), overlap=st.integers(0, 11)
)
def test_held_out_windows_ask_for_every_token_once(tokenizer, texts, seq_len, overlap):
    if overlap >= seq_len:
        return
    documents = [tokenizer.encode(text) for text in texts]
    windows = held_out_windows(documents, tokenizer, seq_len, overlap=overlap)
    asked = windows.targets[windows.targets != IGNORE].tolist()
    assert asked == [token for ids in documents for token in ids]
    assert (windows.targets != IGNORE).any(dim=1).all(), "no window is for nothing"
    assert windows.num_bytes.sum() == sum(len(text.encode()) for text in texts)
    assert windows.inputs.shape == windows.targets.shape == (len(windows), seq_len)
    assert (windows.inputs >= 0).all()


def test_the_first_token_follows_eos_and_overlap_is_context(tokenizer):
    ids = list(range(10, 20))
    windows = held_out_windows([ids], tokenizer, 4)
    assert windows.inputs.tolist() == [[0, 10, 11, 12], [13, 14, 15, 16], [17, 18, 0, 0]]
    assert windows.targets.tolist() == [[10, 11, 12, 13], [14, 15, 16, 17], [18, 19, IGNORE, IGNORE]]
    windows = held_out_windows([ids], tokenizer, 4, overlap=2)
    assert windows.inputs[1].tolist() == [11, 12, 13, 14]
    assert windows.targets[1].tolist() == [IGNORE, IGNORE, 14, 15]
    assert windows.num_bytes[1] == tokenizer.token_lengths[[14, 15]].sum()


def test_parts_of_windows_keep_their_bytes(tokenizer):
    windows = held_out_windows([tokenizer.encode("x + é\n" * 50)], tokenizer, 8)
    parts = list(windows.batches(3))
    assert sum(len(part) for part in parts) == len(windows) and max(map(len, parts)) == 3
    assert sum(int(part.num_bytes.sum()) for part in parts) == 7 * 50


def test_lengths_that_cannot_be(tokenizer):
    for seq_len, overlap in ((0, 0), (4, 4), (4, -1)):
        with pytest.raises(InputError, match="0 <= overlap < seq_len"):
            held_out_windows([[5]], tokenizer, seq_len, overlap=overlap)


def documents_of(stream: np.ndarray, eos: int) -> list[list[int]]:
    ends = np.flatnonzero(stream == eos)
    assert ends[-1] == len(stream) - 1, "the last document is ended too"
    return [part[:-1].tolist() for part in np.split(stream, ends[:-1] + 1)]


def test_packing_keeps_every_document_whole_in_another_order(tmp_path):
    corpus = make_corpus()
    data = prepare(corpus, 330, seq_len=16, fim_rate=0.0, split_rate=0.0, seed=0, cache_dir=tmp_path)
    told = [data.tokenizer.decode(ids) for ids in documents_of(data.train.tokens, data.tokenizer.eos_id)]
    assert sorted(told) == sorted(document.text for document in corpus.train)
    assert told != [document.text for document in corpus.train]
    assert data.train.tokens.dtype == np.uint16 and isinstance(data.train.tokens, np.memmap)


def test_fim_and_splits_change_the_tokens_never_the_texts(tmp_path):
    corpus = make_corpus()
    plain = prepare(corpus, 330, seq_len=16, fim_rate=0.0, split_rate=0.0, cache_dir=tmp_path)
    moved = prepare(corpus, 330, seq_len=16, fim_rate=0.5, split_rate=0.5, cache_dir=tmp_path)
    begin = moved.tokenizer.fim_begin_id
    assert 5 < int((moved.train.tokens == begin).sum()) < 35 and not (plain.train.tokens == begin).any()
    assert len(moved.train.tokens) > len(plain.train.tokens)
    lengths = moved.tokenizer.token_lengths
    assert lengths[moved.train.tokens].sum() == sum(document.num_bytes for document in corpus.train)


def test_the_held_out_side_is_never_looked_at(tmp_path):
    """Neither the merges of the tokenizer nor the tokens may know what is in it."""
    corpus = make_corpus()
    other = dataclasses.replace(corpus, heldout=(Document("code", "z", "something else entirely " * 50),))
    assert same(*(prepare(c, 330, seq_len=16, cache_dir=tmp_path) for c in (corpus, other)))


def same(a, b) -> bool:
    return np.array_equal(a.train.tokens, b.train.tokens) and a.tokenizer.fingerprint == b.tokenizer.fingerprint


def test_prepared_once_then_read(tmp_path, monkeypatch):
    corpus = make_corpus()
    first = prepare(corpus, 330, seq_len=16, cache_dir=tmp_path)

    def unexpected(*args):
        raise AssertionError("trained again")

    monkeypatch.setattr(Tokenizer, "train", unexpected)
    monkeypatch.setattr(Tokenizer, "encode_batch", unexpected)
    again = prepare(corpus, 330, seq_len=16, cache_dir=tmp_path)
    assert same(first, again) and first.fingerprint == again.fingerprint
    assert prepare(corpus, 330, seq_len=32, cache_dir=tmp_path).train.seq_len == 32, "windows are cut on reading"


def test_everything_that_changes_the_tokens_changes_the_fingerprint(tmp_path):
    corpus = make_corpus()
    other_text = dataclasses.replace(corpus, train=(*corpus.train, Document("code", "more.py", "y = 2\n")))
    runs = [
        prepare(corpus, 330, seq_len=16, cache_dir=tmp_path),
        prepare(corpus, 330, seq_len=16, seed=1, cache_dir=tmp_path),
        prepare(corpus, 330, seq_len=16, fim_rate=0.3, cache_dir=tmp_path),
        prepare(corpus, 330, seq_len=16, split_rate=0.3, cache_dir=tmp_path),
        prepare(corpus, 280, seq_len=16, cache_dir=tmp_path),
        prepare(other_text, 330, seq_len=16, cache_dir=tmp_path),
    ]
    assert len({run.fingerprint for run in runs}) == len(runs)
    assert len({run.train.tokens.tobytes() for run in runs}) == len(runs)


def test_equal_inputs_give_equal_tokens_in_another_cache(tmp_path):
    a, b = (prepare(make_corpus(), 330, seq_len=16, fim_rate=0.5, cache_dir=tmp_path / name) for name in "ab")
    assert same(a, b) and a.fingerprint == b.fingerprint


def test_a_truncated_cache_is_made_again(tmp_path):
    corpus = make_corpus()
    first = prepare(corpus, 330, seq_len=16, cache_dir=tmp_path)
    whole = first.train.tokens.tobytes()
    for file in list(tmp_path.glob("*/*.npy")) + list(tmp_path.glob("*/tokenizer.json")):
        content = file.read_bytes()
        file.unlink()  # a new file: `first` still maps the old one
        file.write_bytes(content[: len(content) // 2])
        again = prepare(corpus, 330, seq_len=16, cache_dir=tmp_path)
        assert again.train.tokens.tobytes() == whole
        assert os.path.getsize(file) == len(content)


def test_a_tokenizer_that_is_given_is_used(tmp_path, tokenizer):
    data = prepare(make_corpus(), 9999, seq_len=16, tokenizer=tokenizer, cache_dir=tmp_path)
    assert data.tokenizer is tokenizer
    assert int(data.train.tokens.max()) < tokenizer.vocab_size


def test_chunks_change_nothing(tmp_path, monkeypatch):
    """Documents are tokenized in chunks to bound memory; order and fill-in-the-middle must not notice."""
    a = prepare(make_corpus(), 330, seq_len=16, fim_rate=0.5, split_rate=0.0, cache_dir=tmp_path / "a")
    monkeypatch.setattr("dsv3_mini.train.token_data.CHUNK_BYTES", 1000)
    b = prepare(make_corpus(), 330, seq_len=16, fim_rate=0.5, split_rate=0.0, cache_dir=tmp_path / "b")
    assert same(a, b)


def test_a_corpus_too_small_is_one_message(tmp_path):
    with pytest.raises(InputError, match=r"too few for one window of seq_len = 100000"):
        prepare(make_corpus(2), 300, seq_len=100_000, cache_dir=tmp_path)
