"""What a learner has done: one small JSON file on this machine, and nowhere else.

    {"schema": 1,
     "exercises":   {"3.2": {"state": "right", "tries": 2, "hints": 1, "solution_shown": false}},
     "predictions": {"3.p1": {"guess": "b", "right": true}},
     "exhibits":    {"3.A": {"seen": true}}}

The file is `progress.json` at the top of the checkout, or what DSV3_PROGRESS names. It is read again before every
change and replaced as a whole, under a lock, so two notebooks at once lose nothing and a killed kernel leaves no half
a file. Progress is a convenience: nothing in the course fails because of it. A file that cannot be read is moved aside
(nothing is thrown away) and a new one begun; one of a newer version is left alone; both say so.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv3_mini.paths import repo_root

SCHEMA = 1
SECTIONS = ("exercises", "predictions", "exhibits")

_subscribers: list[Callable[[], None]] = []
_told: set[str] = set()  # messages given in this process, each once


@dataclass
class Progress:
    """The content of the file. Entries are by id; those of ids that no longer exist are kept."""

    exercises: dict[str, dict[str, Any]] = field(default_factory=dict)
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)
    exhibits: dict[str, dict[str, Any]] = field(default_factory=dict)


class _NewerSchemaError(Exception):
    pass


def progress_path() -> Path:
    """Where the file is, whether it exists or not."""
    named = os.environ.get("DSV3_PROGRESS")
    return Path(named) if named else repo_root() / "progress.json"


def read() -> Progress:
    """What the file says; an empty `Progress`, with a message, when it cannot be used."""
    path = progress_path()
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


def record_exercise(
    number: str, *, right: bool | None = None, hint: bool = False, solution_shown: bool = False
) -> None:
    """One more try at an exercise (`right` says how it went), one more hint, or its solution looked at.

    An exercise that was right once stays right.
    """

    def change(progress: Progress) -> None:
        entry = progress.exercises.setdefault(
            number, {"state": "begun", "tries": 0, "hints": 0, "solution_shown": False}
        )
        if right is not None:
            entry["tries"] = int(entry.get("tries", 0)) + 1
            if entry.get("state") != "right":
                entry["state"] = "right" if right else "wrong"
        entry["hints"] = int(entry.get("hints", 0)) + hint
        entry["solution_shown"] = bool(entry.get("solution_shown")) or solution_shown

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
    content = json.loads(raw)  # UnicodeDecodeError and JSONDecodeError are ValueErrors
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    schema = content.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise ValueError("it has no schema number")
    if schema > SCHEMA:
        raise _NewerSchemaError(f"written by a newer version of the course (schema {schema}, this one knows {SCHEMA})")
    for name in SECTIONS:
        section = content.get(name, {})
        if not isinstance(section, dict) or not all(isinstance(entry, dict) for entry in section.values()):
            raise ValueError(f"{name!r} is not a table of entries")
    return Progress(**{name: content.get(name, {}) for name in SECTIONS})


def _update(change: Callable[[Progress], Any]) -> None:
    path = progress_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            try:
                progress = _parse(path.read_bytes())
            except FileNotFoundError:
                progress = Progress()
            except ValueError as error:
                aside = path.with_name(f"{path.name}.unreadable-{secrets.token_hex(3)}")
                path.rename(aside)
                _tell(f"{path}: not a progress file ({error}); it is now {aside.name}, and a new one is begun")
                progress = Progress()
            change(progress)
            content = {"schema": SCHEMA, **{name: getattr(progress, name) for name in SECTIONS}}
            _replace(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    except _NewerSchemaError as error:
        _tell(f"{path}: {error}; it is left as it is, and progress is not recorded")
        return
    except OSError as error:
        _tell(f"{path}: cannot be written ({error.strerror}); the lessons go on, progress is not recorded")
        return
    for callback in list(_subscribers):
        callback()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time. The lock is a file of its own, since the progress file itself is replaced."""
    try:
        import fcntl
    except ImportError:  # a platform without it: two notebooks that write in the same instant may lose one entry
        yield
        return
    with path.with_name(f".{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _tell(message: str) -> None:
    """Once a process, to standard output: in a notebook standard error looks like a failure, and this is none."""
    if message not in _told:
        _told.add(message)
        print(message, file=sys.stdout)
