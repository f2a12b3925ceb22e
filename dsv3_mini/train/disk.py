"""A disk that is full: said in one message, with the room that is needed.

Who runs out of room learns it from Python as `OSError`, from safetensors and the tokenizer, which are written in Rust,
as an exception of theirs with "os error 28" in its text. Here all become one `InputError` that names the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from dsv3_mini.errors import InputError

# No room on the disk, none in the person's share of it, and a file beyond the limit for one file (`ulimit -f`).
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
_RUST_NUMBER = re.compile(r"\(os error (\d+)\)")


@contextlib.contextmanager
def full_disk_explained(folder: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an error of the block that means "no room" into an `InputError`; others pass. `needed`: bytes, if known."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        number = error_number(error)
        if number is None or number not in _FULL:
            raise
        need = "" if needed is None else f" A checkpoint needs about {readable(needed)} there;"
        raise InputError(
            f"{folder} could not be written: {os.strerror(number)}.{need} {readable(free_bytes(folder))} are free. "
            "Checkpoints from before are whole: make room, then continue the run with --resume (resume=True)"
        ) from error


def error_number(error: Exception) -> int | None:
    """The system's number of what went wrong, from an `OSError` or from the text of an error out of Rust."""
    if isinstance(error, OSError):
        return error.errno
    found = _RUST_NUMBER.search(str(error))
    return int(found[1]) if found else None


def free_bytes(folder: Path) -> int:
    """Room on the disk that `folder`, or the nearest folder above it that exists, is on."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def readable(size: int) -> str:
    """Bytes in a unit that leaves one to three digits before the point."""
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
