"""Every D-number that code and lessons point to is explained in data/differences.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_d_number_has_its_entry() -> None:
    entries = json.loads((ROOT / "data" / "differences.json").read_text())["differences"]
    assert [entry["id"] for entry in entries] == [f"D{i}" for i in range(1, 25)]
    assert all(entry[key] for entry in entries for key in ("topic", "report", "released_code", "where", "ours"))
    known = {entry["id"] for entry in entries}
    used = {
        number
        for folder in ("dsv3_mini", "notebooks/src")
        for path in (ROOT / folder).rglob("*.py")
        for number in re.findall(r"\bD\d{1,2}\b", path.read_text())
    }
    assert used - known == set()
    assert "D13" in used


def test_files_that_the_entries_name_exist() -> None:
    text = (ROOT / "data" / "differences.json").read_text()
    named = set(re.findall(r"\b((?:model|interop)/\w+\.py)", re.sub(r'"(?:where|released_code)": "[^"]*"', "", text)))
    assert named and all((ROOT / "dsv3_mini" / name).is_file() for name in named)
