"""Numbers in running text, and when one number is another one rounded.

"671 billion", "671B" and "671,000,000,000" are the same number, stated to different precision. A `Number` keeps what
was written, its value, and its `step`: one unit of the last digit written (0.1 for "14.8", a billion for "671B"). An
exact value supports a number when it rounds to it at that step: 671,026,419,200 supports "671B", and not "672B" nor
"671.1B". Three more rules, each for a reason:

* After "about", "nearly", "more than" and the like the step is that of the last digit that is not zero ("about 400"
  is stated to hundreds).
* Never more than 5 % away: 2.25 rounds to 2, but who writes "2 groups" does not mean 2.25.
* "K" is 1000 or 1024, because the report writes "128K tokens" for 131,072 and "119K hours" for 119,000; "4 %" is 4 or
  0.04. Such a number has two readings, and one of them is enough.

The sign is left aside: "-3" and "3" are the same here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MOST_RELATIVE_ERROR = 0.05

WORDS = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
BYTES = {"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15}
BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
LETTERS = {"K": 1e3, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}  # only right behind the digits
SCALES = {**WORDS, **BYTES, **BINARY, **{f"{prefix}B": size for prefix, size in BINARY.items()}, **LETTERS}

_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_PATTERN = re.compile(
    r"""
    (?: (?<![\w.]) | (?<=\d[x×]) )                    # not inside a name; the 128 of "1x128" is a number
    (?P<digits> \d{1,3}(?:(?:[,_\u00a0\u2009\u202f]|\{,\}|\\,)\d{3})+(?!\d)(?:\.\d+)? | \d+(?:\.\d+)? )
    (?: [eE](?P<e>[+-]?\d+)
      | (?:\s*(?:[·⋅×*]|\\cdot|\\times)\s*10 | (?<=\b10)) (?: \^\{?(?P<power>[-−]?\d+)\}? | (?P<raised>[⁻⁰¹²³⁴-⁹]+) )
    )?
    (?: [\s-]?(?P<word>thousand|million|billion|trillion)\b
      | [\s]?(?P<bytes>[KMGT]iB?|[kKMGTP]B)\b
      | (?P<letter>[KkMGBT])\b
      | \s?(?P<percent>\\?%|per\ ?cent\b)
    )?
    """,
    re.VERBOSE,
)
_ROUGHLY = re.compile(
    r"(?:about|around|roughly|nearly|almost|some|over|under|below|above|than|[~≈]|\\approx)\s*\$?\s*$", re.IGNORECASE
)
_LABEL = re.compile(r"0\d+$")  # 03 is the name of a lesson, not a quantity
_NAME_TAIL = re.compile(r"st\b|nd\b|rd\b|th\b|o\b|D\b|_|[A-WYZa-wyz]*\d")  # 1st, 4o, 2D, 03_positions, 1F1B


@dataclass(frozen=True)
class Number:
    """A number as written in a text, at `text[start:end]`."""

    text: str
    start: int
    end: int
    readings: tuple[tuple[float, float], ...]  # (value, step); two for "128K" and "4 %"
    mantissa: tuple[float, float]  # the digits without their scale
    scale: str  # "GB", "billion", ... or ""

    def is_rounded(self, exact: float) -> bool:
        """Whether `exact` rounds to this number at the precision at which it is stated."""
        return any(_rounds_to(exact, *reading) for reading in self.readings)

    def supports(self, other: Number) -> bool:
        """Whether this number, taken as exact, rounds to `other`."""
        return any(other.is_rounded(value) for value, _ in self.readings)


def find_numbers(text: str) -> Iterator[Number]:
    """The numbers of a text in order; digits that are part of a name (V3, BF16, 4o, 1F1B, 2nd) are none."""
    for match in _PATTERN.finditer(text):
        if _LABEL.match(match["digits"]):
            continue
        if not match["letter"] and not match["percent"] and _NAME_TAIL.match(text, match.end()):
            continue
        digits = re.sub(r"[^\d.]", "", match["digits"])
        step = 10.0 ** -len(digits.partition(".")[2])
        if _ROUGHLY.search(text, max(0, match.start() - 20), match.start()):
            zeros = len(digits) - len(digits.rstrip("0")) if "." not in digits and digits.strip("0") else 0
            step *= 10.0**zeros
        value, scale = float(digits), match["word"] or match["bytes"] or match["letter"] or ""
        mantissa = (value, step)
        exponent = match["e"] or match["power"] or (match["raised"] or "").translate(_SUPERSCRIPT)
        if exponent:
            power = int(exponent.replace("−", "-"))
            # "10^4" has no mantissa of its own: the ten is the base.
            bare_ten = digits == "10" and not re.search(r"10", match.group()[2:]) and not match["e"]
            value, step = (10.0**power, 10.0**power) if bare_ten else (value * 10.0**power, step * 10.0**power)
            mantissa = (value, step)
        factors = [SCALES[scale]] if scale else [1.0]
        if scale in ("K", "k"):
            factors.append(1024.0)
        if match["percent"]:
            factors.append(0.01)
        readings = tuple((value * factor, step * factor) for factor in factors)
        yield Number(match.group().strip(), match.start(), match.end(), readings, mantissa, scale)


def _rounds_to(exact: float, value: float, step: float) -> bool:
    distance = abs(abs(exact) - value)
    return distance <= 0.5 * step * (1 + 1e-9) and distance <= MOST_RELATIVE_ERROR * value + 1e-12 * step
