"""Fill-in-the-middle (§4.1): a tenth of the documents are told out of order, so that a model learns to fill gaps.

A document is cut in three at two random characters and written prefix, suffix, middle (PSM):

    <|fim_begin|> prefix <|fim_hole|> suffix <|fim_end|> middle <|eos_token|>

Cut before tokenizing, at characters and not at tokens, because the place where a person asks for a completion
does not respect token borders either; per document and before packing, as the report does it. Every next token is
still predicted from those before it: the objective does not change, only the order of the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsv3_mini.errors import InputError
from dsv3_mini.train.tokenizer import Tokenizer


def cut_in_three(text: str, rng: np.random.Generator) -> tuple[str, str, str]:
    """(prefix, middle, suffix) at two random places; joined in this order they are `text`. Any may be empty."""
    first, second = sorted(rng.integers(0, len(text), size=2, endpoint=True).tolist())
    return text[:first], text[first:second], text[second:]


def to_psm(prefix: str, middle: str, suffix: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of one document in prefix-suffix-middle order, with its special tokens and the end."""
    before, gap, after = tokenizer.encode_batch([prefix, middle, suffix])
    return _psm(before, gap, after, tokenizer)


def fill_in_the_middle(
    texts: Sequence[str], tokenizer: Tokenizer, rng: np.random.Generator, rate: float = 0.1
) -> list[list[int]]:
    """Ids of each text, ended by eos; each is rearranged with probability `rate`, the others are as they were.

    Equal generators give equal ids. Raises `InputError` when `rate` is no probability.
    """
    if not 0 <= rate <= 1:
        raise InputError(f"fim_rate = {rate} cannot be: it must be between 0 and 1")
    parts: list[tuple[str, ...]] = [cut_in_three(text, rng) if rng.random() < rate else (text,) for text in texts]
    # One call for all pieces: tokenizing in one batch uses all cores.
    encoded = iter(tokenizer.encode_batch([piece for pieces in parts for piece in pieces]))
    documents = []
    for pieces in parts:
        ids = [next(encoded) for _ in pieces]
        documents.append(_psm(ids[0], ids[1], ids[2], tokenizer) if len(ids) == 3 else [*ids[0], tokenizer.eos_id])
    return documents


def _psm(prefix: list[int], middle: list[int], suffix: list[int], tokenizer: Tokenizer) -> list[int]:
    return [
        tokenizer.fim_begin_id, *prefix,
        tokenizer.fim_hole_id, *suffix,
        tokenizer.fim_end_id, *middle,
        tokenizer.eos_id,
    ]  # fmt: skip
