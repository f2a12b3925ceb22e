"""From a corpus to batches: tokenized once, packed, cached on disk, memory-mapped (§4.1).

Training documents are shuffled, ended by eos and laid end to end; the stream is cut into windows. There is no
attention mask between the documents of a window, as in the report's pre-training. Held-out documents are kept
apart, because what is asked of them is how many bits each of their bytes costs.

B batch, T tokens in a window.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch

from dsv3_mini.errors import InputError
from dsv3_mini.train import cache
from dsv3_mini.train.documents import Corpus, Document
from dsv3_mini.train.fim import fill_in_the_middle
from dsv3_mini.train.joined_tokens import split_joined_tokens
from dsv3_mini.train.tokenizer import PIECES, Tokenizer

FORMAT = 1  # raise it when the same inputs come to give other tokens, so that old cache folders are not used
IGNORE = -100  # targets that do not count, as in torch.nn.functional.cross_entropy
CHUNK_BYTES = 8_000_000  # text tokenized at a time: bounds memory on large corpora


class TokenDataset:
    """Windows of one long stream of tokens, in an order shuffled anew every epoch.

    Which windows a step gets depends on (`seed`, sequences consumed before it) and on nothing else, so a resumed
    run sees exactly what it would have seen, also while the batch size is being ramped up.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int, seed: int = 0) -> None:
        if seq_len < 1:
            raise InputError(f"seq_len = {seq_len} cannot be: it must be at least 1")
        if len(tokens) < seq_len + 1:
            raise InputError(
                f"the corpus has {len(tokens)} tokens to train on, too few for one window of seq_len = {seq_len}: "
                f"give more text, or a seq_len of at most {max(len(tokens) - 1, 1)}"
            )
        self.tokens = tokens
        self.seq_len = seq_len
        self.seed = seed
        # Neighbouring windows share one token: the last target of one is the first input of the next, so that
        # every token but the first is predicted once an epoch.
        self.num_windows = (len(tokens) - 1) // seq_len
        self._order = (-1, np.empty(0, dtype=np.int64))  # (epoch, order of its windows)

    def batch(self, start_sequence: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs [B, T], targets [B, T]) int64, B = `count`: sequences `start_sequence`, +1, ... of the run."""
        windows = [self._window(start_sequence + i) for i in range(count)]
        starts = [window * self.seq_len for window in windows]
        rows = np.stack([self.tokens[start : start + self.seq_len + 1] for start in starts]).astype(np.int64)
        both = torch.from_numpy(rows)  # [B, T + 1]
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def _window(self, sequence: int) -> int:
        epoch, place = divmod(sequence, self.num_windows)
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self.seed, epoch)).permutation(self.num_windows))
        return int(self._order[1][place])


@dataclass(frozen=True)
class Windows:
    """Held-out text ready for a model. Every token of every document is a target once, and once only."""

    inputs: torch.Tensor  # [N, T] int64
    targets: torch.Tensor  # [N, T] int64, IGNORE where nothing is asked
    num_bytes: torch.Tensor  # [N] int64: bytes that the targets of a window stand for

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, size: int) -> Iterator[Windows]:
        """Consecutive parts of at most `size` windows."""
        for i in range(0, len(self), size):
            yield Windows(self.inputs[i : i + size], self.targets[i : i + size], self.num_bytes[i : i + size])


def held_out_windows(
    documents: Iterable[Sequence[int] | np.ndarray], tokenizer: Tokenizer, seq_len: int, *, overlap: int = 0
) -> Windows:
    """Cuts each document (ids without special tokens) into windows of `seq_len`; the first token follows eos.

    With `overlap`, a later window of a document repeats that many tokens as context, without asking for them
    again: slower, and fairer to the tokens at the borders. Bits per byte is then the summed cross-entropy over all
    targets / ln 2 / `num_bytes.sum()`, whatever the tokenizer. Raises `InputError` for lengths that cannot be.
    """
    if seq_len < 1 or not 0 <= overlap < seq_len:
        raise InputError(f"seq_len = {seq_len}, overlap = {overlap} cannot be: it must be 0 <= overlap < seq_len")
    inputs, targets = [], []
    for ids in documents:
        told = np.concatenate([[tokenizer.eos_id], np.asarray(ids, dtype=np.int64)])
        asked = len(told) - 1
        # A window that would hold nothing but repeated context is not made; the first has none, and always is.
        for start in range(0, max(asked - overlap, min(asked, 1)), seq_len - overlap):
            window = told[start : start + seq_len + 1]
            row = np.full((2, seq_len), [[tokenizer.eos_id], [IGNORE]], dtype=np.int64)
            row[0, : len(window) - 1] = window[:-1]
            row[1, : len(window) - 1] = window[1:]
            row[1, : overlap if start else 0] = IGNORE
            inputs.append(row[0])
            targets.append(row[1])
    if not inputs:
        empty = torch.empty((0, seq_len), dtype=torch.int64)
        return Windows(empty, empty, torch.empty(0, dtype=torch.int64))
    wanted = np.stack(targets)
    num_bytes = np.where(wanted == IGNORE, 0, tokenizer.token_lengths[wanted]).sum(axis=1)
    return Windows(torch.from_numpy(np.stack(inputs)), torch.from_numpy(wanted), torch.from_numpy(num_bytes))


@dataclass(frozen=True)
class PreparedData:
    """What a run trains on: the tokenizer, and windows of tokens."""

    tokenizer: Tokenizer
    train: TokenDataset
    fingerprint: str  # equal exactly when the tokens and their order are


def prepare(
    corpus: Corpus, vocab_size: int, *, seq_len: int, fim_rate: float = 0.1, split_rate: float = 0.1, seed: int = 0,
    tokenizer: Tokenizer | None = None, cache_dir: str | os.PathLike[str] | None = None,
) -> PreparedData:  # fmt: skip
    """Tokenizes `corpus` and opens it for training, from the cache when the same was prepared before.

    `tokenizer` None trains one of (at most) `vocab_size` on the training side. `seed` decides the order of
    documents and windows and which documents are rearranged by fill-in-the-middle (`fim_rate`; never the held-out
    ones). Raises `InputError` when the corpus is too small for one window or the cache cannot be written.
    """
    folder = cache.cache_folder(cache_dir)
    if tokenizer is None:
        key = cache.cache_key(FORMAT, corpus.fingerprint, vocab_size, PIECES, tokenizers.__version__)
        texts = (document.text for document in corpus.train)
        saved = cache.cached(folder, f"tokenizer-{key}", lambda new: Tokenizer.train(texts, vocab_size).save(new))
        tokenizer = Tokenizer.load(saved)
    fingerprint = cache.cache_key(FORMAT, corpus.fingerprint, tokenizer.fingerprint, fim_rate, split_rate, seed)

    def build(new: Path) -> None:
        np.save(new / "train.npy", _training_stream(corpus.train, tokenizer, fim_rate, split_rate, seed))

    saved = cache.cached(folder, f"tokens-{fingerprint}", build)
    tokens = np.load(saved / "train.npy", mmap_mode="r")
    return PreparedData(tokenizer, TokenDataset(tokens, seq_len, seed), fingerprint)


def _dtype(tokenizer: Tokenizer) -> type[np.unsignedinteger]:
    return np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32


def _training_stream(
    documents: Sequence[Document], tokenizer: Tokenizer, fim_rate: float, split_rate: float, seed: int
) -> np.ndarray:
    """All documents in random order, each ended by eos, as one array."""
    # A generator for each purpose, so that changing one rate leaves the other choices as they were.
    order_rng, fim_rng, split_rng = (np.random.default_rng((seed, purpose)) for purpose in range(3))
    parts: list[np.ndarray] = []
    texts: list[str] = []
    waiting = 0
    order = order_rng.permutation(len(documents)).tolist()
    for place, i in enumerate(order, start=1):
        texts.append(documents[i].text)
        waiting += documents[i].num_bytes
        if waiting >= CHUNK_BYTES or place == len(order):
            ids = fill_in_the_middle(texts, tokenizer, fim_rng, fim_rate)
            stream = np.array([token for document in ids for token in document], _dtype(tokenizer))
            parts.append(split_joined_tokens(stream, tokenizer, split_rng, split_rate))
            texts, waiting = [], 0
    return np.concatenate(parts) if parts else np.empty(0, _dtype(tokenizer))
