"""What a learner has done: one small JSON file on this machine, and nowhere else.

    {"schema": 1,
     "exercises":   {"3.2": {"state": "right", "tries": 2, "hints": 1, "solution_shown": false}},
     "predictions": {"3.p1": {"guess": "b", "right": true}},
     "exhibits":    {"3.A": {"seen": true}}}

The file is `progress.json` at the top of the checkout, or what DSV3_PROGRESS names. It is read again before every
change and replaced as a whole, under a lock (progress_file.py). Progress is a convenience: nothing in the course fails
because of it. A file that cannot be read is moved aside (nothing is thrown away) and a new one begun; one of a newer
version is left alone; both say so.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv3_mini.course.progress_file import locked, move_aside, replace
from dsv3_mini.errors import InputError
from dsv3_mini.paths import repo_root

SCHEMA = 1
SECTIONS = ("exercises", "predictions", "exhibits")

_subscribers: list[Callable[[], None]] = []
_told: set[str] = set()  # messages given in this process, each once


@dataclass
class Progress:
    """The content of the file. Entries are by id; those of ids that no longer exist are kept.

    Entries of `exercises` have `state` ("begun", "wrong" or "right"), `tries`, `hints` and `solution_shown`, whatever
    the file says there. What else the file holds is kept in `rest`.
    """

    exercises: dict[str, dict[str, Any]] = field(default_factory=dict)
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)
    exhibits: dict[str, dict[str, Any]] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)


class _NewerSchemaError(Exception):
    pass


def progress_path() -> Path:
    """Where the file is, whether it exists or not. `InputError` without a checkout and without DSV3_PROGRESS."""
    named = os.environ.get("DSV3_PROGRESS")
    return Path(named).expanduser().absolute() if named else repo_root() / "progress.json"


def read() -> Progress:
    """What the file says; an empty `Progress`, with a message, when it cannot be used."""
    try:
        path = progress_path()
    except InputError as error:
        _tell(f"progress is not recorded: {error}")
        return Progress()
    try:
        return _parse(path.read_bytes())
    except FileNotFoundError:
        return Progress()
    except _NewerSchemaError as error:
        _tell(f"{path}: {error}; it is left as it is, and progress is not recorded")
    except OSError as error:
        _tell(f"{path}: cannot be read ({error.strerror}); the lessons go on without progress")
    except ValueError as error:
        _tell(f"{path}: not a progress file ({error}); the next exercise begins a new one and keeps this one aside")
    return Progress()


def record_exercise(number: str, *, right: bool | None = None, hints: int = 0, solution_shown: bool = False) -> None:
    """One more try at an exercise (`right` says how it went), a further hint, or its solution looked at.

    An exercise that was right once stays right.

    Args:
        number: its id.
        right: how a try went; None when this was none.
        hints: how many of its hints have been seen by now.
        solution_shown: whether the solution was shown just now.
    """

    def change(progress: Progress) -> None:
        entry = progress.exercises.setdefault(number, _exercise_entry({}))
        if right is not None:
            entry["tries"] += 1
            if entry["state"] != "right":
                entry["state"] = "right" if right else "wrong"
        entry["hints"] = max(entry["hints"], hints)
        entry["solution_shown"] |= solution_shown

    _update(change)


def record_prediction(name: str, *, guess: Any, right: bool | None = None) -> None:
    """A guess, as JSON can hold it; `right` once the answer is known (None for guesses that are only compared)."""

    def change(progress: Progress) -> None:
        entry = progress.predictions.setdefault(name, {})
        if entry.get("guess") != guess:
            entry.clear()
        entry["guess"] = guess
        if right is not None:
            entry["right"] = right

    _update(change)


def forget_prediction(name: str) -> None:
    """Take a guess back."""
    _update(lambda progress: progress.predictions.pop(name, None))


def record_exhibit(name: str) -> None:
    """An exhibit of the bug museum whose diagnosis was read."""
    _update(lambda progress: progress.exhibits.setdefault(name, {}).update(seen=True))


def subscribe(callback: Callable[[], None]) -> Callable[[], None]:
    """Have `callback()` called after each change made by this process; gives the function that ends it."""
    _subscribers.append(callback)

    def unsubscribe() -> None:
        with contextlib.suppress(ValueError):
            _subscribers.remove(callback)

    return unsubscribe


def _parse(raw: bytes) -> Progress:
    try:
        content = json.loads(raw)  # UnicodeDecodeError and JSONDecodeError are ValueErrors
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    schema = content.pop("schema", None)
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise ValueError("it has no schema number")
    if schema > SCHEMA:
        raise _NewerSchemaError(f"written by a newer version of the course (schema {schema}, this one knows {SCHEMA})")
    sections = {name: content.pop(name, {}) for name in SECTIONS}
    for name, section in sections.items():
        if not isinstance(section, dict) or not all(isinstance(entry, dict) for entry in section.values()):
            raise ValueError(f"{name!r} is not a table of entries")
    sections["exercises"] = {key: _exercise_entry(entry) for key, entry in sections["exercises"].items()}
    return Progress(**sections, rest=content)


def _exercise_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with the four fields of an exercise, each of its type; other fields stay."""

    def count(name: str) -> int:
        value = entry.get(name)
        return value if isinstance(value, int) and value >= 0 else 0

    state = entry.get("state")
    known = {
        "state": state if state in ("right", "wrong") else "begun",
        "tries": count("tries"),
        "hints": count("hints"),
        "solution_shown": entry.get("solution_shown") is True,
    }
    return {**entry, **known}


def _update(change: Callable[[Progress], Any]) -> None:
    try:
        path = progress_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            try:
                progress = _parse(path.read_bytes())
            except FileNotFoundError:
                progress = Progress()
            except ValueError as error:
                _tell(f"{path}: not a progress file ({error}); it is now {move_aside(path)}, and a new one is begun")
                progress = Progress()
            change(progress)
            content = {"schema": SCHEMA, **{name: getattr(progress, name) for name in SECTIONS}, **progress.rest}
            replace(path, json.dumps(content, indent=1) + "\n")
    except InputError as error:
        _tell(f"progress is not recorded: {error}")
        return
    except _NewerSchemaError as error:
        _tell(f"{path}: {error}; it is left as it is, and progress is not recorded")
        return
    except OSError as error:
        _tell(f"{path}: cannot be written ({error.strerror or error}); the lessons go on, progress is not recorded")
        return
    for callback in list(_subscribers):
        try:
            callback()
        except Exception as error:  # a picture that cannot follow must not take the check with it
            _tell(f"a view of the progress could not follow ({type(error).__name__}: {error})")


def _tell(message: str) -> None:
    """Once a process, to standard output: in a notebook standard error looks like a failure, and this is none."""
    if message not in _told:
        _told.add(message)
        print(message, file=sys.stdout)
