"""Random splitting of tokens that join punctuation, line breaks and indentation (§4.1).

In code, `):`, a line break and eight spaces are one token. A model that has only ever seen that token does not know
what comes after `):` alone, or after `):` and a bare line break; yet that is how people's prompts end. The report
calls this token boundary bias and splits a share of such tokens in training; it does not say how many. Here it is
a tenth by default. The text stays the same, said in about one percent more tokens.
"""

from __future__ import annotations

import re

import numpy as np

from dsv3_mini.errors import InputError
from dsv3_mini.train.tokenizer import Tokenizer

# Punctuation (may be missing), line breaks, indentation (may be missing). A joint is a border between two of them.
JOINED = re.compile(r"([^\r\n]*[^\s\w])?((?:[ \t]*[\r\n]+)+)([ \t]*)", re.ASCII)


def joints(tokenizer: Tokenizer) -> dict[int, list[int]]:
    """{joined token: the places, in characters, where it can be split}."""
    found: dict[int, list[int]] = {}
    for token, content in enumerate(tokenizer.token_bytes):
        match = JOINED.fullmatch(content.decode()) if content.isascii() else None
        places = {match.end(1), match.start(3)} - {-1, 0, len(content)} if match else None
        if places:
            found[token] = sorted(places)
    return found


def split_joined_tokens(
    ids: np.ndarray, tokenizer: Tokenizer, rng: np.random.Generator, rate: float = 0.1
) -> np.ndarray:
    """`ids` [n] with each joined token split with probability `rate`, at one of its joints.

    What comes before the joint and what comes after it, up to the end of the next token, are tokenized apart, as a
    prompt and its continuation are. Raises `InputError` when `rate` is no probability.
    """
    if not 0 <= rate <= 1:
        raise InputError(f"split_rate = {rate} cannot be: it must be between 0 and 1")
    places_of, table = joints(tokenizer), tokenizer.token_bytes
    can_follow = [length > 0 and _is_utf8(b) for length, b in zip(tokenizer.token_lengths, table, strict=True)]
    joined = np.isin(ids[:-1], np.fromiter(places_of, dtype=ids.dtype, count=len(places_of)))
    chosen = np.flatnonzero(joined & np.array(can_follow)[ids[1:]] & (rng.random(len(joined)) < rate))
    pieces, done = [], 0
    encoded: dict[str, list[int]] = {}
    for place, choice in zip(chosen.tolist(), rng.random(len(chosen)).tolist(), strict=True):
        if place < done:  # this token has just been said again as the continuation of a split one
            continue
        joints_here = places_of[int(ids[place])]
        text = (table[ids[place]] + table[ids[place + 1]]).decode()
        cut = joints_here[int(choice * len(joints_here))]
        pieces.append(ids[done:place])
        for half in (text[:cut], text[cut:]):
            if half not in encoded:
                encoded[half] = tokenizer.encode(half)
            pieces.append(np.array(encoded[half], dtype=ids.dtype))
        done = place + 2
    return np.concatenate([*pieces, ids[done:]])


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
