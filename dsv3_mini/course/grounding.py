"""Four metrics by which a page of summaries grades itself, rebuilt from its definitions, and what they do not see.

Source Richness, Source Depth, Number Grounding, Quote Traceability: `data/claims.json` holds the definitions and the
values that the page shows. All four look at the source text that the writing model was given. None looks at meaning:
the sentences of `FALSE_STATISTICS` and `FALSE_PASSAGES` are false, each for the reason beside it, and get full marks.

Definitions in one sentence leave things open. Where they do, the docstring says what, and the function has an
argument or takes the reading that is kindest to the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

OVERLAP = 0.35  # of the significant words, for a passage to count as traceable

# The page does not print its list; these are the commonest English words of four letters and more.
STOP_WORDS = frozenset(
    "about after also among been before being between both could does doing down during each even every "
    "from further have having here hers into itself just like many more most much myself only onto other "
    "ours over same shall should since some such than that their theirs them then there these they this "
    "those through thus under until upon very were what when where which while whom whose will with "
    "within without would your yours".split()
)

# Ours. It states the same numbers as the abstract of the report: 3, 671, 37, 2, 14.8, 2.788, 800.
SOURCE = (
    "DeepSeek-V3 is a language model built from a mixture of experts. It has 671B parameters in total, and 37B of "
    "them are active for each token. Multi-head latent attention makes inference efficient, and DeepSeekMoE makes "
    "training economical; both had proved themselves in DeepSeek-V2. Experts are balanced without an auxiliary "
    "loss, and multi-token prediction is a further objective of the training. Pre-training reads 14.8 trillion "
    "tokens; supervised fine-tuning and reinforcement learning follow. The whole training takes 2.788M hours of "
    "H800 GPUs, with no loss spike that could not be recovered, and no rollback."
)

# Every one of these is false. Number Grounding gives 4 of 4 ...
FALSE_STATISTICS = {
    "37B parameters in total": "37B are active; the total is 671B",
    "671B active for each token": "671B is the total; 37B are active",
    "2.788 trillion tokens read": "2.788 million are the GPU hours; the tokens are 14.8 trillion",
    "14.8M hours of GPUs": "14.8 trillion are the tokens; the GPU hours are 2.788 million",
}
# ... and Quote Traceability 4 of 4.
FALSE_PASSAGES = {
    (
        "Multi-token prediction makes inference efficient by a small cache, "
        "and multi-head latent attention is a further objective of the training."
    ): "MLA and MTP are swapped",
    (
        "The language model has 37B parameters in total, and 671B of them are active for each token."
    ): "the two numbers are swapped",
    (
        "Supervised fine-tuning reads 14.8 trillion tokens; pre-training and reinforcement learning follow."
    ): "pre-training reads them, and comes first",
    (
        "Experts are balanced by an auxiliary loss, which could not be recovered after a loss spike."
    ): "there is no such loss, and no such spike",
}


@dataclass(frozen=True)
class Score:
    """How many of the items pass, and which: `passed[item]`."""

    passed: dict[str, bool]

    def __str__(self) -> str:
        return f"{sum(self.passed.values())} / {len(self.passed)}"

    @property
    def share(self) -> float:
        """Between 0 and 1; 0 when there was nothing to score."""
        return sum(self.passed.values()) / len(self.passed) if self.passed else 0.0


def source_richness(fields: Mapping[str, object]) -> Score:
    """The share of content fields that are filled in.

    Open: what counts as filled in. Here: anything but nothing, an empty collection, or a text of white space. A field
    filled with nonsense counts as much as any.
    """
    return Score({name: bool(value.strip() if isinstance(value, str) else value) for name, value in fields.items()})


def source_depth(*texts: str) -> int:
    """The number of words of source text. Open: what a word is. Here: what stands between white space."""
    return sum(len(text.split()) for text in texts)


def number_grounding(statistics: Iterable[str], source: str, *, whole_numbers: bool = False) -> Score:
    """The statistics whose digits occur verbatim in the source text.

    Open: whether "671" in the source holds the digits "6". By the letter of the definition it does, and so "$6M" and
    "4o" are grounded in an abstract that mentions neither: the 6 of "671", the 4 of "14.8". With `whole_numbers` a
    number must stand there as a number of its own. Open too: a statistic without digits (here: not grounded), and one
    with several (here: each of them must occur).

    Args:
        statistics: such as "671B total parameters".
        source: any text.
        whole_numbers: the stricter reading.
    """
    return Score({statistic: _has_digits(statistic, source, whole_numbers) for statistic in statistics})


def _has_digits(statistic: str, source: str, whole_numbers: bool) -> bool:
    numbers = re.findall(r"\d+(?:[.,]\d+)*", statistic)
    if whole_numbers:
        in_source = set(re.findall(r"\d+(?:[.,]\d+)*", source))
        return bool(numbers) and all(number in in_source for number in numbers)
    return bool(numbers) and all(number in source for number in numbers)


def quote_traceability(passages: Iterable[str], source: str, *, overlap: float = OVERLAP) -> Score:
    """The passages whose significant words overlap the source text by at least 35 %.

    Significant: four or more letters, no stop word; sets, so order and number of words do not matter. Open: the list
    of stop words, and the whole that the share is taken of. Here: `STOP_WORDS`, and the significant words of the
    passage (of both texts together, a short passage could hardly reach 35 %). A passage without significant words is
    not traceable.
    """
    return Score({passage: word_overlap(passage, source) >= overlap for passage in passages})


def word_overlap(passage: str, source: str) -> float:
    """The share of the significant words of a passage that the source has too."""
    words = significant_words(passage)
    return len(words & significant_words(source)) / len(words) if words else 0.0


def significant_words(text: str) -> set[str]:
    """Words of four or more letters in lower case, without stop words."""
    return set(re.findall(r"[^\W\d_]{4,}", text.lower())) - STOP_WORDS
