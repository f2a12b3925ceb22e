"""The page's four metrics do what their definitions say, and pass on sentences that are false."""

from __future__ import annotations

import re

import pytest

from dsv3_mini.course.grounding import (
    FALSE_PASSAGES,
    FALSE_STATISTICS,
    OVERLAP,
    SOURCE,
    STOP_WORDS,
    number_grounding,
    quote_traceability,
    significant_words,
    source_depth,
    source_richness,
    word_overlap,
)


def test_richness_is_the_share_of_fields_that_are_filled() -> None:
    score = source_richness({"title": "x", "tags": ["a"], "impact": "  ", "summary": "", "links": [], "year": None})
    assert str(score) == "2 / 6"
    assert score.share == pytest.approx(1 / 3)
    assert score.passed["impact"] is False


def test_richness_of_nonsense_is_full() -> None:
    assert source_richness({f"field {number}": "lorem ipsum" for number in range(8)}).share == 1


def test_nothing_to_score_is_no_full_score() -> None:
    assert source_richness({}).share == 0


def test_depth_counts_words_of_all_texts() -> None:
    assert source_depth("one two\nthree", "", " four ") == 4


def test_source_states_the_numbers_of_the_abstract() -> None:
    assert set(re.findall(r"\d+(?:\.\d+)?", SOURCE)) == {"3", "671", "37", "2", "14.8", "2.788", "800"}


def test_bare_digits_match_inside_other_numbers_and_whole_numbers_do_not() -> None:
    page = ["671B total parameters", "37B active", "$6M training costs", "4o"]
    assert str(number_grounding(page, SOURCE)) == "4 / 4"
    assert number_grounding(page, SOURCE, whole_numbers=True).passed == dict(zip(page, [True, True, False, False]))


def test_where_the_6_and_the_4_come_from() -> None:
    assert re.findall(r"[\d.]*6[\d.]*", SOURCE) == ["671"]
    assert re.findall(r"[\d.]*4[\d.]*", SOURCE) == ["14.8"]


@pytest.mark.parametrize("whole_numbers", [False, True])
def test_a_number_that_is_not_there_is_not_grounded(whole_numbers: bool) -> None:
    passed = number_grounding(
        ["672B", "no digits", "671B of 999B", "14.9T"], SOURCE, whole_numbers=whole_numbers
    ).passed
    assert not any(passed.values())


def test_a_decimal_is_one_number() -> None:
    assert number_grounding(["14.8"], "14 of 8", whole_numbers=True).share == 0
    assert number_grounding(["14.8"], "read 14.8 trillion.", whole_numbers=True).share == 1


def test_significant_words_are_long_and_no_stop_words() -> None:
    assert significant_words("The cache WITH 4096 keys, that is: Keys!") == {"cache", "keys"}
    assert all(len(word) >= 4 for word in STOP_WORDS)


def test_overlap_is_the_share_of_the_words_of_the_passage() -> None:
    assert word_overlap("alpha beta gamma delta", "beta gamma zeta") == pytest.approx(0.5)
    assert word_overlap("alpha alpha alpha beta", "alpha") == pytest.approx(0.5)  # sets
    assert word_overlap("so it is", SOURCE) == 0


def test_a_passage_passes_from_35_percent_on() -> None:
    words = [f"word{'abcdefghijklmnopqrst'[number]}" for number in range(20)]
    passage = " ".join(words)
    assert OVERLAP == 0.35
    assert quote_traceability([passage], " ".join(words[:7])).share == 1  # 7 of 20
    assert quote_traceability([passage], " ".join(words[:6])).share == 0


def test_false_statistics_get_full_marks_in_both_readings() -> None:
    for whole_numbers in (False, True):
        assert number_grounding(FALSE_STATISTICS, SOURCE, whole_numbers=whole_numbers).share == 1


def test_false_passages_get_full_marks() -> None:
    assert len(FALSE_PASSAGES) >= 3
    assert quote_traceability(FALSE_PASSAGES, SOURCE).share == 1
    assert all(passage not in SOURCE and why for passage, why in FALSE_PASSAGES.items())
    assert any("37B parameters in total, and 671B" in passage for passage in FALSE_PASSAGES)
    assert any("MLA and MTP" in why for why in FALSE_PASSAGES.values())


def test_a_passage_about_something_else_fails() -> None:
    assert quote_traceability(["Bake the bread until golden, then let it rest beneath a towel."], SOURCE).share == 0
