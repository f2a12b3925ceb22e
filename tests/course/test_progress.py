"""The progress file: nothing is lost, whatever happens to it, and no exercise fails because of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3_mini.course import progress, progress_file
from dsv3_mini.paths import repo_root

ROOT = repo_root()


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where progress goes in a test, and no message given yet."""
    monkeypatch.setenv("DSV3_PROGRESS", str(tmp_path / "own" / "progress.json"))
    monkeypatch.setattr(progress, "_told", set())
    monkeypatch.setattr(progress, "_subscribers", [])
    return tmp_path / "own" / "progress.json"


def write(file: Path, content: object) -> bytes:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return file.read_bytes()


def python(code: str, file: Path) -> subprocess.Popen[str]:
    environ = {**os.environ, "DSV3_PROGRESS": str(file), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


# ---- what is kept


def test_what_was_recorded_is_read_again(file: Path) -> None:
    assert progress.read() == progress.Progress() and not file.exists()
    progress.record_exercise("3.2", hints=1)
    progress.record_exercise("3.2", right=False)
    progress.record_exercise("3.2", right=True, hints=0)
    progress.record_exercise("3.2", right=False)
    progress.record_exercise("3.3", solution_shown=True)
    progress.record_prediction("3.p1", guess="b")
    progress.record_prediction("3.p1", guess="b", right=True)
    progress.record_prediction("3.p2", guess=[0.5, 1])
    progress.record_exhibit("3.A")
    done = progress.read()
    assert done.exercises == {
        "3.2": {"state": "right", "tries": 3, "hints": 1, "solution_shown": False},
        "3.3": {"state": "begun", "tries": 0, "hints": 0, "solution_shown": True},
    }
    assert done.predictions == {"3.p1": {"guess": "b", "right": True}, "3.p2": {"guess": [0.5, 1]}}
    assert done.exhibits == {"3.A": {"seen": True}}
    assert json.loads(file.read_text())["schema"] == progress.SCHEMA


def test_another_guess_is_not_right_before_it_is_judged() -> None:
    progress.record_prediction("3.p1", guess="b", right=True)
    progress.record_prediction("3.p1", guess="a")
    assert progress.read().predictions == {"3.p1": {"guess": "a"}}
    progress.forget_prediction("3.p1")
    progress.forget_prediction("3.p9")
    assert progress.read().predictions == {}


def test_what_we_do_not_know_is_kept(file: Path) -> None:
    entry = {"state": "right", "tries": 1, "hints": 0, "solution_shown": False, "note": "mine"}
    write(file, {"schema": 1, "exercises": {"99.9": entry}, "colour": "blue", "odd": "\ud800"})
    progress.record_exhibit("1.A")
    kept = json.loads(file.read_text())
    assert kept["colour"] == "blue" and kept["odd"] == "\ud800" and kept["exercises"] == {"99.9": entry}


def test_the_place_is_that_of_the_checkout_or_the_named_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3_PROGRESS", "~/x.json")
    assert progress.progress_path() == Path.home() / "x.json"
    monkeypatch.delenv("DSV3_PROGRESS")
    assert progress.progress_path() == ROOT / "progress.json"


def test_two_processes_at_once_lose_nothing(file: Path) -> None:
    code = (
        "from dsv3_mini.course import progress\nfor n in range(40): progress.record_exercise(f'{mine}.{n}', right=True)"
    )
    writers = [python(f"mine = {number}\n{code}", file) for number in (1, 2, 3)]
    assert [(writer.communicate(timeout=120)[0], writer.returncode) for writer in writers] == [("", 0)] * 3
    assert len(progress.read().exercises) == 120
    assert {path.name for path in file.parent.iterdir()} == {"progress.json", ".progress.json.lock"}


def test_a_kill_between_writing_and_renaming_leaves_the_old_file(file: Path) -> None:
    progress.record_exhibit("1.A")
    before = file.read_bytes()
    code = """
import os, signal
from dsv3_mini.course import progress
os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
progress.record_exhibit("1.B")
"""
    killed = python(code, file)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert file.read_bytes() == before
    progress.record_exhibit("1.C")  # the lock went with its holder
    assert set(progress.read().exhibits) == {"1.A", "1.C"}


def test_a_link_stays_a_link(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, {"schema": 1})
    link = file.with_name("link.json")
    link.symlink_to(file)
    monkeypatch.setenv("DSV3_PROGRESS", str(link))
    progress.record_exhibit("1.A")
    assert link.is_symlink() and "1.A" in file.read_text()


# ---- what is wrong with a file

NO_PROGRESS_FILE = {
    "empty": b"",
    "truncated": b'{"schema": 1, "exercises": {"3.2": {"state"',
    "not text": b"\xff\xfe\x00",
    "another kind": b"[1, 2]",
    "no schema": b'{"exercises": {}}',
    "odd schema": b'{"schema": "1"}',
    "true schema": b'{"schema": true}',
    "odd section": b'{"schema": 1, "exercises": []}',
    "odd entry": b'{"schema": 1, "exhibits": {"3.A": 7}}',
    "nested": b"[" * 200_000,
}


@pytest.mark.parametrize("name", NO_PROGRESS_FILE)
def test_a_file_that_is_none_is_kept_aside_and_a_new_one_begun(
    name: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = write(file, NO_PROGRESS_FILE[name])
    assert progress.read() == progress.Progress() == progress.read()
    assert file.read_bytes() == content, "reading changes nothing"
    assert capsys.readouterr().out.count("\n") == 1
    progress.record_exercise("3.2", right=True)
    progress.record_exercise("3.3", right=True)
    (aside,) = file.parent.glob("progress.json.unreadable-*")
    assert aside.read_bytes() == content
    assert set(progress.read().exercises) == {"3.2", "3.3"}
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and aside.name in said and str(file) in said


def test_odd_values_in_an_entry_count_as_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {"state": ["right"], "tries": "x", "hints": -3, "solution_shown": "yes"}
    write(file, {"schema": 1, "exercises": {"3.2": odd, "3.3": {}}, "predictions": {"3.p1": {"right": 7}}})
    assert progress.read().exercises["3.2"] == {"state": "begun", "tries": 0, "hints": 0, "solution_shown": False}
    progress.record_exercise("3.2", right=False)
    assert progress.read().exercises["3.2"] == {"state": "wrong", "tries": 1, "hints": 0, "solution_shown": False}
    progress.record_prediction("3.p1", guess=1)
    assert capsys.readouterr().out == ""


def test_a_file_of_a_newer_version_is_left_alone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = write(file, {"schema": progress.SCHEMA + 1, "exercises": "another form"})
    assert progress.read() == progress.Progress()
    progress.record_exercise("3.2", right=True)
    progress.record_exercise("3.3", right=True)
    assert file.read_bytes() == content and len(list(file.parent.iterdir())) == 2
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "newer version" in said


def test_a_place_that_cannot_be_written_is_said_once(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[int] = []
    progress.subscribe(lambda: called.append(1))
    file.mkdir(parents=True)  # a folder in its place
    for number in ("3.2", "3.3"):
        progress.record_exercise(number, right=True)
    assert capsys.readouterr().out.count("cannot be written (Is a directory)") == 1
    assert progress.read() == progress.Progress()
    assert "cannot be read" in capsys.readouterr().out

    beneath_a_file = file.parent / "text"
    beneath_a_file.write_text("")
    monkeypatch.setenv("DSV3_PROGRESS", str(beneath_a_file / "progress.json"))
    progress.record_exercise("3.2", right=True)
    assert "cannot be written" in capsys.readouterr().out
    assert not called, "somebody was told of a change that was not made"


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_said(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.parent.mkdir(mode=0o500)
    progress.record_exercise("3.2", right=True)
    assert "cannot be written (Permission denied)" in capsys.readouterr().out


def test_without_a_checkout_progress_is_not_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DSV3_PROGRESS")
    monkeypatch.setattr("dsv3_mini.paths.__file__", "/nowhere/dsv3_mini/paths.py")
    assert progress.read() == progress.Progress()
    progress.record_exercise("3.2", right=True)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "not a checkout" in said


def test_a_lock_that_nobody_gives_back_does_not_hold_up_the_lesson(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_file, "PATIENCE", 0.1)
    write(file, {"schema": 1})
    with progress_file.locked(file):
        progress.record_exercise("3.2", right=True)
    assert "another program has held" in capsys.readouterr().out
    progress.record_exercise("3.2", right=True)
    assert "3.2" in progress.read().exercises


# ---- who follows


def test_subscribers_are_told_of_changes_until_they_leave(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    leave = progress.subscribe(lambda: seen.append(len(progress.read().exhibits)))
    progress.record_exhibit("1.A")
    progress.record_exhibit("1.B")
    leave()
    leave()
    progress.record_exhibit("1.C")
    assert seen == [1, 2]


def test_a_subscriber_that_fails_breaks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    progress.subscribe(lambda: 1 / 0)
    progress.subscribe(lambda: seen.append(1))
    progress.record_exhibit("1.A")
    progress.record_exhibit("1.B")
    assert seen == [1, 1]
    assert capsys.readouterr().out.count("could not follow (ZeroDivisionError") == 1
