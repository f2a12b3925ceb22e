"""Kinds of tokens, to colour them by: what a token is spelled with, and what the text around it is about.

The *type* of a token is a fact of its bytes. The *domain* of a text that somebody typed is not: it is guessed, line by
line, by a rule that fits in a sentence. Where the domain is known, the explorer is given the parts by name.
"""

from __future__ import annotations

TYPES = ("letters", "digits", "punctuation", "space", "other")
DOMAINS = ("code", "prose", "arithmetic")
GUESS = (
    "guessed for each line: arithmetic if digits and + - * / = make up half of it or more, else code if it is "
    "indented, begins with a word like def, or one in eight of its characters is a sign such as ( or _, else prose"
)
_ARITHMETIC = set("0123456789+-*/=^%")
_CODE = set("()[]{}_=:;#<>@\\|&`$~")
_CODE_WORDS = ("def ", "class ", "import ", "return ", "async ", "elif ", "try:", "else:")


def token_type(piece: bytes) -> str:
    """The first of letters, digits, punctuation, space that a token holds; `other` for a piece of a character.

    >>> [token_type(piece) for piece in (b" area", b"7", b"):", b"  ", b"\\xc3")]
    ['letters', 'digits', 'punctuation', 'space', 'other']
    """
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        return "other"
    if any(char.isalpha() for char in text):
        return "letters"
    if any(char.isdigit() for char in text):
        return "digits"
    if text.strip() and any(char.isprintable() for char in text):
        return "punctuation"
    return "space" if text and not text.strip() else "other"


def guess_domain(line: str) -> str:
    """`code`, `prose` or `arithmetic`, by the rule in `GUESS`.

    >>> [guess_domain(line) for line in ("The cat sat.", "def f(x): return x", "12 + 30 = 42")]
    ['prose', 'code', 'arithmetic']
    """
    seen = [char for char in line if not char.isspace()]
    if not seen:
        return "prose"
    if any(char.isdigit() for char in seen) and 2 * sum(char in _ARITHMETIC for char in seen) >= len(seen):
        return "arithmetic"
    signs = sum(char in _CODE for char in seen)
    if line.startswith(("    ", "\t", *_CODE_WORDS)) or 8 * signs >= len(seen):
        return "code"
    return "prose"


def guess_domains(pieces: list[bytes]) -> list[str]:
    """The domain of each token: that of the line in which it begins, a token of line breaks that of the line before."""
    text = b"".join(pieces)
    starts = [0]  # bytes at which lines start
    for line in text.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    domains = [guess_domain(line.decode("utf-8", errors="replace")) for line in text.split(b"\n")]
    found, place, line_number = [], 0, 0
    for piece in pieces:
        while place >= starts[line_number + 1]:
            line_number += 1
        found.append(domains[line_number])
        place += len(piece)
    return found
