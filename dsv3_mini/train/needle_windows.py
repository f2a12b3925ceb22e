"""Training windows of which some hold needles, to be found again at their end.

A small model that has read a few million tokens may not look anything up, at any length: of a text that is repeated it
predicts the second copy no better than the first. A map of its needles would show nothing about length. So training
may mix in windows with planted lines, made from training text with names and values that the test does not have. Long
or short, a phase gets the same share of them, which leaves the length as the only difference.

Which windows get needles, and which, depends on (seed, sequences consumed) alone: as for all windows, a run that was
stopped continues with what it would have seen.
"""

from __future__ import annotations

import numpy as np
import torch

from dsv3_mini.errors import InputError
from dsv3_mini.train.needle import Needle, Planter, draw_needles
from dsv3_mini.train.token_data import TokenDataset
from dsv3_mini.train.tokenizer import Tokenizer

FORMAT = 1  # raise it when the same settings come to give other windows
TOKENS_PER_NEEDLE = 32  # at most one needle for so many tokens of a window: it and its questions take about 24
MOST_NEEDLES = 16  # the test plants one: with many more to tell apart, a small model learns another task
TIMES_ASKED = 2


class NeedleWindows(TokenDataset):
    """A `TokenDataset` in which `share` of the windows hold one to several needles, all asked for at the end.

    Several, and each asked twice, because a question is a few tokens of a long window and only they teach to look up.
    They are asked in any order, so that a name has to be looked at.
    """

    def __init__(self, data: TokenDataset, tokenizer: Tokenizer, share: float) -> None:
        super().__init__(data.tokens, data.seq_len, data.seed)
        self.share, self.planter = share, Planter(tokenizer)
        self.most = max(1, min(self.seq_len // TOKENS_PER_NEEDLE, MOST_NEEDLES))
        least = self.planter.cost(Needle("AA", "100"), TIMES_ASKED)
        if share and self.seq_len < least:
            raise InputError(f"seq_len = {self.seq_len} cannot be with needle_share = {share:g}: at least {least}")

    def batch(self, start_sequence: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As in `TokenDataset`; windows with needles are as long as the others."""
        inputs, targets = super().batch(start_sequence, count)
        for i in range(count):
            rng = np.random.default_rng((self.seed, start_sequence + i, 7))
            if rng.random() < self.share:
                window = np.concatenate([inputs[i].numpy(), targets[i, -1:].numpy()])  # [T + 1]
                row = torch.from_numpy(self._with_needles(window, rng))
                inputs[i], targets[i] = row[:-1], row[1:]
        return inputs, targets

    def _with_needles(self, window: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[T + 1] tokens: the beginning of `window`, its needles somewhere in it, then the questions answered."""
        encode = self.planter.tokenizer.encode
        needles = draw_needles(rng, int(rng.integers(1, self.most + 1)), for_test=False)
        order = [i for _ in range(TIMES_ASKED) for i in rng.permutation(len(needles))]
        ending = [token for i in order for token in encode(f"{needles[i].question}{needles[i].value}")]
        room = len(window) - len(ending)
        row = window[: max(0, room - sum(len(encode(needle.line)) + 2 for needle in needles))]
        for needle, depth in zip(needles, rng.random(len(needles)), strict=True):
            row = self.planter.plant(row, needle, depth)
        # A line start or an indentation more or less: filled up from the text, or cut off at its end.
        if len(row) < room:
            row = np.concatenate([row, window[-(room - len(row)) :]])
        return np.concatenate([row[:room], ending]).astype(np.int64)
