"""`dsv3-mini progress`: what was done in the lessons, and what is still open.

It reads the progress file and the text of the lessons, and never fails: a file that cannot be used is said in a line.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from dsv3_mini.commands.table import format_table
from dsv3_mini.course import progress
from dsv3_mini.course.lessons import LESSONS, Lesson
from dsv3_mini.errors import InputError

BEGIN = (
    "Nothing is recorded yet. Begin with `dsv3-mini lab`: it opens the first lesson. What you do there\n"
    "(exercises, guesses, exhibits of the bug museum) is kept in a file on this machine, and shown here."
)


def run(args: argparse.Namespace) -> int:
    """Print the table, or one JSON object; always 0."""
    with redirect_stdout(sys.stderr):  # messages about the file; what we print stays JSON
        done = progress.read()
    try:
        lessons = [_lesson_report(lesson, done) for lesson in LESSONS]
    except InputError as error:  # no checkout, so no lessons
        print(error, file=sys.stderr)
        lessons = []
    if args.json:
        print(json.dumps({"file": _file(), "lessons": lessons}))
    else:
        print(_text([lesson for lesson in lessons if lesson["exercises"]]))
    return 0


def _file() -> str | None:
    try:
        path: Path = progress.progress_path()
    except InputError:
        return None
    return str(path)


def _lesson_report(lesson: Lesson, done: progress.Progress) -> dict[str, Any]:
    """One lesson as plain JSON types. Only what the lesson asks counts, so ids of the file never reach a terminal."""
    asked = lesson.asks()
    exercises = []
    for number, title in asked.exercises.items():
        entry = done.exercises.get(number, {"state": "not attempted", "tries": 0, "hints": 0, "solution_shown": False})
        fields = ("state", "tries", "hints", "solution_shown")
        exercises.append({"id": number, "title": title, **{name: entry[name] for name in fields}})
    guesses = [done.predictions.get(name, {}) for name in asked.predictions]
    return {
        "lesson": lesson.number,
        "title": lesson.title,
        "exercises": exercises,
        "right": sum(entry["state"] == "right" for entry in exercises),
        "predictions": len(guesses),
        "predictions_made": sum("guess" in guess for guess in guesses),
        "predictions_right": sum(guess.get("right") is True for guess in guesses),
        "exhibits": len(asked.exhibits),
        "exhibits_seen": sum(done.exhibits.get(name, {}).get("seen") is True for name in asked.exhibits),
    }


def _text(lessons: list[dict[str, Any]]) -> str:
    if not any(map(_is_begun, lessons)):
        return BEGIN
    header = ["lesson", "exercises right", "hints", "guesses right", "exhibits seen"]
    rows = []
    for lesson in lessons:
        hints = sum(entry["hints"] for entry in lesson["exercises"])
        rows.append(
            [
                f"{lesson['lesson']} {lesson['title']}",
                f"{lesson['right']} of {len(lesson['exercises'])}",
                str(hints or ""),
                f"{lesson['predictions_right']} of {lesson['predictions']}",
                f"{lesson['exhibits_seen']} of {lesson['exhibits']}",
            ]
        )
    return "\n\n".join(filter(None, [format_table(header, rows), _open(lessons), f"Kept in {_file()}."]))


def _is_begun(lesson: dict[str, Any]) -> bool:
    tried = any(entry["state"] != "not attempted" for entry in lesson["exercises"])
    return bool(tried or lesson["predictions_made"] or lesson["exhibits_seen"])


def _open(lessons: list[dict[str, Any]]) -> str:
    """The open exercises of the lessons that were begun; of the next lesson when nothing is open there."""
    for chosen in (list(filter(_is_begun, lessons)), [lesson for lesson in lessons if not _is_begun(lesson)][:1]):
        lines = []
        for lesson in chosen:
            for entry in lesson["exercises"]:
                if entry["state"] != "right":
                    tries = f" ({entry['tries']} {'try' if entry['tries'] == 1 else 'tries'})" if entry["tries"] else ""
                    lines.append(f"  {entry['id']} {entry['title']}{tries}")
        if lines:
            return "\n".join(["Open:", *lines])
    return "Every exercise is right."
