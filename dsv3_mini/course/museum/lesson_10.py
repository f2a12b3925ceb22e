"""Bug museum of lesson 10: a tokenizer that takes the longest match, and a held-out side that was trained on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch

from dsv3_mini.course.exercises.lesson_10.encode import encode_piece, encode_piece__longest_match
from dsv3_mini.course.exercises.lesson_10.split import split, split__by_position
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.paths import data_dir
from dsv3_mini.train.data import load_corpus
from dsv3_mini.train.documents import Corpus, Document
from dsv3_mini.train.evaluate import bits_per_byte, select_documents
from dsv3_mini.train.ngram import ngram_bits_per_byte, xz_after_training_bits_per_byte
from dsv3_mini.train.tokenizer import SPECIAL_TOKENS, Tokenizer

# -- 10.A --

BYTES = 16_000  # of held-out text that the model reads
Pair = tuple[int, int]


def merges_of(tokenizer: Tokenizer) -> tuple[dict[Pair, int], list[bytes]]:
    """(merges {pair: new id} in the order of learning, table of bytes by id) of a trained tokenizer."""
    number = tokenizer.inner.get_vocab()
    learned = json.loads(tokenizer.inner.to_str())["model"]["merges"]  # ["a", "b"], or "a b" in older versions
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in learned]
    merges = {(number[a], number[b]): number[a + b] for a, b in pairs}
    # Special tokens are no text: no piece is made of them.
    return merges, [b"" if i < len(SPECIAL_TOKENS) else found for i, found in enumerate(tokenizer.token_bytes)]


@cache
def corpus() -> Corpus:
    """Both exhibits read it."""
    return load_corpus()


class WithEncoder(Tokenizer):
    """A tokenizer whose pieces are encoded by a function (piece) -> ids; cuts and tables are the tokenizer's own."""

    def __init__(self, tokenizer: Tokenizer, encoded: Callable[[bytes], list[int]]) -> None:
        super().__init__(tokenizer.inner, tokenizer.eos_token)
        self.encoded = encoded

    def pieces(self, text: str) -> list[bytes]:
        cut = self.inner.pre_tokenizer
        return [text[start:end].encode() for _, (start, end) in cut.pre_tokenize_str(text)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        known: dict[bytes, list[int]] = {}
        for text in texts:
            for piece in set(self.pieces(text)) - known.keys():
                known[piece] = self.encoded(piece)
        return [[i for piece in self.pieces(text) for i in known[piece]] for text in texts]


def longest_match() -> None:
    folder = data_dir() / "checkpoints" / "nano"
    model, tokenizer = load_pretrained(folder, dtype=torch.float32), Tokenizer.load(folder)
    documents = select_documents(corpus().heldout, BYTES)
    texts = [document.text for document in documents]
    merges, table = merges_of(tokenizer)
    print(f"{sum(len(text.encode()) for text in texts):,} bytes of held-out text, read by the shipped nano:")
    for name, encoder in (("right", encode_piece), ("exhibit", encode_piece__longest_match)):
        own = WithEncoder(tokenizer, partial(encoder, merges=merges, table=table))
        ids = own.encode_batch(texts)
        back = [tokenizer.decode(document) for document in ids] == texts
        bits = bits_per_byte(model, own, documents, 256)["all"]
        print(f"{name:8} {sum(map(len, ids)):6,} tokens, {bits:.3f} bits per byte;", end=" ")
        print("decoded, it is the text again" if back else "decoded, it is another text")
    pieces = [piece for text in texts for piece in own.pieces(text)]
    other = [
        piece
        for piece in pieces
        if encode_piece(piece, merges, table) != encode_piece__longest_match(piece, merges, table)
    ]
    print(f"{len(other) / len(pieces):.1%} of the pieces get other ids, for instance:")
    for piece in sorted(set(other), key=lambda piece: (-other.count(piece), piece))[:4]:
        right, wrong = (
            [table[i].decode(errors="replace") for i in encoder(piece, merges, table)]
            for encoder in (encode_piece, encode_piece__longest_match)
        )
        print(f"  {piece.decode()!r:16} right {right}, exhibit {wrong}")


LONGEST_MATCH = Exhibit(
    id="10.A",
    title="the longest token that fits",
    exercise="10.2",
    mistake="longest match",
    story="Somebody needs a tokenizer in another language, has the table of tokens at hand, and takes the longest one "
    "that fits, again and again. Every test that encodes and decodes passes.",
    question="The shipped nano reads held-out text that was encoded so. What will you see?",
    choices={
        "a": "the same ids nearly everywhere, and the same quality",
        "b": "fewer tokens, since they are longer, and a better quality",
        "c": "the same text when decoded, about as many tokens, and a clearly worse quality",
        "d": "another text when decoded",
    },
    seen="c",
    symptom=longest_match,
    diagnosis=(
        "A model learns sequences of ids. The rare other spelling of a word stands for the same bytes and is another "
        "thing to the model: it has hardly ever seen it.",
        "It is not even shorter. A token that is long on the left may leave a rest that no token covers.",
        "Encoding and decoding again cannot show it, since any way of cutting decodes to the same text. Compare ids "
        "with those of the library that trained the tokenizer.",
    ),
    caught_by="tests/train/test_tokenizer.py::test_transformers_gives_the_same_ids",
)

# -- 10.B --

BLOCK, COPIED = 4_000, 0.25  # characters of a text; share of texts that come a second time


def crawled() -> list[str]:
    """Texts in random order, a quarter of them twice, as in a crawl of sites that copy from each other."""
    rng = random.Random(0)
    texts = [document.text for document in select_documents(corpus().train, 600_000)]
    texts = [text[i : i + BLOCK] for text in texts for i in range(0, len(text), BLOCK)]
    texts += [text for text in texts if rng.random() < COPIED]
    rng.shuffle(texts)
    return texts


def copies_on_both_sides() -> None:
    texts = crawled()
    print(f"{len(texts)} texts, {len(texts) - len(set(texts))} of them copies of another; a tenth is held out")
    for name, sides in (("right", split), ("exhibit", split__by_position)):
        train, heldout = sides(texts, 0.1)
        seen = sum(text in set(train) for text in heldout)
        left, right = ([Document("text", str(i), text) for i, text in enumerate(side)] for side in (train, heldout))
        xz, counting = xz_after_training_bits_per_byte(left, right), ngram_bits_per_byte(left, right)["all"]
        print(f"{name:8} {len(heldout):3} held out, {seen:2} of them also trained on;", end=" ")
        print(f"bits per byte: xz {xz:.2f}, counting model {counting:.2f}")


COPIES = Exhibit(
    id="10.B",
    title="a held-out side that was trained on",
    exercise="10.1",
    mistake="by position",
    story="The texts are shuffled, and the last tenth is held out. That is how most tutorials do it.",
    question="A quarter of the texts come twice, as in a crawl. Two compressors learn from the training side and are "
    "measured on the held-out side: xz, which remembers text literally, and a model that counts which byte follows "
    "which three. What will you see, beside a split without copies?",
    choices={
        "a": "the same numbers: the texts were shuffled, after all",
        "b": "both are better, and xz by much more",
        "c": "both are worse: the training side has fewer different texts",
    },
    seen="b",
    symptom=copies_on_both_sides,
    diagnosis=(
        "A held-out text with a copy on the training side asks what was remembered, not what was learned. Whoever "
        "remembers best gains most, so the order of models can turn round, too.",
        "Nothing crashes, and a better score is rarely questioned. Look for it: how many held-out texts are also on "
        "the training side? Copies that differ in one character need more than equality; the report speaks of less "
        "redundancy in its data (§4.1), and does not say how.",
    ),
    caught_by="tests/train/test_own_corpus.py::test_side_of_a_block_depends_on_its_content_not_its_place",
)

EXHIBITS = (LONGEST_MATCH, COPIES)
