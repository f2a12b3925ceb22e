"""Exercise 9.2: the two halves that the module is made of, in the order that released weights expect.

Shapes: B texts, T positions, D model width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_09.inputs import whole


def rms_norm(x, weight, eps=1e-6):
    """x [..., D], weight [D] -> [..., D]: every vector to the size 1, then channel by channel times its weight."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def join(embedded, state, e_weight, h_weight, eh_proj):
    halves = (rms_norm(embedded, e_weight), rms_norm(state, h_weight))  # e, then h, as in the name
    return torch.cat(halves, dim=-1) @ eh_proj.T


def join__as_printed(embedded, state, e_weight, h_weight, eh_proj):
    halves = (rms_norm(state, h_weight), rms_norm(embedded, e_weight))  # Eq. 21
    return torch.cat(halves, dim=-1) @ eh_proj.T


def _with(order="eh", e_norm="e", h_norm="h"):
    """`join` with the halves in another order, or another norm: "e", "h" (whose weight), "" (none)."""

    def wrong(embedded, state, e_weight, h_weight, eh_proj):
        weights = {"e": e_weight, "h": h_weight, "1": torch.ones_like(e_weight)}
        halves = {
            "e": rms_norm(embedded, weights[e_norm]) if e_norm else embedded,
            "h": rms_norm(state, weights[h_norm]) if h_norm else state,
        }
        return torch.cat([halves[half] for half in order], dim=-1) @ eh_proj.T

    return wrong


def _one_norm(embedded, state, e_weight, h_weight, eh_proj):
    return rms_norm(torch.cat((embedded, state), dim=-1), torch.cat((e_weight, h_weight))) @ eh_proj.T


def _weights_only(embedded, state, e_weight, h_weight, eh_proj):
    return torch.cat((embedded * e_weight, state * h_weight), dim=-1) @ eh_proj.T


def _not_transposed(embedded, state, e_weight, h_weight, eh_proj):
    halves = (rms_norm(embedded, e_weight), rms_norm(state, h_weight))
    return torch.cat(halves, dim=-1) @ eh_proj.reshape(eh_proj.shape[1], -1)


def _not_projected(embedded, state, e_weight, h_weight, eh_proj):
    return torch.cat((rms_norm(embedded, e_weight), rms_norm(state, h_weight)), dim=-1)


def _layer_norm(embedded, state, e_weight, h_weight, eh_proj):
    halves = (F.layer_norm(embedded, e_weight.shape, e_weight), F.layer_norm(state, h_weight.shape, h_weight))
    return torch.cat(halves, dim=-1) @ eh_proj.T


def _normalised_late(embedded, state, e_weight, h_weight, eh_proj):
    return rms_norm(torch.cat((embedded, state), dim=-1) @ eh_proj.T, h_weight)


def _along_positions(embedded, state, e_weight, h_weight, eh_proj):
    return torch.cat((rms_norm(embedded, e_weight), rms_norm(state, h_weight)), dim=1) @ eh_proj.T


def _added(embedded, state, e_weight, h_weight, eh_proj):
    both = rms_norm(embedded, e_weight) + rms_norm(state, h_weight)
    return torch.cat((both, both), dim=-1) @ eh_proj.T


def _halves(generator: Generator) -> list[Case]:
    cases = []
    for positions, note in ((whole(generator, 3, 6), ""), (1, "one position")):
        texts, width = whole(generator, 2, 4), whole(generator, 5, 9)
        embedded = 0.1 * torch.randn(texts, positions, width, generator=generator)
        state = 3 * torch.randn(texts, positions, width, generator=generator)
        e_weight, h_weight = 0.5 + torch.rand(2, width, generator=generator)
        eh_proj = torch.randn(width, 2 * width, generator=generator) / width
        cases.append(Case((embedded, state, e_weight, h_weight, eh_proj), note=note))
    return cases


JOINING = Exercise(
    id="9.2",
    idea="mtp",
    title="join embedding and state as the released weights need it",
    minutes=8,
    answer="join",
    reference=join,
    cases=_halves,
    dims="B T D",
    mistakes=(
        Mistake(
            "order of the report",
            join__as_printed,
            "The state stands first, as Eq. 21 prints it. In the released matrix the first D columns belong to the "
            "other half; the name eh_proj says so.",
        ),
        Mistake(
            "no norms",
            _with(e_norm="", h_norm=""),
            "Neither half goes through its norm, so the projection meets both at whatever size they happen to have.",
        ),
        Mistake("embedding not normalised", _with(e_norm=""), "The embedding does not go through its norm."),
        Mistake("state not normalised", _with(h_norm=""), "The state does not go through its norm."),
        Mistake(
            "norms swapped",
            _with(e_norm="h", h_norm="e"),
            "The order is right, but each half has been given the other one's norm.",
        ),
        Mistake(
            "order and norms swapped",
            _with(order="he", e_norm="h", h_norm="e"),
            "The state stands first, and each half has been given the other one's norm.",
        ),
        Mistake(
            "norms without weights",
            _with(e_norm="1", h_norm="1"),
            "Both halves are brought to size 1, and the weights of the two norms are not used.",
        ),
        Mistake(
            "one norm over both",
            _one_norm,
            "You joined first and normalised once over both halves, so the larger one decides the size of both. Each "
            "half has a norm of its own.",
        ),
        Mistake(
            "weights without norms",
            _weights_only,
            "You multiply by the weights of the norms, but nothing is divided by its size.",
        ),
        Mistake(
            "the state twice over",
            _with(order="hh"),
            "Both halves are the state: the embedding does not come in at all.",
        ),
        Mistake(
            "the embedding twice over",
            _with(order="ee"),
            "Both halves are the embedding: the state does not come in at all.",
        ),
        Mistake(
            "layer norm",
            _layer_norm,
            "The mean is taken out of each half, as a LayerNorm does. An RMSNorm only divides by the size.",
        ),
        Mistake(
            "normalised late",
            _normalised_late,
            "The norm comes behind the projection. It is the two halves that are normalised, before they meet.",
        ),
        Mistake(
            "joined along the positions",
            _along_positions,
            "You put the embeddings behind the states as further positions. Each position joins its own two vectors.",
        ),
        Mistake(
            "added",
            _added,
            "You added the two. Each has its own half of the columns: they are put next to each other.",
        ),
        Mistake(
            "not projected",
            _not_projected,
            "The joined vector is right and has 2 D numbers. The projection back to D is missing.",
        ),
        Mistake(
            "reshaped instead of transposed",
            _not_transposed,
            "The shapes fit because the matrix was reshaped. Rows of a weight are outputs: it has to be transposed.",
        ),
    ),
    hints=(
        "Eq. 21 has all that you need, but for the order: two norms, one joined vector, one matrix.",
        "The e of `eh_proj` is the embedding, the h the state. In this order they meet the columns of the matrix.",
        "`torch.cat((first, second), dim=-1)` makes [B, T, 2 D] of the two normalised halves; a weight [D, 2 D] is "
        "applied with `@ weight.T`.",
    ),
    after="With weights of your own either order works; with weights of others only theirs does.",
)
