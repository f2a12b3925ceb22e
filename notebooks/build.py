"""Build the lessons: notebooks/src/NN_name.py (the text twin, the only source) -> notebooks/NN_name.ipynb, executed.

    python notebooks/build.py [NAME ...] [--check] [--force]

A twin is a jupytext `py:percent` file. Its conventions, which tests/notebooks/test_lessons.py holds:

* `# %% [markdown]` and `# %%` cells, one idea each. The first code cell is the set-up: safe to run again, no network,
  and a clear message when the kernel is of another environment.
* One `# NN Title` heading, then these `##` headings in this order (`ANATOMY`): The question, What you will be able to
  do, Predict, Build it, Reveal, Check against the package, Play, Exercises, Bug museum, What the report says, Recap.
* `# %% tags=["predict"]`: asks for a guess, `guess_1 = predict("1.p1", "...", choices={...})`, and ends on it. Under
  Reveal a cell measures and ends on `guess_1.reveal(...)`. At least two; nothing waits for a guess.
* Equality is printed as `max |diff| against NAME: 1.2e-07 (tolerance 1e-05)`, and tests read such lines back.
* `# %% tags=["exercise"]`: a stub that opens with `# Exercise 1.2 (5 minutes): what to do` and is empty (`...`), or for
  a value `name = ...  # your number`. Right behind it `# %% tags=["check"]`: `exercise("1.2").check(name)`. What is
  right, the usual mistakes, hints and solution are in dsv3_mini/course/exercises/lesson_NN.py.
* Bug museum: `### Exhibit 1.A: name`, then four cells, `exhibit("1.A")` with `.show()`, `.predict()` (with the tag
  "predict"), `.run()` and `.diagnose()`. What they show is in dsv3_mini/course/museum/lesson_NN.py.
* Progress that a lesson records while it is built goes to a temporary file: a learner's is not touched, and what they
  have done does not change what is built.
* No output on stderr, no machine path or object address in an output, and no timing that a claim rests on.

Building refuses to overwrite a notebook whose cells somebody edited (`--force` overwrites it all the same): the
notebook remembers in `metadata.dsv3_mini` what it was built from. `--check` executes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parent
ROOT = NOTEBOOKS.parent
SECONDS_PER_LESSON = 300
ANATOMY = (
    "The question",
    "What you will be able to do",
    "Predict",
    "Build it",
    "Reveal",
    "Check against the package",
    "Play",
    "Exercises",
    "Bug museum",
    "What the report says",
    "Recap",
)

_ANSI = re.compile(r"\x1b\[[0-9;]*m")  # colours of a traceback
_WIDGET = "application/vnd.jupyter.widget-view+json"
_KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
_LANGUAGE = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python", "pygments_lexer": "ipython3"}


class LessonError(Exception):
    """A lesson that cannot be built or is not what its twin says, in one message."""


def twins(folder: Path = NOTEBOOKS) -> list[Path]:
    """The text twins, in the order of the lessons."""
    return sorted((folder / "src").glob("[0-9][0-9]_*.py"))


def notebook_of(twin: Path) -> Path:
    return twin.parent.parent / f"{twin.stem}.ipynb"


def read_twin(twin: Path) -> NotebookNode:
    """The twin as a notebook without outputs; cell ids follow from the cells' text, so that they stay put in a diff."""
    lesson = jupytext.read(twin, fmt="py:percent")
    seen: dict[str, int] = {}
    for cell in lesson.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:10]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        cell.metadata = NotebookNode({"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {})
    # No jupytext entry: with one, an editor would write a learner's edits back into the twin.
    lesson.metadata = NotebookNode(kernelspec=NotebookNode(_KERNELSPEC), language_info=NotebookNode(_LANGUAGE))
    lesson.nbformat, lesson.nbformat_minor = 4, 5
    return lesson


def source_hash(lesson: NotebookNode) -> str:
    """What the cells say: kinds and text, nothing that running or viewing a notebook changes."""
    return _sha256([[cell.cell_type, cell.source] for cell in lesson.cells])


def build_hash(lesson: NotebookNode) -> str:
    """What the cells say and what they printed, to tell a shipped notebook from one that somebody ran."""
    ran = [[cell.execution_count, cell.outputs] for cell in lesson.cells if cell.cell_type == "code"]
    return _sha256([source_hash(lesson), ran])


def is_edited(lesson: NotebookNode) -> bool:
    """Whether somebody changed the cells since the notebook was built (running them is not a change)."""
    return lesson.metadata.get("dsv3_mini", {}).get("twin_sha256") != source_hash(lesson)


def is_as_built(lesson: NotebookNode) -> bool:
    """Whether the notebook is exactly what the builder wrote: not edited, and not run since."""
    return lesson.metadata.get("dsv3_mini", {}).get("built_sha256") == build_hash(lesson)


def execute(lesson: NotebookNode, folder: Path = NOTEBOOKS, seconds: float = SECONDS_PER_LESSON) -> NotebookNode:
    """Run all cells from top to bottom, in place, in a fresh kernel of this very Python, in `folder`.

    Raises `LessonError` with the cell and its error when a cell fails, or when the lesson takes longer than `seconds`.
    """
    with tempfile.TemporaryDirectory() as ipython_home:
        environment = os.environ | {
            # The package beside the lessons, whatever else is installed.
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as in Lab, wherever the builder runs
            "IPYTHONDIR": ipython_home,  # a user's start-up files have no place in a lesson
            "HF_HUB_OFFLINE": "1",
            "PYTHONHASHSEED": "0",
            "DSV3_PROGRESS": str(Path(ipython_home) / "progress.json"),  # not the learner's
        }
        deadline = time.monotonic() + seconds
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=_ThisPython())
        client = NotebookClient(
            lesson,
            km=manager,
            timeout_func=lambda cell: max(1.0, deadline - time.monotonic()),  # what is left for the lesson
            startup_timeout=seconds,
            store_widget_state=False,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
        )
        try:
            client.execute(env=environment, cleanup_kc=True)
        except CellTimeoutError:
            raise LessonError(f"took longer than {seconds:.0f} s") from None
        except DeadKernelError:
            raise LessonError("lost its kernel: out of memory, or killed") from None
        except CellExecutionError as error:
            raise LessonError(f"a cell failed:\n{_ANSI.sub('', str(error))}") from None
    for cell in lesson.cells:
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)
            cell.outputs = [kept for output in cell.outputs if (kept := _shippable(output)) is not None]
    lesson.metadata = NotebookNode(kernelspec=NotebookNode(_KERNELSPEC), language_info=NotebookNode(_LANGUAGE))
    return lesson


class _ThisPython(KernelSpecManager):
    """Kernels run in the interpreter that runs the builder, whatever kernels this machine has registered."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name=_KERNELSPEC["display_name"], language="python")


def _shippable(output: NotebookNode) -> NotebookNode | None:
    """The output without its widget: a saved widget shows "Loading widget..." for ever where no kernel runs."""
    if "data" not in output:
        return output
    output.data.pop(_WIDGET, None)
    output.metadata = NotebookNode()
    return output if output.data else None


def output_problems(lesson: NotebookNode) -> list[str]:
    """What must not ship in an output: errors, warnings, places on this machine, addresses of objects."""
    private = {str(ROOT), sys.prefix, tempfile.gettempdir(), str(Path.home())} - {"/"}
    places = re.compile("|".join([*map(re.escape, sorted(private)), r"/(?:home|root|Users|tmp)/\w", r"\b[A-Z]:\\\w"]))
    problems = []
    for number, cell in enumerate(lesson.cells, 1):
        for output in cell.get("outputs", []):
            kind = output.output_type
            if kind == "error":
                problems.append(f"cell {number} ends in an error: {output.ename}: {output.evalue}")
            if kind == "stream" and output.name == "stderr":
                problems.append(f"cell {number} writes to stderr: {output.text.strip().splitlines()[0]!r}")
            if _WIDGET in output.get("data", {}):
                problems.append(f"cell {number} ships a widget that needs a kernel to be seen")
            texts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
            for text in map(str, texts):
                if found := places.search(text):
                    problems.append(f"cell {number} prints a place on this machine: {found.group()!r}")
                if found := re.search(r"\b0x[0-9a-f]{8,}\b", text):
                    problems.append(f"cell {number} prints the address of an object: {found.group()}")
    return problems


def check(twin: Path) -> list[str]:
    """What is wrong with the shipped notebook of a twin, without executing it; an empty list when all is well."""
    path = notebook_of(twin)
    if not path.exists():
        return [f"{path.name} does not exist; `make notebooks` builds it"]
    shipped, source = nbformat.read(path, as_version=4), read_twin(twin)
    problems = []
    if source_hash(shipped) != source_hash(source):
        problems.append(f"{path.name} does not say what src/{twin.name} says; `make notebooks` rebuilds it")
    if [cell.metadata.get("tags") for cell in shipped.cells] != [cell.metadata.get("tags") for cell in source.cells]:
        problems.append(f"{path.name} has other cell tags than src/{twin.name}")
    counts = [cell.execution_count for cell in shipped.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        problems.append(f"{path.name} does not hold a clean run from top to bottom: execution counts {counts}")
    if not is_as_built(shipped):
        problems.append(f"{path.name} was edited or run after it was built")
    return problems + [f"{path.name}: {problem}" for problem in output_problems(shipped)]


def build(twin: Path, force: bool = False) -> float:
    """Execute a twin and write its notebook; gives the seconds that took. Raises `LessonError`, and writes nothing."""
    path = notebook_of(twin)
    if path.exists() and not force and is_edited(nbformat.read(path, as_version=4)):
        raise LessonError(
            f"{path.name} has cells that somebody edited, and building would overwrite them. Copy the notebook to "
            f"another name to keep your work, then run: python notebooks/build.py {twin.stem} --force"
        )
    started = time.perf_counter()
    lesson = read_twin(twin)
    try:
        execute(lesson, folder=path.parent)
    except LessonError as error:
        raise LessonError(f"{twin.stem} {error}") from None
    if problems := output_problems(lesson):
        raise LessonError(f"{twin.stem} has outputs that must not ship:\n  " + "\n  ".join(problems))
    lesson.metadata["dsv3_mini"] = {"twin_sha256": source_hash(lesson), "built_sha256": build_hash(lesson)}
    nbformat.validate(lesson)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(nbformat.writes(lesson) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return time.perf_counter() - started


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="notebooks/build.py", description="Build the lessons from their text twins.")
    parser.add_argument("name", nargs="*", help="lessons, such as 01_attention or 01; without a name, all of them")
    parser.add_argument("--check", action="store_true", help="only say whether the notebooks are what the twins give")
    parser.add_argument("--force", action="store_true", help="overwrite notebooks that somebody edited, too")
    options = parser.parse_args(arguments)

    chosen = twins()
    if options.name:
        names = [Path(name).stem for name in options.name]
        for name in names:
            if not any(twin.stem == name or twin.stem.startswith(f"{name}_") for twin in chosen):
                print(f"no lesson is called {name}; there are {', '.join(t.stem for t in chosen)}", file=sys.stderr)
                return 2
        chosen = [twin for twin in chosen if any(twin.stem == n or twin.stem.startswith(f"{n}_") for n in names)]

    failed = False
    for twin in chosen:
        if options.check:
            problems = check(twin)
            print("\n".join(problems) if problems else f"{twin.stem}: as its twin says")
            failed |= bool(problems)
            continue
        try:
            print(f"{twin.stem}: building", flush=True)
            print(f"{twin.stem}: wrote {notebook_of(twin).name} in {build(twin, options.force):.0f} s", flush=True)
        except LessonError as error:
            print(error, file=sys.stderr)
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
