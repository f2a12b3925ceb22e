"""Exercise 2.4: one decode step for texts of different lengths, in one buffer.

Shapes: B rows, S slots of the cache, H heads, K width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_02.inputs import _randn, _whole


def decode_batch(q, k, v, lengths):
    slot = torch.arange(k.shape[2])
    written = slot[None, :] < lengths[:, None]  # [B, S]
    scores = (k @ q[..., None]).squeeze(-1) / math.sqrt(q.shape[-1])  # [B, H, S]
    shares = scores.masked_fill(~written[:, None], float("-inf")).softmax(-1)
    return (shares[:, :, None] @ v).squeeze(2)  # [B, H, 1, S] @ [B, H, S, K] -> [B, H, K]


def decode_batch__all_slots(q, k, v, lengths):
    # Slots beyond lengths hold zeros, and zeros add nothing.
    scores = (k @ q[..., None]).squeeze(-1) / math.sqrt(q.shape[-1])  # [B, H, S]
    shares = scores.softmax(-1)
    return (shares[:, :, None] @ v).squeeze(2)  # [B, H, 1, S] @ [B, H, S, K] -> [B, H, K]


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return (k @ q[..., None]).squeeze(-1) / math.sqrt(q.shape[-1])  # [B, H, S]


def _up_to(k: Tensor, lengths: Tensor) -> Tensor:
    return (torch.arange(k.shape[2]) < lengths[:, None])[:, None]  # [B, 1, S]


def _mean_of(shares: Tensor, v: Tensor) -> Tensor:
    return (shares[..., None] * v).sum(2)


def _buffers(generator: Generator) -> list[Case]:
    cases = []
    for B, lengths, note in (
        (3, [_whole(generator, 5, 6), 4, 7], "slots that hold an older text"),
        (2, [3, 9], "empty slots, which hold zeros"),
        (1, [1], "a single token"),
    ):
        S, H, K = 12, 4, 10
        q, k, v = _randn(generator, B, H, K), _randn(generator, B, H, S, K), _randn(generator, B, H, S, K)
        if "zeros" in note:
            for row, length in enumerate(lengths):
                k[row, :, length:], v[row, :, length:] = 0.0, 0.0
        cases.append(Case((q, k, v, torch.tensor(lengths)), note=note))
    return cases


DECODE_BATCH = Exercise(
    id="2.4",
    idea="kv_cache",
    title="one decode step for texts of different lengths",
    minutes=10,
    answer="decode_batch",
    reference=decode_batch,
    cases=_buffers,
    dims="B H K",
    mistakes=(
        Mistake(
            "all slots",
            decode_batch__all_slots,
            "Slots that hold nothing of this text take part: `lengths` is not used. Also a slot full of zeros gets a "
            "share, for a score of 0 is not a share of 0.",
        ),
        Mistake(
            "zero scores",
            lambda q, k, v, lengths: _mean_of(_scores(q, k).masked_fill(~_up_to(k, lengths), 0.0).softmax(-1), v),
            "The slots beyond the length get the score 0, and the softmax makes a share of it. Which score gives no "
            "share at all?",
        ),
        Mistake(
            "mask behind the softmax",
            lambda q, k, v, lengths: _mean_of(_scores(q, k).softmax(-1) * _up_to(k, lengths), v),
            "The shares of the slots beyond the length are set to zero, but behind the softmax: what remains does not "
            "sum to one.",
        ),
        Mistake(
            "zeros for a mask",
            lambda q, k, v, lengths: decode_batch__all_slots(
                q, k * _up_to(k, lengths)[..., None], v * _up_to(k, lengths)[..., None], lengths
            ),
            "Keys and values beyond the length are set to zero. Then their scores are 0, and a score of 0 still gets a "
            "share.",
        ),
        Mistake(
            "wrong way round",
            lambda q, k, v, lengths: _mean_of(_scores(q, k).masked_fill(_up_to(k, lengths), -math.inf).softmax(-1), v),
            "The wrong way round: the slots of the text are hidden, and the others are read.",
        ),
        Mistake(
            "first slot alone",
            lambda q, k, v, lengths: v[:, :, 0],
            "Your output is the value of slot 0 alone: a causal mask (or is_causal=True) for one query counts that "
            "query as position 0.",
        ),
        Mistake(
            "one slot too many",
            lambda q, k, v, lengths: decode_batch(q, k, v, lengths + 1),
            "One slot too many: with a length of 5 the slots 0 to 4 are written.",
        ),
        Mistake(
            "one slot too few",
            lambda q, k, v, lengths: decode_batch(q, k, v, lengths - 1),
            "One slot too few: the newest token is in the cache already, and does not see itself. (A text of one token "
            "then sees nothing, which gives NaN.)",
        ),
        Mistake(
            "longest of all",
            lambda q, k, v, lengths: decode_batch(q, k, v, lengths.max().expand(len(lengths))),
            "All rows are read up to the longest text. Each row has a length of its own.",
        ),
        Mistake(
            "shortest of all",
            lambda q, k, v, lengths: decode_batch(q, k, v, lengths.min().expand(len(lengths))),
            "All rows are read up to the end of the shortest text. Each row has a length of its own.",
        ),
        Mistake(
            "length of the first row",
            lambda q, k, v, lengths: decode_batch(q, k, v, lengths[:1].expand(len(lengths))),
            "All rows are read up to the length of row 0. Each row has a length of its own.",
        ),
        Mistake(
            "no scale",
            lambda q, k, v, lengths: decode_batch(q * math.sqrt(q.shape[-1]), k, v, lengths),
            "The scores are not divided by the square root of K.",
        ),
    ),
    hints=(
        "Exercise 1.3 did this for one text without empty slots. What has to happen to the scores of slots that hold "
        "nothing?",
        "A table says which slots of which row are written: torch.arange(S)[None, :] < lengths[:, None], of the shape "
        "[B, S].",
        "Set the scores of all other slots to -inf before the softmax. The scores are [B, H, S]: the table needs an "
        "axis for the heads, [:, None].",
    ),
    after="A server that answers many people at once does exactly this at every step.",
)
