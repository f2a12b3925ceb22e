"""Exercise 5.3: from shares to the output of the heads.

Shapes: B batch, T new tokens, S tokens in the memory, H heads, N and R content and positional width of a key, V width
of a value, C width of the latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.compare import close
from dsv3_mini.course.exercises.lesson_05.inputs import _size

_REBUILT = "right, but with the values of the past rebuilt"


def latent_output(shares, memory, kv_b, value_dim):
    heads, latent_dim = shares.shape[1], kv_b.shape[1]
    seen = torch.einsum("bhts,bsc->bthc", shares, memory[..., :latent_dim])  # first the sum of the latents ...
    w_uv = kv_b.unflatten(0, (heads, -1))[:, -value_dim:]  # [H, V, C]
    return torch.einsum("bthc,hvc->bthv", seen, w_uv).flatten(-2)  # ... then the matrix, once: [B, T, H * V]


def latent_output__rebuilt(shares, memory, kv_b, value_dim):
    heads, latent_dim = shares.shape[1], kv_b.shape[1]
    w_uv = kv_b.unflatten(0, (heads, -1))[:, -value_dim:]
    values = torch.einsum("bsc,hvc->bshv", memory[..., :latent_dim], w_uv)  # every token of the past, every head
    return torch.einsum("bhts,bshv->bthv", shares, values).flatten(-2)


def _output(rows, columns=lambda memory, latent_dim: memory[..., :latent_dim], order="bthv"):
    """The right order of steps with other rows of kv_b (those of W^UV), columns of the memory, or order of heads."""

    def output(shares, memory, kv_b, value_dim):
        heads = shares.shape[1]
        seen = torch.einsum("bhts,bsc->bthc", shares, columns(memory, kv_b.shape[1]))
        result = torch.einsum(f"bthc,hvc->{order}", seen, rows(kv_b, heads, value_dim))
        return result.flatten(-2)

    return output


def _value_rows(kv_b, heads, value_dim):
    return kv_b.unflatten(0, (heads, -1))[:, -value_dim:]


def _key_rows(kv_b, heads, value_dim):
    return kv_b.unflatten(0, (heads, -1))[:, :value_dim]


def _last_rows(kv_b, heads, value_dim):
    return kv_b[-heads * value_dim :].unflatten(0, (heads, value_dim))


def _output_cases(generator: torch.Generator) -> Sequence[Case]:
    B, T, H, V = _size(generator, 3, 4), 2, _size(generator, 5, 6), _size(generator, 11, 13)
    N, R, S, C = _size(generator, 14, 16), 8, _size(generator, 30, 40), _size(generator, 17, 23)
    shares = torch.randn(B, H, T, S, generator=generator).softmax(-1)
    memory = torch.randn(B, S, C + R, generator=generator)
    kv_b = torch.randn(H * (N + V), C, generator=generator)
    one = Case((torch.ones(B, H, 1, 1), memory[:, :1], kv_b, V), note="one token that sees itself")
    return Case((shares, memory, kv_b, V)), one


class _Products(TorchDispatchMode):
    """Counts the multiplications in matrix products. (torch's own counter takes seconds to start.)"""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            self.count += args[0].numel() * args[1].shape[-1]  # [.., a, b] @ [.., b, c]
        return func(*args, **(kwargs or {}))


def _output_and_its_price(answer: Any, case: Case) -> Any:
    """The answer's result; in its place a word when it is right but took far more products than it needs."""
    with _Products() as spent:
        result = answer(*case.args)
    with _Products() as needed:
        right = latent_output(*case.args)
    long_past = case.args[1].shape[1] > 1  # with a single token both orders cost the same
    if long_past and spent.count > 1.5 * needed.count and close(result, right):
        return _REBUILT
    return result


LATENT_OUTPUT = Exercise(
    id="5.3",
    idea="mla",
    title="from shares to the output of the heads",
    minutes=8,
    answer="latent_output",
    reference=latent_output,
    cases=_output_cases,
    use=_output_and_its_price,
    dims="B T H*V",
    mistakes=(
        Mistake(
            "rebuilt",
            latent_output__rebuilt,
            "The numbers are right, the order is not: the values of every token of the past were rebuilt before the "
            "sum (the products were counted). Which of the two steps can wait until after it?",
        ),
        Mistake(
            "key rows",
            _output(_key_rows),
            "You multiplied with rows of W^UK. Within a head the rows of the value come last.",
        ),
        Mistake(
            "cut once",
            _output(_last_rows),
            "You took the last rows of the whole matrix. The rows lie head by head, so each head has its own last "
            "rows.",
        ),
        Mistake(
            "last columns",
            _output(_value_rows, columns=lambda memory, latent_dim: memory[..., -latent_dim:]),
            "You summed the last columns of the memory, positional key included. The latent comes first.",
        ),
        Mistake(
            "heads inside",
            _output(_value_rows, order="btvh"),
            "The heads are interleaved in the result: o_proj expects all of head 0, then all of head 1. Check the "
            "order of the last two dimensions before you flatten them.",
        ),
        Mistake(
            "heads apart",
            lambda *inputs: latent_output(*inputs).unflatten(-1, (inputs[0].shape[1], -1)),
            "The numbers are right. The heads still have to be put side by side, [B, T, H * V], as o_proj wants them.",
        ),
    ),
    hints=(
        "The output is a sum of W^UV c_j, weighted with the shares. What does linearity allow you to do first?",
        "First the weighted sum of latents, for each head: [B, T, H, C]. Only the first C columns of the memory.",
        "Then each head's W^UV, [V, C], takes its sum to V numbers. It is the last V rows of the head in kv_b_proj.",
    ),
    after="That is the whole of it: with these three functions a model decodes in the latent.",
)
