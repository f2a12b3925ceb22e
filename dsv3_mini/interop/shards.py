"""The safetensors files of a checkpoint folder: which there are, what they hold, and whether they can be trusted.

Safetensors is numbers behind a JSON header, so reading one runs no code of its author; reading a pickle can, so those
are refused. Everything that a header can tell is checked for all files before the first number is read: each shard is
whole, the index and the shards agree, and no tensor is there twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dsv3_mini.errors import InputError
from dsv3_mini.interop.config_json import read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class Stored:
    """One tensor in a file, by what the header says."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # in the words of safetensors: "F32", "BF16", "F8_E4M3"


def list_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the checkpoint in `folder` by name; `InputError` that names the file if something is wrong."""
    index = folder / INDEX_FILE
    if not index.is_file():
        if not (folder / SINGLE_FILE).is_file():
            raise InputError(_why_no_weights(folder))
        return _headers([folder / SINGLE_FILE])
    promised = _read_index(index)
    single = folder / SINGLE_FILE
    if single.is_file() and single not in promised.values():
        raise InputError(
            f"{index}: does not name {SINGLE_FILE}, which is there too: two checkpoints in one folder; remove one"
        )
    held = _headers(sorted(set(promised.values())))
    for name, file in promised.items():
        if name not in held:
            raise InputError(f"{file}: holds no tensor {name}, though {INDEX_FILE} says so; fetch or save it again")
        if held[name].file != file:
            raise InputError(f"{index}: says that {name} is in {file.name}, but it is in {held[name].file.name}")
    stray = next((name for name in held if name not in promised), None)
    if stray is not None:
        raise InputError(
            f"{held[stray].file}: holds {stray}, which {INDEX_FILE} does not list; they are of two checkpoints"
        )
    return held


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """A safetensors file, open for reading (`.keys()`, `.get_slice(name)`, `.get_tensor(name)`).

    Raises `InputError` when it is missing or not whole.
    """
    try:
        shard = safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError:
        raise InputError(f"{path}: this shard is missing; the checkpoint is not complete without it") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: is not a whole safetensors file ({error}); fetch or save it again") from None
    with shard:
        yield shard


def _headers(files: list[Path]) -> dict[str, Stored]:
    held: dict[str, Stored] = {}
    for file in files:
        with open_shard(file) as shard:
            for name in shard.keys():  # noqa: SIM118 - not a dict: it cannot be iterated over
                _check_name(name, file)
                if name in held:
                    raise InputError(f"{file}: holds {name}, which is in {held[name].file.name} already")
                part = shard.get_slice(name)
                held[name] = Stored(file, tuple(part.get_shape()), part.get_dtype())
    return held


def _read_index(index: Path) -> dict[str, Path]:
    """The index as tensor name -> file, every file inside the folder."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: must have a 'weight_map' from tensor names to files")
    files: dict[Any, Path] = {}
    for name, file in weight_map.items():
        _check_name(name, index)
        if not isinstance(file, str):
            raise InputError(f"{index}: the file of {name} is {file!r}, not the name of a file")
        if file not in files:
            files[file] = _inside(index, file)
    return {name: files[file] for name, file in weight_map.items()}


def _check_name(name: str, file: Path) -> None:
    """Names end up in messages on somebody's terminal: no line breaks, no control characters, no novels."""
    if not name.isprintable() or len(name) > 200:
        raise InputError(
            f"{file}: holds a tensor called {name[:50]!r}..., which is no name of a tensor in a checkpoint"
        )


def _inside(index: Path, file: str) -> Path:
    """The path of a shard named by an index that anybody may have written: a plain name, in this folder for real."""
    folder = index.parent
    if not file.endswith(".safetensors"):
        raise InputError(f"{index}: names {file!r}; only .safetensors files are read (a pickle could run code)")
    if any(sign in file for sign in ("/", "\\", ":", "\0")):
        raise InputError(f"{index}: names {file!r}, which points outside its folder; a plain file name would be right")
    target = (folder / file).resolve()
    home = folder.resolve()
    # The download cache of huggingface_hub keeps files once, in blobs/, and links to them from snapshots/REVISION/.
    cache = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    if target.parent != home and target.parent != cache:
        raise InputError(
            f"{folder / file}: is a link to {target}, outside its folder; a file in the folder would be right"
        )
    return folder / file


def _why_no_weights(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    pickle = next((name for name in names if name.endswith(_PICKLES)), None)
    if pickle is not None:
        return (
            f"{folder / pickle}: is a pickle, and reading a pickle can run any code its author liked; "
            "convert it to safetensors where you trust it"
        )
    shard = next((name for name in names if name.endswith(".safetensors")), None)
    if shard is not None:
        return f"{folder / INDEX_FILE}: is missing, so nothing says which shards make up the checkpoint ({shard}, ...)"
    return f"{folder}: holds no weights; {SINGLE_FILE} or {INDEX_FILE} with its shards would be right"
