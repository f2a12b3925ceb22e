"""What prose states: for each rule that drops a number, a text that it drops and one that it must not."""

from __future__ import annotations

import pytest

from dsv3_mini.course.prose import paragraphs, stated_numbers


def stated(markdown: str) -> list[str]:
    return [number.number.text for number in stated_numbers(markdown)]


# (rule, a text of which nothing may be left, a text that looks alike, what of it must be left)
RULES = [
    ("fenced code", "```python\nx = 61\n```", "x is 61", ["61"]),
    (
        "a folded solution",
        "<details><summary>S</summary>\n\n```python\n61\n```\n\n</details>",
        "<details>61</details>",
        ["61"],
    ),
    ("a link's target", "[next](03_positions.ipynb#part-61)", "[61 layers](a.ipynb)", ["61"]),
    ("a bare address", "https://example.org/61", "example 61", ["61"]),
    ("an HTML tag", '<img width="61">', "a < 61 > b", ["61"]),
    ("an entity", "a&#160;b", "a & 160", ["160"]),
    ("the lesson in a link", "[03 Positions](x.ipynb)", "[3 Positions](x.ipynb)", ["3"]),
    ("the number of a heading", "# 02 The KV cache", "## A cache of 576 numbers", ["576"]),
    ("a list ordinal", "1. one\n2. two", "it has\n61. That is all.", ["61"]),
    ("a section", "§2.1.1 and §4.2", "2.1 of 4.2", ["2.1", "4.2"]),
    ("several sections", "§3.4.1, §3.4.2 and §6", "§3.4 has 32 GPUs", ["32"]),
    ("equations", "Eq. 1, 2, 5 and Eq. 6 to 8", "Eq. 10 gives 192", ["192"]),
    ("a quantity behind an equation", "Eq. 3 and 4 say", "Eq. 3 and 64 heads, Eq. 10, 192 wide", ["64", "192"]),
    (
        "a quantity behind a table",
        "(Tables 1, 2 and 5)",
        "(Table 1, 14.8 trillion tokens, 61 layers)",
        ["14.8 trillion", "61"],
    ),
    ("a quantity behind a section", "§4.1 to §4.3", "(§4.2, 128 heads and 7168 wide)", ["128", "7168"]),
    ("a step is no label", "Figure 3", "at step 300", ["300"]),
    ("tables and figures", "Table 1, Figure 9, Fig. 4", "the table has 9 rows", ["9"]),
    ("an appendix", "App. B.2", "B has 2", ["2"]),
    ("lessons", "lessons 01 and 02, lesson 5", "5 lessons", ["5"]),
    ("a lesson and a quantity", "lesson 5.", "lesson 5 takes 61 layers", ["61"]),
    ("exercises and exhibits", "exercise 1.2, exhibit 3.A, Guess 1", "1.2 exercises", ["1.2"]),
    ("an arXiv id", "arXiv 2412.19437v2", "2412.19437", ["2412.19437"]),
    ("a version", "Python 3.11, PyTorch 2.13", "Python reads 3 files", ["3"]),
    ("a date", "26 Dec 2024, Feb 2025", "26 of 2024 tokens", ["26", "2024"]),
    (
        "the year of a citation",
        "(Shazeer, 2017), Vaswani et al. 2017, ICML 2024",
        "MQA 2017, a batch of 2017 rows",
        ["2017", "2017"],
    ),
    ("a power of two is no year", "et al. 2017", "et al. 2048", ["2048"]),
    ("the length of a lesson", "*About 40 minutes. You need lesson 01.*", "It trains about 40 minutes.", ["40"]),
    ("the length of an exercise", "Positions (10 minutes)", "every 10 minutes", ["10"]),
    ("choices", "How many? (a) 2, (b) about 20, (c) 400.", "How many of 16? (a) 2, (b) 20. It has 61.", ["16", "61"]),
    ("a list of choices", "* (b) about 20 times", "It is (b): 61 layers.", ["61"]),
    ("names", "V3, BF16, H800, Qwen2.5-72B, W2", "3 and 16", ["3", "16"]),
    ("names with a hyphen", "GPT-4o, LLaMA-3.1, ZeRO-1, Claude 3.5", "top-8, width-128", ["8", "128"]),
    ("ordinals", "the 2nd and the 3rd", "2 and 3", ["2", "3"]),
    ("indices", r"$x_1 + x_{23} + W^{2}$", r"$x = 23$", ["23"]),
    ("the power of ten counts", r"$x^{4}$", r"$10^{4}$", ["10^{4}"]),
    ("limits of a sum", r"$\sum_{j=1}^{5}$", r"$\sum_j 5$", ["5"]),
    ("structure of a formula", r"$2 \cdot x + 1 = 0$", r"$3 \cdot x + 1.5$", ["3", "1.5"]),
    ("an equation's tag", r"$$x \tag{17}$$", r"$$x = 17$$", ["17"]),
    ("labels in a formula", r"$$x \qquad\text{(Eq. 3, 4)}$$", r"$$x = 3$$", ["3"]),
]


@pytest.mark.parametrize(("rule", "dropped", "kept", "left"), RULES, ids=[rule[0] for rule in RULES])
def test_rule(rule: str, dropped: str, kept: str, left: list[str]) -> None:
    assert stated(dropped) == []
    assert stated(kept) == left


def test_inline_code_is_marked() -> None:
    found = {number.number.text: number.in_code for number in stated_numbers("with `H = 4` heads and 8 tokens")}
    assert found == {"4": True, "8": False}


def test_two_prices_are_no_formula() -> None:
    assert stated("between $1 and $2 a day") == ["1", "2"]
    assert stated("between $1$ and $2$") == []


def test_paragraphs_items_rows_and_headings_stand_alone() -> None:
    text = "# Head\nfirst\nline\n\n* one\n  more\n* two\n1. three\n2. four\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nlast"
    assert list(paragraphs(text)) == [
        "# Head",
        "first\nline",
        "* one\n  more",
        "* two",
        "1. three",
        "2. four",
        "| a | b |",
        "|---|---|",
        "| 1 | 2 |",
        "last",
    ]


def test_a_display_formula_belongs_to_its_paragraph() -> None:
    assert list(paragraphs("The cache:\n\n$$61 \\cdot 576$$\n\nNext.")) == ["The cache:\n$$61 \\cdot 576$$", "Next."]


def test_the_sentence_and_the_words_behind_a_number() -> None:
    (first, second) = stated_numbers("It has 61 layers. And 128 attention heads of one width. Nothing else.")
    assert first.sentence == "It has 61 layers."
    assert second.sentence == "And 128 attention heads of one width."
    assert first.behind() == ["layers"]
    assert second.behind() == ["attention", "heads"]


def test_the_text_around_is_short_and_on_one_line() -> None:
    (number,) = stated_numbers("word " * 40 + "\n61 layers\n" + "word " * 40)
    assert number.around(20).startswith("...word") or number.around(20).startswith("...")
    assert "61 layers" in number.around(20) and "\n" not in number.around(20)
    assert len(number.around(20)) < 60
