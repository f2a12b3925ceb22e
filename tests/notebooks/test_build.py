"""The builder of the lessons: what it writes, what it refuses to ship, and whose work it will not overwrite."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import textwrap
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("lesson_builder", ROOT / "notebooks" / "build.py")
assert _spec is not None
assert _spec.loader is not None
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

LESSON = """
    # %% [markdown]
    # # 01 Sums

    # %% tags=["setup"]
    import os
    x = 2

    # %%
    print(x + x, os.path.basename(os.getcwd()))
    """


def write_twin(folder: Path, text: str) -> Path:
    (folder / "src").mkdir(exist_ok=True)
    twin = folder / "src" / "01_sums.py"
    twin.write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")
    return twin


def test_build_writes_a_clean_run_and_repeats_to_the_byte(tmp_path: Path) -> None:
    twin = write_twin(tmp_path, LESSON)
    build.build(twin)
    path = tmp_path / "01_sums.ipynb"
    first = path.read_bytes()
    lesson = nbformat.read(path, as_version=4)
    assert [cell.get("execution_count") for cell in lesson.cells] == [None, 1, 2]
    assert lesson.cells[1].metadata.tags == ["setup"]
    assert lesson.cells[2].outputs[0].text == f"4 {tmp_path.name}\n"  # the kernel stands where the notebook is
    assert set(lesson.metadata) == {"kernelspec", "language_info", "dsv3_mini"}
    assert "version" not in lesson.metadata.language_info
    assert build.check(twin) == []

    build.build(twin)
    assert path.read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["01_sums.ipynb", "src"]

    # A cell that is put in front leaves the ids of the others alone.
    ids = [cell.id for cell in lesson.cells]
    write_twin(tmp_path, "# %%\n1 + 1\n" + textwrap.dedent(LESSON))
    assert [cell.id for cell in build.read_twin(twin).cells][1:] == ids


def test_edited_notebook_is_not_overwritten_and_a_run_one_is(tmp_path: Path) -> None:
    twin = write_twin(tmp_path, LESSON)
    build.build(twin)
    path = tmp_path / "01_sums.ipynb"
    shipped = path.read_bytes()

    # A learner ran the cells in another order, in an editor that adds metadata of its own.
    lesson = nbformat.read(path, as_version=4)
    lesson.cells[2].execution_count = 7
    lesson.cells[2].outputs = []
    lesson.cells[2].metadata["collapsed"] = True
    lesson.metadata["widgets"] = {}
    nbformat.write(lesson, path)
    assert not build.is_edited(lesson)
    assert not build.is_as_built(lesson)
    assert any("clean run" in problem for problem in build.check(twin))
    build.build(twin)
    assert path.read_bytes() == shipped

    # A learner wrote something.
    lesson = nbformat.read(path, as_version=4)
    lesson.cells[1].source += "\nx = 3"
    nbformat.write(lesson, path)
    edited = path.read_bytes()
    with pytest.raises(build.LessonError, match=r"01_sums\.ipynb.*edited.*--force"):
        build.build(twin)
    assert path.read_bytes() == edited
    assert any("does not say what" in problem for problem in build.check(twin))
    build.build(twin, force=True)
    assert path.read_bytes() == shipped


def test_notebook_of_unknown_origin_counts_as_edited(tmp_path: Path) -> None:
    twin = write_twin(tmp_path, LESSON)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("mine")]), tmp_path / "01_sums.ipynb")
    with pytest.raises(build.LessonError, match="edited"):
        build.build(twin)


def test_check_notices_a_changed_twin_a_missing_notebook_and_a_tampered_output(tmp_path: Path) -> None:
    twin = write_twin(tmp_path, LESSON)
    assert build.check(twin) == ["01_sums.ipynb does not exist; `make notebooks` builds it"]
    build.build(twin)
    path = tmp_path / "01_sums.ipynb"

    write_twin(tmp_path, LESSON.replace("x + x", "x * x"))
    assert [p for p in build.check(twin) if "does not say what src/01_sums.py says" in p]
    write_twin(tmp_path, LESSON.replace('["setup"]', '["other"]'))
    assert [p for p in build.check(twin) if "tags" in p]
    write_twin(tmp_path, LESSON)
    assert build.check(twin) == []

    lesson = nbformat.read(path, as_version=4)
    lesson.cells[2].outputs[0].text = "5\n"
    nbformat.write(lesson, path)
    assert build.check(twin) == ["01_sums.ipynb was edited or run after it was built"]


def test_failing_lesson_names_the_cell_and_leaves_the_old_notebook(tmp_path: Path) -> None:
    twin = write_twin(tmp_path, LESSON)
    build.build(twin)
    before = (tmp_path / "01_sums.ipynb").read_bytes()
    write_twin(tmp_path, LESSON + "\n    # %%\n    unknown_name\n")
    with pytest.raises(build.LessonError, match=r"(?s)01_sums a cell failed.*unknown_name.*NameError") as caught:
        build.build(twin)
    assert "\x1b" not in str(caught.value)
    assert (tmp_path / "01_sums.ipynb").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["01_sums.ipynb", "src"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import warnings; warnings.warn('old')", "stderr"),
        ("import os; print(os.getcwd())", "place on this machine"),
        ("'in /home/somebody/x'", "place on this machine"),
        ("object()", "address"),
    ],
)
def test_outputs_that_must_not_ship(tmp_path: Path, code: str, reason: str) -> None:
    twin = write_twin(tmp_path, f"# %%\n{code}\n")
    with pytest.raises(build.LessonError, match=reason):
        build.build(twin)
    assert not (tmp_path / "01_sums.ipynb").exists()


def test_places_of_this_machine_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def problems(text: str) -> list[str]:
        output = nbformat.v4.new_output("stream", name="stdout", text=text)
        return build.output_problems(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output])]))

    for place in (str(ROOT), str(Path.home() / "notes"), tempfile.gettempdir() + "/x", "/Users/ada/x", r"C:\Users\ada"):
        assert len(problems(f"see {place}")) == 1, place
    for harmless in ("a/b", "1/16", "https://example.org/home", "ratio 3:1", "key/value", "0xff"):
        assert problems(harmless) == [], harmless


def test_widgets_are_left_out_and_their_pictures_kept(tmp_path: Path) -> None:
    code = """
        # %%
        from IPython.display import display
        widget = "application/vnd.jupyter.widget-view+json"
        display({widget: {"model_id": "1"}, "text/plain": "a picture"}, raw=True)
        display({widget: {"model_id": "2"}}, raw=True)
        """
    build.build(write_twin(tmp_path, code))
    outputs = nbformat.read(tmp_path / "01_sums.ipynb", as_version=4).cells[0].outputs
    assert [dict(output.data) for output in outputs] == [{"text/plain": "a picture"}]


def test_figures_come_out_as_pictures_whatever_backend_the_builder_has(tmp_path: Path) -> None:
    assert os.environ["MPLBACKEND"] == "Agg"  # set for all tests; it would swallow figures
    code = "# %%\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\n"
    build.build(write_twin(tmp_path, code))
    outputs = nbformat.read(tmp_path / "01_sums.ipynb", as_version=4).cells[0].outputs
    assert "image/png" in outputs[-1].data


def test_a_learner_s_progress_is_neither_touched_nor_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text('{"schema": 1, "predictions": {"1.p1": {"guess": 3}}}')
    before = mine.read_bytes()
    monkeypatch.setenv("DSV3_PROGRESS", str(mine))
    code = """
        # %%
        from dsv3_mini.course import predict, progress
        guess = predict("1.p1", "How many?")
        print(guess.guess)
        guess.guess = 4
        print(progress.read().predictions)
        """
    build.build(write_twin(tmp_path, code))
    (output,) = nbformat.read(tmp_path / "01_sums.ipynb", as_version=4).cells[0].outputs
    assert output.text == "None\n{'1.p1': {'guess': 4}}\n"
    assert mine.read_bytes() == before


def test_endless_lesson_is_stopped() -> None:
    lesson = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import time\ntime.sleep(600)")])
    with pytest.raises(build.LessonError, match="longer than 20 s"):
        build.execute(lesson, seconds=20)


def test_lost_kernel_is_said_in_one_message() -> None:
    lesson = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import os\nos._exit(1)")])
    with pytest.raises(build.LessonError, match="lost its kernel"):
        build.execute(lesson, seconds=60)


def test_unknown_name_lists_the_lessons(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["99_nothing"]) == 2
    assert "99_nothing; there are" in capsys.readouterr().err


def test_command_line_check_of_one_lesson(capsys: pytest.CaptureFixture[str]) -> None:
    name = build.twins()[0].stem
    code = build.main([name[:2], "--check"])
    assert code == (1 if build.check(build.twins()[0]) else 0)
    assert name in capsys.readouterr().out
