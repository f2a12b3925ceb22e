"""Say how a result differs from the right one, as a patient teacher would: kind, shape, numbers, likely cause.

`difference(actual, expected, ...)` gives None when they agree, else one message. It knows the mistakes that occur in
every exercise (a forgotten factor, an off-by-one; for tensors see compare_tensors.py); mistakes of one exercise belong
to that exercise (`Mistake` in checking.py) and are tried first. The message for a number never says the right one.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dsv3_mini.course.compare_tensors import FACTORS, shape_text, tensor_difference

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80


def difference(
    actual: Any, expected: Any, *, dims: str | Sequence[str] = "", tolerance: float = 1e-5, what: str = "the result"
) -> str | None:
    """None when `actual` is `expected`, else what is wrong with it. Whatever `actual` is, nothing is raised.

    Args:
        actual: what the answer gave.
        expected: a tensor, a number, a bool, a string, or a list, tuple or dict of those.
        dims: names of a tensor's dimensions, "B T D"; for a list or tuple, one such string for each part.
        tolerance: largest difference of an element, plus the same share of the largest expected element.
        what: what to call it in the message.
    """
    try:
        return _difference(actual, expected, dims, tolerance, what)
    except Exception as error:  # an object that looks like a result and does not behave like one
        return (
            f"{what}, of type {type(actual).__name__}, cannot be compared with the right one ({type(error).__name__})"
        )


def close(actual: Any, expected: Any, tolerance: float = 1e-5) -> bool:
    """Whether two results agree; nothing is explained."""
    return difference(actual, expected, tolerance=tolerance) is None


def _difference(actual: Any, expected: Any, dims: str | Sequence[str], tolerance: float, what: str) -> str | None:
    if actual is None and expected is not None:
        return f"{what} is None: is a `return` missing?"
    if actual is ...:
        return f"{what} is still the three dots"
    if isinstance(expected, Tensor):
        return _tensor(actual, expected, dims, tolerance, what)
    if isinstance(expected, (bool, str)):
        return _same_kind(_plain(actual), expected, what)
    if isinstance(expected, (int, float)):
        return _number(_plain(actual), expected, tolerance, what)
    if isinstance(expected, dict):
        return _dict(actual, expected, tolerance, what)
    if isinstance(expected, (list, tuple)):
        return _sequence(actual, expected, dims, tolerance, what)
    return None if actual == expected else f"{what} is {_shown(actual)}, and that is not right"


def _plain(value: Any) -> Any:
    """A tensor or array of one element, or a number of numpy, as the Python number in it."""
    one = isinstance(value, (Tensor, np.ndarray, np.generic)) and math.prod(value.shape) == 1
    return value.item() if one else value


def _shown(value: Any) -> str:
    """A value in the words of Python, cut where it is long; reprlib bears with objects whose repr raises."""
    return _repr.repr(value)


def _same_kind(actual: Any, expected: bool | str, what: str) -> str | None:
    if type(actual) is not type(expected):
        return f"{what} is of type {type(actual).__name__}; a {type(expected).__name__} is asked for"
    return None if actual == expected else f"{what} is {_shown(actual)}, and that is not right"


def _tensor(actual: Any, expected: Tensor, dims: str | Sequence[str], tolerance: float, what: str) -> str | None:
    names = dims.split() if isinstance(dims, str) else list(dims)
    names = names if len(names) == expected.dim() else []
    if isinstance(actual, Tensor):
        return tensor_difference(actual, expected, names, tolerance, what)
    if expected.dim() == 0 and isinstance(actual, (int, float)):
        return _difference(actual, expected.item(), "", tolerance, what)
    shape = shape_text(expected.shape, names)
    return f"{what} is of type {type(actual).__name__}; a tensor of shape {shape} is asked for"


def _number(actual: Any, expected: int | float, tolerance: float, what: str) -> str | None:
    if isinstance(actual, bool) or not isinstance(actual, (int, float)):
        return f"{what} is of type {type(actual).__name__}; a number is asked for"
    if isinstance(actual, float) and not math.isfinite(actual):
        right = actual == expected or (math.isnan(actual) and math.isnan(expected))
        return None if right else f"{what} is {'NaN' if math.isnan(actual) else 'infinite'}"
    if isinstance(expected, int):
        if actual == expected:
            return None
        if actual % 1 and math.floor(actual) in (expected, expected - 1):
            return f"{what} is {actual:.6g}; a whole number is asked for"
        if actual in (expected + 1, expected - 1):
            return f"{what} is {actual:,}: off by one"
    elif math.isclose(actual, expected, rel_tol=tolerance, abs_tol=tolerance):
        return None
    shown = f"{actual:,}" if isinstance(actual, int) else f"{actual:,.6g}"
    if cause := _cause(actual, expected):
        return f"{what} is {shown}: {cause}"
    return f"{what} is {shown}, and that is too {'large' if actual > expected else 'small'}"


def _cause(actual: int | float, expected: int | float) -> str:
    if not (expected and actual) or max(abs(actual), abs(expected)) > 1e300:
        return ""
    ratio = actual / expected
    if math.isclose(ratio, -1, rel_tol=1e-9):
        return "the sign is wrong"
    for factor, word in FACTORS.items():
        if math.isclose(ratio, factor, rel_tol=1e-6):
            return f"{word} what it should be"
    if math.isclose(actual * expected, 1, rel_tol=1e-6):
        return "that is one over the right number"
    power = math.log10(abs(ratio))
    if ratio > 0 and round(power) and abs(power - round(power)) < 1e-6:
        return f"off by a factor of {10 ** abs(round(power)):,}"
    return ""


def _dict(actual: Any, expected: dict[Any, Any], tolerance: float, what: str) -> str | None:
    if not isinstance(actual, dict):
        return f"{what} is of type {type(actual).__name__}; a dict is asked for"
    missing = [_shown(key) for key in expected if key not in actual]
    extra = [_shown(key) for key in actual if key not in expected]
    if missing or extra:
        said = [f"{word}: {_some(keys)}" for word, keys in (("missing", missing), ("too many", extra)) if keys]
        return f"{what} has other keys than it should ({'; '.join(said)})"
    for key in expected:
        problem = difference(actual[key], expected[key], tolerance=tolerance, what=f"{what}[{_shown(key)}]")
        if problem is not None:
            return problem
    return None


def _some(names: list[str]) -> str:
    """The first few of a list, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _sequence(
    actual: Any, expected: Sequence[Any], dims: str | Sequence[str], tolerance: float, what: str
) -> str | None:
    if isinstance(actual, (Tensor, np.ndarray)) and all(isinstance(part, (int, float)) for part in expected):
        actual = actual.tolist()
    if not isinstance(actual, (list, tuple)):
        return f"{what} is of type {type(actual).__name__}; {len(expected)} values are asked for"
    if len(actual) != len(expected):
        return f"{what} has {len(actual)} parts; it should have {len(expected)}"
    each = [dims] * len(expected) if isinstance(dims, str) else list(dims)
    for number, (a, e, d) in enumerate(zip(actual, expected, each)):
        name = f"part {number + 1} of {what}"
        if (problem := difference(a, e, dims=d, tolerance=tolerance, what=name)) is not None:
            if len(expected) == 2 and close(actual[0], expected[1]) and close(actual[1], expected[0]):
                return f"the two parts of {what} are swapped"
            return problem
    return None
