"""Exercise 2.2: hand each query head its key/value head.

Shapes: B rows, S slots of the cache, H query heads, G key/value heads, K width of a head.
"""

from __future__ import annotations

from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_02.inputs import _randn, _whole


def expand_groups(k, heads):
    B, G, S, K = k.shape
    shared_by = heads // G
    k = k[:, :, None].expand(B, G, shared_by, S, K)  # no copy yet
    return k.reshape(B, heads, S, K)


def _groups(generator: Generator) -> list[Case]:
    B, S, K = 2, _whole(generator, 7, 9), _whole(generator, 10, 12)
    return [
        Case((_randn(generator, B, 3, S, K), 3 * _whole(generator, 2, 4)), note="three groups"),
        Case((_randn(generator, B, 1, S, K), 5), note="one group (MQA)"),
        Case((_randn(generator, B, 4, S, K), 4), note="as many groups as heads (MHA)"),
        Case((_randn(generator, 1, 2, 1, K), 8), note="one slot"),
    ]


EXPAND_GROUPS = Exercise(
    id="2.2",
    idea="kv_cache",
    title="hand each query head its key/value head",
    minutes=5,
    answer="expand_groups",
    reference=expand_groups,
    cases=_groups,
    dims="B heads S K",
    mistakes=(
        Mistake(
            "groups take turns",
            lambda k, heads: k.repeat(1, heads // k.shape[1], 1, 1),
            "The groups alternate: heads 0, 1, 2, ... read groups 0, 1, 2, 0, 1, 2, ... as with `repeat`. Neighbours "
            "should share.",
        ),
        Mistake(
            "tokens repeated",
            lambda k, heads: k.repeat_interleave(heads // k.shape[1], dim=2).reshape(
                k.shape[0], heads, k.shape[2], k.shape[3]
            ),
            "Each token stands several times in a row inside a head, and the later tokens of the group are in the next "
            "head. Every head should have all slots, each of them once.",
        ),
        Mistake(
            "all read the first group",
            lambda k, heads: k[:, :1].expand(-1, heads, -1, -1),
            "All heads read group 0.",
        ),
        Mistake(
            "groups in reverse order",
            lambda k, heads: expand_groups(k, heads).flip(1),
            "The groups stand in reverse order: head 0 should read group 0.",
        ),
        Mistake(
            "heads as they are",
            lambda k, heads: k,
            "There are still only G heads: each one should stand there heads / G times.",
        ),
    ),
    hints=(
        "Each group should stand heads / G times in a row before the next one comes.",
        "Make a new axis behind G, of size heads / G, and join the two. Which of both must come first so that "
        "neighbours share?",
        "k[:, :, None] has the shape [B, G, 1, S, K]; expand makes the 1 larger without copying; reshape joins G and "
        "the new axis.",
    ),
    after="repeat_interleave does the same. That repeat gives the same shape makes it one of the quiet bugs.",
)
