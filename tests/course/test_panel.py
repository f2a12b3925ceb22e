"""What the course says in a notebook: text elsewhere, a panel in Lab, and never markup from what it shows."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from dsv3_mini.course.panel import _KINDS, Panel


class Reader(HTMLParser):
    """Collects text and elements."""

    def __init__(self) -> None:
        super().__init__()
        self.said, self.elements = "", []

    def handle_data(self, data: str) -> None:
        self.said += data

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))


@pytest.mark.parametrize("kind", _KINDS)
def test_both_forms_say_the_same(kind: str) -> None:
    panel = Panel(kind, "Exercise 1.1: <b>", ("One & two.", "x < y > z"), "def f(x):\n    return x < 1 & 2\n")
    bundle = panel._repr_mimebundle_()
    reader = Reader()
    reader.feed(bundle["text/html"])
    for text in (panel.heading, *panel.paragraphs, panel.code.rstrip()):
        assert text in reader.said
        assert text.splitlines()[-1] in bundle["text/plain"]
    assert {tag for tag, _ in reader.elements} <= {"div", "strong", "span", "p", "pre", "code"}
    assert repr(panel) == str(panel) == bundle["text/plain"]


def test_what_a_colour_says_a_mark_and_a_word_say_too() -> None:
    assert len({mark for mark, _ in _KINDS.values()}) == len(_KINDS)


def test_long_code_can_be_reached_and_scrolled_with_the_keyboard() -> None:
    reader = Reader()
    reader.feed(Panel("note", "x", code="y = 1")._repr_mimebundle_()["text/html"])
    (pre,) = [attributes for tag, attributes in reader.elements if tag == "pre"]
    assert pre["tabindex"] == "0" and pre["aria-label"] and "overflow: auto" in pre["style"]


def test_text_is_wrapped_and_code_is_not() -> None:
    panel = Panel("note", "x", ("word " * 60,), "y = " + "1 + " * 60 + "1")
    lines = str(panel).splitlines()
    assert max(map(len, lines[:-1])) <= 100 and len(lines[-1]) > 200


def test_names_of_tests_can_be_copied_and_code_in_text_is_shown_as_code() -> None:
    name = "tests/model/test_the_half-split_layout.py::" + "test_" + "long_" * 25 + "name"
    assert name in str(Panel("note", "x", (f"The test that catches it, whatever the width of the page: {name}",)))
    shown = Panel("note", "x", ("Use `a<b` here, and 2 ` stays.",))._repr_mimebundle_()["text/html"]
    assert "<code>a&lt;b</code> here, and 2 ` stays" in shown
