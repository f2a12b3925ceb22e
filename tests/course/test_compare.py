"""What a learner is told about a result: each diagnosis where it belongs, and none where it does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dsv3_mini.course.compare import close, difference


@pytest.fixture(scope="module")
def e() -> Tensor:
    """[B = 2, T = 5, D = 4], no two numbers alike."""
    return torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


def said(actual: Any, expected: Any, dims: str = "B T D", **more: Any) -> str:
    message = difference(actual, expected, dims=dims, **more)
    assert message is not None, "counts as right"
    assert not close(actual, expected, more.get("tolerance", 1e-5))
    return message


# ---- right


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (torch.ones(2), torch.ones(2)),
        (torch.ones(2) + 1e-6, torch.ones(2)),
        (torch.ones(2).double(), torch.ones(2)),
        (torch.ones(2, requires_grad=True), torch.ones(2)),
        (torch.ones(2, dtype=torch.int32), torch.ones(2, dtype=torch.int64)),
        (torch.tensor([-math.inf, 1]), torch.tensor([-math.inf, 1])),
        (torch.tensor([math.nan, 1]), torch.tensor([math.nan, 1])),
        (torch.ones(0, 3), torch.ones(0, 3)),
        (torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.complex64)),
        (torch.tensor([True]), torch.tensor([True])),
        (2.0, torch.tensor(2.0)),
        (torch.tensor(2), 2),
        (np.int64(2), 2),
        (np.float32(0.5), 0.5),
        (2.0, 2),
        (0.1 + 0.2, 0.3),
        (math.inf, math.inf),
        (True, True),
        (np.bool_(True), True),
        (torch.tensor(False), False),
        ("a", "a"),
        ([1, 2.0], (1, 2)),
        (torch.tensor([1, 2]), [1, 2]),
        (np.array([1, 2]), (1, 2)),
        ({"a": torch.ones(1)}, {"a": torch.ones(1)}),
        (None, None),
    ],
)
def test_equal_is_right(actual: Any, expected: Any) -> None:
    assert difference(actual, expected) is None


def test_tolerance_grows_with_the_numbers_and_no_further() -> None:
    big = torch.tensor([1e4, 1.0])
    assert difference(big + torch.tensor([0.05, 0.0]), big) is None
    assert difference(big + torch.tensor([0.5, 0.0]), big) is not None
    assert difference(torch.ones(3) + torch.tensor([0, 0, 1e-4]), torch.ones(3)) is not None


# ---- kinds


@pytest.mark.parametrize(
    ("actual", "expected", "words"),
    [
        (None, 3, "`return` missing"),
        (..., torch.ones(1), "three dots"),
        ([1.0], torch.ones(1), "type list; a tensor of shape [B = 1]"),
        (np.ones(1), torch.ones(1), "type ndarray; a tensor"),
        (1, "a", "type int; a str"),
        (1, True, "type int; a bool"),
        (False, True, "is False"),
        ("x" * 999, "a", "..."),
        ("3", 3, "type str; a number"),
        (True, 1, "type bool; a number"),
        (None, {"a": 1}, "None"),
        ([], {"a": 1}, "a dict"),
        ({"a": 1, "c": 2}, {"a": 1, "b": 2}, "missing: 'b'; too many: 'c'"),
        ({"a": 2}, {"a": 1}, "the result['a'] is 2"),
        (3, (1, 2), "type int; 2 values"),
        ((1, 2, 3), (1, 2), "has 3 parts; it should have 2"),
        ((1, 3), (1, 2), "part 2 of the result"),
        ((2, 1), (1, 2), "two parts of the result are swapped"),
        (torch.ones(3), (1, 2), "has 3 parts"),
    ],
)
def test_another_kind_is_named(actual: Any, expected: Any, words: str) -> None:
    message = said(actual, expected, dims="B")
    assert words in message and len(message) < 300


class _Hostile:
    """Looks like nothing, and fails at whatever it is asked."""

    def __repr__(self) -> str:
        raise RuntimeError

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    __hash__ = None

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError


@pytest.mark.parametrize("expected", [1, 1.5, "a", True, (1, 2), {"a": 1}, torch.ones(2), torch.tensor(1), None])
def test_an_answer_that_raises_when_it_is_looked_at_is_wrong(expected: Any) -> None:
    assert isinstance(difference(_Hostile(), expected), str)
    assert isinstance(difference([_Hostile()] * 2, (1, 2)), str)
    assert isinstance(difference({_repr_raises(): 1}, {"a": 1}), str)


def _repr_raises() -> Any:
    return type("Odd", (), {"__repr__": lambda self: 1 / 0})()


# ---- numbers


@pytest.mark.parametrize(
    ("actual", "expected", "words"),
    [
        (200, 100, "twice what it should be"),
        (50.0, 100, "half what it should be"),
        (-7.5, 7.5, "the sign is wrong"),
        (0.1, 10.0, "one over the right number"),
        (70272000, 70272, "off by a factor of 1,000"),
        (101, 100, "off by one"),
        (99, 100, "off by one"),
        (100.4, 100, "a whole number is asked for"),
        (99.7, 100, "a whole number is asked for"),
        (140, 100, "too large"),
        (60.0, 100.0, "too small"),
        (0, 5, "too small"),
        (5, 0, "too large"),
        (math.nan, 5, "is NaN"),
        (math.inf, 5, "is infinite"),
        (10**400, 5, "too large"),
        (1e308, 1e-300, "too large"),
    ],
)
def test_a_wrong_number_is_told_what_it_looks_like(actual: Any, expected: Any, words: str) -> None:
    message = said(actual, expected, dims="")
    assert words in message
    assert f"{expected:,}" not in message.replace(f"{actual:,}", ""), "gives the right number away"


# ---- tensors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e[0], "1 dimension too few"),
        (lambda e: e[None, None], "2 dimensions too many"),
        (lambda e: e[:, 1:], "T (dimension 1) is 4, not 5, one too few"),
        (lambda e: e.repeat(1, 1, 2), "D (dimension 2) is 8, not 4"),
        (lambda e: e.transpose(1, 2), "stand in the order B, D, T"),
        (lambda e: e.reshape(4, 5, 2), "[B = 2, T = 5, D = 4]"),
        (lambda e: e.long(), "real numbers are asked for"),
        (lambda e: e > 0, "dtype torch.bool; real numbers"),
        (lambda e: e + 0j, "dtype torch.complex64"),
        (lambda e: e.masked_fill(e == e[0, 0, 0], math.nan), "NaN in 1 of 40 places"),
        (lambda e: e.masked_fill(e > 0, math.inf), "infinite values"),
        (lambda e: e.bfloat16(), "torch.bfloat16, which holds fewer digits"),
        (lambda e: e.transpose(1, 2).reshape(e.shape), "viewed or reshaped where a transpose was needed"),
        (lambda e: e.flip(1), "in reverse order along T"),
        (lambda e: e.roll(1, 1), "shifted by one along T"),
        (lambda e: torch.cat([torch.zeros(2, 1, 4), e[:, :-1]], 1), "along T (one place behind)"),
        (lambda e: torch.cat([e[:, 1:], torch.zeros(2, 1, 4)], 1), "along T (one place ahead)"),
        (lambda e: e.flatten()[torch.randperm(40, generator=torch.Generator().manual_seed(1))].view(2, 5, 4),
         "the right ones in the wrong places"),
        (lambda e: 2 * e, "twice what it should be"),
        (lambda e: e / 8, "an eighth of"),
        (lambda e: 3 * e, "3 times"),
        (lambda e: e * math.sqrt(3), "sqrt(3) times"),
        (lambda e: e / math.sqrt(48), "1 / sqrt(48) times"),
        (lambda e: e * 1e6, "1e+06 times"),
        (lambda e: -e, "the wrong sign"),
        (lambda e: e + 0.25, "off by the same amount, +0.25"),
        (lambda e: e * 0, "every number is 0"),
        (lambda e: e.index_fill(1, torch.tensor([3]), 7.0), "At [B = 0, T = 3, D = 0] it is 7"),
        (lambda e: e.clamp(-0.5, 0.5), "places differ"),
    ],
)  # fmt: skip
def test_a_wrong_tensor_is_told_what_it_looks_like(change: Any, words: str, e: Tensor) -> None:
    assert words in said(change(e), e)


def test_a_square_result_that_is_mirrored_lacks_a_transpose() -> None:
    square = torch.arange(9.0).view(3, 3) ** 2
    assert "T, S" not in said(square, square.T.contiguous(), "T S").split("order")[0]
    assert "a transpose or permute is missing or one too many" in said(square.T, square, "T S")
    assert "viewed" not in said(square.T, square, "T S")


def test_infinities_must_stand_where_they_belong() -> None:
    scores = torch.tensor([[1.0, -math.inf], [2.0, 3.0]])
    assert "infinite in other places than it should be (0 places are; 1 should be)" in said(
        scores.nan_to_num(neginf=0), scores, ""
    )
    assert "wrong sign of infinity" in said(scores.abs(), scores, "")
    assert "At [0, 0] it is 5" in said(
        scores.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(5.0)), scores, ""
    )


def test_numbers_that_look_alike_are_shown_with_more_digits() -> None:
    message = said(torch.tensor([0.33333333, 5.0, 1.0]), torch.tensor([0.33334444, 5.0, 1.0]), "", tolerance=1e-7)
    assert "0.333333; right is 0.333344" in message
    assert difference(torch.tensor([129279]), torch.tensor([129280])) is not None, "whole numbers have no tolerance"
    assert "123456; right is 123457" in said(torch.tensor([123456, 1, 5]), torch.tensor([123457, 1, 7]), "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: ~m, "wrong way round"),
        (lambda m: m.T, "mirrored"),
        (lambda m: m.float().tril(-1).bool(), "one place too little"),
        (lambda m: torch.ones(6, 6).tril(1).bool(), "one place too much"),
        (lambda m: m.float(), "torch.bool (True and False) are asked for"),
        (lambda m: m & (torch.arange(6) != 2), "At [T = 2, S = 2] the result is False; right is True (4 of 36"),
    ],
)
def test_a_wrong_mask_is_told_what_it_looks_like(change: Any, words: str) -> None:
    mask = torch.ones(6, 6).tril().bool()
    assert words in said(change(mask), mask, "T S")


def test_a_diagnosis_is_not_given_where_it_does_not_fit(e: Tensor) -> None:
    """A result with one wrong number has none of the marks of a slip that moves all of them."""
    one_wrong = e.clone()
    one_wrong[1, 4, 3] += 3
    message = said(one_wrong, e)
    for word in ("order", "shifted", "times", "sign", "amount", "transpose", "rounding", "fewer digits"):
        assert word not in message, message
    assert "(1 of 40 places differ)" in message
    assert "fewer digits" not in said(e.bfloat16() + 1, e)
    constant = torch.ones(2, 5, 4)
    constant[0, 0, 0] = 2
    assert "shifted" not in said(torch.ones(2, 5, 4), constant)


def test_large_results_are_judged_quickly() -> None:
    """What is looked for is linear in the size, but for orders, which large results are not tried on."""
    large = torch.rand(20, 256, 256)
    for wrong in (large[:-1], large + torch.rand(20, 256, 256), large.half(), large.transpose(1, 2)):
        assert difference(wrong, large) is not None
