"""Every lesson: shipped as its text twin says, runs clean, keeps the anatomy, and judges answers rightly.

Each lesson is executed twice, as a learner finds it and with every stub replaced by its solution. The second run also
tries the wrong answers below: a check that lets a known mistake pass teaches it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import sys
from functools import cache
from pathlib import Path

import matplotlib as mpl
import nbformat
import pytest
from nbformat import NotebookNode

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

# Mistakes that learners make, by exercise: the head of the function, and bodies with a word of the message that each
# should meet. (Where an exercise asks for a value, the head is empty.)
WRONG_ANSWERS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "0.1": (
        "to_bits_per_byte(loss, tokens, text_bytes)",
        [
            ("return loss / math.log(2)", "bits per token"),
            ("return loss * tokens / text_bytes", "nats per byte"),
            ("return loss * tokens / text_bytes * math.log(2)", "divide by ln 2"),
            ("return loss / math.log(2) * text_bytes / tokens", "multiply by tokens"),
        ],
    ),
    "1.1": (
        "document_mask(document)",
        [
            ("return document[None, :] == document[:, None]", "future"),
            ("return torch.ones(len(document), len(document)).tril().bool()", "document 0"),
            ("return (document[None, :] == document[:, None]).triu()", "future"),
            ("return (document[None, :] == document[:, None]).float().tril()", "torch.bool"),
            ("return (document[None, :] == document[:, None]).tril(-1)", "itself"),
        ],
    ),
    "1.2": (
        "merge_heads(x)",
        [
            ("return x.reshape(x.shape[0], x.shape[2], -1)", "reshape alone"),
            ("return x.transpose(1, 2)", "shape"),
            ("return x.permute(0, 2, 3, 1).flatten(-2)", "head 0"),
        ],
    ),
    "1.3": (
        "attend_last(q_last, k, v)",
        [
            ("return ((k @ q_last[:, :, None]).softmax(1) * v).sum(1)", "square root"),
            ("return ((k @ q_last[:, :, None] / 4).softmax(0) * v).sum(1)", "heads"),
            ("return v.mean(1)", "last row"),
        ],
    ),
    "2.1": (
        "chunk_mask(start, new)",
        [
            ("return torch.ones(new, start + new).bool()", "future"),
            ("return torch.ones(new, start + new).tril().bool()", "in the cache"),
            ("return torch.ones(new, new).tril().bool()", "shape"),
            ("return torch.ones(new, start + new).tril(start - 1).bool()", "itself"),
        ],
    ),
    "2.2": (
        "longest_context(memory, layers, kv_heads, head_dim, texts=1)",
        [
            ("return int(memory // (2 * kv_heads * head_dim * layers * texts))", "factor"),
            ("return int(memory // (kv_heads * head_dim * layers * texts))", "factor"),
            ("return int(memory // (4 * kv_heads * head_dim * texts))", "layers"),
            ("return memory / (4 * kv_heads * head_dim * layers * texts)", "whole number"),
            ("return int(memory // (4 * kv_heads * head_dim * layers))", "four texts"),
        ],
    ),
    "2.3": (
        "expand_groups(k, heads)",
        [
            ("return k.repeat(1, heads // k.shape[1], 1, 1)", "alternate"),
            ("return k", "shape"),
            ("return k.repeat_interleave(heads // k.shape[1], dim=1).flip(2)", "inside a group"),
        ],
    ),
    "3.1": (
        "slow_pairs(R, theta, context)",
        [
            ("return int((context * speeds(R, theta) < 1).sum())", "2 pi"),
            ("return int((context * speeds(R, theta) >= 2 * math.pi).sum())", "others"),
            ("return 9", "131,072"),
        ],
    ),
    "3.2": (
        "to_half_split(weight)",
        [
            ("return weight", "did not change"),
            ("return weight.view(2, -1, weight.shape[1]).transpose(0, 1).reshape(weight.shape)", "way back"),
            ("return torch.cat([weight[:, 0::2], weight[:, 1::2]], dim=1)", "columns"),
            ("return torch.cat([weight[1::2], weight[0::2]])", "scores"),
        ],
    ),
    "3.3": (
        "move_cached(k_turned, by)",
        [
            ("return rope(k_turned, torch.arange(by, by + len(k_turned)))", "twice"),
            ("return rope(k_turned, torch.full((len(k_turned),), -by))", "wrong way"),
            ("return k_turned", "not what"),
        ],
    ),
    "4.1": (
        "cache_bytes(config, bytes_per_number=2)",
        [
            ("return config.kv_lora_rank * config.num_hidden_layers * bytes_per_number", "latent alone"),
            ("return config.cache_width * bytes_per_number", "one layer"),
            ("return config.cache_width * config.num_hidden_layers", "counts numbers"),
            ("return 2 * config.cache_width * config.num_hidden_layers * bytes_per_number", "one latent"),
            ("return config.cache_width * config.num_hidden_layers * 2", "4 bytes"),
        ],
    ),
    "4.2": (
        "split_kv_b(weight, heads, nope_dim)",
        [
            ("return weight", "two tensors"),
            ("a = weight.unflatten(0, (heads, -1)); return a[:, nope_dim:], a[:, :nope_dim]", "swapped"),
            (
                "a = weight[: heads * nope_dim], weight[heads * nope_dim :]; "
                "return a[0].unflatten(0, (heads, -1)), a[1].unflatten(0, (heads, -1))",
                "head by head",
            ),
            ("return weight.unflatten(0, (heads, -1)).split(1, 1)[:2]", "shapes"),
        ],
    ),
    "4.3": (
        "score_scale(config)",
        [
            ("return config.qk_nope_head_dim**-0.5", "two parts"),
            ("return config.qk_nope_head_dim**-0.5 + config.qk_rope_head_dim**-0.5", "add the widths first"),
            ("return config.qk_head_dim**0.5", "one over it"),
            ("return 1 / config.qk_head_dim", "one over the square root"),
        ],
    ),
    "4.4": (
        "",
        [
            ("equal_groups = 4.5", "key *and* a value"),
            ("equal_groups = 2", "latent alone"),
            ("equal_groups = 56.9", "smaller than MHA"),
            ("equal_groups = 3", "3 groups cache"),
        ],
    ),
}


def wrong_answers(number: str) -> list[tuple[str, str]]:
    """Code to put in place of the stub, and a word of the message that it should meet."""
    head, bodies = WRONG_ANSWERS.get(number, ("", []))
    return [(f"def {head}:\n    {body}" if head else body, word) for body, word in bodies]


def exercises(lesson: NotebookNode) -> dict[str, tuple[int, int, str]]:
    """By number: the places of the stub and of its check, and the solution's code."""
    found = {}
    for place, cell in enumerate(lesson.cells):
        if "exercise" in cell.metadata.get("tags", []):
            number = re.match(r"# Exercise (\d+\.\d+)\b", cell.source)
            assert number, f"an exercise cell opens with {cell.source.splitlines()[0]!r}, not with its number"
            check, solution = lesson.cells[place + 1], lesson.cells[place + 2]
            assert check.metadata.get("tags") == ["check"], f"no check cell after exercise {number[1]}"
            assert solution.metadata.get("tags") == ["solution"], f"no solution cell after exercise {number[1]}"
            assert f"<details><summary>Solution of exercise {number[1]}</summary>" in solution.source
            code = re.search(r"```python\n(.*?)```", solution.source, re.DOTALL)
            assert code, f"the solution of exercise {number[1]} has no code"
            found[number[1]] = (place, place + 1, code[1])
    return found


def printed(lesson: NotebookNode) -> str:
    return "\n".join(output.get("text", "") for cell in lesson.cells for output in cell.get("outputs", []))


def run(lesson: NotebookNode) -> str:
    """Execute; gives what was printed. Fails when the lesson takes too much machine time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    build.execute(lesson, seconds=540)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < CPU_SECONDS_PER_LESSON, f"took {seconds:.0f} s of machine time"
    return printed(lesson)


@cache
def untouched(name: str) -> NotebookNode:
    """The lesson as a learner finds it, executed."""
    lesson = build.read_twin(TWINS[NAMES.index(name)])
    lesson.metadata["printed"] = run(lesson)
    return lesson


@cache
def solved(name: str) -> str:
    """What the lesson prints with solutions in place of the stubs, each check having met the wrong answers first."""
    lesson = build.read_twin(TWINS[NAMES.index(name)])
    found = exercises(lesson)
    for stub, _, code in found.values():
        lesson.cells[stub].source = code
    # From the back, so that the places in front stay as they are.
    for number, (stub, check, _) in reversed(found.items()):
        trial = f"""
def _meet(answer, check={lesson.cells[check].source!r}):
    try:
        exec(answer, globals())
        exec(check, globals())
    except Exception as error:
        print("wrong answer to {number}:", type(error).__name__, str(error).replace(chr(10), " "))
    else:
        print("wrong answer to {number}: accepted")
for _answer in {[answer for answer, _ in wrong_answers(number)]!r}:
    _meet(_answer)
"""
        lesson.cells.insert(stub, nbformat.v4.new_code_cell(trial))
    return run(lesson)


def test_there_are_lessons() -> None:
    assert len(TWINS) >= 3
    assert [name[:2] for name in NAMES] == sorted({name[:2] for name in NAMES}), "two lessons share a number"


@pytest.mark.parametrize("twin", TWINS, ids=NAMES)
def test_shipped_notebook_is_a_clean_run_of_its_twin(twin: Path) -> None:
    path = build.notebook_of(twin)
    if path.exists() and not ON_CI and not build.is_as_built(nbformat.read(path, as_version=4)):
        pytest.skip(f"{path.name} was edited or run here; `python notebooks/build.py {twin.stem} --force` restores it")
    assert build.check(twin) == []


@pytest.mark.parametrize("name", NAMES)
def test_lesson_runs_untouched_and_equals_what_it_compares_with(name: str) -> None:
    lesson = untouched(name)
    assert build.output_problems(lesson) == []
    lines = [line for line in lesson.metadata["printed"].splitlines() if "max |diff|" in line]
    assert lines, "nothing is checked against the package"
    for line in lines:
        numbers = re.fullmatch(r"\s*max \|diff\| against .+: (\S+) \(tolerance (\S+)\)", line)
        assert numbers, f"not in the form of the other lessons: {line!r}"
        assert float(numbers[1]) <= float(numbers[2]), line
        assert float(numbers[2]) <= 1e-4, f"a tolerance that says little: {line!r}"


@pytest.mark.parametrize("twin", TWINS, ids=NAMES)
def test_lesson_has_the_parts_of_the_anatomy_in_order(twin: Path) -> None:
    lesson = build.read_twin(twin)
    prose = "\n\n".join(cell.source for cell in lesson.cells if cell.cell_type == "markdown")
    assert re.findall(r"^# (.+)$", prose, re.MULTILINE)[0].startswith(twin.stem[:2])
    assert re.findall(r"^## (.+)$", prose, re.MULTILINE) == list(build.ANATOMY)
    tags = [tag for cell in lesson.cells for tag in cell.metadata.get("tags", [])]
    assert tags[0] == "setup"
    assert tags.count("predict") >= 1
    assert 1 <= tags.count("exercise") <= 4
    assert tags.count("exercise") == tags.count("check") == tags.count("solution")
    museum = prose.split("## Bug museum")[1].split("## What the report says")[0]
    exhibits = re.findall(r"^### Exhibit (\S+):", museum, re.MULTILINE)
    assert exhibits == [f"{int(twin.stem[:2])}.{letter}" for letter in "AB"][: len(exhibits)]
    assert len(exhibits) >= 1
    numbers = list(exercises(lesson))
    assert numbers == [f"{int(twin.stem[:2])}.{count}" for count in range(1, len(numbers) + 1)]
    for target in re.findall(r"\]\(([\w.]+\.ipynb)\)", prose):
        assert (build.NOTEBOOKS / "src" / target).with_suffix(".py").exists(), f"a link to {target}, which is not there"


@pytest.mark.parametrize("name", NAMES)
def test_exercises_left_alone_say_so(name: str) -> None:
    lesson = untouched(name)
    for number, (_, check, _) in exercises(lesson).items():
        said = "".join(output.get("text", "") for output in lesson.cells[check].outputs)
        assert said == f"Exercise {number}: not attempted\n"


@pytest.mark.parametrize("name", NAMES)
def test_solutions_are_right_and_wrong_answers_are_told_why(name: str) -> None:
    lines = solved(name).splitlines()
    for number in exercises(build.read_twin(TWINS[NAMES.index(name)])):
        assert f"Exercise {number}: right" in lines
        said = [line for line in lines if line.startswith(f"wrong answer to {number}: ")]
        expected = wrong_answers(number)
        assert expected, f"no wrong answer is tried on exercise {number}: add some to WRONG_ANSWERS"
        assert len(said) == len(expected)
        for line, (answer, word) in zip(said, expected, strict=True):
            assert "AssertionError" in line, f"{answer}\nis met with\n{line}"
            assert word in line, f"{answer}\nshould be told about {word!r}, and meets\n{line}"


@pytest.mark.parametrize("twin", TWINS, ids=NAMES)
def test_setup_can_run_twice_and_knows_the_wrong_kernel(twin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = next(cell for cell in build.read_twin(twin).cells if cell.cell_type == "code")
    assert setup.metadata.get("tags") == ["setup"]
    monkeypatch.chdir(build.NOTEBOOKS)
    with mpl.rc_context():
        space: dict[str, object] = {}
        exec(setup.source, space)
        exec(setup.source, space)
        for name in [name for name in sys.modules if name.split(".")[0] == "dsv3_mini"]:
            monkeypatch.setitem(sys.modules, name, None)  # what an environment without the package looks like
        with pytest.raises(ImportError, match=r"dsv3_mini.*make lab.*Kernel"):
            exec(setup.source, {})
