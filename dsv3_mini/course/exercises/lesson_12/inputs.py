"""Random inputs of lesson 12, and a toy model that remembers its tokens in a cache."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dsv3_mini.errors import InputError

VOCABULARY = 11  # of the toy model


def whole(generator: Generator, low: int, high: int) -> int:
    """A whole number from low to high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def between(generator: Generator, low: float, high: float) -> float:
    """A number from low to high."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def shuffled(generator: Generator, size: int) -> list[int]:
    """0 to size - 1 in any order."""
    return torch.randperm(size, generator=generator).tolist()


def logits_that_say(tokens: list[int], vocabulary: int, generator: Generator) -> Tensor:
    """Logits [T, V] whose largest, at each place, is that of the given token."""
    logits = torch.randn(len(tokens), vocabulary, generator=generator)
    logits[torch.arange(len(tokens)), tokens] = logits.amax(-1) + 1
    return logits


class ToyCache:
    """What `LatentCache` is to a model, for one row: `lengths`, `crop`. It remembers token ids instead of latents."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    @property
    def lengths(self) -> list[int]:
        return [len(self.tokens)]

    def crop(self, lengths: list[int]) -> None:
        (keep,) = lengths
        if not 0 <= keep <= len(self.tokens):
            raise InputError(f"row 0 of the cache holds {len(self.tokens)} tokens and cannot be cropped to {keep}")
        self.tokens = self.tokens[:keep]


class ToyModel:
    """`forward(tokens, cache)` as of a model: every token in the cache, and its place, decides what is said next."""

    def __init__(self, seed: int) -> None:
        self.seed, self.passes = seed, 0

    def __call__(self, tokens: list[int], cache: ToyCache) -> Tensor:
        """Reads the tokens into the cache; gives logits [len(tokens), V]."""
        self.passes += 1
        said = []
        for token in tokens:
            cache.tokens.append(int(token))
            said.append(self.next(cache.tokens))
        return logits_that_say(said, VOCABULARY, torch.Generator().manual_seed(self.seed))

    def next(self, text: list[int]) -> int:
        """What it says behind a text."""
        state = self.seed
        for token in text:
            state = (state * 31 + token * 17 + 7) % 10007
        return state % VOCABULARY

    def goes_on(self, text: list[int], number: int) -> list[int]:
        """So many tokens behind a text, one after the other: plain decoding."""
        said: list[int] = []
        for _ in range(number):
            said.append(self.next(text + said))
        return said
