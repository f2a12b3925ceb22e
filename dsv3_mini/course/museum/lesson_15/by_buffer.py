"""Exhibit 15.A: YaRN switched on by the length of a buffer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3_mini.course.exercises.lesson_15.speeds_in_use import speeds_in_use, speeds_in_use__by_buffer
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.model.long_context import extended
from dsv3_mini.model.rope import rope_frequencies, softmax_scale
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.context_lab import FACTOR, TRAINED, corpus, load_models
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

BUFFERS = (128, 256, 512, 1024, 4096)
TOKENS = 100  # of the text: it fits into every buffer


def loss_of_a_text(model: DeepSeekV3, tokens: Tensor) -> float:
    """Mean loss over tokens [B, T]: the same text whatever the buffer."""
    with torch.inference_mode():
        logits = model.lm_head(model.hidden_states(tokens[:, :-1]))
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()


def with_positions(model: DeepSeekV3, speeds: Tensor, extended: bool) -> DeepSeekV3:
    """`model` with these speeds, and with the scale that goes with them."""
    yarn = model.cfg.with_yarn(FACTOR, TRAINED)
    model.model.rotary.frequencies = speeds
    for layer in model.main_layers:
        layer.self_attn.scale = softmax_scale(yarn if extended else model.cfg.replace(rope_scaling=None))
    return model


def same_text_other_buffer() -> Picture:
    models, tokenizer = load_models()
    documents = [document.text for document in corpus().heldout if document.domain == "code"][:8]
    rows = [tokenizer.encode(text)[: TOKENS + 1] for text in documents]
    tokens = torch.tensor([row for row in rows if len(row) == TOKENS + 1])
    original = models["before"].cfg  # never extended: its weights know plain positions only
    plain, slowed = rope_frequencies(original), rope_frequencies(original.with_yarn(FACTOR, TRAINED))
    figure = Picture(*style.SIZE, layout="constrained")
    axes = figure.subplots()
    print(f"A model that was trained with {TRAINED} tokens and never extended reads texts of {TOKENS} tokens.")
    print("buffer      " + "".join(f"{buffer:>8}" for buffer in BUFFERS))
    for (name, rule), (colour, line, marker) in zip(
        (("right", speeds_in_use), ("exhibit", speeds_in_use__by_buffer)), style.STYLES
    ):
        losses = []
        for buffer in BUFFERS:
            speeds = rule(plain, slowed, TRAINED, buffer, False)
            model = extended_or_not(models["before"])
            losses.append(loss_of_a_text(with_positions(model, speeds, speeds is slowed), tokens))
        print(f"{name:8} loss" + "".join(f"{loss:8.3f}" for loss in losses))
        axes.plot(range(len(BUFFERS)), losses, color=colour, linestyle=line, marker=marker, label=name)
    axes.set_xticks(range(len(BUFFERS)), [f"{buffer:,}" for buffer in BUFFERS])
    axes.set(xlabel="positions that somebody allocated", ylabel=f"loss on texts of {TOKENS} tokens")
    axes.set_title("The same weights, the same texts")
    axes.legend()
    return figure


def extended_or_not(model: DeepSeekV3) -> DeepSeekV3:
    """Another model around the same weights, to be changed without changing `model`."""
    return extended(model, 1.0, TRAINED)


BY_BUFFER = Exhibit(
    id="15.A",
    title="YaRN switched on by buffer length",
    exercise="15.4",
    mistake="by the length of the buffer",
    story="The angles of all positions are computed once, into a table as long as the longest text that is to be "
    "served. A table longer than the original context means that somebody wants long texts, so this is where YaRN is "
    "switched on.",
    question="A model was trained with short texts and never extended. Somebody serves it with a longer table, to be "
    "on the safe side, and gives it a short text. What happens?",
    choices={
        "a": "nothing: the text is short, and its angles are the same",
        "b": "the same short text gets other angles, and a higher loss",
        "c": "an error: the table does not fit the weights",
        "d": "a lower loss: YaRN is an improvement",
    },
    seen="b",
    symptom=same_text_other_buffer,
    diagnosis=(
        "A setting about memory decides about the mathematics. The first two columns agree with the right code; from "
        "the first buffer beyond the original length on, every position has another angle and every score another "
        "scale.",
        "The other direction is as bad: extended weights, served with a short table to save memory, fall back to the "
        "angles from before the extension. Either way nothing fails, and a test with one fixed length never sees it.",
        "The released code decides like this, and it is right there, because its weights are extended and its table is "
        "long. Whoever takes over the code with another table takes over the trap. Here YaRN is a field of the config, "
        "and the config goes with the weights.",
    ),
    caught_by="tests/model/test_rope.py::test_yarn_is_not_switched_on_by_the_length_of_the_context",
)
