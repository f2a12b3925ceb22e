"""Our own metric: it passes grounded prose, and fails where a digit, a noun or a ground is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsv3_mini.course.facts import Fact
from dsv3_mini.course.number_grounding import ground, ground_cells, main, read_cells, ungrounded
from dsv3_mini.errors import InputError
from dsv3_mini.paths import repo_root


def fact(name: str, value: float, keywords: str, nouns: str = "") -> Fact:
    return Fact(name, (value,), name, "§4.2", "verified", tuple(keywords.split()), tuple(nouns.split()))


FACTS = [
    fact("layers", 61, "layer", "layers"),
    fact("heads", 128, "head", "heads"),
    fact("width", 128, "wide"),
    fact("total", 671e9, "parameter total", "parameters total"),
    fact("active", 37e9, "parameter active", "parameters active"),
    fact("tokens", 14.8e12, "token read", "tokens"),
]


def markdown(*lines: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "source": "\n".join(lines)}


def code(source: str = "", printed: str = "") -> dict[str, Any]:
    outputs = [{"output_type": "stream", "name": "stdout", "text": printed}] if printed else []
    return {"cell_type": "code", "source": source, "outputs": outputs}


def missing(*cells: dict[str, Any]) -> list[str]:
    return [finding.number for finding in ground_cells(list(cells), FACTS) if not finding.by]


def by(*cells: dict[str, Any]) -> list[str]:
    return [finding.by for finding in ground_cells(list(cells), FACTS)]


# Facts


def test_a_fact_grounds_a_number_of_a_sentence_that_speaks_of_it() -> None:
    assert by(markdown("It has 61 layers.")) == ["fact layers (§4.2, verified)"]
    assert (
        missing(markdown("It has 671 billion parameters, of them 37B active, and it read 14.8 trillion tokens.")) == []
    )


@pytest.mark.parametrize("changed", ["62 layers", "6 layers", "61.5 layers", "16 layers", "611 layers"])
def test_a_digit_that_changed_is_caught(changed: str) -> None:
    assert missing(markdown(f"It has {changed}.")) == [changed.split()[0]]


def test_the_right_number_for_the_wrong_thing_is_caught() -> None:
    assert missing(markdown("It has 61 heads and 128 layers.")) == ["61", "128"]
    assert missing(markdown("It has 671B active and 37B total parameters.")) == ["671B", "37B"]
    assert missing(markdown("It read 671 billion tokens.")) == ["671 billion"]
    assert missing(markdown("It has 61 bananas.")) == ["61"]


def test_the_keyword_must_stand_in_the_same_sentence() -> None:
    assert missing(markdown("It has many layers. There are 61 of them.")) == ["61"]
    assert missing(markdown("It has many layers, 61 of them.")) == []


@pytest.mark.parametrize("facts", [FACTS, FACTS[::-1]], ids=["in order", "in reverse"])
def test_the_fact_that_fits_best_is_named(facts: list[Fact]) -> None:
    def named(text: str) -> str:
        (finding,) = ground_cells([markdown(text)], facts)
        return finding.by

    assert named("128 heads, each as wide") == "fact heads (§4.2, verified)"  # by the noun behind the number
    extra = fact("active head", 128, "head active")
    facts = [*facts, extra] if facts is FACTS else [extra, *facts]
    assert named("active in each head: 128").startswith("fact active head")  # by the number of keywords


def test_what_it_cannot_catch_is_as_the_docstring_says() -> None:
    assert missing(markdown("MTP has 61 layers.")) == []


# Outputs


def test_a_number_that_a_neighbour_printed_is_grounded() -> None:
    assert missing(markdown("The loss is 2.31."), code("f()", "2.3142")) == []
    assert missing(code("f()", "2.3142"), markdown("The loss is 2.31.")) == []
    assert by(code("f()", "loss 2.3142"), markdown("The loss is 2.31.")) == ["printed by cell 1: 'loss 2.3142'"]


def test_a_number_that_nothing_printed_is_caught() -> None:
    assert missing(markdown("The loss is 2.32."), code("f()", "2.3142")) == ["2.32"]
    assert missing(markdown("The loss is 2.31."), code("print(2.3142)")) == ["2.31"]


def test_from_farther_away_the_line_must_share_a_word() -> None:
    between = [markdown("Something else."), code("g()", "nothing")]
    assert missing(code("f()", "loss 2.3142"), *between, markdown("The loss is 2.31.")) == []
    assert missing(code("f()", "depth 2.3142"), *between, markdown("The loss is 2.31.")) == ["2.31"]
    table = "scheme   loss\nMLA      2.3142"
    assert missing(code("f()", table), *between, markdown("The loss is 2.31.")) == []  # by the head of the table


def test_a_scale_in_the_head_of_a_table_counts() -> None:
    assert missing(markdown("It takes 524 GB."), code("f()", "scheme  GB\nMHA     523.99")) == []
    assert missing(markdown("It takes 524 GB."), code("f()", "scheme  MB\nMHA     523.99")) == ["524 GB"]


def test_displayed_results_count_and_pictures_do_not() -> None:
    shown = code("f()")
    shown["outputs"] = [{"output_type": "display_data", "data": {"text/html": "<td width='61'>2.3142</td>"}}]
    assert missing(shown, markdown("It is 2.31.")) == []
    assert missing(shown, markdown("It is 61.")) == ["61"]
    shown["outputs"] = [{"output_type": "display_data", "data": {"text/plain": "<Figure size 792x396 with 1 Axes>"}}]
    assert missing(shown, markdown("It is 792.")) == ["792"]


# Code


def test_inline_code_may_repeat_what_the_code_types() -> None:
    assert missing(markdown("With `T = 17` tokens."), code("T = 17")) == []
    assert missing(markdown("With 17 tokens."), code("T = 17")) == ["17"]
    assert missing(markdown("With `T = 18` tokens."), code("T = 17")) == ["18"]
    assert missing(markdown("With `17` tokens.", "", "```python", "T = 17", "```")) == []


# Files


def notebook(tmp_path: Path, *cells: dict[str, Any]) -> Path:
    path = tmp_path / "03_positions.ipynb"
    path.write_text(json.dumps({"cells": list(cells), "nbformat": 4, "nbformat_minor": 5, "metadata": {}}))
    return path


def test_findings_say_where(tmp_path: Path) -> None:
    path = notebook(tmp_path, code("1"), markdown("Nothing.", "", "It has 62 layers."))
    (finding,) = ungrounded(path, FACTS)
    assert (finding.cell, finding.number, finding.around) == (2, "62", "It has 62 layers.")


def test_a_twin_is_read_with_the_outputs_of_its_notebook(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    twin = tmp_path / "src" / "03_positions.py"
    twin.write_text("# ---\n# x: 1\n# ---\n\n# %%\nf()\n\n# %% [markdown]\n# The loss is 2.31,\n#\n# and not 2.32.\n")
    assert [finding.number for finding in ungrounded(twin, FACTS)] == ["2.31", "2.32"]
    notebook(tmp_path, code("f()", "2.3142"))
    assert [finding.number for finding in ungrounded(twin, FACTS)] == ["2.32"]


def test_twin_and_notebook_of_the_project_give_the_same_cells() -> None:
    for twin in sorted((repo_root() / "notebooks" / "src").glob("00_*.py")):
        import jupytext

        expected = [(cell.cell_type, cell.source) for cell in jupytext.read(twin, fmt="py:percent").cells]
        assert [(cell["cell_type"], cell["source"]) for cell in read_cells(twin)] == expected


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"cells": 3}'])
def test_a_file_that_is_no_notebook_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x\.ipynb: not a notebook"):
        ground(path)


def test_command_lists_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = notebook(tmp_path, markdown("DeepSeek-V3 has 61 layers and 129 heads."))
    assert main([str(path)]) == 1
    said = capsys.readouterr().out
    assert "2 numbers in the prose, 1 without a ground" in said
    assert "NO GROUND  cell 1: '129' in 'DeepSeek-V3 has 61 layers and 129 heads.'" in said
    assert main([str(notebook(tmp_path, markdown("It has 61 layers.")))]) == 0
    assert main([str(tmp_path / "none.ipynb")]) == 2
    assert "none.ipynb: cannot be read" in capsys.readouterr().err


def test_command_shows_every_ground(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(notebook(tmp_path, markdown("DeepSeek-V3 has 61 layers."))), "--all"]) == 0
    assert "fact layers (§4.2, verified)" in capsys.readouterr().out


def test_checking_a_lesson_needs_no_torch() -> None:
    check = "import sys, dsv3_mini.course.number_grounding as n; n.load_facts(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
