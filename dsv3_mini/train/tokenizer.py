"""Byte-level byte-pair encoding (§4.1), with the `tokenizers` library: any text in, the very same text out.

Three choices matter for a vocabulary of a few thousand tokens:
* digits stand alone, so that a number is written the same way wherever it begins;
* punctuation joins with the line breaks and the indentation after it (the report's "tokens that combine
  punctuations and line breaks"): in code, `:`, a line break and eight spaces are one token;
* a word takes the character before it along: a space, a dot, an opening bracket.

Special tokens mark structure and never come out of text: "<|eos_token|>" written in a document is encoded as the
thirteen characters that it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from dsv3_mini.errors import InputError

EOS = "<|eos_token|>"
FIM_BEGIN, FIM_HOLE, FIM_END = "<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>"
PAD = "<|pad_token|>"
SPECIAL_TOKENS = (EOS, FIM_BEGIN, FIM_HOLE, FIM_END, PAD)  # ids 0 to 4, in this order
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
TRAINING_BYTES = 20_000_000  # more text than this changes little in the merges and costs seconds

# How text is cut before pairs are merged; no token crosses a cut. The first alternative that matches wins.
PIECES = "|".join(
    (
        r"\p{N}",  # a digit alone
        r" ?[^\s\p{L}\p{M}\p{N}]?[\p{L}\p{M}_]+",  # a word or identifier, with what stands before it
        r" ?[^\s\p{L}\p{M}\p{N}]+(?:[\r\n]+[ \t]*)*",  # punctuation, with the line breaks and indentation after it
        r"(?:[ \t]*[\r\n]+)+[ \t]*",  # line breaks and indentation
        r"[^\S\r\n]+(?=[^\S\r\n])|\s+",  # other white space; its last character may go with what follows
    )
)


class Tokenizer:
    """A trained tokenizer. `Tokenizer.train` makes one, `Tokenizer.load` reads one, `save` writes one.

    Ids are plain integers below `vocab_size`. `eos_id` ends every document; the three `fim_*` ids are those of
    `fim.to_psm`.
    """

    def __init__(self, inner: RustTokenizer, eos_token: str = EOS) -> None:
        # Not part of tokenizer.json, so it has to be said again on every load: special tokens in a text are text.
        inner.encode_special_tokens = True
        self.inner = inner
        self.eos_token = eos_token

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learns the merges from `texts`; equal texts give equal tokenizers.

        A small text has fewer pairs than a large vocabulary has room for: then `vocab_size` ends up smaller.
        Raises `InputError` when `vocab_size` does not even hold the 256 bytes and the special tokens.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise InputError(
                f"vocab_size = {vocab_size} cannot be: it must be at least {SMALLEST_VOCABULARY}, "
                f"256 bytes and {len(SPECIAL_TOKENS)} special tokens"
            )
        inner = RustTokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PIECES), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(_sample(list(texts)), trainer)
        return cls(inner)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads `tokenizer.json` from a folder (or that file itself), ours or another byte-level one."""
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise InputError(f"{file} does not exist: a tokenizer is a folder with a tokenizer.json in it")
        try:
            inner = RustTokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain Exception, whatever is wrong with the file
            raise InputError(f"{file} is not a tokenizer.json that the tokenizers library reads: {error}") from error
        if "ByteLevel" not in str(inner.decoder):
            raise InputError(f"{file} is not a byte-level tokenizer, the only kind that DeepSeek-V3 uses")
        return cls(inner, _eos_token(file.with_name("tokenizer_config.json")))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which `transformers.AutoTokenizer` reads too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.eos_token,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,  # so that AutoTokenizer, too, reads special tokens in a text as text
        }
        if self.inner.token_to_id(PAD) is not None:
            config["pad_token"] = PAD
        texts = {
            "tokenizer.json": self.inner.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(config, indent=2),
        }
        for name, text in texts.items():
            temporary = folder / f".{name}.{os.getpid()}"
            temporary.write_text(text + "\n", encoding="utf-8")
            os.replace(temporary, folder / name)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without an end-of-document token. Raises `InputError` for half a surrogate pair."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        try:
            return [found.ids for found in self.inner.encode_batch_fast(texts, add_special_tokens=False)]
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                _require_utf8(text)
            raise

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`. Ids above the vocabulary, which an untrained model may say, become U+FFFD."""
        table = self.token_bytes
        return b"".join(table[i] if i < len(table) else b"\xef\xbf\xbd" for i in map(_checked_id, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens by their names. A character cut in half becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each id stands for."""
        added = self.inner.get_added_tokens_decoder()
        table = []
        for i in range(self.vocab_size):
            token = self.inner.id_to_token(i) or ""
            table.append(token.encode() if i in added else bytes(_BYTE_OF[character] for character in token))
        return table

    @cached_property
    def token_lengths(self) -> np.ndarray:
        """[vocab_size] int64: bytes of each token, 0 for the special ones, which are no part of any text."""
        special = {i for i, token in self.inner.get_added_tokens_decoder().items() if token.special}
        return np.array([0 if i in special else len(b) for i, b in enumerate(self.token_bytes)], dtype=np.int64)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer: equal exactly when vocabulary, merges and cuts are."""
        return hashlib.sha256(self.inner.to_str().encode()).hexdigest()

    @property
    def eos_id(self) -> int:
        return self._special(self.eos_token)

    @property
    def pad_id(self) -> int:
        return self._special(PAD)

    @property
    def fim_begin_id(self) -> int:
        return self._special(FIM_BEGIN)

    @property
    def fim_hole_id(self) -> int:
        return self._special(FIM_HOLE)

    @property
    def fim_end_id(self) -> int:
        return self._special(FIM_END)

    def _special(self, token: str) -> int:
        found = self.inner.token_to_id(token)
        if found is None:
            raise InputError(f"this tokenizer has no token {token}; it was made for another purpose")
        return found


def _byte_alphabet() -> dict[str, int]:
    """The byte behind each character of a byte-level vocabulary: printable bytes are themselves, others shifted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(shifted)}


_BYTE_OF = _byte_alphabet()


def _sample(texts: list[str]) -> list[str]:
    """Every k-th text, with the smallest k that keeps training quick; nothing random."""
    size = sum(map(len, texts))
    every = -(-size // TRAINING_BYTES) if size else 1
    return [text[:TRAINING_BYTES] for text in texts[::every]]


def _eos_token(config_file: Path) -> str:
    """The end-of-document token that a tokenizer_config.json names; ours when there is no such file."""
    try:
        token = json.loads(config_file.read_text(encoding="utf-8")).get("eos_token") or EOS
    except FileNotFoundError:
        return EOS
    except (ValueError, AttributeError) as error:
        raise InputError(f"{config_file} is not a JSON object: {error}") from error
    return token["content"] if isinstance(token, dict) else token


def _require_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = f"character {error.start}, {text[error.start]!a}"
        raise InputError(f"text cannot be written as UTF-8: {place} is half of a surrogate pair") from error


def _checked_id(token: int) -> int:
    if token < 0:
        raise InputError(f"token id {token} cannot be: ids start at 0")
    return token
