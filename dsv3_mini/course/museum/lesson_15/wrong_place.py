"""Exhibit 15.B: YaRN's temperature on cos and sin, where MLA has it in the scale of the softmax."""

from __future__ import annotations

import math

import torch

from dsv3_mini.course.exercises.lesson_15.scores import scores, scores__on_cos_and_sin
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.model.long_context import extended
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.context_lab import FACTOR, TRAINED, corpus, load_models
from dsv3_mini.train.needle import Haystack, found
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

LENGTHS, DEPTHS, COUNT = (128, 256, 512, 1024), (0.0, 0.5, 1.0), 6


def on_cos_and_sin(model: DeepSeekV3) -> DeepSeekV3:
    """An extended model whose temperature multiplies cos and sin instead of the scale."""
    other = extended(load_models()[0]["before"], FACTOR, TRAINED)
    other.load_state_dict(model.state_dict())
    other.model.rotary.attention_factor = 0.1 * math.log(FACTOR) + 1
    for layer in other.main_layers:
        layer.self_attn.scale = model.cfg.qk_head_dim**-0.5
    return other


def sharpness() -> None:
    """How far scores spread, which is what decides how sharp the softmax is."""
    generator = torch.Generator().manual_seed(0)
    q_nope, k_nope = torch.randn(2, 64, 128, generator=generator)
    q_pe, k_pe = torch.randn(2, 64, 64, generator=generator)
    plain = scores(q_nope, q_pe, k_nope, k_pe, 1.0).std()
    print("Random vectors as wide as DeepSeek-V3's, s = 40: how far the scores spread, against those without YaRN")
    for name, rule in (("right", scores), ("exhibit", scores__on_cos_and_sin)):
        print(f"{name:8} {rule(q_nope, q_pe, k_nope, k_pe, 40.0).std() / plain:5.2f} times")


def fewer_needles() -> Picture:
    sharpness()
    models, tokenizer = load_models()
    right = models["phase-2"]
    haystack = Haystack(tokenizer, corpus().heldout)
    figure = Picture(*style.SIZE, layout="constrained")
    axes = figure.subplots()
    print("\nNeedles found by the model after both phases:")
    print("tokens  " + "".join(f"{length:>8}" for length in LENGTHS))
    for (name, model), (colour, line, marker) in zip(
        (("right", right), ("exhibit", on_cos_and_sin(right))), style.STYLES
    ):
        shares = []
        for length in LENGTHS:
            rows = torch.cat([haystack.cell(length, depth, COUNT)[0] for depth in DEPTHS])
            shares.append(found(model, rows).all(-1).float().mean().item())
        print(f"{name:8}" + "".join(f"{share:8.0%}" for share in shares))
        axes.plot(range(len(LENGTHS)), shares, color=colour, linestyle=line, marker=marker, label=name)
    axes.set_xticks(range(len(LENGTHS)), [f"{length:,}" for length in LENGTHS])
    axes.set(xlabel="tokens in the row", ylabel="share found", ylim=(-0.03, 1.03))
    axes.set_title("The same extended weights")
    axes.legend()
    return figure


WRONG_PLACE = Exhibit(
    id="15.B",
    title="mscale in the wrong place",
    exercise="15.3",
    mistake="on cos and sin",
    story="YaRN's paper makes attention sharper by multiplying queries and keys, and most code does that where it is "
    "cheapest: cos and sin are multiplied once, and everything that is turned by them grows.",
    question="The weights were trained with the factor on the scale of the softmax. What does this code do to them?",
    choices={
        "a": "nothing: a factor on q and k is a factor on their product",
        "b": "attention is not sharp enough, and fewer needles are found",
        "c": "attention is too sharp: every head sees one token only",
    },
    seen="b",
    symptom=fewer_needles,
    diagnosis=(
        "Where whole heads are turned, (a) would be right. In MLA a score is the sum of two parts, and only the part "
        "with position passes through cos and sin. The content part, two thirds of the width in DeepSeek-V3 and half "
        "of it in this model, keeps its old scale.",
        "So the attention is blurred again, and the two parts are out of proportion: position counts for more than it "
        "did in training. Texts still look like texts; what depends on picking out one token gets worse.",
        "The released code multiplies the scale, by the square of the factor. In configs of the Hugging Face format "
        "`mscale` and `mscale_all_dim` say which place is meant: equal values cancel on cos and sin, and leave the "
        "scale.",
    ),
    caught_by="tests/model/test_rope.py::test_softmax_scale_of_v3_before_and_after_the_extension",
)
