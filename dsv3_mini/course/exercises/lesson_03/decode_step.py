"""Exercise 3.5: one step of writing, with a cache of turned keys.

Shapes: S cached keys, R width of a key, V width of a value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_03.by_hand import one_of, rope, rope_half_split


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
