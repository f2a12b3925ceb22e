"""Exhibits of lesson 08: the residual taken from the normalised input, and shared experts counted as routed ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3_mini.config import ModelConfig
from dsv3_mini.course.exercises.lesson_08.active import active_parameters, active_parameters__by_word
from dsv3_mini.course.exercises.lesson_08.residual_stream import run_stack, run_stack__reused_name
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.interop.names import disk_layout
from dsv3_mini.model.count import count_parameters
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

TOKENS, WIDTH, DEPTHS = 24, 96, (1, 2, 4, 8, 16, 32)


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (WIDTH,))


def _block() -> tuple[Callable[[Tensor], Tensor], ...]:
    """A fresh block: (norm, attention that averages what stood before, norm, network)."""
    mix, up, down = (torch.randn(WIDTH, WIDTH) / WIDTH**0.5 for _ in range(3))
    ago = torch.arange(1, TOKENS + 1)[:, None]
    return _norm, lambda x: (x.cumsum(0) / ago) @ mix, _norm, lambda x: F.gelu(x @ up) @ down


def fading_stream() -> Picture:
    """How much of the embedding is left in the last state, by depth, with the mistake and without."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(TOKENS, WIDTH)
        blocks = [_block() for _ in range(max(DEPTHS))]
    left: dict[str, list[float]] = {"right": [], "with the mistake": []}
    print("similarity (cosine) of the last state to the embedding, in a fresh stack")
    print(f"{'blocks':>6}" + "".join(f"{name:>20}" for name in left))
    for depth in DEPTHS:
        for name, run in zip(left, (run_stack, run_stack__reused_name), strict=True):
            state = run(x, blocks[:depth])[0]
            assert state.isfinite().all()
            left[name].append(float(F.cosine_similarity(state, x, dim=-1).mean()))
        print(f"{depth:6}" + "".join(f"{values[-1]:20.3f}" for values in left.values()))
    figure = Picture(*style.SIZE, layout="constrained")
    ax = figure.subplots()
    for (name, values), (colour, line, mark) in zip(left.items(), style.STYLES, strict=False):
        ax.plot(DEPTHS, values, color=colour, linestyle=line, marker=mark)
        style.label_line(ax, DEPTHS[2], values[2] + 0.05, name, colour)
    ax.axhline(0, color=style.GREY, linewidth=0.8)
    ax.set(xscale="log", xlabel="blocks", ylabel="similarity to the embedding", xticks=DEPTHS, ylim=(-0.1, 1))
    ax.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS])
    ax.minorticks_off()
    ax.set_title("What is left of the token at the end of the stack")
    return figure


def shared_counted_as_routed() -> None:
    """Both counts for the small model and for the real one."""
    print(f"{'':10}{'right':>16}{'with the mistake':>20}{'missing':>16}{'of a shared expert':>20}")
    for preset in ("nano", "v3-671b"):
        config = ModelConfig.preset(preset)
        with torch.device("meta"):
            state = DeepSeekV3(config).state_dict()
        shapes = {name: slot.shape for name, slot in disk_layout(state, config).items()}
        right, wrong = active_parameters(shapes, config), active_parameters__by_word(shapes, config)
        share = (right - wrong) / count_parameters(config)["shared experts"].active
        print(f"{preset:10}{right:>16,}{wrong:>20,}{right - wrong:>16,}{share:>20.1%}")


EXHIBITS = (
    Exhibit(
        id="8.A",
        title="the residual from the normalised input",
        exercise="8.2",
        mistake="reused_name",
        story=(
            "Somebody saves a name: x is normalised, the sub-layer reads x, and its answer is added to x. Norm, "
            "sub-layer, addition, in the right order. The shapes fit, and the model is causal."
        ),
        question=(
            "The stack runs with random weights, with 1 block and with more and more of them. What will you see?"
        ),
        choices={
            "a": "the numbers explode with depth",
            "b": "nothing: a norm more or less does not matter, as the next one undoes it",
            "c": "with few blocks it is nearly right; with many, nothing is left of the token that went in",
            "d": "it is wrong by the same amount at any depth",
        },
        seen="c",
        symptom=fading_stream,
        diagnosis=(
            "Every norm brings the stream back to the same size before something new is added, so what was there "
            "before shrinks again and again: by a constant factor for each sub-layer, thus to nothing. In the right "
            "stack nothing is ever scaled down. The stream grows, and each addition is a smaller share of it.",
            "How to recognise it: the last state less the embedding must be the sum of all that the sub-layers wrote. "
            "And look at a deep stack: on the way back, gradients meet the same shrinking factors.",
        ),
        caught_by="tests/model/test_parity.py::test_logits_and_mtp_logits_equal_transformers",
    ),
    Exhibit(
        id="8.B",
        title="a word inside a word",
        exercise="8.3",
        mistake="by_word",
        story=(
            'To count active parameters by names, somebody asks whether the word "experts" is in the name of a tensor '
            "and takes the share of the chosen ones."
        ),
        question="The report says 37 billion active parameters. Which number comes out for V3?",
        choices={
            "a": "exactly the right one",
            "b": "about 7 % too few: plausible enough to be believed",
            "c": "about 20 billion: only the routed experts are left",
            "d": "more than twice too many",
        },
        seen="b",
        symptom=shared_counted_as_routed,
        diagnosis=(
            "`shared_experts` contains `experts`, so the expert that works for every token is counted as if a router "
            "chose it. The result has the right order of magnitude, and a number that is rounded to billions invites "
            "nobody to look closer.",
            "How to recognise it: count the parts, not only the sum, and to the last digit. The parts must also add up "
            "to the total when everything is counted.",
        ),
        caught_by="tests/model/test_count.py::test_v3_table_by_component",
    ),
)
