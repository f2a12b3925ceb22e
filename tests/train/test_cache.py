"""The cache: computed once, never half-written, damaged folders computed again."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from dsv3_mini.errors import InputError
from dsv3_mini.train.cache import MANIFEST, cache_folder, cache_key, cached


class Builder:
    def __init__(self, content: bytes = b"0123456789" * 100) -> None:
        self.content, self.calls = content, 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "data.bin").write_bytes(self.content)
        (folder / "more.txt").write_text("more")


def test_computed_once(tmp_path):
    build = Builder()
    folders = {cached(tmp_path, "name", build) for _ in range(3)}
    assert folders == {tmp_path / "name"} and build.calls == 1
    assert (tmp_path / "name" / "data.bin").read_bytes() == build.content
    assert [p.name for p in tmp_path.iterdir()] == ["name"]


def truncate(folder: Path) -> None:
    os.truncate(folder / "data.bin", 500)


def zero(folder: Path) -> None:
    (folder / "data.bin").write_bytes(bytes(1000))  # what a crash of the machine can leave: the length, not the content


def remove_file(folder: Path) -> None:
    (folder / "more.txt").unlink()


def remove_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def scribble_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("[1, 2")


@pytest.mark.parametrize("damage", [truncate, zero, remove_file, remove_manifest, scribble_manifest])
def test_a_damaged_folder_is_computed_again(tmp_path, damage):
    build = Builder()
    damage(cached(tmp_path, "name", build))
    folder = cached(tmp_path, "name", build)
    assert build.calls == 2
    assert (folder / "data.bin").read_bytes() == build.content and (folder / "more.txt").read_text() == "more"


def test_a_failing_build_leaves_nothing(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "data.bin").write_bytes(b"half")
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        cached(tmp_path, "name", fail)
    assert list(tmp_path.iterdir()) == []


def write_slowly(cache: Path) -> None:
    def build(folder: Path) -> None:
        for n in range(1000):
            (folder / f"{n}.bin").write_bytes(b"x" * 1000)
            time.sleep(0.01)

    cached(cache, "name", build)


def test_a_killed_writer_leaves_nothing_that_looks_finished(tmp_path):
    writer = multiprocessing.get_context("spawn").Process(target=write_slowly, args=(tmp_path,))
    writer.start()
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/0.bin")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    leftovers = list(tmp_path.iterdir())
    assert leftovers and not (tmp_path / "name").exists()
    build = Builder()
    cached(tmp_path, "name", build)
    assert build.calls == 1
    assert leftovers[0].exists(), "it could belong to a writer at work"
    os.utime(leftovers[0], (0, 0))
    cached(tmp_path, "other", build)
    assert not leftovers[0].exists(), "after a day it does not"


def test_two_writers_at_once_agree(tmp_path):
    """The slower one finds the folder of the quicker one, and uses it."""
    quick = Builder(b"quick")

    def slow(folder: Path) -> None:
        cached(tmp_path, "name", quick)
        Builder(b"slow!")(folder)

    folder = cached(tmp_path, "name", slow)
    assert (folder / "data.bin").read_bytes() in (b"quick", b"slow!")
    assert [p.name for p in tmp_path.iterdir()] == ["name"]
    assert cached(tmp_path, "name", quick) == folder and quick.calls == 1


def test_something_in_the_way_is_named(tmp_path):
    (tmp_path / "name").write_text("a file")
    with pytest.raises(InputError, match=r"name is in the way"):
        cached(tmp_path, "name", Builder())
    assert [p.name for p in tmp_path.iterdir()] == ["name"]


def test_a_full_disk_is_one_message(tmp_path):
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"No space left on device.*DSV3_MINI_CACHE"):
        cached(tmp_path, "name", full)
    assert list(tmp_path.iterdir()) == []


def test_which_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("DSV3_MINI_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home/.cache/dsv3-mini"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/dsv3-mini"
    monkeypatch.setenv("DSV3_MINI_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    assert cache_folder(tmp_path / "chosen") == tmp_path / "chosen"
    assert (tmp_path / "chosen").is_dir()


def test_an_unwritable_default_falls_back_and_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DSV3_MINI_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("dsv3_mini.train.cache._temporary", [])
    with pytest.warns(UserWarning, match="cannot be written to"):
        folder = cache_folder()
    assert cached(folder, "name", Builder()).is_dir()
    assert cache_folder() == folder, "one folder for the whole run"


def test_an_unwritable_choice_is_an_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"cache folder .*file.* cannot be written to"):
        cache_folder(tmp_path / "file" / "cache")


def test_keys_tell_parts_apart():
    assert cache_key("a", 1) == cache_key("a", 1)
    assert len({cache_key("a", 1), cache_key("a", 2), cache_key("a1"), cache_key("a", 1, ""), cache_key()}) == 5
