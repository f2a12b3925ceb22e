"""Ask pip whether constraints.txt still holds: `python tests/check_constraints.py` (needs the package index; a minute).

For each Python version that we support, pip resolves everything that the project asks for on a Linux machine with the
CUDA build of torch, without installing it: it must find a solution, every package of that solution must be pinned, and
no pin may be left that nothing uses. Metadata is read from the wheels piece by piece (`fast-deps`), so that nobody
downloads gigabytes for a question. Not part of `make test`, which works without the index after its set-up; run it
when pyproject.toml or constraints.txt changes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
# Every manylinux tag up to what the wheels of today use. pip does not derive the older ones from the newest.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(40, 4, -1)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "any"]
ELSEWHERE = {"appnope", "colorama"}  # pinned for macOS and Windows, which a resolution for Linux does not meet


def requirements() -> list[str]:
    """What the project and its extras ask for, without the markers: the machine asked about is Linux."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    parsed = [Requirement(line) for line in wanted if not line.startswith(project["name"])]
    return [f"{requirement.name}{requirement.specifier}" for requirement in parsed]


def pins() -> dict[str, str]:
    """constraints.txt as {name: version}."""
    lines = (line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def resolve(python: str) -> dict[str, str]:
    """What pip would install for this Python version. Raises `CalledProcessError` when there is no solution."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
            *("--use-feature=fast-deps", "--only-binary=:all:", "--implementation=cp", "--python-version", python),
            *(f"--platform={platform}" for platform in PLATFORMS),
            *("--target", folder, "--report", str(report), "-c", str(ROOT / "constraints.txt"), *requirements()),
        ]
        # A folder of local wheels may hold the CPU build of torch, which is not the one that is asked about.
        environ = {name: value for name, value in os.environ.items() if name != "PIP_FIND_LINKS"}
        subprocess.run(command, check=True, env=environ | {"PIP_CONFIG_FILE": os.devnull})
        installed = json.loads(report.read_text())["install"]
    return {canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"] for item in installed}


def main() -> int:
    """0 when the pins hold for every version."""
    pinned, used, problems = pins(), set(ELSEWHERE), []
    for python in PYTHONS:
        try:
            found = resolve(python)
        except subprocess.CalledProcessError:
            problems.append(f"Python {python}: pip finds no solution, see above")
            continue
        print(f"Python {python}: {len(found)} packages")
        used |= found.keys()
        problems += [f"Python {python}: {n}=={v} is not pinned" for n, v in found.items() if n not in pinned]
    if not problems:
        problems += [f"{name}=={pinned[name]} is pinned, but nothing uses it" for name in pinned.keys() - used]
    print("\n".join(problems) or "constraints.txt holds")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
