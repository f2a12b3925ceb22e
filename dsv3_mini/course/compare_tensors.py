"""How a tensor differs from the right one: dimensions, dtype, NaN, and what its numbers have in common with the right.

A result of the right shape is held against the right numbers in another order, moved by one, scaled or offset: each is
the mark of one kind of slip. Nothing of that fits: the first place that differs is named.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

FACTORS = {2.0: "twice", 0.5: "half", 4.0: "four times", 0.25: "a quarter of", 8.0: "8 times", 0.125: "an eighth of"}
_LARGEST = 1_000_000  # elements; in larger results no other order is looked for


def tensor_difference(
    actual: Tensor, expected: Tensor, names: Sequence[str], tolerance: float, what: str
) -> str | None:
    """None when the tensors agree, else a message.

    Args:
        actual, expected: any two tensors.
        names: of the dimensions of `expected`, or nothing.
        tolerance, what: as in `compare.difference`.
    """
    actual, expected = actual.detach().cpu(), expected.detach().cpu()
    if actual.shape != expected.shape:
        return _wrong_shape(actual, expected, names, what)
    if (problem := _wrong_dtype(actual, expected, what)) is not None:
        return problem
    if expected.dtype == torch.bool:
        return None if torch.equal(actual, expected) else _wrong_mask(actual, expected, names, what)
    a, e = _real(actual), _real(expected)
    names = [] if expected.is_complex() else names
    if (problem := _wrong_infinities(a, e, what)) is not None:
        return problem
    finite = torch.isfinite(e)
    bound = tolerance * (1 + float(e[finite].abs().max() if finite.any() else 0.0))
    if _kind(expected) == "whole numbers":  # token 129,279 is not nearly token 129,280
        bound = 0.0
    gap = torch.where(finite, (a - e).abs(), 0.0)
    if not gap.numel() or float(gap.max()) <= bound:
        return None
    if cause := _coarse(actual, expected, gap, bound):
        return f"the numbers of {what} are right but for rounding: {cause}"
    if (cause := _other_order(a, e, names, bound)) or (cause := _shifted(a, e, names, bound)):
        return f"the shape of {what} is right, the numbers are not: {cause}"
    if cause := _other_scale(a, e, bound):
        return f"the shape of {what} is right; {cause}"
    return f"the shape of {what} is right. " + _first_place(a, e, gap > bound, names, "it")


def shape_text(shape: Sequence[int], names: Sequence[str] = ()) -> str:
    """ "[B = 2, T = 5]", or "[2, 5]" without names."""
    if len(names) == len(shape):
        return "[" + ", ".join(f"{name} = {size}" for name, size in zip(names, shape)) + "]"
    return str(list(shape))


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.to(torch.complex128)) if tensor.is_complex() else tensor.double()


def _wrong_shape(actual: Tensor, expected: Tensor, names: Sequence[str], what: str) -> str:
    said = f"the shape of {what} is {list(actual.shape)}; it should be {shape_text(expected.shape, names)}"
    if actual.dim() != expected.dim():
        extra = actual.dim() - expected.dim()
        count = f"{abs(extra)} dimension{'s' * (abs(extra) > 1)}"
        return f"{said}: {count} too {'many' if extra > 0 else 'few'}"
    if names and sorted(actual.shape) == sorted(expected.shape) and len(set(expected.shape)) == expected.dim():
        order = [names[list(expected.shape).index(size)] for size in actual.shape]
        return (
            f"{said}. Your dimensions stand in the order {', '.join(order)}: a transpose or permute is missing or "
            "one too many"
        )
    wrong = [i for i, (a, e) in enumerate(zip(actual.shape, expected.shape)) if a != e]
    if len(wrong) == 1:
        i = wrong[0]
        name = f"{names[i]} (dimension {i})" if names else f"dimension {i}"
        by = actual.shape[i] - expected.shape[i]
        hint = ", one too many" if by == 1 else ", one too few" if by == -1 else ""
        return f"{said}: {name} is {actual.shape[i]}, not {expected.shape[i]}{hint}"
    return said


def _wrong_dtype(actual: Tensor, expected: Tensor, what: str) -> str | None:
    wanted = _kind(expected)
    return None if _kind(actual) == wanted else f"{what} is of dtype {actual.dtype}; {wanted} are asked for"


def _kind(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "torch.bool (True and False)"
    if tensor.is_complex():
        return "complex numbers"
    return "real numbers" if tensor.is_floating_point() else "whole numbers"


def _wrong_mask(actual: Tensor, expected: Tensor, names: Sequence[str], what: str) -> str:
    if torch.equal(actual, ~expected):
        return f"{what} is the wrong way round: True where it should be False"
    if expected.dim() >= 2:
        if expected.shape[-1] == expected.shape[-2] and torch.equal(actual, expected.mT):
            return f"{what} is mirrored: rows and columns are swapped"
        for by in (1, -1):
            if expected.shape[-1] > 3 and torch.equal(actual[..., 1:-1], expected.roll(by, -1)[..., 1:-1]):
                more = "much" if int(actual.sum()) > int(expected.sum()) else "little"
                return f"{what} is off by one: each row allows one place too {more}"
    return _first_place(actual, expected, actual != expected, names, what)


def _wrong_infinities(a: Tensor, e: Tensor, what: str) -> str | None:
    """NaN and infinities where there should be none, or none where there should be."""
    if nan := int((a.isnan() & ~e.isnan()).sum()):
        return (
            f"{what} has NaN in {nan} of {a.numel()} places. Usual causes: a softmax over a row in which everything is "
            "masked, 0 / 0, or -inf times 0"
        )
    finite = torch.isfinite(e)
    if finite.all() and not torch.isfinite(a).all():
        return f"{what} has infinite values in {int(a.isinf().sum())} of {a.numel()} places"
    if not torch.equal(torch.isfinite(a), finite):
        wrong, right = int((~torch.isfinite(a)).sum()), int((~finite).sum())
        return f"{what} is infinite in other places than it should be ({wrong} places are; {right} should be)"
    if not torch.equal(a[~finite].nan_to_num(), e[~finite].nan_to_num()):
        return f"{what} has the wrong sign of infinity in some places"
    return None


def _coarse(actual: Tensor, expected: Tensor, gap: Tensor, bound: float) -> str:
    """The right numbers in a dtype with fewer digits."""
    if not actual.is_floating_point() or torch.finfo(actual.dtype).eps <= torch.finfo(expected.dtype).eps:
        return ""
    rounding = 4 * torch.finfo(actual.dtype).eps * (1 + expected.double().abs().nan_to_num(posinf=0, neginf=0).max())
    if float(gap.max()) > max(bound, float(rounding)):
        return ""
    return f"they are of dtype {actual.dtype}, which holds fewer digits than {expected.dtype}"


def _other_order(a: Tensor, e: Tensor, names: Sequence[str], bound: float) -> str:
    """The right numbers in another order: the mark of a view or reshape where a transpose was needed."""
    if a.numel() > _LARGEST or not _near(a.flatten().sort().values, e.flatten().sort().values, bound):
        return ""
    for order in itertools.permutations(range(e.dim())) if 2 <= e.dim() <= 5 else ():
        turned = e.permute(order)
        if order == tuple(range(e.dim())) or not _near(a, turned.reshape(e.shape), bound):
            continue
        lie = f"they lie in the order {', '.join(names[i] for i in order)}" if names else "dimensions are swapped"
        if turned.shape == e.shape:
            return f"{lie}: a transpose or permute is missing or one too many"
        return (
            f"they are the right ones in the wrong places ({lie}). You viewed or reshaped where a transpose was needed"
        )
    for i in range(e.dim()):
        name = names[i] if names else f"dimension {i}"
        if _near(a, e.flip(i), bound):
            return f"they stand in reverse order along {name}"
        if _near(a, e.roll(1, i), bound) or _near(a, e.roll(-1, i), bound):
            return f"they are shifted by one along {name}"
    return "they are the right ones in the wrong places"


def _shifted(a: Tensor, e: Tensor, names: Sequence[str], bound: float) -> str:
    for i in range(e.dim()):
        size = e.shape[i]
        if size < 3:
            continue
        name = names[i] if names else f"dimension {i}"
        early, late = (0, size - 1), (1, size - 1)
        for said, mine, right in (("behind", late, early), ("ahead", early, late)):
            x, y = a.narrow(i, *mine), e.narrow(i, *right)
            if _near(x, y, bound) and not _near(y, y.mean(i, keepdim=True).expand_as(y), bound):
                return f"they are shifted by one along {name} (one place {said})"
    return ""


def _other_scale(a: Tensor, e: Tensor, bound: float) -> str:
    if not a.any():
        return "every number is 0"
    large = e.abs() > max(1e-3, 10 * bound)
    if int(large.sum()) < 2:
        return ""
    ratio = float((a[large] / e[large]).median())
    if ratio and _near(a, e * ratio, max(bound, 1e-6) * max(1.0, abs(ratio))):
        if math.isclose(ratio, -1, rel_tol=1e-4):
            return "every number has the wrong sign"
        return f"every number is {_times(ratio)} what it should be"
    shift = float((a - e).median())
    return f"every number is off by the same amount, {shift:+.4g}" if _near(a, e + shift, bound) else ""


def _times(ratio: float) -> str:
    """ "twice", "sqrt(3) times", "1 / sqrt(64) times" or the number."""
    for factor, word in FACTORS.items():
        if math.isclose(ratio, factor, rel_tol=1e-4):
            return word
    for square, said in ((ratio**2, "sqrt({}) times"), (ratio**-2, "1 / sqrt({}) times")):
        whole = round(square)
        is_root = 2 <= whole <= 4096 and math.isclose(square, whole, rel_tol=1e-4) and math.isqrt(whole) ** 2 != whole
        if ratio > 0 and is_root:
            return said.format(whole)
    return f"{ratio:.6g} times"


def _first_place(a: Tensor, e: Tensor, wrong: Tensor, names: Sequence[str], what: str) -> str:
    place = tuple(wrong.nonzero()[0].tolist())
    mine, right = _two_numbers(a[place].item(), e[place].item())
    if not place:
        return f"{what[0].upper()}{what[1:]} is {mine}; right is {right}"
    index = ", ".join(f"{name} = {i}" for name, i in zip(names, place)) if names else ", ".join(map(str, place))
    count = f"{int(wrong.sum())} of {wrong.numel()} places differ"
    return f"At [{index}] {what} is {mine}; right is {right} ({count})"


def _two_numbers(mine: float, right: float) -> tuple[str, str]:
    """Both, with as many digits as it takes to tell them apart."""
    if isinstance(right, bool):
        return str(bool(mine)), str(right)
    for digits in (4, 6, 9, 17):
        said = f"{mine:.{digits}g}", f"{right:.{digits}g}"
        if said[0] != said[1] and not ("e+" in said[1] and digits < 9):
            break
    return said


def _near(a: Tensor, e: Tensor, bound: float) -> bool:
    return bool(a.shape == e.shape and ((a == e) | ((a - e).abs() <= bound * 2)).all())
