"""How good a model is: bits per byte on held-out text, by domain and over all.

Bits per byte, not loss per token: a loss per token depends on how long the tokens are, so only bits per byte of the
same text compare runs with different tokenizers, and compare with a counting model or a file compressor, which know
nothing of tokens (the report compares in bits per byte too: Pile-test in Table 3).

    bits per byte = sum of -log2 p(token | what came before) / UTF-8 bytes of the text

Every token of every held-out document is predicted exactly once, so every byte counts once. A document begins after
an end-of-document token and is read in windows of the training length that overlap by half: the first half of a
later window repeats what was predicted before, as context, so that no token has to be guessed from nothing in the
middle of a document.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dsv3_mini.errors import InputError
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.model.loss import chunked_cross_entropy
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.checkpoint import latest_checkpoint
from dsv3_mini.train.data import load_corpus
from dsv3_mini.train.device import pick_device
from dsv3_mini.train.documents import Corpus, Document, hash_fraction
from dsv3_mini.train.run_folder import RUN_FILE, read_run
from dsv3_mini.train.token_data import Windows, held_out_windows
from dsv3_mini.train.tokenizer import Tokenizer

_TOKENS_AT_ONCE = 4096
_USUAL_WINDOW = 256  # without a run that says how long the windows in training were: what the smallest preset has
_USUAL_BYTES = 400_000


def select_documents(documents: Sequence[Document], max_bytes: int) -> list[Document]:
    """At most about `max_bytes` of the documents, the same choice every time, each domain keeping its share of bytes.

    Within a domain in the order of a hash of the names; the last document of a domain is cut at a character.
    """
    total = sum(document.num_bytes for document in documents)
    if total <= max_bytes:
        return list(documents)
    chosen: list[Document] = []
    for domain in sorted({document.domain for document in documents}):
        of_domain = [document for document in documents if document.domain == domain]
        left = max(1, sum(document.num_bytes for document in of_domain) * max_bytes // total)
        for place, document in enumerate(sorted(of_domain, key=lambda d: (hash_fraction(d.name), d.name))):
            if document.num_bytes > left:
                text = document.text.encode()[:left].decode("utf-8", errors="ignore")
                if not text and place == 0:  # no domain goes unmeasured
                    text = document.text[:1]
                document = Document(domain, document.name, text)
            if document.text:
                chosen.append(document)
            left -= document.num_bytes
            if not document.text or left <= 0:
                break
    return chosen


def bits_per_byte(
    model: DeepSeekV3, tokenizer: Tokenizer, documents: Sequence[Document], seq_len: int
) -> dict[str, float]:
    """Bits per byte of `documents` by domain and, under "all", over all, in windows of `seq_len` tokens."""
    bits: dict[str, float] = {}
    sizes: dict[str, int] = {}
    training = model.training
    model.eval()
    try:
        for domain in sorted({document.domain for document in documents}):
            of_domain = [document for document in documents if document.domain == domain]
            ids = tokenizer.encode_batch([document.text for document in of_domain])
            windows = held_out_windows(ids, tokenizer, seq_len, overlap=seq_len // 2)
            bits[domain], sizes[domain] = _bits(model, windows), int(windows.num_bytes.sum())
    finally:
        model.train(training)
    result = {domain: bits[domain] / sizes[domain] for domain in bits}
    result["all"] = sum(bits.values()) / sum(sizes.values())
    return result


def evaluate_model(
    model: DeepSeekV3,
    tokenizer: Tokenizer,
    corpus: Corpus,
    *,
    seq_len: int,
    max_bytes: int,
    baselines: bool = True,
) -> dict[str, Any]:
    """Bits per byte on the held-out side of `corpus`, and of an order-3 byte n-gram model and xz on the same text.

    The n-gram model has counted the training side. At most about `max_bytes` are evaluated (`select_documents`).
    "seconds" is what the model took, without the baselines.
    """
    started = time.perf_counter()
    documents = select_documents(corpus.heldout, max_bytes)
    sizes: dict[str, int] = {}
    for document in documents:
        sizes[document.domain] = sizes.get(document.domain, 0) + document.num_bytes
    result: dict[str, Any] = {"bits_per_byte": bits_per_byte(model, tokenizer, documents, seq_len)}
    seconds = time.perf_counter() - started
    if baselines:
        from dsv3_mini.train.ngram import ngram_bits_per_byte, xz_bits_per_byte

        result["ngram"] = ngram_bits_per_byte(corpus.train, documents)
        result["xz"] = xz_bits_per_byte(documents)
    sizes["all"] = sum(sizes.values())
    return {**result, "heldout_bytes": sizes, "seq_len": seq_len, "seconds": round(seconds, 3)}


def evaluate_folder(folder: str | Path, text: Path | None = None, *, device: str = "auto") -> dict[str, Any]:
    """`evaluate_model` for a run folder (its newest checkpoint) or a checkpoint folder.

    On held-out documents of the corpus that the run trained on, in its window length; `text` names another corpus. A
    folder that no run of ours left, like the released model's, is measured on the embedded corpus. Raises `InputError`
    when there is no whole checkpoint or no tokenizer in it.
    """
    checkpoint = latest_checkpoint(Path(folder))
    model = load_pretrained(checkpoint, dtype=torch.float32, device=pick_device(device))
    tokenizer = Tokenizer.load(checkpoint)
    if tokenizer.vocab_size > model.cfg.vocab_size:
        raise InputError(
            f"{checkpoint}: tokenizer.json has {tokenizer.vocab_size} tokens, more than the model's vocab_size = "
            f"{model.cfg.vocab_size}; the two do not belong together"
        )
    run = _settings_of_run(checkpoint)
    if text is None and run.get("text"):
        text = Path(run["text"])
    corpus = load_corpus(text, None if text else run.get("dataset"))
    if not corpus.heldout:
        raise InputError(f"{corpus.source}: no document is held out, so there is nothing to measure on; give more text")
    seq_len = run.get("seq_len") or min(_USUAL_WINDOW, model.cfg.max_position_embeddings)
    max_bytes = run.get("eval_bytes") or _USUAL_BYTES
    result = evaluate_model(model, tokenizer, corpus, seq_len=seq_len, max_bytes=max_bytes)
    return {"checkpoint": str(checkpoint), "corpus": corpus.source, **result}


def _settings_of_run(checkpoint: Path) -> dict[str, Any]:
    """The settings in the `run.json` beside the checkpoints, or beside a shipped one's weights; {} if there is none."""
    for folder in (checkpoint, checkpoint.parent.parent):
        if (folder / RUN_FILE).is_file():
            return read_run(folder)["config"]
    return {}


@torch.inference_mode()
def _bits(model: DeepSeekV3, windows: Windows) -> float:
    """-log2 p, summed over every target of the windows."""
    device = model.lm_head.weight.device
    nats = torch.zeros((), dtype=torch.float64, device=device)
    at_once = max(1, _TOKENS_AT_ONCE // max(windows.inputs.shape[1], 1))
    for part in windows.batches(at_once):
        hidden = model.hidden_states(part.inputs.to(device))
        nats += chunked_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, part.targets.to(device).flatten())
    return nats.item() / math.log(2)
