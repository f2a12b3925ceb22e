"""Every lesson: shipped as its text twin says, runs clean, keeps the conventions, and judges answers rightly.

Each lesson is executed twice: as a learner finds it, and with a guess everywhere and every stub replaced by the
solution. In the second run each bug of the museum takes the place of the answer once, and its checker must object.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import re
import resource
import sys
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nbformat
import pytest
import torch
from nbformat import NotebookNode

from dsv3_mini.course import exercise, exercises_of, exhibits_of
from dsv3_mini.course.lessons import LESSONS
from dsv3_mini.course.prediction import ASK_AGAIN

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("lesson_builder", ROOT / "notebooks" / "build.py")
assert _spec is not None
assert _spec.loader is not None
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

TWINS = build.twins()
NAMES = [twin.stem for twin in TWINS]
CPU_SECONDS_PER_LESSON = 180  # of the machine, however many others use it
ON_CI = "1" in (os.environ.get("DSV3_REQUIRE_BROWSER"), os.environ.get("CI")) or os.environ.get("CI") == "true"
EXHIBIT_STEPS = ["show", "predict", "run", "diagnose"]
# Set by hand in the second run, whichever kind of guess it is.
GUESS = """
_asked = {prediction}
_asked.guess = next(iter(_asked.choices), None) or ([_asked.sketch.low] * len(_asked.sketch.x) if _asked.sketch else 1)
"""
MUSEUM = """
_right = {answer}
{code}
print("museum {exhibit}:", exercise("{exercise}").judge({answer}).mistake)
{answer} = _right
"""

each_twin = pytest.mark.parametrize("twin", TWINS, ids=NAMES)
each_name = pytest.mark.parametrize("name", NAMES)


# ---- reading a lesson


def number_of(name: str) -> str:
    """ "3" of "03_positions"."""
    return str(int(name[:2]))


def tags_of(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def prose_of(lesson: NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in lesson.cells if cell.cell_type == "markdown")


def calls(cell: NotebookNode, name: str) -> list[ast.Call]:
    """The calls of `name(...)`, or of a method `x.name(...)`, in a code cell, in order."""
    if cell.cell_type != "code":
        return []
    found = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
    return [c for c in found if getattr(c.func, "id", None) == name or getattr(c.func, "attr", None) == name]


def text_of(call: ast.Call) -> Any:
    """The first argument of a call, when it is a constant."""
    return call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None


def exercise_cells(lesson: NotebookNode) -> dict[str, int]:
    """By id, the place of each stub; its check is the next cell."""
    found = {}
    for place, cell in enumerate(lesson.cells):
        if "exercise" in tags_of(cell):
            head = re.match(r"# Exercise (\d+\.\d+) \((\d+) minutes?\): \S", cell.source)
            assert head, f"an exercise opens with {cell.source.splitlines()[0]!r}, not with number and minutes"
            found[head[1]] = place
    return found


def predict_cells(lesson: NotebookNode) -> dict[str, tuple[int, str]]:
    """By id, the place of each prediction and the variable that holds it."""
    found = {}
    for place, cell in enumerate(lesson.cells):
        for call in calls(cell, "predict"):
            if isinstance(call.func, ast.Name):
                assert "predict" in tags_of(cell), f"cell {place + 1} asks for a guess and is not tagged"
                statement = ast.parse(cell.source).body[0]
                assert isinstance(statement, ast.Assign) and statement.value.lineno == call.lineno, (
                    "guess = predict(...)"
                )
                assert text_of(call) not in found, f"two predictions are called {text_of(call)}"
                found[text_of(call)] = place, statement.targets[0].id
    return found


def exhibit_steps(lesson: NotebookNode) -> list[tuple[str, str, int]]:
    """(id, step, place) of each cell of an exhibit."""
    found = []
    for place, cell in enumerate(lesson.cells):
        for call in calls(cell, "exhibit"):
            step = re.search(r"\.(\w+)\(\)$", cell.source.strip())
            assert step, f"cell {place + 1} is not one step of an exhibit"
            found.append((text_of(call), step[1], place))
    return found


def reveal_places(lesson: NotebookNode, variable: str) -> list[int]:
    revealed = rf"^{variable}\.reveal\("
    return [place for place, cell in enumerate(lesson.cells) if re.search(revealed, cell.source, re.MULTILINE)]


# ---- as it is written


def test_there_are_lessons() -> None:
    assert len(TWINS) >= 3
    planned = [Path(lesson.file).stem for lesson in LESSONS]
    assert [name for name in planned if name in NAMES] == NAMES, "lessons that dsv3_mini.course.lessons does not know"


@each_twin
def test_shipped_notebook_is_a_clean_run_of_its_twin(twin: Path) -> None:
    path = build.notebook_of(twin)
    if path.exists() and not ON_CI and not build.is_as_built(nbformat.read(path, as_version=4)):
        pytest.skip(f"{path.name} was edited or run here; `python notebooks/build.py {twin.stem} --force` restores it")
    assert build.check(twin) == []


@each_twin
def test_lesson_has_the_parts_of_the_anatomy_in_order(twin: Path) -> None:
    lesson = build.read_twin(twin)
    title = next(entry.title for entry in LESSONS if Path(entry.file).stem == twin.stem)
    assert re.findall(r"^# (.+)$", prose_of(lesson), re.MULTILINE) == [f"{twin.stem[:2]} {title}"]
    assert re.findall(r"^## (.+)$", prose_of(lesson), re.MULTILINE) == list(build.ANATOMY)
    tags = [tag for cell in lesson.cells for tag in tags_of(cell)]
    assert tags[0] == "setup" and set(tags) == {"setup", "predict", "exercise", "check"}


@each_twin
def test_exercises_are_those_of_the_registry(twin: Path) -> None:
    lesson = build.read_twin(twin)
    places = exercise_cells(lesson)
    assert list(places) == [entry.id for entry in exercises_of(twin.stem[:2])]
    assert 3 <= len(places) <= 6
    for number, place in places.items():
        entry, stub, check = exercise(number), lesson.cells[place], lesson.cells[place + 1]
        assert re.match(rf"# Exercise {number} \({entry.minutes} minutes?\):", stub.source), "other minutes"
        assert tags_of(check) == ["check"], f"no check cell behind exercise {number}"
        (call,) = ast.parse(check.source).body
        assert ast.unparse(call) == f"exercise('{number}').check({entry.answer})"
        assert_is_stub(stub.source, entry, imports_of(lesson))
    assert sum("check" in tags_of(cell) for cell in lesson.cells) == len(places)


def imports_of(lesson: NotebookNode) -> str:
    """The imports of the set-up cell: names that a stub's defaults and base classes may use."""
    setup = next(cell for cell in lesson.cells if cell.cell_type == "code")
    nodes = [node for node in ast.walk(ast.parse(setup.source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return "\n".join(map(ast.unparse, nodes))


def assert_is_stub(source: str, entry: Any, imports: str) -> None:
    """Same name and parameters as the reference, and nothing written yet."""
    space: dict[str, Any] = {}
    exec(imports, space)
    exec(source, space)
    stub = space[entry.answer]
    assert entry.judge(stub).status == "not attempted"
    if entry.cases is None:
        return
    if isinstance(entry.reference, type):
        methods = {name for name, value in vars(entry.reference).items() if inspect.isfunction(value)}
        assert {name for name, value in vars(stub).items() if inspect.isfunction(value)} <= methods
        return
    wanted, mine = inspect.signature(entry.reference).parameters, inspect.signature(stub).parameters
    assert list(mine) == list(wanted), f"exercise {entry.id}: the stub has other parameters than the reference"
    assert [p.default for p in mine.values()] == [p.default for p in wanted.values()]
    assert stub.__doc__, f"exercise {entry.id}: the stub does not say what goes in and comes out"


@each_twin
def test_predictions_are_asked_first_and_revealed_later(twin: Path) -> None:
    lesson = build.read_twin(twin)
    asked = predict_cells(lesson)
    assert list(asked) == [f"{number_of(twin.stem)}.p{count}" for count in range(1, len(asked) + 1)]
    assert len(asked) >= 2
    for name, (place, variable) in asked.items():
        assert lesson.cells[place].source.splitlines()[-1] == variable, f"the cell of {name} does not end on its guess"
        later = reveal_places(lesson, variable)
        assert len(later) == 1 and later[0] > place, f"{name} is not revealed once, later"
        assert re.search(
            rf"^{variable}\.reveal\(", lesson.cells[later[0]].source.rstrip().split("\n\n")[-1], re.MULTILINE
        )


# Balance is where public re-implementations go wrong most often: five of their mistakes are worth meeting.
MOST_EXHIBITS = {"07": 5}


@each_twin
def test_exhibits_are_shown_guessed_run_and_diagnosed(twin: Path) -> None:
    lesson = build.read_twin(twin)
    ids = [entry.id for entry in exhibits_of(twin.stem[:2])]
    assert 1 <= len(ids) <= MOST_EXHIBITS.get(twin.stem[:2], 2)
    steps = exhibit_steps(lesson)
    assert [(name, step) for name, step, _ in steps] == [(name, step) for name in ids for step in EXHIBIT_STEPS]
    for _, step, place in steps:
        assert tags_of(lesson.cells[place]) == (["predict"] if step == "predict" else [])
    titles = [f"{entry.id}: {entry.title}" for entry in exhibits_of(twin.stem[:2])]
    assert re.findall(r"^### Exhibit (.+)$", prose_of(lesson), re.MULTILINE) == titles


# ---- what the prose points to


@each_twin
def test_links_lead_somewhere(twin: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(build.read_twin(twin))):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        path = build.NOTEBOOKS / target.split("#")[0]
        twin_of_it = build.NOTEBOOKS / "src" / f"{path.stem}.py"
        assert not target.split("#")[0] or path.exists() or twin_of_it.exists(), (
            f"a link to {target}, which is not there"
        )


@each_twin
def test_names_of_the_package_and_of_files_exist(twin: Path) -> None:
    prose = prose_of(build.read_twin(twin))
    for name in set(re.findall(r"\bdsv3_mini(?:\.[A-Za-z_]\w*)+(?!\w*/)", prose)):
        assert resolves(name.removesuffix(".py")), f"{name} does not exist"
    for file, test in set(re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", prose)):
        assert (ROOT / file).is_file(), f"{file} does not exist"
        assert f"def {test}" in (ROOT / file).read_text(), f"{file} has no {test}"
    for path in set(re.findall(r"`((?:data|dsv3_mini|notebooks|tests)/[\w./-]*)", prose)):
        assert (ROOT / path.rstrip(".")).exists(), f"{path} does not exist"


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one (a field of a dataclass included)."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(thing, part):
                return part in getattr(thing, "__annotations__", {})
            thing = getattr(thing, part)
        return True
    return False


@each_twin
def test_lessons_that_are_mentioned_exist(twin: Path) -> None:
    known = {lesson.number for lesson in LESSONS}
    mentioned = re.findall(r"\b[Ll]essons? (\d+)(?:(?:, | and | to |-)(\d\d))*", prose_of(build.read_twin(twin)))
    for number in filter(None, (number for pair in mentioned for number in pair)):
        assert number in known, f"there is no lesson {number}"


# ---- as it runs


def shown(cell: NotebookNode) -> str:
    """The text of a cell's outputs."""
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def run(lesson: NotebookNode) -> NotebookNode:
    """Execute. Fails when the lesson takes too much machine time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    build.execute(lesson, seconds=540)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < CPU_SECONDS_PER_LESSON, f"took {seconds:.0f} s of machine time"
    return lesson


@cache
def untouched(name: str) -> NotebookNode:
    """The lesson as a learner finds it, executed."""
    return run(build.read_twin(TWINS[NAMES.index(name)]))


@cache
def solved(name: str) -> NotebookNode:
    """The lesson with guesses and solutions, executed, each bug of the museum having been handed in on the way."""
    lesson = build.read_twin(TWINS[NAMES.index(name)])
    more: dict[int, str] = {}  # code to insert behind the cell at a place
    for number, place in exercise_cells(lesson).items():
        lesson.cells[place].source = exercise(number).solution_code()
        bugs = [entry for entry in exhibits_of(name[:2]) if entry.exercise == number]
        answer = exercise(number).answer
        trials = (MUSEUM.format(answer=answer, code=b.code(), exhibit=b.id, exercise=number) for b in bugs)
        more[place + 1] = "\n".join(trials)
    for place, variable in predict_cells(lesson).values():
        more[place] = GUESS.format(prediction=variable)
    for entry, step, place in exhibit_steps(lesson):
        if step == "predict":
            more[place] = GUESS.format(prediction=f'exhibit("{entry}").predict()')
    for place in sorted(filter(more.get, more), reverse=True):  # from the back: places in front stay as they are
        lesson.cells.insert(place + 1, nbformat.v4.new_code_cell(more[place]))
    return run(lesson)


@each_name
def test_lesson_runs_untouched_and_equals_what_it_compares_with(name: str) -> None:
    lesson = untouched(name)
    assert build.output_problems(lesson) == []
    printed = "\n".join(shown(cell) for cell in lesson.cells if cell.cell_type == "code")
    lines = [line for line in printed.splitlines() if "max |diff|" in line]
    assert lines, "nothing is checked against the package"
    for line in lines:
        numbers = re.fullmatch(r"\s*max \|diff\| against .+: (\S+) \(tolerance (\S+)\)", line)
        assert numbers, f"not in the form of the other lessons: {line!r}"
        assert float(numbers[1]) <= float(numbers[2]), line
        assert float(numbers[2]) <= 1e-4, f"a tolerance that says little: {line!r}"


@each_name
def test_what_is_left_alone_says_so(name: str) -> None:
    lesson = untouched(name)
    for number, place in exercise_cells(lesson).items():
        assert shown(lesson.cells[place + 1]).startswith(f"Exercise {number}: not attempted\n")
    for _, variable in predict_cells(lesson).values():
        (place,) = reveal_places(lesson, variable)
        assert ASK_AGAIN in " ".join(shown(lesson.cells[place]).split())


@each_name
def test_solutions_are_right_and_bugs_of_the_museum_are_objected_to(name: str) -> None:
    lesson = solved(name)
    for number, place in exercise_cells_by_check(lesson).items():
        assert shown(lesson.cells[place]).startswith(f"Exercise {number}: right"), shown(lesson.cells[place])
    printed = "\n".join(shown(cell) for cell in lesson.cells if cell.cell_type == "code").splitlines()
    for entry in exhibits_of(name[:2]):
        assert f"museum {entry.id}: {entry.mistake}" in printed
    for _, variable in predict_cells(lesson).values():
        (place,) = reveal_places(lesson, variable)
        assert ASK_AGAIN not in " ".join(shown(lesson.cells[place]).split())


def exercise_cells_by_check(lesson: NotebookNode) -> dict[str, int]:
    """By id, the place of each check cell (the stubs have become solutions)."""
    checks = [place for place, cell in enumerate(lesson.cells) if tags_of(cell) == ["check"]]
    return {text_of(calls(lesson.cells[place], "exercise")[0]): place for place in checks}


@each_twin
def test_setup_can_run_twice_and_knows_the_wrong_kernel(twin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = next(cell for cell in build.read_twin(twin).cells if cell.cell_type == "code")
    assert tags_of(setup) == ["setup"]
    monkeypatch.chdir(build.NOTEBOOKS)
    with mpl.rc_context(), torch.enable_grad():  # some lessons switch gradients off; the tests that follow want them
        space: dict[str, object] = {}
        exec(setup.source, space)
        exec(setup.source, space)
        for name in [name for name in sys.modules if name.split(".")[0] == "dsv3_mini"]:
            monkeypatch.setitem(sys.modules, name, None)  # what an environment without the package looks like
        with pytest.raises(ImportError, match=r"dsv3_mini.*make lab.*Kernel"):
            exec(setup.source, {})
