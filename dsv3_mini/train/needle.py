"""Needle in a haystack (§4.3, Figure 8), made for models of this size: does it find again what it has read once?

The haystack is real code that the model was never trained on. Somewhere in it stands one line that has nothing to do
with the rest, the needle, and the text ends by beginning that line again:

    ..code..  QX = 481  ..code..  QX =      <- what comes now?

A row is exactly `length` tokens, the answer included; `depth` 0 puts the needle at the beginning, 1 right before the
question. A needle counts as found when greedy decoding writes the whole value: two digits of three are no answer. Who
guesses three digits is right once in 900 times (`CHANCE`). The report asks instruction-tuned models with sentences; a
model that only continues text is asked by something to be continued.

Greedy decoding would take a step a token. One forward pass over prompt and answer says the same: the answer is what
greedy decoding writes exactly if at each of its places the likeliest token is its token (`found`; a test holds it
against `written`).

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import ascii_uppercase
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsv3_mini.errors import InputError
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.documents import Document, is_held_out
from dsv3_mini.train.tokenizer import Tokenizer

DIGITS = 3
CHANCE = 1 / (9 * 10 ** (DIGITS - 1))  # of guessing a value

HELD_OUT = 0.2  # of the names, and of the values: the test's own, so that it finds nothing that was learned by heart

_LINE_START = re.compile(rb"\n[ \t]*\Z")
_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Needle:
    """One planted assignment."""

    name: str
    value: str

    @property
    def line(self) -> str:
        return f"{self.name} = {self.value}"

    @property
    def question(self) -> str:
        return f"\n{self.name} = "


def draw_needles(rng: np.random.Generator, count: int, *, for_test: bool = True) -> list[Needle]:
    """`count` needles with different names; names and values are the test's own, or those of training."""
    names, values = names_of(for_test), _values(for_test)
    chosen = rng.choice(len(names), size=count, replace=False)
    return [Needle(names[i], values[rng.integers(len(values))]) for i in chosen]


@lru_cache
def names_of(for_test: bool) -> tuple[str, ...]:
    """Two capital letters: few tokens, and hardly ever the name of anything else."""
    every = (first + second for first in ascii_uppercase for second in ascii_uppercase)
    return tuple(name for name in every if is_held_out(f"needle/{name}", HELD_OUT) == for_test)


@lru_cache
def _values(for_test: bool) -> tuple[str, ...]:
    every = map(str, range(10 ** (DIGITS - 1), 10**DIGITS))  # no leading zero: it would not be Python
    return tuple(value for value in every if is_held_out(f"needle/{value}", HELD_OUT) == for_test)


class Planter:
    """Puts needles into tokens, where a line begins, indented like it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.begins_line = np.array([_LINE_START.search(b) is not None for b in tokenizer.token_bytes])  # after it

    def plant(self, tokens: np.ndarray, needle: Needle, depth: float) -> np.ndarray:
        """`tokens` with the line of `needle` at the beginning of a line, the one nearest to `depth` (0..1)."""
        place = self.place(tokens, depth)
        indent = b""
        if place:
            match = _LINE_START.search(self.tokenizer.token_bytes[int(tokens[place - 1])])
            indent = match[0].lstrip(b"\n") if match else b""
        line = self.tokenizer.encode(f"{needle.line}\n{indent.decode()}")
        return np.concatenate([tokens[:place], line, tokens[place:]])

    def place(self, tokens: np.ndarray, depth: float) -> int:
        """How many tokens stand before the line start nearest to `depth`."""
        starts = np.concatenate([[0], np.flatnonzero(self.begins_line[tokens]) + 1])
        return int(starts[np.abs(starts - depth * len(tokens)).argmin()])

    def cost(self, needle: Needle, times_asked: int = 1) -> int:
        """Tokens that a needle and its answered questions take at most, whatever the indentation."""
        asked = len(self.tokenizer.encode(f"{needle.question}{needle.value}"))
        return (1 + times_asked) * asked + 8

    def row(self, haystack: np.ndarray, needle: Needle, depth: float, length: int) -> np.ndarray:
        """[length] tokens: as much of `haystack` as there is room for, the needle at `depth`, question and answer.

        Raises `InputError` when the needle has no room or the haystack is too short.
        """
        ending = self.tokenizer.encode(f"{needle.question}{needle.value}")
        room = length - len(ending)
        if length < self.cost(needle):
            raise InputError(
                f"length = {length} cannot be: the needle, its question and its answer take {self.cost(needle)} tokens"
            )
        planted = haystack[:room]
        while True:  # the indentation, and with it the length of the line, depends on the place
            planted_row = self.plant(planted, needle, depth)
            if len(planted_row) <= room:
                break
            planted = planted[: len(planted) - (len(planted_row) - room)]
        if len(planted_row) < room:
            if len(planted) < len(haystack):  # cut one too many: the line became shorter on the way
                planted_row = np.concatenate([planted_row, haystack[len(planted) :][: room - len(planted_row)]])
            if len(planted_row) < room:
                raise InputError(f"the haystack has {len(haystack)} tokens, too few for a row of {length}")
        return np.concatenate([planted_row, ending])


class Haystack:
    """The code among some documents, from which the rows of the test are made."""

    def __init__(self, tokenizer: Tokenizer, documents: Sequence[Document]) -> None:
        texts = [document.text for document in documents if document.domain == "code"] or [d.text for d in documents]
        self.planter = Planter(tokenizer)
        # One stream, each document ended by the end token, as in training.
        parts = [np.array([*ids, tokenizer.eos_id]) for ids in tokenizer.encode_batch(texts)]
        self.tokens = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def cell(self, length: int, depth: float, count: int, seed: int = 0) -> tuple[Tensor, list[Needle]]:
        """`count` rows [B, T] of one cell of the map, with their needles: each has its own, in another piece of code.

        The same `seed` and place in the map give the same rows for every model with this tokenizer. Raises
        `InputError` when there is less text than a row is long.
        """
        if len(self.tokens) < length:
            raise InputError(
                f"the haystack has {len(self.tokens)} tokens, too few for a row of {length}: give more text"
            )
        rng = np.random.default_rng((seed, length, round(1000 * depth)))
        needles = draw_needles(rng, count)
        starts = rng.integers(len(self.tokens) - length + 1, size=count)
        rows = [
            self.planter.row(self.tokens[start : start + length], needle, depth, length)
            for start, needle in zip(starts, needles, strict=True)
        ]
        return torch.from_numpy(np.stack(rows).astype(np.int64)), needles


@torch.inference_mode()
def found(model: DeepSeekV3, rows: Tensor) -> Tensor:
    """rows [B, T], each ending in its answer -> [B, DIGITS] bool: is the likeliest token at each place the right one?

    A needle is found when its whole row is true: exactly then greedy decoding from the prompt writes the answer.
    """
    hidden = model.hidden_states(rows[:, :-1])[:, -DIGITS:]  # [B, DIGITS, D]
    return model.lm_head(hidden).argmax(-1) == rows[:, -DIGITS:]


def written(model: DeepSeekV3, rows: Tensor) -> Tensor:
    """[B, DIGITS]: what greedy decoding writes after the prompts of `rows`. The slow way to the same answer."""
    from dsv3_mini.generate.decode import generate

    return torch.tensor(generate(model, rows[:, :-DIGITS], DIGITS), device=rows.device)


def needle_map(
    model: DeepSeekV3,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    lengths: Sequence[int],
    depths: Sequence[float],
    count: int = 10,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Share of needles found for every depth and length: {"found": [depths][lengths], "digits": the same, ..}.

    "digits" is the share of single digits that are right after the right ones before; guessing finds a tenth. `count`
    needles a cell.
    """
    haystack = Haystack(tokenizer, documents)
    device = model.lm_head.weight.device
    whole = np.zeros((len(depths), len(lengths)))
    digits = np.zeros_like(whole)
    for column, length in enumerate(lengths):
        for line, depth in enumerate(depths):
            rows, _ = haystack.cell(length, depth, count, seed)
            right = torch.cat([found(model, part.to(device)) for part in rows.split(max(1, _TOKENS_AT_ONCE // length))])
            whole[line, column] = right.all(-1).double().mean()
            digits[line, column] = right.double().mean()
        say(f"length {length}: {whole[:, column].mean():.0%} found, {digits[:, column].mean():.0%} of the digits")
    return {
        "lengths": list(lengths),
        "depths": list(depths),
        "count": count,
        "found": whole.round(4).tolist(),
        "digits": digits.round(4).tolist(),
    }
