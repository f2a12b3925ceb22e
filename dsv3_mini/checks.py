"""The checks that configs share. A field that cannot be is refused in one sentence that says what would be right."""

from __future__ import annotations

import math
from typing import Any

from dsv3_mini.errors import InputError


def is_count(value: Any, least: int = 1) -> bool:
    """A whole number of at least `least`; True and 2.0 are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """A finite number; True is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def require(ok: bool, field: str, value: Any, right: str) -> None:
    """Raise `InputError` that names `field`, its value, and what would be right, unless `ok`."""
    if not ok:
        raise InputError(f"{field} = {value!r} cannot be: it must be {right}")
