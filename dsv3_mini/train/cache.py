"""Folders of computed data under a name that says what is in them: computed once, then memory-mapped.

A name is made from everything the content depends on (`cache_key`), so a cached folder is never out of date. It is
written under another name, synced and renamed, so a killed writer leaves nothing that looks finished; a manifest
with the sha256 of each file tells a damaged folder from a good one, and a damaged one is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from dsv3_mini.errors import InputError

MANIFEST = "manifest.json"
_temporary: list[tempfile.TemporaryDirectory[str]] = []  # kept alive, and with it the folder, until Python ends


def cache_folder(chosen: str | os.PathLike[str] | None = None) -> Path:
    """The folder for cached data: `chosen`, $DSV3_MINI_CACHE, $XDG_CACHE_HOME/dsv3-mini or ~/.cache/dsv3-mini.

    Where the last three cannot be written to, a temporary folder stands in, and a warning says so. Raises
    `InputError` when `chosen` cannot be written to.
    """
    if chosen is not None:
        if not _writable(Path(chosen)):
            raise InputError(f"cache folder {chosen} cannot be written to: choose another")
        return Path(chosen)
    named = os.environ.get("DSV3_MINI_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(named) if named else Path(base, "dsv3-mini")
    if _writable(folder):
        return folder
    if not _temporary:
        warnings.warn(f"{folder} cannot be written to; caching in a temporary folder for this run", stacklevel=2)
        _temporary.append(tempfile.TemporaryDirectory(prefix="dsv3-mini-"))
    return Path(_temporary[0].name)


def cache_key(*parts: object) -> str:
    """A short name for content that depends on `parts` and nothing else."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:24]


def cached(cache: Path, name: str, build: Callable[[Path], None]) -> Path:
    """The folder `cache/name`; `build(folder)` fills it if it is not there, or not as it was written."""
    final = cache / name
    if _intact(final):
        return final
    _remove_leftovers(cache)
    building = Path(tempfile.mkdtemp(prefix=f"{name}.tmp-", dir=cache))
    try:
        build(building)
        manifest = {file.name: _sha256(file) for file in sorted(building.iterdir())}
        (building / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for file in building.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(final, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process was quicker; its folder is as good as ours
            os.rename(building, final)
    except OSError as error:
        raise InputError(
            f"cannot write to the cache folder {cache}: {error}; set DSV3_MINI_CACHE to another"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    if not _intact(final):
        raise InputError(f"cannot write to the cache folder {cache}: {final} is in the way; remove it")
    return final


def _intact(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return all(_sha256(folder / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _remove_leftovers(cache: Path, older_than_s: float = 86_400) -> None:
    """Deletes what killed writers left behind a day ago or longer; a younger one may still be at work."""
    for folder in cache.glob("*.tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > older_than_s:
                shutil.rmtree(folder, ignore_errors=True)
