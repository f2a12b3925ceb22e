"""What several exercises of lesson 10 need: random numbers and texts, and `merge`, which the lesson builds."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import torch
from torch import Generator


def merge(ids, pair, new):
    """ids with every `pair` replaced by `new`, from left to right; what is merged once is not used again."""
    merged, place = [], 0
    while place < len(ids):
        if tuple(ids[place : place + 2]) == pair:
            merged.append(new)
            place += 2
        else:
            merged.append(ids[place])
            place += 1
    return merged


def whole(generator: Generator, low: int, high: int) -> int:
    """A whole number from low to high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def wholes(generator: Generator, number: int, low: int, high: int) -> list[int]:
    """`number` whole numbers from low to high."""
    return torch.randint(low, high + 1, (number,), generator=generator).tolist()


def letters(generator: Generator, number: int, alphabet: str) -> str:
    """A text of so many letters."""
    return "".join(alphabet[i] for i in wholes(generator, number, 0, len(alphabet) - 1))


def learned(text: str, merges: int) -> tuple[dict[tuple[int, int], int], list[bytes]]:
    """(merges {pair: new id}, table of bytes by id) of a byte-pair encoding trained on `text` as one piece."""
    table = [bytes([byte]) for byte in sorted(set(text.encode()))]
    ids = [table.index(bytes([byte])) for byte in text.encode()]
    found: dict[tuple[int, int], int] = {}
    for _ in range(merges):
        counts = Counter(pairwise(ids))
        if not counts:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        found[pair] = len(table)
        ids = merge(ids, pair, len(table))
        table.append(table[pair[0]] + table[pair[1]])
    return found, table
