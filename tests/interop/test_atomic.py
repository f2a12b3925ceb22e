"""A folder appears whole or not at all, whatever happens and whenever."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv3_mini.errors import InputError
from dsv3_mini.interop.atomic import atomic_folder


def write(folder: Path, text: str, *, overwrite: bool = False) -> None:
    with atomic_folder(folder, overwrite=overwrite) as draft:
        for name in ("config.json", "weights"):
            (draft / name).write_text(text)


def read(folder: Path) -> str | None:
    """The text of a whole folder, None for none; fails for a part of one."""
    if not folder.exists():
        return None
    texts = {(folder / name).read_text() for name in ("config.json", "weights")}
    assert len(texts) == 1
    return texts.pop()


def test_a_new_folder_with_its_parents(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", "new")
    assert read(tmp_path / "a" / "b") == "new"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_an_empty_folder_may_be_there_already(tmp_path: Path) -> None:
    write(tmp_path, "new")
    assert read(tmp_path) == "new"


def test_what_a_link_points_to_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    write(tmp_path / "real", "old")
    (tmp_path / "latest").symlink_to("real")
    write(tmp_path / "latest", "new", overwrite=True)
    assert (tmp_path / "latest").is_symlink()
    assert read(tmp_path / "real") == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_leaves_everything_as_it_was(error: type[BaseException], tmp_path: Path) -> None:
    write(tmp_path / "m", "old")

    def write_half(folder: Path) -> None:
        with atomic_folder(folder, overwrite=True) as draft:
            (draft / "config.json").write_text("half")
            raise error

    for target in ("m", "new"):
        with pytest.raises(error):
            write_half(tmp_path / target)
    assert read(tmp_path / "m") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_refusals_name_the_folder_and_change_nothing(tmp_path: Path) -> None:
    write(tmp_path / "m", "old")
    (tmp_path / "file").write_text("")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    cases: list[tuple[str, bool, str]] = [
        ("m", False, "already holds something"),
        ("file", True, "is a file"),
        ("photos", True, "is not a checkpoint"),
        ("file/m", False, "cannot be written there"),
    ]
    for target, overwrite, message in cases:
        with pytest.raises(InputError, match=f"{target}: .*{message}"):
            write(tmp_path / target, "new", overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "m", "photos"]
    assert read(tmp_path / "m") == "old"


def test_of_two_writers_the_second_is_refused(tmp_path: Path) -> None:
    def write_slowly() -> None:
        with atomic_folder(tmp_path / "m") as draft:
            (draft / "config.json").write_text("slow")
            write(tmp_path / "m", "fast")

    with pytest.raises(InputError, match="already holds"):
        write_slowly()
    assert read(tmp_path / "m") == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("old", [None, "old"])
def test_killed_at_any_step_a_whole_folder_stands(old: str | None, tmp_path: Path) -> None:
    """A child process is ended without any clean-up before its n-th call of the system, for every n there is.

    Under the name is then nothing or the old one or the new one, whole; and somewhere beside it always a whole one,
    once there has been one.
    """
    outcomes = []
    for n in range(1, 100):
        parent = tmp_path / f"{n}"
        parent.mkdir()
        if old is not None:
            write(parent / "m", old)
        pid = os.fork()
        if pid == 0:
            _end_before_call(n)
            write(parent / "m", "new", overwrite=True)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found = read(parent / "m")
        assert found in ({None, "new"} if old is None else {None, "old", "new"})
        if old is not None and found is None:  # between the two renames: both stand under hidden names
            assert {read(path) for path in parent.iterdir()} == {"old", "new"}
        outcomes.append(found)
        if status == 0:
            break
    assert status == 0 and found == "new"
    assert len(outcomes) > 8 and set(outcomes) >= {old, "new"}


def _end_before_call(n: int) -> None:
    """Count the calls that change or push something; at the n-th the process is gone, as by `kill -9`."""
    count = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == n:
                os._exit(9)
            return call(*args, **kwargs)

        return wrapper

    for name in ("mkdir", "rename", "replace", "rmdir", "unlink", "fsync", "chmod"):
        setattr(os, name, counted(getattr(os, name)))
