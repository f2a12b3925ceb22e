"""What a run trains on and is measured on: which corpus its settings name, tokenized and opened.

Three sources: the embedded corpus (the default), the learner's own text, a public dataset. Everything behind them is
the same. What is said about a corpus on the way (where it is, how large) goes to the person who waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.train import needle_windows
from dsv3_mini.train.cache import cache_key
from dsv3_mini.train.config import ResolvedConfig
from dsv3_mini.train.corpus import embedded_corpus
from dsv3_mini.train.documents import Corpus
from dsv3_mini.train.extend import tokenizer_of_start
from dsv3_mini.train.needle_windows import NeedleWindows
from dsv3_mini.train.token_data import TokenDataset, prepare
from dsv3_mini.train.tokenizer import Tokenizer


@dataclass(frozen=True)
class RunData:
    """The data of one run."""

    corpus: Corpus  # texts: held-out documents to be measured on, training documents for the counting baseline
    tokenizer: Tokenizer
    windows: TokenDataset  # of training tokens; which ones a step gets depends on (seed, sequences consumed) alone
    model_config: ModelConfig  # the run's, with the tokenizer's end-of-document token
    fingerprint: str  # equal exactly when a run would see the same batches


def load_corpus(text: Path | None = None, dataset: str | None = None) -> Corpus:
    """The corpus at `text`, or the public one called `dataset`, or with neither the embedded one."""
    if text is not None:
        from dsv3_mini.train.own_corpus import corpus_from_path

        return corpus_from_path(text)
    if dataset is not None:
        from dsv3_mini.train.own_corpus import corpus_from_dataset

        return corpus_from_dataset(dataset)
    return embedded_corpus()


def open_data(cfg: ResolvedConfig, say: Callable[[str], None] = lambda text: None) -> RunData:
    """Read, tokenize (or find in the cache) and open the corpus of a resolved `cfg`.

    Raises `InputError` for a corpus that is missing, empty, not text, or too short for one window.
    """
    model = cfg.model
    corpus = load_corpus(cfg.text, cfg.dataset)
    say(corpus.describe())
    if not corpus.heldout:
        raise InputError(f"{corpus.source}: no document is left to be held out and measured on; give more text")
    tokenizer = None if cfg.init_from is None else tokenizer_of_start(cfg)
    data = prepare(
        corpus, model.vocab_size, seq_len=cfg.seq_len, fim_rate=cfg.fim_rate, seed=cfg.seed, tokenizer=tokenizer
    )
    model = model.replace(eos_token_id=data.tokenizer.eos_id)
    windows, fingerprint = data.train, data.fingerprint
    if cfg.needle_share:
        windows = NeedleWindows(windows, data.tokenizer, cfg.needle_share)
        fingerprint = cache_key(fingerprint, needle_windows.FORMAT, cfg.needle_share)
    return RunData(corpus, data.tokenizer, windows, model, fingerprint)
