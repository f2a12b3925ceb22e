"""The rule that the lessons must pass: every number of their prose has a ground that the reader can look at.

    python -m dsv3_mini.course.number_grounding notebooks/03_positions.ipynb [--all]

A number in the prose (`dsv3_mini.course.prose` says what counts as one) is grounded by

* a **fact** of `data/facts.json` that rounds to it, if the sentence holds one of the fact's keywords, and if the noun
  right behind the number is not that of other facts: "61 layers" is grounded, "61 heads" is not, and "61 bananas" is
  not unless the sentence speaks of layers;
* a number that a cell of the lesson **printed**, in the cells right before or after the paragraph; from farther away
  only if the printed line, or the first line of that output, shares a word with the paragraph;
* for a number inside `inline code`: the same number **typed** in the code of the lesson.

"Rounds to" is exact: see `dsv3_mini.course.numerals`.

What this catches: a digit that changed, a figure from memory, a result that a new run no longer prints, a number of the
report put to the wrong noun. What it cannot catch: a false sentence with the right number and the right words ("MTP has
61 layers"), a wrong comparison, two numbers swapped inside one sentence that names both things and has no noun behind
them, and small whole numbers, which some neighbouring cell often prints by chance. Numbers in words are out of its
reach, and so is the text of exercises and exhibits, which lives in the package. It checks where numbers come from;
whether a sentence is true remains for a reader to judge.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3_mini.course.facts import Fact, load_facts
from dsv3_mini.course.numerals import Number, find_numbers
from dsv3_mini.course.prose import Stated, stated_numbers
from dsv3_mini.errors import InputError

_STOP_WORDS = set(
    "about after all also and are before between both but can does for from has have how into its more "
    "most not now one only other than that the their them then there these they this times two what when "
    "where which with you".split()
)
_RICH = ("html", "markdown")


@dataclass(frozen=True)
class Finding:
    """One number of the prose and its ground; `by` is empty when it has none."""

    cell: int  # counted from 1, as Lab's cells from top to bottom
    number: str
    around: str
    by: str

    def __str__(self) -> str:
        return f"cell {self.cell}: {self.number!r} in {self.around!r}" + (f"\n    {self.by}" if self.by else "")


@dataclass(frozen=True)
class _Printed:
    cell: int
    number: Number
    line: str
    words: frozenset[str]
    output: str


def ground(path: str | Path, facts: list[Fact] | None = None) -> list[Finding]:
    """Every number of a lesson's prose with what grounds it.

    Args:
        path: a notebook with its outputs, or a text twin, whose outputs come from the notebook built from it.
        facts: what may be stated; by default `data/facts.json`.

    Raises:
        InputError: naming the file that is not a notebook, or a fact that is malformed.
    """
    return ground_cells(read_cells(Path(path)), facts)


def ground_cells(cells: list[dict[str, Any]], facts: list[Fact] | None = None) -> list[Finding]:
    """The same for cells as they stand in a notebook's JSON."""
    facts = load_facts() if facts is None else facts
    nouns = {noun for fact in facts for noun in fact.nouns}
    printed = [entry for place, cell in enumerate(cells) for entry in _printed(place, cell)]
    typed = [number for cell in cells for number in find_numbers(_code(cell))]
    findings = []
    for place, cell in enumerate(cells):
        if cell["cell_type"] != "markdown":
            continue
        near = _neighbours(cells, place)
        for stated in stated_numbers(_text(cell["source"])):
            by = (
                _by_fact(stated, facts, nouns)
                or _by_printed(stated, printed, near)
                or (stated.in_code and _by_typed(stated, typed))
                or ""
            )
            findings.append(Finding(place + 1, stated.number.text, stated.around(), by))
    return findings


def ungrounded(path: str | Path, facts: list[Fact] | None = None) -> list[Finding]:
    """The numbers that nothing grounds: what the lessons must not have."""
    return [finding for finding in ground(path, facts) if not finding.by]


def _by_fact(stated: Stated, facts: list[Fact], nouns: set[str]) -> str:
    noun = next((word for word in stated.behind() if word in nouns), "")  # "37B *total* parameters": total decides
    best, most = "", (False, 0)
    for fact in facts:
        if not any(stated.number.is_rounded(value) for value in fact.values):
            continue
        own = {word.lower() for phrase in (*fact.nouns, *fact.keywords) for word in phrase.split()}
        fits = noun in own or noun.removesuffix("s") in own
        hits = fact.keywords_in(stated.sentence)
        if hits and (fits or not noun) and (fits, hits) > most:
            best, most = f"fact {fact.id} ({fact.where}, {fact.mark})", (fits, hits)
    return best


def _by_printed(stated: Stated, printed: list[_Printed], near: range) -> str:
    words = _words(stated.paragraph)
    for entry in sorted(printed, key=lambda entry: entry.cell not in near):
        if entry.cell not in near and not words & entry.words:
            continue
        if entry.number.supports(stated.number) or _same_digits(stated.number, entry):
            return f"printed by cell {entry.cell + 1}: {entry.line.strip()[:80]!r}"
    return ""


def _same_digits(number: Number, entry: _Printed) -> bool:
    """ "524 GB" in the prose, 523.99 in a column that the output calls GB."""
    if not number.scale or entry.number.scale or not re.search(rf"\b{number.scale}\b", entry.output):
        return False
    digits = Number(number.text, 0, 0, (number.mantissa,), number.mantissa, "")
    return entry.number.supports(digits)


def _by_typed(stated: Stated, typed: list[Number]) -> str:
    return "typed in the code" if any(number.supports(stated.number) for number in typed) else ""


def _neighbours(cells: list[dict[str, Any]], place: int) -> range:
    """The code cells that touch a prose cell, before and after it (with the prose cell itself)."""
    first = last = place
    while first > 0 and cells[first - 1]["cell_type"] == "code":
        first -= 1
    while last + 1 < len(cells) and cells[last + 1]["cell_type"] == "code":
        last += 1
    return range(first, last + 1)


def _printed(place: int, cell: dict[str, Any]) -> Iterator[_Printed]:
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        plain = re.sub(r"\A<.*>\Z", "", _text(data.get("text/plain", "")))  # <Figure size 792x396 with 1 Axes>
        for text in (_text(output.get("text", "")), plain, *(_text(data.get(f"text/{kind}", "")) for kind in _RICH)):
            text = html.unescape(re.sub(r"<style.*?</style>|<svg.*?</svg>|<[^>]+>", " ", text, flags=re.DOTALL))
            lines = text.splitlines()
            for line in lines:
                words = _words(line) | _words(lines[0])
                for number in find_numbers(line):
                    yield _Printed(place, number, line, words, text)


def _words(text: str) -> frozenset[str]:
    found = {word.lower().removesuffix("s") for word in re.findall(r"[A-Za-z]{3,}", text)}
    return frozenset(found - _STOP_WORDS)


def _code(cell: dict[str, Any]) -> str:
    """The code of a cell; of a prose cell the fenced blocks, such as a folded solution."""
    source = _text(cell["source"])
    return (
        source
        if cell["cell_type"] == "code"
        else "\n".join(re.findall(r"^```.*?^```", source, re.DOTALL | re.MULTILINE))
    )


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def read_cells(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook, or of a text twin with the outputs of the notebook built from it, code by code."""
    if path.suffix != ".py":
        try:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            return [cell for cell in cells if cell["cell_type"] in ("code", "markdown")]
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); give a notebook or its text twin") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}: not a notebook; it must be JSON with cells") from None
    try:
        cells = list(_twin_cells(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a notebook or its text twin") from None
    built = path.parent.parent / f"{path.stem}.ipynb"
    shipped = read_cells(built) if built.exists() else []
    outputs = {_text(cell["source"]): cell.get("outputs", []) for cell in shipped if cell["cell_type"] == "code"}
    for cell in cells:
        cell["outputs"] = outputs.get(cell["source"], []) if cell["cell_type"] == "code" else []
    return cells


def _twin_cells(text: str) -> Iterator[dict[str, Any]]:
    """The cells of a `py:percent` twin; authors need no notebook tool to check their prose."""
    for block in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = block.partition("\n")
        kind = "markdown" if "[markdown]" in head else "code"
        lines = [re.sub(r"^# ?", "", line) for line in body.splitlines()] if kind == "markdown" else body.splitlines()
        yield {"cell_type": kind, "source": "\n".join(lines).strip("\n")}


def main(arguments: list[str] | None = None) -> int:
    """Print what is not grounded; 0 when nothing is left, 1 when something is, 2 for a file that is no lesson."""
    parser = argparse.ArgumentParser(prog="python -m dsv3_mini.course.number_grounding", description="Ground numbers.")
    parser.add_argument("lesson", nargs="+", help="a notebook, or its text twin")
    parser.add_argument("--all", action="store_true", help="every number with its ground, not only those without")
    options = parser.parse_args(arguments)
    missing = 0
    for lesson in options.lesson:
        try:
            findings = ground(lesson)
        except InputError as error:
            print(error, file=sys.stderr)
            return 2
        bare = [finding for finding in findings if not finding.by]
        missing += len(bare)
        print(f"{lesson}: {len(findings)} numbers in the prose, {len(bare)} without a ground")
        for finding in findings if options.all else bare:
            print(f"  {finding}" if finding.by else f"  NO GROUND  {finding}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
