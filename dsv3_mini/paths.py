"""Where the checkout is: the lessons, `data/` and the runs live next to the package, not inside it.

`make install` installs the package in editable form, so the folder above `dsv3_mini/` is the checkout. A copy
that was installed without it can still build and train models; what needs the checkout says so.
"""

from __future__ import annotations

from pathlib import Path

from dsv3_mini.errors import InputError


def repo_root() -> Path:
    """The checkout that holds this package. Raises `InputError` when there is none."""
    root = Path(__file__).resolve().parent.parent
    if not ((root / "pyproject.toml").is_file() and (root / "data").is_dir()):
        raise InputError(
            f"{root} is not a checkout of dsv3-mini (no pyproject.toml and data/ next to the package): "
            "the lessons and the data come with the repository, so clone it and run `make install` there"
        )
    return root


def data_dir() -> Path:
    """`data/` of the checkout: report tables, the idea graph, shipped checkpoints. `InputError` without a checkout."""
    return repo_root() / "data"
