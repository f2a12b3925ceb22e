"""A folder that appears whole or not at all.

Everything is written into a hidden folder next to the target, pushed to the disk, and then renamed: rename is the one
file operation that cannot be seen half done. A process killed at any moment leaves either the old state or the new one
under the target's name, and at worst a hidden folder `.NAME.writing-...` or `.NAME.replaced-...` beside it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from dsv3_mini.errors import InputError


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty draft folder; when the block ends without an error, it stands under the name `folder`.

    After an error the draft is removed and nothing has changed. Raises `InputError` when `folder` already holds
    something: with `overwrite` a checkpoint is replaced (the old one is moved aside first and deleted last, so that a
    whole one exists at every moment), anything else never is.
    """
    target = Path(os.path.realpath(folder))  # of a link, what it points to: the link itself stays
    _check_target(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.parent / f".{target.name}.writing-{secrets.token_hex(4)}"
        draft.mkdir()
    except OSError as error:
        raise InputError(f"{target}: cannot be written there ({error.strerror})") from None
    try:
        yield draft
        mode = draft.stat().st_mode & 0o666  # what the umask leaves; safetensors makes its files private
        for path in sorted(draft.rglob("*")):
            if path.is_file():
                path.chmod(mode)
            _push_to_disk(path)
        _push_to_disk(draft)
        _check_target(target, overwrite)  # somebody else may have been faster
        _rename(draft, target, overwrite)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    _push_to_disk(target.parent)


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target}: is a file; a checkpoint is a folder, so give the name of one")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise InputError(
            f"{target}: already holds something; give another folder, or overwrite=True to replace a checkpoint"
        )
    if not (target / "config.json").is_file():
        raise InputError(f"{target}: is not a checkpoint (no config.json in it), so it is not overwritten")


def _rename(draft: Path, target: Path, overwrite: bool) -> None:
    """Put the draft under the name of the target, which is free, an empty folder, or a checkpoint to be replaced."""
    if not overwrite or not target.exists() or not any(target.iterdir()):
        if target.exists():
            target.rmdir()
        draft.rename(target)
        return
    replaced = target.parent / draft.name.replace(".writing-", ".replaced-")
    target.rename(replaced)
    try:
        draft.rename(target)
    except BaseException:
        replaced.rename(target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _push_to_disk(path: Path) -> None:
    """fsync of a file or, where the system can, of a folder: without it a power cut may leave names of empty files."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
