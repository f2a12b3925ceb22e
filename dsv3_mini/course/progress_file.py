"""One small file that several notebooks change: one writer at a time, and never half a file.

A writer holds the lock while it reads, changes and replaces the file. The new content goes to a file of another name,
which is then renamed, so whoever is killed on the way leaves the old one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 5.0  # seconds to wait for another writer, who needs milliseconds unless it was stopped with the lock held


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`; `OSError` when somebody else does not let go of it.

    The lock is a file of its own, since `path` itself is replaced. Without `fcntl` (Windows) there is none: two
    notebooks that write in the same instant may lose one entry.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.with_name(f".{path.name}.lock").open("a") as lock:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(f"another program has held {lock.name} for {PATIENCE:g} s") from None
                time.sleep(0.01)
        yield


def replace(path: Path, text: str) -> None:
    """Give `path` a new content, all of it or none."""
    path = path.resolve()  # a link stays a link
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def move_aside(path: Path) -> str:
    """Rename `path` to a name of its own beside it; gives that name."""
    aside = path.with_name(f"{path.name}.unreadable-{secrets.token_hex(3)}")
    path.rename(aside)
    return aside.name
