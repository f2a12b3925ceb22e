"""Exercise 2.1: how long a text fits into the memory."""

from __future__ import annotations

import math

from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_02.inputs import _whole


def longest_context(memory, layers, kv_heads, head_dim, texts=1):
    per_token = 2 * kv_heads * head_dim * layers * 2  # key and value; 2 bytes per number
    return int(memory // (per_token * texts))


def _memories(generator: Generator) -> list[Case]:
    def sizes() -> tuple[int, int, int]:
        return _whole(generator, 20, 90), _whole(generator, 1, 16), 8 * _whole(generator, 5, 20)

    memory = _whole(generator, 10_000_000_000, 90_000_000_000)
    return [
        Case((memory, *sizes())),
        Case((memory, *sizes()), {"texts": _whole(generator, 3, 40)}, note="several texts"),
        Case((8e10, 61, 128, 128), note="61 layers, 128 heads of width 128 and 80e9 bytes"),
        Case((_whole(generator, 100, 500), 61, 128, 128), note="memory for less than one token"),
    ]


LONGEST_CONTEXT = Exercise(
    id="2.1",
    idea="kv_cache",
    title="how long a text fits into the memory?",
    minutes=5,
    answer="longest_context",
    reference=longest_context,
    cases=_memories,
    mistakes=(
        Mistake(
            "a factor of two",
            lambda memory, layers, kv_heads, head_dim, texts=1: int(
                memory // (2 * kv_heads * head_dim * layers * texts)
            ),
            "Twice too long: a factor is missing. Each token leaves a key and a value, and each number takes 2 bytes.",
        ),
        Mistake(
            "two factors of two",
            lambda memory, layers, kv_heads, head_dim, texts=1: int(memory // (kv_heads * head_dim * layers * texts)),
            "Four times too long: two factors are missing. Each token leaves a key and a value, and each number takes "
            "2 bytes.",
        ),
        Mistake(
            "one layer",
            lambda memory, layers, kv_heads, head_dim, texts=1: int(memory // (4 * kv_heads * head_dim * texts)),
            "Every layer keeps keys and values of its own: the layers are missing.",
        ),
        Mistake(
            "one text",
            lambda memory, layers, kv_heads, head_dim, texts=1: int(memory // (4 * kv_heads * head_dim * layers)),
            "Right for one text. Several texts share the memory.",
        ),
        Mistake(
            "all texts together",
            lambda memory, layers, kv_heads, head_dim, texts=1: (
                int(memory // (4 * kv_heads * head_dim * layers)) * texts
            ),
            "With more texts each of them should get less room, not more.",
        ),
        Mistake(
            "one head",
            lambda memory, layers, kv_heads, head_dim, texts=1: int(memory // (4 * head_dim * layers * texts)),
            "Each key/value head keeps keys and values of its own: the heads are missing.",
        ),
        Mistake(
            "one number a head",
            lambda memory, layers, kv_heads, head_dim, texts=1: int(memory // (4 * kv_heads * layers * texts)),
            "A key is a vector of head_dim numbers: the width of a head is missing.",
        ),
        Mistake(
            "four bytes",
            lambda memory, layers, kv_heads, head_dim, texts=1: int(
                memory // (8 * kv_heads * head_dim * layers * texts)
            ),
            "Half as long as it should be: a factor of two too many. One key, one value, 2 bytes per number.",
        ),
        Mistake(
            "bytes of a token",
            lambda memory, layers, kv_heads, head_dim, texts=1: 4 * kv_heads * head_dim * layers,
            "That is the bytes that one token takes. How many tokens fit into the memory?",
        ),
        Mistake(
            "bits",
            lambda memory, layers, kv_heads, head_dim, texts=1: int(
                memory // (32 * kv_heads * head_dim * layers * texts)
            ),
            "Eight times too short: memory is given in bytes, and you count the cache in bits.",
        ),
        Mistake(
            "not a whole number",
            lambda memory, layers, kv_heads, head_dim, texts=1: memory / (4 * kv_heads * head_dim * layers * texts),
            "The number is right, but it is no whole number of tokens. A part of a token cannot be kept: round down.",
        ),
        Mistake(
            "rounded up",
            lambda memory, layers, kv_heads, head_dim, texts=1: math.ceil(
                memory / (4 * kv_heads * head_dim * layers * texts)
            ),
            "Rounded up, the last token does not fit any more. Round down.",
        ),
    ),
    hints=(
        "How many numbers does one token leave in one layer? The formula of the lesson says it, with G = kv_heads and "
        "K = head_dim.",
        "From there to bytes in all layers: times the layers, times 2 bytes. Then share the memory among the texts.",
        "a // b divides and rounds down; int(...) makes a whole number of 20011.0.",
    ),
    after="This is the first question of everybody who serves a model: the weights are fixed, the rest is cache.",
)
