"""The claims of the summary: the file is whole, and a malformed one is met with the entry that is wrong."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dsv3_mini.course.claims import VERDICTS, claims_frame, load_claims, load_metrics, select
from dsv3_mini.errors import InputError
from dsv3_mini.paths import data_dir


def content() -> dict[str, Any]:
    return json.loads((data_dir() / "claims.json").read_text(encoding="utf-8"))


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "claims.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_there_are_43_claims_with_the_verdicts_of_the_audit() -> None:
    claims = load_claims()
    assert len(claims) == 43
    assert Counter(claim.verdict for claim in claims) == {"faithful": 7, "simplified": 14, "wrong": 12, "outside": 10}


def test_the_verdicts_are_explained_alike_in_file_and_code() -> None:
    assert content()["verdicts"] == VERDICTS


def test_the_page_shows_four_metrics() -> None:
    assert {metric.id: metric.shown for metric in load_metrics()} == {
        "source_richness": "100 % (8 of 8 content fields populated)",
        "source_depth": "about 219 words",
        "number_grounding": "4 of 4",
        "quote_traceability": "3 of 3",
    }


def test_frame_has_a_row_a_claim_and_verdicts_in_order() -> None:
    frame = claims_frame()
    assert list(frame.columns) == ["element", "claim", "verdict", "why", "place"]
    assert frame.loc["S04a", "verdict"] == "wrong"
    assert list(frame["verdict"].cat.categories) == list(VERDICTS)
    assert frame["verdict"].value_counts(sort=False).to_list() == [7, 14, 12, 10]


def test_select_joins_its_conditions() -> None:
    claims = load_claims()
    assert select(claims) == claims
    assert len(select(claims, verdict="wrong")) == 12
    assert {claim.id for claim in select(claims, element="section 06")} == {"S06a", "S06b", "S06c"}
    assert {claim.id for claim in select(claims, verdict="wrong", element="section 06")} == {"S06a", "S06c"}
    assert select(claims, verdict="wrong", text="no such words in here") == []


def test_select_wants_every_word_in_any_field_and_any_case() -> None:
    claims = load_claims()
    assert "Q2" in {claim.id for claim in select(claims, text="bert CAUSAL")}  # one in the claim, one in the reason
    assert select(claims, text="bert zebra") == []
    assert [claim.id for claim in select(claims, text="S04a")] == ["S04a", "G2"]  # G2 speaks of S04a


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["claims"][24].pop("why"), [r"claims\[24\] \(S05c\)", "why"]),
        (lambda c: c["claims"][24].update(why="  "), [r"\(S05c\)", "why", "not empty"]),
        (lambda c: c["claims"][24].update(verdict="maybe"), [r"\(S05c\)", "maybe", "faithful, simplified, wrong"]),
        (lambda c: c["claims"][24].update(place=3), [r"\(S05c\)", "place = 3", "text"]),
        (lambda c: c["claims"][24].update(id="N1"), [r"claims\[24\]", "'N1' is there twice"]),
        (lambda c: c["claims"][24].update(id=None), [r"claims\[24\]", "id = None"]),
        (lambda c: c["claims"][24].update(verdit="wrong"), [r"\(S05c\)", "verdit", "verdict"]),
        (lambda c: c["claims"].insert(24, "a claim"), [r"claims\[24\]", "object"]),
        (lambda c: c.update(claims=[]), ["claims", "not empty"]),
        (lambda c: c.update(claims={}), ["claims", "list"]),
        (lambda c: c.pop("claims"), ["claims", "JSON"]),
    ],
)
def test_a_malformed_claim_is_named(tmp_path: Path, change: Any, said: list[str]) -> None:
    broken = content()
    change(broken)
    path = written(tmp_path, broken)
    for part in [path.name, *said]:
        with pytest.raises(InputError, match=part):
            load_claims(path)


def test_a_malformed_metric_is_named(tmp_path: Path) -> None:
    broken = content()
    del broken["metrics"][2]["definition"]
    with pytest.raises(InputError, match=r"metrics\[2\] \(number_grounding\): definition"):
        load_metrics(written(tmp_path, broken))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"claims": 3}'])
def test_a_file_that_is_something_else_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "claims.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="claims"):
        load_claims(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json: cannot be read"):
        load_claims(tmp_path / "nowhere.json")
