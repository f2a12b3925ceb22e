"""Exercise 0.1: from the loss that training prints to bits per byte."""

from __future__ import annotations

import math

import torch

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_00.inputs import _between


def to_bits_per_byte(loss, tokens, text_bytes):
    bits = loss * tokens / math.log(2)  # of the whole text
    return bits / text_bytes


def to_bits_per_byte__per_token(loss, tokens, text_bytes):
    return loss / math.log(2)


def to_bits_per_byte__in_nats(loss, tokens, text_bytes):
    return loss * tokens / text_bytes


def to_bits_per_byte__times_ln2(loss, tokens, text_bytes):
    return loss * tokens * math.log(2) / text_bytes


def to_bits_per_byte__upside_down(loss, tokens, text_bytes):
    return loss / math.log(2) * text_bytes / tokens


def to_bits_per_byte__one_token(loss, tokens, text_bytes):
    return loss / math.log(2) / text_bytes


def to_bits_per_byte__whole_text(loss, tokens, text_bytes):
    return loss * tokens / math.log(2)


def to_bits_per_byte__log_of_the_loss(loss, tokens, text_bytes):
    return math.log2(loss) * tokens / text_bytes


def _texts(generator: torch.Generator) -> list[Case]:
    loss = 0.5 + 4 * float(torch.rand((), generator=generator))
    tokens = _between(20, 500, generator)
    return [
        Case((loss, tokens, tokens * 3 + _between(1, 90, generator))),
        Case((loss, 1, _between(2, 9, generator)), note="a text of one token"),
    ]


BITS_PER_BYTE = Exercise(
    id="0.1",
    idea="pretraining",
    title="From the loss that training prints to bits per byte",
    minutes=3,
    answer="to_bits_per_byte",
    reference=to_bits_per_byte,
    cases=_texts,
    mistakes=(
        Mistake(
            "per_token", to_bits_per_byte__per_token, "That is bits per token. How many tokens are there in a byte?"
        ),
        Mistake("in_nats", to_bits_per_byte__in_nats, "That is nats per byte. One nat is 1 / ln 2 bits."),
        Mistake(
            "times_ln2",
            to_bits_per_byte__times_ln2,
            "The change from nats to bits goes the wrong way: a nat is more than a bit, so there are more bits.",
        ),
        Mistake(
            "upside_down",
            to_bits_per_byte__upside_down,
            "Tokens and bytes have changed places. Longer texts in fewer tokens must give fewer bits per byte.",
        ),
        Mistake(
            "one_token",
            to_bits_per_byte__one_token,
            "The loss is that of one token on average, and you spread it over all bytes. The text has more tokens.",
        ),
        Mistake(
            "whole_text",
            to_bits_per_byte__whole_text,
            "That is the bits of the whole text. How many fall on one byte?",
        ),
        Mistake(
            "log_of_the_loss",
            to_bits_per_byte__log_of_the_loss,
            "You took a logarithm of the loss. The loss is a logarithm already; only its unit is to change.",
        ),
    ),
    hints=(
        "First the whole text: what does the model pay for all of its tokens together, in nats?",
        "Then the unit: one nat is 1 / ln 2 bits, about 1.44. In Python, ln 2 is math.log(2).",
        "Last, share the bits of the whole text among its bytes.",
    ),
    after="Bits per byte compares models whose tokenizers differ: bytes are the same for all of them.",
)
