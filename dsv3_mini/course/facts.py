"""`data/facts.json`: the numbers that the lessons may state, each with its place and how sure it is.

A fact is one number, or one row of a table of the report. Its `keywords` say how prose speaks of it, and its `nouns`
what may stand right behind the number ("61 layers"): `number_grounding` uses both, so that a true number in a sentence
about something else does not pass.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dsv3_mini.errors import InputError
from dsv3_mini.paths import data_dir

MARKS = {
    "verified": "read in the report",
    "code": "read in the released code or configuration",
    "derived": "computed from the two above",
    "second-hand": "read in another source",
}


@dataclass(frozen=True)
class Fact:
    """One entry of `data/facts.json`; `values` holds one number, or one for each of `columns`."""

    id: str
    values: tuple[float, ...]
    what: str
    where: str
    mark: str
    keywords: tuple[str, ...]
    nouns: tuple[str, ...] = ()
    unit: str = ""
    columns: tuple[str, ...] = ()

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(rf"(?<!\w){re.escape(word)}(?:e?s)?(?!\w)" for word in self.keywords), re.IGNORECASE)

    def keywords_in(self, text: str) -> int:
        """How many keywords a text holds as words (a plural is the same word); the fact may be meant if any."""
        return len({match.group().lower().removesuffix("s") for match in self._pattern.finditer(text)})


def load_facts(path: str | Path | None = None) -> list[Fact]:
    """The facts in the order of the file; by default the one of the project.

    Raises:
        InputError: naming the file, the entry (its id) and what would be right.
    """
    path = Path(path) if path is not None else data_dir() / "facts.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["facts"]
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); it should hold the facts of the lessons"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f'{path}: not a list of facts; it must be JSON with "facts": [...]') from None
    if not isinstance(entries, list) or not entries:
        raise InputError(f'{path}: "facts" must be a list that is not empty')
    facts: dict[str, Fact] = {}
    for number, entry in enumerate(entries):
        fact = _fact(entry, f"{path}: facts[{number}]")
        if fact.id in facts:
            raise InputError(f"{path}: facts[{number}]: id {fact.id!r} is there twice; each fact needs its own")
        facts[fact.id] = fact
    return list(facts.values())


def _fact(entry: Any, here: str) -> Fact:
    if not isinstance(entry, dict):
        raise InputError(f"{here}: must be an object with id, value, what, where, mark, keywords")
    if not isinstance(entry.get("id"), str) or not entry["id"]:
        raise InputError(f"{here}: id = {entry.get('id')!r} must be a text that is not empty")
    here += f" ({entry['id']})"
    known = {"id", "value", "unit", "what", "where", "mark", "keywords", "nouns", "columns"}
    if unknown := sorted(set(entry) - known):
        raise InputError(f"{here}: has no field {unknown[0]!r}; there are {', '.join(sorted(known))}")
    for name in ("what", "where"):
        if not isinstance(entry.get(name), str) or not entry[name].strip():
            raise InputError(f"{here}: {name} = {entry.get(name)!r} must be a text that is not empty")
    if entry.get("mark") not in MARKS:
        raise InputError(f"{here}: mark = {entry.get('mark')!r} must be one of {', '.join(MARKS)}")
    if not isinstance(entry.get("unit", ""), str):
        raise InputError(f"{here}: unit = {entry['unit']!r} must be a text")
    for name in ("keywords", "nouns", "columns"):
        words = entry.get(name, [])
        if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
            raise InputError(f"{here}: {name} = {words!r} must be a list of words")
    if not entry.get("keywords"):
        raise InputError(f"{here}: keywords must name at least one word by which prose speaks of it")
    values, columns = entry.get("value"), entry.get("columns", [])
    if isinstance(values, list) and len(values) != len(columns):
        raise InputError(f"{here}: value has {len(values)} numbers for {len(columns)} columns; give one for each")
    values = values if isinstance(values, list) else [values]
    for value in values:
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or value != value
            or abs(value) == float("inf")
        ):
            raise InputError(f"{here}: value = {value!r} must be a finite number")
    return Fact(
        id=entry["id"],
        values=tuple(float(value) for value in values),
        what=entry["what"],
        where=entry["where"],
        mark=entry["mark"],
        keywords=tuple(entry["keywords"]),
        nouns=tuple(entry.get("nouns", [])),
        unit=entry.get("unit", ""),
        columns=tuple(columns),
    )
