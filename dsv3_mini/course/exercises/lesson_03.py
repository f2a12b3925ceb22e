"""Exercises of lesson 03, Positions: RoPE, its two layouts, and keys that are turned once.

References and mistakes are written as a learner would write them in the lesson: without type hints, and with the names
that the lesson has built by hand (`speeds`, `rope`). Here these two lean on the package.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.model.rope import apply_rope, apply_rope_half_split


def speeds(R: int, theta: float = 10_000.0) -> Tensor:
    """Angle per position of each pair, [R / 2]."""
    return theta ** (-2.0 * torch.arange(R // 2) / R)


def rope(x: Tensor, positions: Tensor, theta: float = 10_000.0) -> Tensor:
    """Turn neighbours: x [..., T, R], positions [T] -> [..., T, R]."""
    angles = positions[:, None] * speeds(x.shape[-1], theta)
    return apply_rope(x.unsqueeze(-2), angles.cos(), angles.sin()).squeeze(-2)


def rope_half_split(x: Tensor, positions: Tensor, theta: float = 10_000.0) -> Tensor:
    """Turn (x_j, x_{j + R/2}): x [..., T, R], positions [T] -> [..., T, R]."""
    angles = positions[:, None] * speeds(x.shape[-1], theta)
    return apply_rope_half_split(x.unsqueeze(-2), angles.cos(), angles.sin()).squeeze(-2)


def one_of(generator: Generator, *choices: Any) -> Any:
    return choices[int(torch.randint(len(choices), (1,), generator=generator))]


# -- 3.1 --


def slow_pairs(R, theta, context):
    """-> how many of the R / 2 pairs make less than one full turn in `context` positions."""
    angle_at_the_end = context * speeds(R, theta)  # [R / 2]
    return int((angle_at_the_end < 2 * math.pi).sum())


def slow_pairs_cases(generator: Generator) -> list[Case]:
    cases = []
    for R in (24, 48, 64):
        theta = one_of(generator, 500.0, 10_000.0, 500_000.0)
        turns = 2 * math.pi / speeds(R, theta)  # positions per full turn
        pair = one_of(generator, *range(2, R // 2 - 2))
        context = int((turns[pair] * turns[pair + 1]).sqrt())  # well between two pairs: rounding decides nothing
        cases.append(Case((R, theta, context), note=f"R = {R}, theta = {theta:g}, context = {context:,}"))
    context = int(2 * turns[-1])
    words = f"R = {R}, theta = {theta:g}, context = {context:,} (so long that every pair makes a full turn)"
    return [*cases, Case((R, theta, context), note=words)]


def slow_pairs__full_circle_is(angle: float):
    return lambda R, theta, context: int((context * speeds(R, theta) < angle).sum())


def slow_pairs__speed_without_the_two(R, theta, context):
    return int((context * theta ** (-torch.arange(R // 2) / R) < 2 * math.pi).sum())


def slow_pairs__all_channels(R, theta, context):
    return int((context * theta ** (-2.0 * torch.arange(R) / R) < 2 * math.pi).sum())


SLOW_PAIRS = Exercise(
    id="3.1",
    idea="rope_yarn",
    title="Count the pairs that never finish a turn",
    minutes=5,
    answer="slow_pairs",
    reference=slow_pairs,
    cases=slow_pairs_cases,
    mistakes=(
        Mistake(
            "fast ones",
            lambda R, theta, context: int((context * speeds(R, theta) >= 2 * math.pi).sum()),
            "You count the pairs that do make a full turn. The question is about the others.",
        ),
        Mistake(
            "one radian",
            slow_pairs__full_circle_is(1.0),
            "You compare the angle with 1. The angles are in radians, and a full turn is a larger angle than that.",
        ),
        Mistake(
            "half a turn",
            slow_pairs__full_circle_is(math.pi),
            "You compare the angle with pi. That is half a turn: the hand points the other way.",
        ),
        Mistake(
            "degrees",
            slow_pairs__full_circle_is(360.0),
            "You compare the angle with 360. `speeds` gives radians per position, not degrees.",
        ),
        Mistake(
            "numbers instead of pairs",
            lambda R, theta, context: 2 * slow_pairs(R, theta, context),
            "You count the numbers of the vector. Two of them make one pair: count the pairs.",
        ),
        Mistake(
            "speed of single channels",
            slow_pairs__all_channels,
            "You go through R speeds, one for each number of the vector. There is one speed for each pair, so R / 2.",
        ),
        Mistake(
            "exponent without the 2",
            slow_pairs__speed_without_the_two,
            "Your speeds fall too slowly from pair to pair: the exponent of theta is too small. `speeds` has it right.",
        ),
        Mistake(
            "half of the half",
            lambda R, theta, context: int((context * speeds(R // 2, theta) < 2 * math.pi).sum()),
            "You hand R // 2 to `speeds`. It wants the width R of the whole vector and halves it itself.",
        ),
        Mistake(
            "place of the first",
            lambda R, theta, context: (context * speeds(R, theta) < 2 * math.pi).nonzero()[0].item(),
            "This is the place of the first slow pair, and there is none when all pairs make a full turn. Count the "
            "slow pairs.",
        ),
        Mistake(
            "theta ignored",
            lambda R, theta, context: slow_pairs(R, 10_000.0, context),
            "Your count does not change with theta: the function gets one, and uses 10000 whatever it is.",
        ),
        Mistake(
            "all pairs",
            lambda R, theta, context: int((speeds(R, theta) < 2 * math.pi).sum()),
            "This is R / 2, the number of all pairs. Compare the angle that each has reached after `context` positions "
            "with a full turn, and count those that fall short.",
        ),
        Mistake(
            "the example",
            lambda R, theta, context: 9,
            "9 is the count for one width, one theta and one context. Compute it from what the function is given.",
        ),
    ),
    hints=(
        "`speeds(R, theta)` gives the angle per position of each pair. Which angle has a pair reached after `context` "
        "positions?",
        "A full turn is 2 * math.pi radians. Compare all R / 2 angles with it at once: that is True or False a pair.",
        "The sum of a tensor of True and False counts the True ones; int(...) makes a plain number of it.",
    ),
    after="These are the pairs that YaRN slows down when the context grows.",
)


# -- 3.2 --


def head_scores(x, w_q, w_k, positions):
    """x [T, D], w_q and w_k [R, D], positions [T] -> scores [T, T], a row for each query."""
    q = rope(x @ w_q.T, positions)  # [T, D] @ [D, R] -> [T, R]
    k = rope(x @ w_k.T, positions)
    return q @ k.T / q.shape[-1] ** 0.5  # [T, T]


def head_scores__half_split(x, w_q, w_k, positions):
    """x [T, D], w_q and w_k [R, D], positions [T] -> scores [T, T], a row for each query."""

    def turned(vectors):
        angles = positions[:, None] * speeds(vectors.shape[-1])  # [T, R / 2]
        first, second = vectors.chunk(2, dim=-1)  # [T, R / 2] each
        return torch.cat(
            [first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()], dim=-1
        )

    q, k = turned(x @ w_q.T), turned(x @ w_k.T)  # [T, R] each
    return q @ k.T / q.shape[-1] ** 0.5


def head_scores_cases(generator: Generator) -> list[Case]:
    T, R, D = one_of(generator, 5, 7, 9), one_of(generator, 6, 8, 12), one_of(generator, 10, 14)
    gaps = torch.randint(1, 6, (T,), generator=generator)  # a text with holes: positions are not 0, 1, 2, ...
    x = torch.randn(T, D, generator=generator)
    w_q, w_k = torch.randn(2, R, D, generator=generator)
    return [
        Case((x, w_q, w_k, gaps.cumsum(0))),
        Case((x[:1], w_q, w_k, gaps[:1]), note="a text of one token"),
    ]


def scored(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.T / q.shape[-1] ** 0.5


def head_scores__turned_before(x, w_q, w_k, positions):
    x = rope(x, positions)
    return scored(x @ w_q.T, x @ w_k.T)


def head_scores__masked(x, w_q, w_k, positions):
    future = torch.ones(len(x), len(x)).triu(1).bool()
    return head_scores(x, w_q, w_k, positions).masked_fill(future, -torch.inf)


HEAD_SCORES = Exercise(
    id="3.2",
    idea="rope_yarn",
    title="Scores of one head with DeepSeek-V3's weights",
    minutes=10,
    answer="head_scores",
    reference=head_scores,
    cases=head_scores_cases,
    dims="query key",
    tolerance=1e-4,
    mistakes=(
        Mistake(
            "half-split",
            head_scores__half_split,
            "You turn half-split pairs, (x_j, x_{j + R/2}). These weights were trained in the layout of DeepSeek-V3, "
            "which takes neighbours: they know which two numbers make a pair.",
        ),
        Mistake(
            "half-split, no scale",
            lambda x, w_q, w_k, positions: head_scores__half_split(x, w_q, w_k, positions) * w_q.shape[0] ** 0.5,
            "Two things. You turn half-split pairs, and the weights of DeepSeek-V3 were trained with neighbours. And "
            "the scores are not divided by the square root of the width of the head.",
        ),
        Mistake(
            "positions ignored",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_k, torch.arange(len(x))),
            "You turn by 0, 1, 2, ... The tokens stand at `positions`, and here these have gaps. (A shift of all "
            "of them would not matter; gaps do.)",
        ),
        Mistake(
            "query only",
            lambda x, w_q, w_k, positions: scored(rope(x @ w_q.T, positions), x @ w_k.T),
            "The queries are turned, the keys are not: the score then depends on where the query stands and not on "
            "the distance.",
        ),
        Mistake(
            "key only",
            lambda x, w_q, w_k, positions: scored(x @ w_q.T, rope(x @ w_k.T, positions)),
            "The keys are turned, the queries are not: the score then depends on where the key stands and not on the "
            "distance.",
        ),
        Mistake(
            "not turned",
            lambda x, w_q, w_k, positions: scored(x @ w_q.T, x @ w_k.T),
            "Nothing is turned: these are the scores of a head that is blind to order.",
        ),
        Mistake(
            "other way round",
            lambda x, w_q, w_k, positions: scored(rope(x @ w_q.T, positions), rope(x @ w_k.T, -positions)),
            "Query and key are turned in opposite directions, so their positions add up instead of dropping out. Turn "
            "both the same way.",
        ),
        Mistake(
            "both backwards",
            lambda x, w_q, w_k, positions: scored(rope(x @ w_q.T, -positions), rope(x @ w_k.T, -positions)),
            "Both are turned backwards: a key five tokens earlier gets the score of one five tokens later.",
        ),
        Mistake(
            "turned before the projection",
            head_scores__turned_before,
            "You turn x, and project it afterwards. RoPE turns queries and keys, so it comes after the projections: a "
            "matrix in between mixes the pairs again.",
        ),
        Mistake(
            "keys in rows",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_k, positions).T,
            "Rows and columns are swapped: a row should hold the scores of one query with all keys.",
        ),
        Mistake(
            "no scale",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_k, positions) * w_q.shape[0] ** 0.5,
            "The turning is right. The scores are not divided by the square root of the width of the head, as in "
            "lesson 01.",
        ),
        Mistake(
            "scale of the model width",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_k, positions) * (w_q.shape[0] / w_q.shape[1]) ** 0.5,
            "The turning is right, the scale is not: divide by the square root of the width of a query (R), not of a "
            "token (D).",
        ),
        Mistake(
            "scale of the text",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_k, positions) * (w_q.shape[0] / len(x)) ** 0.5,
            "The turning is right, the scale is not: you divide by the square root of the number of tokens. len(q) "
            "is T; the width of a query is q.shape[-1].",
        ),
        Mistake(
            "query against query",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_q, positions),
            "The keys come from w_q, too: each query is compared with the other queries.",
        ),
        Mistake(
            "key not transposed",
            lambda x, w_q, w_k, positions: (x @ w_q.T) @ (x @ w_k.T),
            "A product of [T, R] with [T, R] does not exist. Each query should meet each key, so one of the two must "
            "be transposed.",
        ),
        Mistake(
            "weights not transposed",
            lambda x, w_q, w_k, positions: x @ w_q,
            "A product of [T, D] with [R, D] does not exist. The weights lie as in nn.Linear, a row for each output: "
            "q = x @ w_q.T.",
        ),
        Mistake(
            "divided by the width",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_k, positions) / w_q.shape[0] ** 0.5,
            "The turning is right. You divide by the width itself: it should be its square root.",
        ),
        Mistake(
            "masked",
            head_scores__masked,
            "Right so far, and then masked. Leave the future in: only the scores are asked for, mask and softmax "
            "come later.",
        ),
        Mistake(
            "masked with zeros",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_k, positions).tril(),
            "Right so far, and then the scores of the future are set to 0. Leave them as they are: no mask is asked "
            "for. (And a mask of scores is -inf; a score of 0 still gets a share.)",
        ),
        Mistake(
            "softmax",
            lambda x, w_q, w_k, positions: head_scores(x, w_q, w_k, positions).softmax(-1),
            "Right so far, and then through a softmax. Only the scores are asked for.",
        ),
    ),
    hints=(
        "Three steps: project (q = x @ w_q.T and the key likewise), turn both, compare each query with each key.",
        "The lesson has two functions that turn, `rope` and `rope_half_split`. In which layout were the weights of "
        "DeepSeek-V3 trained?",
        "`rope(vectors, positions)` wants [T, R] and [T]. A matrix product of [T, R] with [R, T] gives all scores; "
        "divide them by the square root of R.",
    ),
    after="With the released weights this is what a head computes for the part of its key that knows the position.",
)


# -- 3.3 --


def to_half_split(weight):
    """weight [R, D] of one head (q = x @ weight.T) -> the same rows in another order, [R, D]."""
    return torch.cat([weight[0::2], weight[1::2]])  # rows 0, 2, 4, ..., then 1, 3, 5, ...


def to_half_split_cases(generator: Generator) -> list[Case]:
    R, D = one_of(generator, 6, 8, 10, 14), one_of(generator, 12, 16, 18)
    return [
        Case((torch.randn(R, D, generator=generator),)),
        Case((torch.randn(2, D, generator=generator),), note="a single pair (R = 2)"),
    ]


def to_half_split__way_back(weight):
    R, D = weight.shape
    return weight.view(2, R // 2, D).transpose(0, 1).reshape(R, D)


def to_half_split__columns(weight):
    return torch.cat([weight[:, 0::2], weight[:, 1::2]], dim=1)


def to_half_split__through_a_view(weight):
    R, D = weight.shape
    return weight.reshape(D, R).T


TO_HALF_SPLIT = Exercise(
    id="3.3",
    idea="rope_yarn",
    title="Convert a projection to the other layout",
    minutes=10,
    answer="to_half_split",
    reference=to_half_split,
    cases=to_half_split_cases,
    dims="R D",
    mistakes=(
        Mistake(
            "unchanged",
            lambda weight: weight.clone(),
            "The order did not change. Half-split RoPE pairs row 0 with row R/2: which row must stand there, so that "
            "this is the pair that was trained?",
        ),
        Mistake(
            "way back",
            to_half_split__way_back,
            "This is the way back, from half-split to interleaved: the first half and the second half are dealt out "
            "like cards. You need to gather the cards again.",
        ),
        Mistake(
            "odd rows first",
            lambda weight: torch.cat([weight[1::2], weight[0::2]]),
            "The right rows are together, but in each pair first and second are swapped: the odd rows come first. Such "
            "a pair turns the other way round.",
        ),
        Mistake(
            "columns",
            to_half_split__columns,
            "You reordered the columns, which belong to the token x. The channels of the query are the rows "
            "(q = x @ weight.T).",
        ),
        Mistake(
            "last pair first",
            lambda weight: torch.cat([weight[0::2].flip(0), weight[1::2].flip(0)]),
            "The pairs are right, but they stand in reverse: the fast pair now has the place of the slowest.",
        ),
        Mistake(
            "halves swapped",
            lambda weight: torch.cat(weight.chunk(2)[::-1]),
            "You swapped the two halves, and row 0 is still not paired with row 1: it is with row R/2 again.",
        ),
        Mistake(
            "neighbours swapped",
            lambda weight: weight.unflatten(0, (-1, 2)).flip(1).flatten(0, 1),
            "You swapped the two rows of each pair. They are neighbours still, and half-split RoPE needs them half a "
            "head apart.",
        ),
        Mistake(
            "every second row, twice",
            lambda weight: torch.cat([weight[0::2], weight[0::2]]),
            "The even rows are there twice, and the odd ones are missing.",
        ),
        Mistake(
            "view",
            to_half_split__through_a_view,
            "The shape is right, but rows are torn apart: a reshape to [D, R] does not exchange rows and columns. "
            "Every row should stay whole.",
        ),
        Mistake(
            "turned",
            lambda weight: rope(weight.T, torch.arange(weight.shape[1])).T,
            "You turned the weights themselves. Nothing is computed here: the same rows, in another order.",
        ),
    ),
    hints=(
        "Write down for R = 6 which rows make a pair in each layout. Interleaved: (0, 1), (2, 3), (4, 5). Half-split: "
        "(0, 3), (1, 4), (2, 5).",
        "In the new order row 0 must stay first, and its partner, row 1, must come to place R/2.",
        "weight[0::2] takes every second row, beginning with row 0. The lesson printed the order of the channels.",
    ),
    after="The transformers library reorders queries and keys of DeepSeek-V3 in this way, anew at every step.",
)


# -- 3.4 --


def move_cached(k_turned, by):
    """k_turned [T, R], turned for positions 0 to T - 1 -> turned for positions by to by + T - 1."""
    T = len(k_turned)
    return rope(k_turned, torch.full((T,), by))  # every key by the same angle: turns add up


def move_cached__turned_twice(k_turned, by):
    """k_turned [T, R], turned for positions 0 to T - 1 -> turned for positions by to by + T - 1."""
    new_positions = torch.arange(by, by + len(k_turned))
    return rope(k_turned, new_positions)


def move_cached_cases(generator: Generator) -> list[Case]:
    T, R, by = one_of(generator, 5, 7, 9), one_of(generator, 4, 8, 12), one_of(generator, 11, 20, 33)
    k = torch.randn(T, R, generator=generator)
    one = torch.randn(1, R, generator=generator)
    return [
        Case((rope(k, torch.arange(T)), by)),
        Case((one, by), note="a single key, of position 0"),
    ]


def every(k_turned: Tensor, angle: int) -> Tensor:
    return torch.full((len(k_turned),), angle)


MOVE_CACHED = Exercise(
    id="3.4",
    idea="rope_yarn",
    title="Move keys that are already turned",
    minutes=10,
    answer="move_cached",
    reference=move_cached,
    cases=move_cached_cases,
    dims="T R",
    tolerance=1e-4,
    mistakes=(
        Mistake(
            "turned twice",
            move_cached__turned_twice,
            "Turned twice: the cached keys carry the angles of 0, 1, 2, ... already, and you turn them by their whole "
            "new positions on top. Only the difference is missing.",
        ),
        Mistake(
            "wrong way",
            lambda k_turned, by: rope(k_turned, every(k_turned, -by)),
            "Turned the wrong way: the text in front pushes these keys to later positions, not to earlier ones.",
        ),
        Mistake(
            "as training does it",
            lambda k_turned, by: rope(k_turned, torch.arange(len(k_turned))),
            "You turned them by 0, 1, 2, ... once more, and `by` plays no part. The keys come turned for these "
            "positions.",
        ),
        Mistake(
            "unchanged",
            lambda k_turned, by: k_turned.clone(),
            "The keys are as they were, so they still say 0, 1, 2, ... Which angle is missing?",
        ),
        Mistake(
            "unturned",
            lambda k_turned, by: rope(k_turned, -torch.arange(len(k_turned))),
            "You turned the keys back to where they were before the cache. That is half of a way that works: now "
            "they need their new positions.",
        ),
        Mistake(
            "all at one place",
            lambda k_turned, by: rope(rope(k_turned, -torch.arange(len(k_turned))), every(k_turned, by)),
            "Now all keys stand at position `by`. You turned them back first, so each needs its whole new position: "
            "key t goes to t + by.",
        ),
        Mistake(
            "a number for positions",
            lambda k_turned, by: rope(k_turned, by),
            "`rope` wants its positions as a tensor, one for each key, and gets a plain number.",
        ),
        Mistake(
            "added",
            lambda k_turned, by: k_turned + by,
            "You add `by` to the numbers of the keys. A position is an angle here: moving a key means turning it.",
        ),
        Mistake(
            "by one too far",
            lambda k_turned, by: rope(k_turned, every(k_turned, by + 1)),
            "One position too far. A text of `by` tokens takes the positions 0 to by - 1, so the first cached key "
            "moves from 0 to by.",
        ),
        Mistake(
            "by one too short",
            lambda k_turned, by: rope(k_turned, every(k_turned, by - 1)),
            "One position too short. A text of `by` tokens takes the positions 0 to by - 1, so the first cached key "
            "moves from 0 to by.",
        ),
        Mistake(
            "moved by its length",
            lambda k_turned, by: rope(k_turned, every(k_turned, len(k_turned))),
            "You move the keys by their own number, T. They should move by the length of the text in front, `by`.",
        ),
        Mistake(
            "times",
            lambda k_turned, by: rope(k_turned, by * torch.arange(len(k_turned))),
            "You turn key t by t * by: the keys are spread out, and the first stays where it was. All of them move "
            "by the same number of places.",
        ),
        Mistake(
            "half-split",
            lambda k_turned, by: rope_half_split(k_turned, every(k_turned, by)),
            "The angle is right and the pairs are not: these keys were turned by `rope`, which takes neighbours.",
        ),
        Mistake(
            "zeros in front",
            lambda k_turned, by: torch.cat([torch.zeros(by, k_turned.shape[1]), k_turned]),
            "You put `by` empty rows in front. The cache of the new text is not asked for: give the T old keys, turned "
            "for where they stand now. A position is an angle here, not a row.",
        ),
        Mistake(
            "rolled",
            lambda k_turned, by: k_turned.roll(by, 0),
            "You moved the rows. The keys keep their order; what must change is their angle.",
        ),
    ),
    hints=(
        "What is the position of cached key t now, and what will it be? How far is it from one to the other?",
        "Two turns one after the other are one turn by the sum of the angles. So a key that carries the angle of t "
        "needs only what is missing to t + by.",
        "`rope` turns each key by the position that it is given, and these need not be 0, 1, 2, ... "
        "torch.full((n,), value) is a tensor of n times the same number.",
    ),
    after="With this, keys that were cached for one place in a text can be used at another.",
)


# -- 3.5 --


def decode_step(q, k, v, k_cache, v_cache, position):
    """q, k [1, R] and v [1, V] of the new token, not turned; k_cache [S, R] turned, v_cache [S, V]
    -> output [1, V] and the key cache with the new key, [S + 1, R]."""
    here = torch.tensor([position])
    keys = torch.cat([k_cache, rope(k, here)])  # [S + 1, R]: the old ones are turned already
    values = torch.cat([v_cache, v])  # [S + 1, V]
    scores = rope(q, here) @ keys.T / q.shape[-1] ** 0.5  # [1, S + 1]
    return scores.softmax(-1) @ values, keys


def decode_step__turned_twice(q, k, v, k_cache, v_cache, position):
    """q, k [1, R] and v [1, V] of the new token, not turned; k_cache [S, R] turned, v_cache [S, V]
    -> output [1, V] and the key cache with the new key, [S + 1, R]."""
    keys, values = torch.cat([k_cache, k]), torch.cat([v_cache, v])
    positions = torch.arange(position - len(k_cache), position + 1)  # those of all the keys
    q, keys = rope(q, positions[-1:]), rope(keys, positions)  # [1, R], [S + 1, R]
    scores = q @ keys.T / q.shape[-1] ** 0.5  # [1, S + 1]
    return scores.softmax(-1) @ values, keys


def decode_step_cases(generator: Generator) -> list[Case]:
    S, R, V = one_of(generator, 4, 7, 9), one_of(generator, 8, 12), one_of(generator, 6, 10)
    position = one_of(generator, 11, 20, 33)  # the cache is a window: it need not begin at position 0

    def new_token() -> tuple[Tensor, ...]:
        return tuple(torch.randn(1, width, generator=generator) for width in (R, R, V))

    k_cache = rope(torch.randn(S, R, generator=generator), torch.arange(position - S, position))
    v_cache = torch.randn(S, V, generator=generator)
    return [
        Case((*new_token(), k_cache, v_cache, position)),
        Case((*new_token(), k_cache[:0], v_cache[:0], 0), note="an empty cache (the first token of all)"),
    ]


def attended(q: Tensor, keys: Tensor, values: Tensor, scale: float | None = None) -> Tensor:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return (q @ keys.T * scale).softmax(-1) @ values


def decode_step__query_at(place):
    def decode_step(q, k, v, k_cache, v_cache, position):
        here, there = torch.tensor([position]), torch.tensor([place(position, len(k_cache))])
        keys = torch.cat([k_cache, rope(k, here)])
        return attended(rope(q, there), keys, torch.cat([v_cache, v])), keys

    return decode_step


def decode_step__new_token_at(place):
    return lambda q, k, v, k_cache, v_cache, position: decode_step(
        q, k, v, k_cache, v_cache, place(position, len(k_cache))
    )


def decode_step__key_as_it_is(q, k, v, k_cache, v_cache, position):
    keys = torch.cat([k_cache, k])
    return attended(rope(q, torch.tensor([position])), keys, torch.cat([v_cache, v])), keys


def decode_step__key_at_the_length(q, k, v, k_cache, v_cache, position):
    keys = torch.cat([k_cache, rope(k, torch.tensor([len(k_cache)]))])
    return attended(rope(q, torch.tensor([position])), keys, torch.cat([v_cache, v])), keys


def decode_step__nothing_turned(q, k, v, k_cache, v_cache, position):
    keys = torch.cat([k_cache, k])
    return attended(q, keys, torch.cat([v_cache, v])), keys


def decode_step__stored_as_it_is(q, k, v, k_cache, v_cache, position):
    return decode_step(q, k, v, k_cache, v_cache, position)[0], torch.cat([k_cache, k])


def decode_step__turned_twice_on_the_way_out(q, k, v, k_cache, v_cache, position):
    here, positions = torch.tensor([position]), torch.arange(position - len(k_cache), position + 1)
    keys = torch.cat([k_cache, rope(k, here)])
    return attended(rope(q, here), rope(keys, positions), torch.cat([v_cache, v])), keys


def decode_step__cache_turned(by, stored):
    """The cached keys turned once more, by `by(position, S)`; what goes back is as turned or as it was."""

    def decode_step(q, k, v, k_cache, v_cache, position):
        here = torch.tensor([position])
        again = torch.cat([rope(k_cache, by(position, len(k_cache))), rope(k, here)])
        keys = again if stored else torch.cat([k_cache, rope(k, here)])
        return attended(rope(q, here), again, torch.cat([v_cache, v])), keys

    return decode_step


def decode_step__counted_from_zero(stored):
    """All keys, old and new, turned by 0, 1, 2, ..., with the cache before it as it was or turned already."""

    def decode_step(q, k, v, k_cache, v_cache, position):
        here, new_key = torch.tensor([position]), k if stored else rope(k, torch.tensor([position]))
        keys = torch.cat([k_cache, new_key])
        again = rope(keys, torch.arange(len(keys)))
        return attended(rope(q, here), again, torch.cat([v_cache, v])), again if stored else keys

    return decode_step


def decode_step__query_backwards(q, k, v, k_cache, v_cache, position):
    here = torch.tensor([position])
    keys = torch.cat([k_cache, rope(k, here)])
    return attended(rope(q, -here), keys, torch.cat([v_cache, v])), keys


def decode_step__no_softmax(q, k, v, k_cache, v_cache, position):
    here = torch.tensor([position])
    keys = torch.cat([k_cache, rope(k, here)])
    return rope(q, here) @ keys.T / q.shape[-1] ** 0.5 @ torch.cat([v_cache, v]), keys


def decode_step__cache_ignored(q, k, v, k_cache, v_cache, position):
    key = rope(k, torch.tensor([position]))
    return v.clone(), key  # one key, one share of 1


def decode_step__old_values(q, k, v, k_cache, v_cache, position):
    here = torch.tensor([position])
    keys = torch.cat([k_cache, rope(k, here)])
    return attended(rope(q, here), keys, v_cache), keys


def decode_step__values_turned(q, k, v, k_cache, v_cache, position):
    here = torch.tensor([position])
    keys = torch.cat([k_cache, rope(k, here)])
    return attended(rope(q, here), keys, torch.cat([v_cache, rope(v, here)])), keys


def decode_step__blind_to_itself(q, k, v, k_cache, v_cache, position):
    here = torch.tensor([position])
    return attended(rope(q, here), k_cache, v_cache), torch.cat([k_cache, rope(k, here)])


def decode_step__scale(scale):
    def decode_step(q, k, v, k_cache, v_cache, position):
        here = torch.tensor([position])
        keys = torch.cat([k_cache, rope(k, here)])
        return attended(rope(q, here), keys, torch.cat([v_cache, v]), scale(q.shape[-1])), keys

    return decode_step


def decode_step__softmax_over_rows(q, k, v, k_cache, v_cache, position):
    here = torch.tensor([position])
    keys = torch.cat([k_cache, rope(k, here)])
    return (rope(q, here) @ keys.T).softmax(0) @ torch.cat([v_cache, v]), keys


def decode_step__in_front(q, k, v, k_cache, v_cache, position):
    here = torch.tensor([position])
    keys, values = torch.cat([rope(k, here), k_cache]), torch.cat([v, v_cache])
    return attended(rope(q, here), keys, values), keys


def decode_step__value_at_the_wrong_end(q, k, v, k_cache, v_cache, position):
    here = torch.tensor([position])
    keys = torch.cat([k_cache, rope(k, here)])
    return attended(rope(q, here), keys, torch.cat([v, v_cache])), keys


def decode_step__is_causal(q, k, v, k_cache, v_cache, position):
    here = torch.tensor([position])
    keys, values = torch.cat([k_cache, rope(k, here)]), torch.cat([v_cache, v])
    return F.scaled_dot_product_attention(rope(q, here), keys, values, is_causal=True), keys


def decode_step__half_split(q, k, v, k_cache, v_cache, position):
    here = torch.tensor([position])
    keys = torch.cat([k_cache, rope_half_split(k, here)])
    return attended(rope_half_split(q, here), keys, torch.cat([v_cache, v])), keys


ONE_OFF = "The distance to every cached key is then {} by one: the new token stands at `position`, query and key alike."

DECODE_STEP = Exercise(
    id="3.5",
    idea="rope_yarn",
    title="One step of writing, with a cache of turned keys",
    minutes=15,
    answer="decode_step",
    reference=decode_step,
    cases=decode_step_cases,
    dims=("new V", "S+1 R"),
    tolerance=1e-4,
    mistakes=(
        Mistake(
            "turned twice",
            decode_step__turned_twice,
            "The cached keys are turned a second time. They went into the cache turned for their own positions: only "
            "what is new at this step still needs it.",
        ),
        Mistake(
            "turned twice on the way out",
            decode_step__turned_twice_on_the_way_out,
            "What you store is right. But before the scores you turn the whole cache once more, and its keys are "
            "turned already.",
        ),
        Mistake(
            "turned twice, from 0",
            decode_step__counted_from_zero(stored=True),
            "You turn all keys by 0, 1, 2, ... The cached ones are turned already, so nothing may be added to them; "
            "and the new one stands at `position`, which need not be the number of the cached ones.",
        ),
        Mistake(
            "turned twice on the way out, from 0",
            decode_step__counted_from_zero(stored=False),
            "What you store is right. But before the scores you turn all keys once more, by 0, 1, 2, ..., and they "
            "carry their turns already.",
        ),
        Mistake(
            "all at the new place",
            decode_step__cache_turned(lambda position, S: torch.full((S,), position), stored=True),
            "You turn the cached keys by the position of the new token. They carry the turns of their own positions: "
            "only the new key needs that angle.",
        ),
        Mistake(
            "new key as it is",
            decode_step__key_as_it_is,
            "The new key goes into the cache as it is, without its turn. All later queries would take it for a key of "
            "position 0.",
        ),
        Mistake(
            "stored as it is",
            decode_step__stored_as_it_is,
            "The output is right, but the cache that you give back holds the new key without its turn: the next step "
            "would read a key of position 0.",
        ),
        Mistake(
            "nothing turned",
            decode_step__nothing_turned,
            "The new query and the new key are not turned, or turned for position 0, as if the text began here. A step "
            "gets one token, but that token stands at `position`.",
        ),
        Mistake(
            "query not turned",
            decode_step__query_at(lambda position, S: 0),
            "The new query is not turned (or turned for position 0): the distance to each key comes out wrong.",
        ),
        Mistake(
            "length of the cache",
            decode_step__new_token_at(lambda position, S: S),
            "You take the number of cached keys for the position. This cache is a window that begins later in the "
            "text: use `position`.",
        ),
        Mistake(
            "key at the length of the cache",
            decode_step__key_at_the_length,
            "Query and new key are turned for different positions: the query for `position`, the key for the number of "
            "cached keys. One token stands at one place.",
        ),
        Mistake(
            "query backwards",
            decode_step__query_backwards,
            "The query is turned backwards and the keys forwards, so the positions add up instead of dropping out.",
        ),
        Mistake(
            "one too far",
            decode_step__new_token_at(lambda position, S: position + 1),
            "The new token is turned for position + 1. " + ONE_OFF.format("too large"),
        ),
        Mistake(
            "one too near",
            decode_step__new_token_at(lambda position, S: position - 1),
            "The new token is turned for position - 1. " + ONE_OFF.format("too small"),
        ),
        Mistake(
            "values turned",
            decode_step__values_turned,
            "You turn the value, too. Only queries and keys are turned: a value says what is handed over, whatever its "
            "place.",
        ),
        Mistake(
            "blind to itself",
            decode_step__blind_to_itself,
            "The new token does not see itself: its own key and value belong to those that the query looks at.",
        ),
        Mistake(
            "cache ignored",
            decode_step__cache_ignored,
            "Only the new token is left: the cached keys and values take no part, so the output is its own value.",
        ),
        Mistake(
            "value left out",
            decode_step__old_values,
            "There is one share more than there are values: the new key was appended, the new value was not.",
        ),
        Mistake(
            "no softmax",
            decode_step__no_softmax,
            "The values are weighted with the scores themselves. Shares are positive and add up to 1: a softmax over "
            "the keys is missing.",
        ),
        Mistake(
            "output only",
            lambda *inputs: decode_step(*inputs)[0],
            "The output is right, and two things are asked for: the output, and the key cache with the new key. "
            "`return output, keys` gives both.",
        ),
        Mistake(
            "cache as it was",
            lambda q, k, v, k_cache, v_cache, position: (
                decode_step(q, k, v, k_cache, v_cache, position)[0],
                k_cache.clone(),
            ),
            "The output is right, but the key cache that you give back lacks the new key: the next step would not see "
            "this token.",
        ),
        Mistake(
            "a number for positions",
            lambda q, k, v, k_cache, v_cache, position: rope(q, position),
            "`rope` wants its positions as a tensor, and gets a plain number.",
        ),
        Mistake(
            "no scale",
            decode_step__scale(lambda R: 1.0),
            "The scores are not divided by the square root of the width R before the softmax.",
        ),
        Mistake(
            "divided by the width",
            decode_step__scale(lambda R: 1.0 / R),
            "The scores are divided by the width R before the softmax. It should be its square root.",
        ),
        Mistake(
            "softmax over the queries",
            decode_step__softmax_over_rows,
            "The softmax runs over the single query, so each share is 1 and the output is the sum of all values. It "
            "should run over the keys.",
        ),
        Mistake(
            "new one in front",
            decode_step__in_front,
            "The output is right, but the new key stands in front of the cached ones. The cache is in the order of the "
            "text: the newest comes last.",
        ),
        Mistake(
            "value in front",
            decode_step__value_at_the_wrong_end,
            "Keys and values are in different orders: the new key comes last and the new value first, so every share "
            "goes to somebody else's value.",
        ),
        Mistake(
            "is_causal",
            decode_step__is_causal,
            "`is_causal=True` lays its triangle at the top left: your single query sees the first key only. The new "
            "token may see all of the cache, so no mask is needed here.",
        ),
        Mistake(
            "half-split",
            decode_step__half_split,
            "You turn the new query and key in the half-split layout, and the cached keys were turned by `rope`, in "
            "the interleaved one.",
        ),
    ),
    hints=(
        "What is turned already, and what is not? The cache says it in the first lines of the stub.",
        "Turn the new query and the new key for `position`, and nothing else. `rope` wants its positions as a tensor: "
        "torch.tensor([position]).",
        "Append the turned key to the cached keys and the value to the cached values (torch.cat); then it is "
        "attention of one query over S + 1 keys.",
        "softmax(q @ keys.T / sqrt(R)) @ values gives the output; return it together with the longer key cache.",
    ),
    after="The rule to write down where a cache is defined: cached keys are turned, and nobody turns them again.",
)

EXERCISES = (SLOW_PAIRS, HEAD_SCORES, TO_HALF_SPLIT, MOVE_CACHED, DECODE_STEP)
