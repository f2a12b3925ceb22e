"""The repository itself: pins, files that must agree, style and types, and what must not be in it."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Machines that the pins are for, as far as markers of requirements tell them apart.
MACHINES = [
    {"python_version": python, "sys_platform": system, "platform_system": name, "platform_machine": chip}
    for python in ("3.11", "3.12", "3.13")
    for system, name, chip in (
        ("linux", "Linux", "x86_64"),
        ("linux", "Linux", "aarch64"),
        ("darwin", "Darwin", "arm64"),
    )
]


def pins() -> dict[str, str]:
    lines = (line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def direct_requirements() -> list[Requirement]:
    """Everything that pyproject.toml asks for, the project's own extras aside."""
    lines = PROJECT["dependencies"] + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    return [Requirement(line) for line in lines if not line.startswith(PROJECT["name"])]


def tracked_files() -> list[Path]:
    """Files that git knows, or would with the next `git add`: what a clone gets."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def test_every_pin_is_exact_and_said_once() -> None:
    names = []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9A-Za-z.]*", line), f"{line!r} is not NAME==VERSION"
            names.append(line.split("==")[0])
    assert len(names) == len(set(names))
    assert (pins()["torch"], pins()["triton"]) == ("2.13.0", "3.7.1")


def test_direct_dependencies_are_pinned_within_their_bounds() -> None:
    for requirement in direct_requirements():
        pin = pins().get(canonicalize_name(requirement.name))
        assert pin, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pin), f"{requirement} does not allow its own pin {pin}"
        assert all(clause.operator == ">=" for clause in requirement.specifier), f"{requirement}: lower bounds only"


@pytest.mark.parametrize(
    "machine", MACHINES, ids=lambda m: f"{m['sys_platform']}-{m['platform_machine']}-{m['python_version']}"
)
def test_what_dependencies_bring_along_is_pinned(machine: dict[str, str]) -> None:
    """Follows the requirements of what is installed here, with the markers read for another machine."""
    version = machine["python_version"]
    environment = {**default_environment(), **machine, "python_full_version": f"{version}.0"}
    missing, seen = set(), set()
    queue = [(r.name, tuple(sorted(r.extras)), r.marker) for r in direct_requirements()]
    while queue:
        name, extras, marker = queue.pop()
        if (marker and not marker.evaluate(environment | {"extra": ""})) or (name, extras) in seen:
            continue
        seen.add((name, extras))
        if canonicalize_name(name) not in pins():
            missing.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # not for this machine; tests/check_constraints.py asks the index
        for needed in map(Requirement, lines):
            if needed.marker is None or any(needed.marker.evaluate(environment | {"extra": e}) for e in ("", *extras)):
                queue.append((needed.name, tuple(sorted(needed.extras)), None))
    assert not missing, f"not in constraints.txt: {sorted(missing)}"
    assert len(seen) > 100  # jupyterlab alone brings some seventy


def test_conda_environment_has_the_same_pins() -> None:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert "python=3.12" in listed and "pip" in listed
    (pip_lines,) = (entry["pip"] for entry in listed if isinstance(entry, dict))
    assert pip_lines[0] == "-c constraints.txt" and pip_lines[-1] == "-e ."
    found = {str(Requirement(line)) for line in pip_lines[1:-1]}
    expected = {
        f"{canonicalize_name(r.name)}=={pins()[canonicalize_name(r.name)]}" + (f"; {r.marker}" if r.marker else "")
        for r in direct_requirements()
    }
    assert found == expected


def imported_modules() -> Iterator[tuple[str, Path]]:
    """Top-level names imported anywhere in the package, the tests and the lessons."""
    for folder in ("dsv3_mini", "tests", "notebooks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from ((alias.name.split(".")[0], path) for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    yield node.module.split(".")[0], path


def test_everything_imported_is_a_declared_dependency() -> None:
    declared = {canonicalize_name(requirement.name) for requirement in direct_requirements()}
    homes = importlib.metadata.packages_distributions()
    own = {
        "dsv3_mini",
        "tests",
        *(path.stem for folder in ("tests", "notebooks") for path in (ROOT / folder).rglob("*.py")),
    }
    undeclared = {
        (name, str(path.relative_to(ROOT)))
        for name, path in imported_modules()
        if name not in sys.stdlib_module_names | own
        and not {canonicalize_name(home) for home in homes.get(name, [])} & declared
    }
    assert not undeclared, f"imported, but not in pyproject.toml: {sorted(undeclared)}"


def test_make_has_its_targets_and_lists_them() -> None:
    listed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in "install lab train test notebooks lint format bench clean".split():
        assert re.search(rf"^make {target} ", listed, re.MULTILINE), f"`make` does not list {target}"


def make_plan(*arguments: str, cwd: Path = ROOT) -> str:
    """The commands that make would run."""
    return subprocess.run(["make", "-n", *arguments], cwd=cwd, capture_output=True, text=True, check=True).stdout


def test_make_installs_first_and_reinstalls_when_the_pins_change(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    fresh = make_plan("test", cwd=tmp_path)
    assert "pip install" in fresh and fresh.index("-c constraints.txt torch") < fresh.index("-e '.[dev]'")

    stamp = re.search(r"touch (\.venv/\.installed-\d+)", fresh)[1]
    (tmp_path / ".venv").mkdir()
    (tmp_path / stamp).touch()
    for target in ("install", "lab", "train", "test"):
        assert "pip install" not in make_plan(target, cwd=tmp_path)
    later = (tmp_path / stamp).stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    for target in ("install", "lab", "train", "test"):
        assert "pip install" in make_plan(target, cwd=tmp_path)
    os.utime(tmp_path / "constraints.txt", (0, 0))
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert "pip install" in make_plan("test", cwd=moved), "a .venv that was moved points to the old place"


def test_make_without_a_usable_python_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    old = tmp_path / "old python"  # answers like a Python that is too old
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(["make", "install", "PYTHON=./old\\ python"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_make_test_and_insists_on_the_browser() -> None:
    run = ROOT / ".ci" / "run"
    assert run.stat().st_mode & stat.S_IXUSR
    script = run.read_text()
    assert "set -euo pipefail" in script and script.rstrip().endswith("make test")
    assert "export DSV3_REQUIRE_BROWSER=1" in script
    subprocess.run(["bash", "-n", run], check=True)


# Written with a detour where it would find itself.
FORBIDDEN = {
    "this very machine": "|".join(
        re.escape(f"{place}/") for place in {ROOT, Path.home(), sys.prefix} if str(place) != "/"
    ),
    "a folder of some machine": r"(?<![\w.])/(?:ro{2}t|wo{1}rk|op{1}t|mnt|srv)/\w",
    "a package index": r"pypi\.o{1}rg|files\.pythonho{1}sted|download\.pyto{1}rch|find-li{1}nks\s*=|index-u{1}rl\s*=",
}
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ".jsonl", ".ipynb", ".js", ".css", ".cfg", ""}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = []
    for path in tracked_files():
        if path.suffix in TEXT:
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                if match := pattern.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert not found, f"{what} is named in\n" + "\n".join(found[:20])


def test_no_large_or_private_file_is_tracked() -> None:
    for path in tracked_files():
        assert path.stat().st_size < 16 * 2**20, f"{path} has more than 16 MiB"
        assert not {".venv", "runs", "__pycache__", ".ipynb_checkpoints"} & set(path.parts)
        assert path.suffix not in (".bin", ".pt", ".pth", ".pkl", ".pickle"), f"{path}: weights are safetensors only"


@pytest.mark.parametrize("command", [["check", "--quiet"], ["format", "--check", "--quiet"]], ids=["lint", "format"])
def test_ruff_is_clean(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_types_are_right() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_package_says_that_it_is_typed_and_ships_what_it_needs() -> None:
    assert (ROOT / "dsv3_mini" / "py.typed").is_file()
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = tool["package-data"]["dsv3_mini"]
    for path in (ROOT / "dsv3_mini").rglob("*"):
        inside = path.relative_to(ROOT / "dsv3_mini")
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert any(inside.match(pattern) for pattern in patterns), f"{inside} would be left out of an installation"
    for folder in (ROOT / "dsv3_mini").rglob("*.py"):
        assert (folder.parent / "__init__.py").is_file(), f"{folder.parent} would be left out of an installation"
