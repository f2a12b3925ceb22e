"""Exercise 8.2: the residual stream through a stack of layers.

Shapes: T tokens, D model width.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_08.inputs import _randn, _whole


def run_stack(x, layers):
    written = []
    for norm_1, attention, norm_2, ffn in layers:
        written.append(attention(norm_1(x)))
        x = x + written[-1]
        written.append(ffn(norm_2(x)))
        x = x + written[-1]
    return x, torch.stack(written)


def run_stack__reused_name(x, layers):
    written = []
    for norm_1, attention, norm_2, ffn in layers:
        x = norm_1(x)
        written.append(attention(x))
        x = x + written[-1]
        x = norm_2(x)
        written.append(ffn(x))
        x = x + written[-1]
    return x, torch.stack(written)


def _stack(step_1, step_2, keep=lambda x, wrote: wrote):
    """A stack from two steps: step(x, start of the block, norm, sub-layer, other norm) -> (x, what was written)."""

    def wrong(x, layers):
        written = []
        for norm_1, attention, norm_2, ffn in layers:
            start = x
            x, wrote = step_1(x, start, norm_1, attention, norm_2)
            written.append(keep(x, wrote))
            x, wrote = step_2(x, start, norm_2, ffn, norm_1)
            written.append(keep(x, wrote))
        return x, torch.stack(written)

    return wrong


def _add(x: Tensor, wrote: Tensor) -> tuple[Tensor, Tensor]:
    return x + wrote, wrote


def _right(x, start, norm, layer, other):
    return _add(x, layer(norm(x)))


def _post(x, start, norm, layer, other):
    wrote = layer(x)
    return norm(x + wrote), wrote


def _without_norm(x, start, norm, layer, other):
    return _add(x, layer(x))


def _from_start(x, start, norm, layer, other):
    return _add(x, layer(norm(start)))


def _other_norm(x, start, norm, layer, other):
    return _add(x, layer(other(x)))


def _no_residual(x, start, norm, layer, other):
    wrote = layer(norm(x))
    return wrote, wrote


def _norm_behind(x, start, norm, layer, other):
    return _add(x, norm(layer(x)))


def _residual_from_start(x, start, norm, layer, other):
    wrote = layer(norm(x))
    return start + wrote, wrote


def _network_first(x, layers):
    return run_stack(x, [(norm_2, ffn, norm_1, attention) for norm_1, attention, norm_2, ffn in layers])


def _norm(generator: Generator, width: int):
    weight = 1 + 0.3 * _randn(generator, width)
    return lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def _mixer(generator: Generator, width: int):
    """Stands for attention: every token gets the mean of those up to itself, through a matrix."""
    weight = _randn(generator, width, width) / width**0.5
    return lambda x: (x.cumsum(0) / torch.arange(1, len(x) + 1)[:, None]) @ weight


def _network(generator: Generator, width: int):
    weight = _randn(generator, width, width) / width**0.5
    return lambda x: torch.tanh(x @ weight) + 0.1 * x


def _stacks(generator: Generator) -> list[Case]:
    cases = []
    for tokens, count, note in ((_whole(generator, 5, 8), _whole(generator, 2, 4), ""), (1, 1, "one token, one layer")):
        width = _whole(generator, 9, 12)
        layers = [
            (
                _norm(generator, width), _mixer(generator, width), _norm(generator, width), _network(generator, width)
            )
            for _ in range(count)
        ]  # fmt: skip
        cases.append(Case((2 * _randn(generator, tokens, width), layers), note=note))
    return cases


RUN_STACK = Exercise(
    id="8.2",
    idea="transformer_block",
    title="the residual stream, and what each sub-layer writes into it",
    minutes=10,
    answer="run_stack",
    reference=run_stack,
    cases=_stacks,
    dims=("T D", "2L T D"),
    mistakes=(
        Mistake(
            "reused_name",
            run_stack__reused_name,
            "The residual comes from the normalised input: x is overwritten by its norm before the addition. The norm "
            "is for the sub-layer only; the stream itself is never normalised on the way.",
        ),
        Mistake(
            "post-norm",
            _stack(_post, _post),
            "The norm stands behind the addition (post-norm). Here it stands in front of each sub-layer, and the "
            "stream goes on without it.",
        ),
        Mistake(
            "norm behind the sub-layer",
            _stack(_norm_behind, _norm_behind),
            "You normalise what a sub-layer says. The norm is for what it reads.",
        ),
        Mistake("no norms", _stack(_without_norm, _without_norm), "The norms are not used."),
        Mistake(
            "Eq. 12 as printed",
            _stack(_right, _without_norm),
            "The second sub-layer reads the stream without its norm: Eq. 12 as printed. Figure 2 and the released code "
            "have a norm there, too.",
        ),
        Mistake(
            "side by side",
            _stack(_right, _from_start),
            "Both sub-layers read the input of the block. The second one should read the stream after the first has "
            "written into it.",
        ),
        Mistake(
            "first norm twice",
            _stack(_right, _other_norm),
            "The first norm is used twice. Each sub-layer has its own.",
        ),
        Mistake(
            "no residual",
            _stack(_no_residual, _no_residual),
            "A sub-layer replaces the stream. It should be added to it.",
        ),
        Mistake(
            "one residual",
            _stack(_no_residual, lambda x, start, *parts: _residual_from_start(x, start, *parts)),
            "There is one residual around both sub-layers together. Each has its own.",
        ),
        Mistake(
            "second residual from the start",
            _stack(_right, _residual_from_start),
            "The second residual starts from the input of the block, so that what attention wrote is lost. Add to the "
            "stream as it is.",
        ),
        Mistake(
            "network first",
            _network_first,
            "The network runs before attention. In a block attention comes first.",
        ),
        Mistake(
            "stream instead of writing",
            _stack(_right, _right, keep=lambda x, wrote: x),
            "The stream at the end is right. The second part should hold what each sub-layer adds; you kept the stream "
            "after each addition.",
        ),
    ),
    hints=(
        "Every sub-layer does the same: read the normalised stream, say something, add it to the stream.",
        "Keep two names apart: the stream, and its normalised copy that a sub-layer reads.",
        "Collect what attention and ffn return, in the order of the calls, and stack it at the end.",
    ),
    after="So the last state is x plus all that was written: (stream - x) equals written.sum(0).",
)
