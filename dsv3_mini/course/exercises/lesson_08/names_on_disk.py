"""Exercise 8.4: from stacked experts to the names on disk.

Shapes: E experts, D model width, F width of an expert.
"""

from __future__ import annotations

from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_08.inputs import _randn, _whole


def split_experts(gate_up, down, layer):
    tensors, width = {}, gate_up.shape[1] // 2
    for expert in range(len(gate_up)):
        name = f"model.layers.{layer}.mlp.experts.{expert}"
        tensors[f"{name}.gate_proj.weight"] = gate_up[expert, :width]
        tensors[f"{name}.up_proj.weight"] = gate_up[expert, width:]
        tensors[f"{name}.down_proj.weight"] = down[expert]
    return tensors


def _split(gate=lambda stack, w: stack[:w], up=lambda stack, w: stack[w:], down=lambda d: d, name=lambda n: n, first=0):
    """The split above with one of its parts changed."""

    def wrong(gate_up, down_stack, layer):
        tensors, width = {}, gate_up.shape[1] // 2
        for expert in range(len(gate_up)):
            prefix = f"model.layers.{layer}.mlp.experts.{expert + first}"
            tensors[name(f"{prefix}.gate_proj.weight")] = gate(gate_up[expert], width)
            tensors[name(f"{prefix}.up_proj.weight")] = up(gate_up[expert], width)
            tensors[name(f"{prefix}.down_proj.weight")] = down(down_stack[expert])
        return tensors

    return wrong


def _stacked(generator: Generator) -> list[Case]:
    experts, width, inner = _whole(generator, 3, 5), _whole(generator, 12, 15), _whole(generator, 6, 9)
    layer = _whole(generator, 3, 60)
    return [
        Case((_randn(generator, experts, 2 * inner, width), _randn(generator, experts, width, inner), layer)),
        Case((_randn(generator, 1, 2, 5), _randn(generator, 1, 5, 1), 7), note="one expert of width 1"),
    ]


SPLIT_EXPERTS = Exercise(
    id="8.4",
    idea="deepseekmoe",
    title="from stacked experts to the names on disk",
    minutes=5,
    answer="split_experts",
    reference=split_experts,
    cases=_stacked,
    mistakes=(
        Mistake(
            "gate and up swapped",
            _split(gate=lambda s, w: s[w:], up=lambda s, w: s[:w]),
            "gate_proj and up_proj are swapped: in the stack the gate rows come first. The shapes fit either way, and "
            "the model would load without a word.",
        ),
        Mistake(
            "every other row",
            _split(gate=lambda s, w: s[::2], up=lambda s, w: s[1::2]),
            "You take the rows of gate and up in turns. They lie in two blocks, one above the other.",
        ),
        Mistake(
            "transposed",
            _split(gate=lambda s, w: s[:w].T, up=lambda s, w: s[w:].T, down=lambda d: d.T),
            "The matrices are transposed. A weight has a row for each output, in the stack and on disk.",
        ),
        Mistake(
            "down transposed",
            _split(down=lambda d: d.T),
            "down_proj is transposed. It stands in the stack as it does on disk, [D, F].",
        ),
        Mistake(
            "no .weight",
            _split(name=lambda n: n.removesuffix(".weight")),
            "The names lack their end: a tensor is called ....gate_proj.weight.",
        ),
        Mistake(
            "no model.",
            _split(name=lambda n: n.removeprefix("model.")),
            "The names lack their beginning: all but the head are under model.",
        ),
        Mistake("counted from one", _split(first=1), "Experts are counted from 0: the first one is ...experts.0...."),
        Mistake(
            "halves along the width",
            _split(gate=lambda s, w: s[:, : s.shape[1] // 2], up=lambda s, w: s[:, s.shape[1] // 2 :]),
            "You cut the stack along D. Gate and up are blocks of rows: cut along 2F.",
        ),
    ),
    hints=(
        "An expert e has three names: model.layers.{layer}.mlp.experts.{e}. with gate_proj.weight, up_proj.weight and "
        "down_proj.weight behind it.",
        "gate_up[e] has the shape [2F, D]: its first F rows are the gate.",
    ),
    after="The other way round is what the lesson did to load the folder.",
)
