"""Numbers in text: how they are read, and when one is another one rounded."""

from __future__ import annotations

import pytest

from dsv3_mini.course.numerals import find_numbers


def read(text: str) -> list[float]:
    return [number.readings[0][0] for number in find_numbers(text)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("671 billion", 671e9),
        ("671B", 671e9),
        ("671-billion", 671e9),
        ("671,026,419,200", 671026419200),
        ("671_026_419_200", 671026419200),
        ("671{,}026", 671026),
        (r"671\,026", 671026),
        ("14.8T", 14.8e12),
        ("2.788 million", 2.788e6),
        ("9.21 GB", 9.21e9),
        ("9.21GB", 9.21e9),
        ("16 Ki", 16384),
        ("16KiB", 16384),
        ("4 %", 4),
        ("2.2e-4", 2.2e-4),
        ("2.2·10⁻⁴", 2.2e-4),
        (r"2.2 \cdot 10^{-4}", 2.2e-4),
        (r"2.2 \times 10^{-4}", 2.2e-4),
        ("10^-4", 1e-4),
        ("10^6", 1e6),
        ("1.8x", 1.8),
        ("1.8×", 1.8),
        ("16-bit", 16),
        ("5.2s", 5.2),
        ("-3", 3),
        ("3.", 3),
    ],
)
def test_one_number_is_read(text: str, value: float) -> None:
    assert read(text) == pytest.approx([value], rel=1e-12)


@pytest.mark.parametrize("text", "V3 BF16 kv_1 W2 4o 1F1B 2nd 3D 03 00 layer.61 q1_proj 03_positions".split())
def test_digits_of_a_name_are_no_number(text: str) -> None:
    assert read(text) == []


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("85-90 %", [85, 90]),
        ("1x128", [1, 128]),
        ("128×128", [128, 128]),
        ("heads 1, 128 and 3", [1, 128, 3]),
        ("8 of 256", [8, 256]),
        ("1/32", [1, 32]),
        ("512+64=576", [512, 64, 576]),
        ("10 times", [10]),
        ("[1, 4, 12]", [1, 4, 12]),
        ("T = 3 Tokens", [3]),
    ],
)
def test_several_numbers_are_kept_apart(text: str, values: list[float]) -> None:
    assert read(text) == values


def rounds(exact: float, text: str) -> bool:
    (number,) = find_numbers(text)
    return number.is_rounded(exact)


@pytest.mark.parametrize(
    ("exact", "text"),
    [
        (671026419200, "671B"),
        (671026419200, "671 billion"),
        (671026419200, "671.03B"),
        (70272, "70 KB"),
        (131072, "128K"),
        (119000, "119K"),
        (0.0438, "4.38 %"),
        (56.889, "57"),
        (383, "about 400"),
        (47117, "more than 47,000"),
        (0.391, "0.4"),
        (2.24e-4, "2.2e-4"),
        (0, "0"),
        (-3, "3"),
    ],
)
def test_a_value_supports_what_it_rounds_to(exact: float, text: str) -> None:
    assert rounds(exact, text)


@pytest.mark.parametrize(
    ("exact", "text"),
    [
        (671026419200, "672B"),
        (671026419200, "671.1B"),
        (671e9, "671,026,419,200"),
        (671e9, "671"),
        (671e9, "671M"),
        (383, "400"),  # without "about" it is stated to the unit
        (450, "about 400"),
        (2.25, "2"),  # more than 5 % away
        (0.3, "0"),
        (131072, "130K"),
        (0.04, "0.4 %"),
        (2.2e-4, "2.2e-5"),
    ],
)
def test_a_value_does_not_support_another_number(exact: float, text: str) -> None:
    assert not rounds(exact, text)


def test_places_lead_back_to_the_text() -> None:
    text = "It has 671 billion parameters, 37B active."
    assert [text[number.start : number.end].strip() for number in find_numbers(text)] == ["671 billion", "37B"]
