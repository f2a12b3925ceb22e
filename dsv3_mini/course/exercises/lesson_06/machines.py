"""Exercise 6.6: the part of a layer that one machine computes, when the experts are on several.

Shapes: N tokens, D model width, E routed experts, K of them per token.
"""

from __future__ import annotations

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_06.inputs import _choices, _expert, _randn, _whole


def local_part(x, ids, weights, first, experts):
    out = torch.zeros_like(x)
    for number, expert in enumerate(experts, start=first):  # the number that this expert has in the whole model
        token, slot = torch.where(ids == number)
        out = out.index_add(0, token, expert(x[token]) * weights[token, slot, None])
    return out


def local_part__clamped(x, ids, weights, first, experts):
    local = (ids - first).clamp(0, len(experts) - 1)  # numbers on this machine
    out = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        token, slot = torch.where(local == number)
        out = out.index_add(0, token, expert(x[token]) * weights[token, slot, None])
    return out


def local_part__foreign_to_zero(x, ids, weights, first, experts):
    local = ids - first  # numbers on this machine
    is_here = (local >= 0) & (local < len(experts))
    local = torch.where(is_here, local, 0)  # an index must not point outside the list
    out = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        token, slot = torch.where(local == number)
        out = out.index_add(0, token, expert(x[token]) * weights[token, slot, None])
    return out


def _global_numbers(x, ids, weights, first, experts):
    return local_part(x, ids, weights, 0, experts)


def _wraps_round(x, ids, weights, first, experts):
    return local_part(x, (ids - first) % len(experts), weights, 0, experts)


def _share_of_the_machine(x, ids, weights, first, experts):
    is_here = (ids >= first) & (ids < first + len(experts))
    here = weights * is_here
    full = here / here.sum(-1, keepdim=True).clamp_min(1e-20) * weights.sum(-1, keepdim=True)
    return local_part(x, ids, full, first, experts)


def _one_hit(x, ids, weights, first, experts):
    out = torch.zeros_like(x)
    for token in range(len(x)):
        for slot in range(ids.shape[1]):
            number = int(ids[token, slot]) - first
            if 0 <= number < len(experts):
                out[token] = weights[token, slot] * experts[number](x[token : token + 1])[0]
    return out


def _all_here(x, ids, weights, first, experts):
    stays = ((ids >= first) & (ids < first + len(experts))).all(-1, keepdim=True)
    return local_part(x, ids, weights, first, experts) * stays


def _machines(generator: Generator) -> list[Case]:
    width, here, top_k = _whole(generator, 5, 7), _whole(generator, 3, 4), _whole(generator, 3, 4)
    experts, tokens = 3 * here, _whole(generator, 12, 16)
    cases = []
    for first, count, note in (
        (0, experts, "all experts on one machine"),
        (0, here, "the first of three machines"),
        (here, here, "the second of three machines"),
        (2 * here, here, "the last of three machines"),
    ):
        networks = [_expert(generator, width) for _ in range(count)]
        ids = _choices(generator, tokens, experts, top_k)
        weights = torch.rand(tokens, top_k, generator=generator) + 0.1
        cases.append(Case((_randn(generator, tokens, width), ids, weights, first, networks), note=note))
    return cases


LOCAL_PART = Exercise(
    id="6.6",
    idea="deepseekmoe",
    title="the part of one machine, when experts are spread over several",
    minutes=10,
    answer="local_part",
    reference=local_part,
    cases=_machines,
    dims="N D",
    mistakes=(
        Mistake(
            "foreign_to_zero",
            local_part__foreign_to_zero,
            "Tokens for experts of other machines are sent to your expert number 0, with their full weight. They "
            "should be left out here: their own machine adds them.",
        ),
        Mistake(
            "clamped",
            local_part__clamped,
            "Tokens for experts of other machines are sent to your first or your last expert: clamp keeps an index "
            "inside the list, and it does not make the token yours.",
        ),
        Mistake(
            "wraps round",
            _wraps_round,
            "Tokens for experts of other machines wrap round and are given to yours: an index below zero counts from "
            "the end, and so does %.",
        ),
        Mistake(
            "numbers of the whole model",
            _global_numbers,
            "You take `ids` for numbers on this machine. They number the experts of the whole model; yours begin with "
            "`first`.",
        ),
        Mistake(
            "weights normalised again",
            _share_of_the_machine,
            "The weights are normalised again among the experts of this machine. They were made for all chosen "
            "experts, wherever those are.",
        ),
        Mistake(
            "residual",
            lambda x, *more: x + local_part(x, *more),
            "You add the input itself. With several machines it would be added several times; the block adds it once.",
        ),
        Mistake(
            "only tokens that stay",
            _all_here,
            "Tokens that also chose experts of other machines are left out altogether. Your part of them is needed.",
        ),
        Mistake(
            "overwriting",
            _one_hit,
            "When a token has chosen several experts of this machine, only the last one is left. They must add up.",
        ),
    ),
    hints=(
        "It is the loop of the lesson over fewer experts. What changes is the number under which an expert is known.",
        "Expert j of this machine is expert first + j in `ids`. What happens to numbers that are none of yours?",
        "Nothing at all: a token that chose none of your experts has a row of zeros.",
    ),
    after="The sum over all machines is the whole layer. Lesson 16 sends the tokens there and back.",
)
