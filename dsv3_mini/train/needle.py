"""Needle in a haystack (§4.3, Figure 8), made for models of this size: does it find again what it has read once?

The haystack is real code that the model was never trained on. Somewhere in it stands one line that has nothing to do
with the rest, the needle, and the text ends by beginning that line again:

    ..code..  HARBOR_COPPER = 4817  ..code..  HARBOR_COPPER =      <- what comes now?

A row is exactly `length` tokens, the answer included; `depth` 0 puts the needle at the beginning, 1 right before the
question. A needle counts as found when greedy decoding writes the whole value and not before: three digits of four are
no answer. Who guesses is right once in 9000 times (`CHANCE`). The report asks instruction-tuned models with sentences; a model
that only continues text is asked by something to be continued.

Greedy decoding would take a step a token. One forward pass over prompt and answer says the same: the answer is what
greedy decoding writes exactly if at each of its places the likeliest token is its token (`found`; a test holds it
against `generate`).

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsv3_mini.errors import InputError
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.documents import Document, is_held_out
from dsv3_mini.train.tokenizer import Tokenizer

DIGITS = 4
CHANCE = 1 / (9 * 10 ** (DIGITS - 1))  # of guessing a value

# Names are two of these words. The test has words of its own, and numbers of its own (`is_held_out`): what is found
# there was not learned by heart in training.
TEST_WORDS = (
    "HARBOR COPPER WILLOW TUNNEL MARBLE FALCON GINGER LANTERN PEBBLE SADDLE THISTLE VELVET ANCHOR BEACON CEDAR DRUM"
).split()
TRAINING_WORDS = (
    "ORCHID RIVER SILVER CANDLE FOREST BRIDGE COTTON WINTER GARDEN MIRROR BASKET PEPPER SUMMIT DESERT CASTLE HAMMER "
    "LEMON ISLAND VALLEY TIMBER ROCKET PLANET WINDOW TICKET BUTTON CAMEL DRAGON FEATHER GLACIER HONEY IVORY JUNGLE"
).split()

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
    """`count` needles with different names, of the words and numbers of the test or of training."""
    words = TEST_WORDS if for_test else TRAINING_WORDS
    numbers = _numbers(for_test)
    names: dict[str, None] = {}
    while len(names) < count:
        first, second = rng.choice(len(words), size=2, replace=False)
        names[f"{words[first]}_{words[second]}"] = None
    return [Needle(name, numbers[rng.integers(len(numbers))]) for name in names]


@lru_cache
def _numbers(for_test: bool) -> tuple[str, ...]:
    every = map(str, range(10 ** (DIGITS - 1), 10**DIGITS))  # no leading zero: it would not be Python
    return tuple(number for number in every if is_held_out(f"needle/{number}") == for_test)


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

    def cost(self, needle: Needle) -> int:
        """Tokens that a needle, its question and its answer take at most, whatever the indentation."""
        asked = len(self.tokenizer.encode(f"{needle.question}{needle.value}"))
        return 2 * asked + 8

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


def haystack_tokens(tokenizer: Tokenizer, documents: Sequence[Document]) -> np.ndarray:
    """The code among `documents` as one stream, each document ended by the end token."""
    texts = [document.text for document in documents if document.domain == "code"] or [d.text for d in documents]
    return np.concatenate([np.array([*ids, tokenizer.eos_id]) for ids in tokenizer.encode_batch(texts)])


@torch.inference_mode()
def found(model: DeepSeekV3, rows: Tensor) -> Tensor:
    """rows [B, T], each ending in its answer -> [B, DIGITS] bool: is the likeliest token at each place the right one?

    A needle is found when its whole row is true: exactly then greedy decoding from the prompt writes the answer.
    """
    hidden = model.hidden_states(rows[:, :-1])[:, -DIGITS:]  # [B, DIGITS, D]
    return model.lm_head(hidden).argmax(-1) == rows[:, -DIGITS:]


def found_by_decoding(model: DeepSeekV3, rows: Tensor) -> Tensor:
    """[B] bool: the same the slow way, by greedy decoding."""
    from dsv3_mini.generate.decode import generate

    written = generate(model, rows[:, :-DIGITS], DIGITS)
    return (torch.tensor(written, device=rows.device) == rows[:, -DIGITS:]).all(-1)


def cell_rows(
    tokenizer: Tokenizer, documents: Sequence[Document], length: int, depth: float, count: int, seed: int = 0
) -> tuple[Tensor, list[Needle]]:
    """`count` rows [B, T] of one cell of the map, with their needles: each has its own, and its own haystack.

    The same `seed` and place in the map give the same rows for every model with this tokenizer.
    """
    planter, haystack = Planter(tokenizer), haystack_tokens(tokenizer, documents)
    return _cell(planter, haystack, length, depth, count, seed)


def _cell(
    planter: Planter, haystack: np.ndarray, length: int, depth: float, count: int, seed: int
) -> tuple[Tensor, list[Needle]]:
    if len(haystack) < length:
        raise InputError(f"the haystack has {len(haystack)} tokens of held-out text, too few for a row of {length}")
    rng = np.random.default_rng((seed, length, round(1000 * depth)))
    needles = draw_needles(rng, count)
    starts = rng.integers(len(haystack) - length + 1, size=count)
    rows = [
        planter.row(haystack[start : start + length], needle, depth, length)
        for start, needle in zip(starts, needles, strict=True)
    ]
    return torch.from_numpy(np.stack(rows).astype(np.int64)), needles


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
    planter, haystack = Planter(tokenizer), haystack_tokens(tokenizer, documents)
    device = model.lm_head.weight.device
    whole = np.zeros((len(depths), len(lengths)))
    digits = np.zeros_like(whole)
    for column, length in enumerate(lengths):
        for line, depth in enumerate(depths):
            rows, _ = _cell(planter, haystack, length, depth, count, seed)
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
