"""Exercise 5.5: how many queries at once make expanding the cheaper way."""

from __future__ import annotations

from dsv3_mini.config import ModelConfig
from dsv3_mini.course.checking import Exercise, Mistake
from dsv3_mini.model.decode_cost import decode_cost

_V3 = ModelConfig.preset("v3-671b")
_PAST = 131_072


def _break_even() -> int:
    """The fewest queries at once for which rebuilding the past takes fewer operations than absorbing."""
    queries = 1
    while (
        decode_cost(_V3, "expanded", _PAST, new=queries).flops >= decode_cost(_V3, "absorbed", _PAST, new=queries).flops
    ):
        queries += 1
    return queries


_BREAK_EVEN_CODE = """\
def expanding_wins(queries, past=131_072):
    expanded = decode_cost(v3, "expanded", past, new=queries).flops
    return expanded < decode_cost(v3, "absorbed", past, new=queries).flops


break_even = next(queries for queries in range(1, 131_072) if expanding_wins(queries))
"""


BREAK_EVEN = Exercise(
    id="5.5",
    idea="kv_cache",
    title="when expanding wins",
    minutes=8,
    answer="break_even",
    reference=_BREAK_EVEN_CODE,
    value=_break_even(),
    mistakes=(
        Mistake(
            "one too few",
            _break_even() - 1,
            "With that many queries expanding still takes a few more operations: one more.",
        ),
        Mistake(
            "ratio for one query",
            120,
            "That is how many times more operations expanding takes for a single query. With more queries the cost "
            "of rebuilding is shared, and each pair of a query and a token has its price in both ways.",
        ),
        Mistake(
            "ratio for one query, rounded up",
            121,
            "That is how many times more operations expanding takes for a single query. With more queries the cost "
            "of rebuilding is shared, and each pair of a query and a token has its price in both ways.",
        ),
        Mistake(
            "rebuilding against pairs",
            410,
            "That is where rebuilding the past costs as much as the scores and sums of the *expanded* path. Compare "
            "with the absorbed path, whose pairs cost more.",
        ),
        Mistake(
            "as many as there are tokens",
            _PAST,
            "That would be the whole prefill. Expanding is ahead long before: try smaller numbers.",
        ),
    ),
    hints=(
        "decode_cost takes the number of new tokens as new=..., and gives .flops. Compare the two ways for some "
        "numbers.",
        "For one new token absorbed is far ahead, for a thousand it is behind. Search in between.",
        "On paper: rebuilding costs S C (N + V) per head, and each of Q queries saves S (2C + R) - S (N + R + V) "
        "by it (what is absorbed once for each query hardly counts).",
    ),
    after="A prefill is far beyond it; a step that checks one or two drafted tokens (lesson 12) is far below.",
)
