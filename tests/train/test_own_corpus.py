"""Corpora of the learner's own: split by content, and one clear message for what cannot be read."""

import builtins
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_mini.errors import InputError
from dsv3_mini.train.corpus import corpus_from_dataset, corpus_from_path
from dsv3_mini.train.documents import Document
from dsv3_mini.train.own_corpus import _blocks


def paragraphs(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = "the quick brown fox jumps over a lazy dog and über allen Gipfeln ist Ruh".split()
    return [" ".join(rng.choices(words, k=30)) for _ in range(n)]


def test_one_file_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
    text = "\n\n".join(paragraphs(400)) + "\n"
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    corpus = corpus_from_path(tmp_path / "book.txt")
    documents = sorted(corpus.train + corpus.heldout, key=lambda d: d.name)
    assert "".join(d.text for d in documents) == text
    assert {d.domain for d in documents} == {"prose"}
    assert corpus.train and corpus.heldout
    assert sum(d.num_bytes for d in corpus.heldout) < 0.3 * len(text.encode())
    assert all(d.text.endswith("\n\n") for d in documents[:-1])
    assert corpus_from_path(tmp_path / "book.txt") == corpus


def test_side_of_a_block_depends_on_its_content_not_its_place(tmp_path):
    blocks = [f"## {n}\n" + "\n".join(paragraphs(65, seed=n)) + "\n\n" for n in range(60)]
    sides = []
    for order in (blocks, blocks[::-1]):
        (tmp_path / "book.md").write_text("".join(order), encoding="utf-8")
        sides.append({d.text for d in corpus_from_path(tmp_path / "book.md").heldout})
    assert sides[0] == sides[1]


def test_a_folder_of_many_files_is_split_by_file(tmp_path):
    for n in range(60):
        (tmp_path / f"part{n % 3}").mkdir(exist_ok=True)
        suffix = (".py", ".md", ".log")[n % 3]
        (tmp_path / f"part{n % 3}" / f"{n}{suffix}").write_text("\n\n".join(paragraphs(3, seed=n)), encoding="utf-8")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.txt").write_text("secret " * 100)
    (tmp_path / ".env").write_text("secret " * 100)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0\0")
    (tmp_path / "copy.md").write_text("\n\n".join(paragraphs(3, seed=1)), encoding="utf-8")
    corpus = corpus_from_path(tmp_path)
    names = [d.name for d in corpus.train + corpus.heldout]
    assert len(names) == 60 and len(set(names)) == 60
    assert corpus.domains == ["code", "prose", "text"]
    assert not any("secret" in d.text for d in corpus.train + corpus.heldout)
    assert len(corpus.skipped) == 1 and "photo.jpg" in corpus.skipped[0]
    assert "photo.jpg" in corpus.describe()


def test_a_few_files_are_cut_into_blocks(tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text("\n\n".join(paragraphs(100, seed=n)), encoding="utf-8")
    corpus = corpus_from_path(tmp_path)
    assert len(corpus.heldout) >= 1 and len(corpus.train) > 10
    assert {d.name.split("#")[0] for d in corpus.train} == {"0.txt", "1.txt", "2.txt"}


@given(st.text(alphabet="ab \nü", max_size=600), st.integers(1, 50))
def test_blocks_joined_are_the_text_and_none_is_huge(text, size):
    blocks = [d.text for d in _blocks(Document("text", "x", text), size)]
    assert "".join(blocks) == text
    assert all(0 < len(block) <= 2 * size + 1 for block in blocks)
    assert all(len(block) >= size for block in blocks[:-1])


def test_one_line_without_any_space_still_has_a_held_out_side(tmp_path):
    rng = random.Random(0)
    (tmp_path / "dna.txt").write_text("".join(rng.choices("ACGT", k=50_000)))
    corpus = corpus_from_path(tmp_path / "dna.txt")
    assert corpus.heldout and len(corpus.train) > 10


@pytest.mark.parametrize("size", [2000, 2100, 5000])
def test_smallest_corpora_have_both_sides(tmp_path, size):
    for seed in range(20):
        text = "\n\n".join(paragraphs(size // 100, seed=seed)).encode()[:size].decode(errors="ignore").ljust(size, "x")
        (tmp_path / "small.txt").write_text(text, encoding="utf-8")
        corpus = corpus_from_path(tmp_path / "small.txt")
        assert corpus.train and corpus.heldout


def bad_inputs(tmp_path):
    def file(name: str, content: bytes):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    yield tmp_path / "nowhere.txt", "nowhere.txt does not exist"
    yield "", "is empty"
    yield file("empty.txt", b""), "empty.txt has 0 bytes.*2000 are needed"
    yield file("small.txt", b"some words " * 20), "small.txt has 220 bytes.*2000 are needed"
    yield file("image.png", b"\x89PNG\0" * 1000), "image.png is not text.*UTF-8"
    yield file("latin1.txt", "Größe ".encode("latin-1") * 1000), "latin1.txt is not UTF-8 text .byte 2."
    yield file("utf16.txt", ("word " * 1000).encode("utf-16")), "utf16.txt is not text"
    for n in range(25):
        copies = file(f"copies/{n}.txt", b"a line that never changes\n" * 10).parent
    yield copies, "copies says one thing again and again.*two different texts"
    (tmp_path / "bare").mkdir()
    yield tmp_path / "bare", "bare has no text to train on .its files are empty"
    yield file("pictures/a.png", b"\0" * 5000).parent, "pictures has no text to train on .1 files were left out.*a.png"
    yield file("blank/a.txt", b" \n" * 5000).parent, "blank has no text to train on"
    os.mkfifo(tmp_path / "pipe")
    yield tmp_path / "pipe", "pipe is neither a file nor a folder"


def test_bad_input_is_one_message_that_names_the_file(tmp_path):
    for path, message in bad_inputs(tmp_path):
        with pytest.raises(InputError, match=message) as caught:
            corpus_from_path(path)
        assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("x" * 5000)

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(InputError, match=r"mine.txt cannot be read: Permission denied"):
        corpus_from_path(tmp_path / "mine.txt")


def test_byte_order_mark_is_no_text_and_line_ends_stay(tmp_path):
    text = "\r\n\r\n".join(paragraphs(50))
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    corpus = corpus_from_path(tmp_path / "windows.txt")
    assert "".join(d.text for d in sorted(corpus.train + corpus.heldout, key=lambda d: d.name)) == text


@pytest.fixture
def saved_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"number": list(range(50)), "content": ["\n\n".join(paragraphs(3, seed=n)) for n in range(50)]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "stories")
    return str(tmp_path / "stories")


def test_a_data_set_on_disk(saved_dataset):
    corpus = corpus_from_dataset(saved_dataset)
    assert len(corpus.train) + len(corpus.heldout) == 50
    assert corpus.heldout and corpus.domains == ["text"]
    assert len(corpus_from_dataset(saved_dataset, max_bytes=5000).train) < 30


def test_a_column_that_is_no_text(saved_dataset):
    with pytest.raises(InputError, match=r"no text in a column 'number'; its columns of text are \['content'\]"):
        corpus_from_dataset(saved_dataset, column="number")


def test_a_data_set_that_cannot_be_had_gives_the_reason(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def no_network(*args, **kwargs):
        raise ConnectionError("the hub cannot be reached")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    with pytest.raises(InputError, match="'some/name' cannot be read: ConnectionError: the hub cannot be reached"):
        corpus_from_dataset("some/name")


def test_without_the_package_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without_datasets(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_datasets)
    with pytest.raises(InputError, match=r"dsv3-mini\[data\]"):
        corpus_from_dataset("some/name")
