"""Every number in a lesson's prose is a fact with its place, or printed by the lesson itself."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from dsv3_mini.course.facts import load_facts
from dsv3_mini.course.number_grounding import ground_cells, read_cells
from dsv3_mini.course.prose import stated_numbers
from dsv3_mini.paths import repo_root

NOTEBOOKS = repo_root() / "notebooks"
LESSONS = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if (NOTEBOOKS / "src" / f"{path.stem}.py").exists()]
HELP = "see dsv3_mini/course/number_grounding.py, and run: python -m dsv3_mini.course.number_grounding"


def test_there_are_lessons() -> None:
    assert LESSONS


@pytest.mark.parametrize("lesson", LESSONS, ids=[path.stem for path in LESSONS])
def test_every_number_in_the_prose_has_a_ground(lesson: Path) -> None:
    bare = [str(finding) for finding in ground_cells(read_cells(lesson)) if not finding.by]
    assert not bare, f"{lesson.name} states numbers without a ground ({HELP} {lesson.name}):\n  " + "\n  ".join(bare)


@pytest.mark.parametrize("lesson", LESSONS, ids=[path.stem for path in LESSONS])
def test_a_digit_that_changes_in_the_prose_is_caught(lesson: Path) -> None:
    """The rule has teeth in this very lesson: a longer number whose first digit changes loses its ground."""
    cells, facts = read_cells(lesson), load_facts()
    before = [finding for finding in ground_cells(cells, facts) if finding.by]
    grounded = {(finding.cell, finding.around) for finding in before}
    tried, passed = 0, []
    for place, cell in enumerate(cells):
        source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        for stated in stated_numbers(source) if cell["cell_type"] == "markdown" else ():
            here, start = stated.paragraph, stated.number.start
            if sum(map(str.isdigit, stated.number.text)) < 3 or here not in source:
                continue  # short numbers are often printed by chance; a joined formula is not one piece of the source
            if stated.in_code or (place + 1, stated.around()) not in grounded:
                continue
            other = str(int(here[start]) % 9 + 1)
            changed = copy.deepcopy(cells)
            changed[place]["source"] = source.replace(here, here[:start] + other + here[start + 1 :], 1)
            tried += 1
            if sum(bool(finding.by) for finding in ground_cells(changed, facts)) >= len(before):
                passed.append(f"cell {place + 1}: {stated.around()}, with a {other} in front")
    # Some changed numbers are the value of another fact, or were printed nearby: a few, no more.
    assert len(passed) <= 0.1 * tried, f"of {tried} changed numbers these passed:\n  " + "\n  ".join(passed)
