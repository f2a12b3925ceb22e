"""What counting can do: an order-3 byte n-gram model, and xz, on the same held-out text.

A neural model that has not passed these has not begun. The n-gram model predicts a byte from the three before it.
Where a context of three was rarely seen it leans on the context of two, and so on down to all bytes being equally
likely, by Witten-Bell interpolation:

    P_k(b | c) = (count(c b) + kinds(c) * P_{k-1}(b | c')) / (count(c) + kinds(c))

with kinds(c) the number of different bytes seen after c, c' the context without its oldest byte, and
P_{-1} = 1/256. A context in which many different bytes were seen is one that will surprise again, so it passes much
of its weight down. Every P_k(. | c) sums to one.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence

import numpy as np

from dsv3_mini.train.documents import Document

ORDER = 3
START = b"\0" * ORDER  # what stands before the first byte of a document


class NGram:
    """Byte counts after contexts of 0 to `ORDER` bytes, from training documents."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        codes = _codes(texts)  # [n] four bytes each: the context and the byte after it
        # One sort gives all orders: entry (context, byte) of order k has the last k + 1 bytes of a code.
        keys, counts = np.unique(codes, return_counts=True)
        self.tables: list[tuple[np.ndarray, ...]] = []
        for order in range(ORDER + 1):
            grams, place = np.unique(keys & np.uint32(256 ** (order + 1) - 1), return_inverse=True)
            gram_counts = np.bincount(place, weights=counts, minlength=len(grams))
            contexts, of_context = np.unique(grams >> np.uint32(8), return_inverse=True)
            totals = np.bincount(of_context, weights=gram_counts, minlength=len(contexts))
            kinds = np.bincount(of_context, minlength=len(contexts)).astype(np.float64)
            self.tables.append((grams, gram_counts, contexts, totals, kinds))

    def probabilities(self, context: bytes) -> np.ndarray:
        """[256] probabilities of the next byte; of `context`, the last three bytes count."""
        last = int.from_bytes((START + context)[-ORDER:], "big")
        return self._probability(np.uint32(last << 8) + np.arange(256, dtype=np.uint32))

    def bits(self, text: bytes) -> float:
        """-log2 P of `text` as one document, in bits."""
        return float(-np.log2(self._probability(_codes([text]))).sum())

    def _probability(self, codes: np.ndarray) -> np.ndarray:
        """[n] probabilities of the last byte of each code after the first three."""
        probability = np.full(len(codes), 1 / 256)
        for order, (grams, gram_counts, contexts, totals, kinds) in enumerate(self.tables):
            code = codes & np.uint32(256 ** (order + 1) - 1)
            count = _look_up(grams, gram_counts, code)
            total, kind = (
                _look_up(contexts, totals, code >> np.uint32(8)),
                _look_up(contexts, kinds, code >> np.uint32(8)),
            )
            seen = total > 0  # a context never seen says nothing: the shorter one stands
            probability[seen] = ((count + kind * probability) / np.maximum(total + kind, 1))[seen]
        return probability


def ngram_bits_per_byte(train: Sequence[Document], heldout: Sequence[Document]) -> dict[str, float]:
    """{domain: bits per byte, ..., "all": over all} of `heldout`, counted on all of `train`. Seconds on 10 MB."""
    model = NGram([document.text.encode() for document in train])
    bits: dict[str, float] = {}
    for document in heldout:
        bits[document.domain] = bits.get(document.domain, 0.0) + model.bits(document.text.encode())
    return _per_byte(bits, heldout)


def xz_bits_per_byte(documents: Sequence[Document]) -> dict[str, float]:
    """{domain: ..., "all": ...}: xz of the held-out documents of a domain laid end to end, and of all of them.

    xz starts knowing nothing, and learns from the text that it compresses: it has not seen the training side.
    """
    bits = {domain: 8.0 * _xz_size(documents, domain) for domain in {document.domain for document in documents}}
    return {**_per_byte(bits, documents), "all": 8.0 * _xz_size(documents) / max(_size(documents), 1)}


def xz_after_training_bits_per_byte(train: Sequence[Document], heldout: Sequence[Document]) -> float:
    """What `heldout` adds to the xz file of `train`: xz with the same knowledge as a trained model.

    Over all domains only, as it takes xz twice over the whole corpus: some 15 s for 10 MB.
    """
    added = _xz_size([*train, *heldout]) - _xz_size(train)
    return 8.0 * added / max(_size(heldout), 1)


def _codes(texts: Sequence[bytes]) -> np.ndarray:
    """[total bytes] uint32: each byte of each text behind the three before it; nothing reaches across texts."""
    parts = []
    for text in texts:
        padded = np.frombuffer(START + text, dtype=np.uint8).astype(np.uint32)
        n = len(text)
        parts.append(sum(padded[i : i + n] << np.uint32(8 * (ORDER - i)) for i in range(ORDER + 1)))
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint32)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[i] where keys[i] == wanted, 0 where no key is; `keys` sorted."""
    if not len(keys):
        return np.zeros(len(wanted))
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0.0)


def _per_byte(bits: dict[str, float], documents: Sequence[Document]) -> dict[str, float]:
    result = {
        domain: bits[domain] / max(_size([d for d in documents if d.domain == domain]), 1) for domain in sorted(bits)
    }
    return {**result, "all": sum(bits.values()) / max(_size(documents), 1)}


def _size(documents: Sequence[Document]) -> int:
    return sum(document.num_bytes for document in documents)


def _xz_size(documents: Sequence[Document], domain: str | None = None) -> int:
    text = b"".join(d.text.encode() for d in documents if domain in (None, d.domain))
    return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
