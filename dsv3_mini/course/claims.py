"""`data/claims.json`: what a popular summary of the report claims, and what the report says to each claim.

43 claims in our words, each with a verdict (`VERDICTS`), the reason and the place in the report; and the four metrics
by which the page grades itself, with the values it shows. `dsv3_mini.viz.claims_table` shows the claims,
`dsv3_mini.course.grounding` rebuilds the metrics.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dsv3_mini.errors import InputError
from dsv3_mini.paths import data_dir

if TYPE_CHECKING:
    import pandas as pd

VERDICTS = {
    "faithful": "agrees with the report",
    "simplified": "the right direction, but it loses or rounds something that matters",
    "wrong": "contradicted by the report, or by the page itself",
    "outside": "the report says nothing of the kind",
}


@dataclass(frozen=True)
class Claim:
    """One claim of the page; every field is a text that is not empty."""

    id: str
    element: str  # the part of the page: "by the numbers", "section 04", ...
    claim: str
    verdict: str  # one of VERDICTS
    why: str
    place: str  # in the report


@dataclass(frozen=True)
class Metric:
    """One of the metrics by which the page grades itself."""

    id: str
    name: str
    shown: str  # the value on the page
    definition: str


Entry = TypeVar("Entry", Claim, Metric)


def load_claims(path: str | Path | None = None) -> list[Claim]:
    """The claims in the order of the page.

    Args:
        path: another file of the same form; by default the one of the project.

    Raises:
        InputError: naming the file, the entry (its id, or its place in the list) and what would be right.
    """
    path = _path(path)
    claims = _entries(path, "claims", Claim)
    for number, claim in enumerate(claims):
        if claim.verdict not in VERDICTS:
            here = f"{path}: claims[{number}] ({claim.id})"
            raise InputError(f"{here}: verdict = {claim.verdict!r} must be one of {', '.join(VERDICTS)}")
    return claims


def load_metrics(path: str | Path | None = None) -> list[Metric]:
    """The metrics of the page with what it shows for them; raises `InputError` as `load_claims` does."""
    return _entries(_path(path), "metrics", Metric)


def claims_frame(claims: Iterable[Claim] | None = None) -> pd.DataFrame:
    """The claims as a table, one row a claim, indexed by id; the verdict is a category in the order of `VERDICTS`."""
    import pandas as pd

    names = [field.name for field in dataclasses.fields(Claim)]
    rows = [dataclasses.astuple(claim) for claim in (load_claims() if claims is None else claims)]
    frame = pd.DataFrame(rows, columns=names).set_index("id")
    frame["verdict"] = pd.Categorical(frame["verdict"], categories=list(VERDICTS))
    return frame


def select(claims: Iterable[Claim], verdict: str = "", element: str = "", text: str = "") -> list[Claim]:
    """The claims with this verdict, of this element, that hold every word of `text` somewhere; "" asks for nothing."""
    words = text.casefold().split()
    return [
        claim
        for claim in claims
        if verdict in ("", claim.verdict)
        and element in ("", claim.element)
        and all(word in " ".join(dataclasses.astuple(claim)).casefold() for word in words)
    ]


def _path(path: str | Path | None) -> Path:
    return Path(path) if path is not None else data_dir() / "claims.json"


def _entries(path: Path, name: str, kind: type[Entry]) -> list[Entry]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[name]
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); it should hold the claims of the summary"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f'{path}: not a file of claims; it must be JSON with "claims" and "metrics"') from None
    if not isinstance(found, list) or not found:
        raise InputError(f"{path}: {name} must be a list that is not empty")
    entries: dict[str, Entry] = {}
    for number, fields in enumerate(found):
        entry = _entry(fields, kind, f"{path}: {name}[{number}]")
        if entry.id in entries:
            raise InputError(f"{path}: {name}[{number}]: id {entry.id!r} is there twice; each entry needs its own")
        entries[entry.id] = entry
    return list(entries.values())


def _entry(fields: Any, kind: type[Entry], here: str) -> Entry:
    names = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(fields, dict):
        raise InputError(f"{here}: must be an object with {', '.join(names)}")
    if isinstance(fields.get("id"), str) and fields["id"]:
        here += f" ({fields['id']})"
    for name in names:
        if not isinstance(fields.get(name), str) or not fields[name].strip():
            raise InputError(f"{here}: {name} = {fields.get(name)!r} must be a text that is not empty")
    if unknown := sorted(set(fields) - set(names)):
        raise InputError(f"{here}: has no field {unknown[0]!r}; there are {', '.join(names)}")
    return kind(**fields)
