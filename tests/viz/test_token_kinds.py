"""A token's type is a fact of its bytes; the domain of a line is guessed by the rule that the legend states."""

from __future__ import annotations

import pytest

from dsv3_mini.viz.token_kinds import guess_domain, guess_domains, token_type


@pytest.mark.parametrize(
    ("piece", "kind"),
    [
        (b" area", "letters"), (b"(r", "letters"), (b"x1", "letters"), ("\u4f60".encode(), "letters"),
        (b"7", "digits"), (b"):\n    ", "punctuation"), (b" *", "punctuation"), (b"_", "punctuation"),
        (b" ", "space"), (b"\n\n", "space"), (b"\xc3", "other"), (b"\x00", "other"), (b"", "other"),
    ],
)  # fmt: skip
def test_the_type_of_a_token(piece: bytes, kind: str) -> None:
    assert token_type(piece) == kind


@pytest.mark.parametrize(
    ("line", "domain"),
    [
        ("The area of a circle grows with its radius.", "prose"), ("In 1999 (or so) it rained.", "prose"),
        ("", "prose"),
        ("def area(r):", "code"), ("    x", "code"), ("print(a[0])", "code"), ("import this", "code"),
        ("12 + 30 = 42", "arithmetic"), ("7 * 8 =", "arithmetic"), ("x = y", "code"),
    ],
)  # fmt: skip
def test_the_guess_for_a_line(line: str, domain: str) -> None:
    assert guess_domain(line) == domain


def test_a_token_has_the_domain_of_the_line_in_which_it_begins() -> None:
    pieces = [b"def f", b"():\n", b"12", b" + 1", b"\n", b"A cat", b" sat"]
    assert guess_domains(pieces) == ["code", "code", *["arithmetic"] * 3, "prose", "prose"]
    assert guess_domains([b"\n", b"\n"]) == ["prose", "prose"]
    assert guess_domains([]) == []
