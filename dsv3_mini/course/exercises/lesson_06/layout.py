"""Exercise 6.3: in which row an assignment stands.

Shapes: N tokens, E routed experts, K of them per token, M rows (token-expert pairs).
"""

from __future__ import annotations

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_06.inputs import _choices, _whole


def layout(ids, experts, multiple):
    flat = ids.flatten()  # assignment m belongs to token m // K
    counts = torch.bincount(flat, minlength=experts)
    sizes = (counts + multiple - 1) // multiple * multiple  # rounded up; 0 stays 0
    order = flat.argsort(stable=True)
    within = torch.arange(len(flat)) - (counts.cumsum(0) - counts)[flat[order]]  # place in its own slice
    row = torch.empty_like(flat)
    row[order] = (sizes.cumsum(0) - sizes)[flat[order]] + within
    return row, sizes


def _layout(slots_first=False, fill="up", shift="start", swapped=False, inverse=True):
    """The layout above with one of its parts changed."""

    def wrong(ids, experts, multiple):
        flat = ids.T.flatten() if slots_first else ids.flatten()
        counts = torch.bincount(flat, minlength=experts)
        sizes = (counts + multiple - 1) // multiple * multiple
        if fill == "always":
            sizes = (counts // multiple + 1) * multiple
        elif fill == "never":
            sizes = counts
        elif fill == "down":
            sizes = counts // multiple * multiple
        starts = sizes.cumsum(0) - sizes if shift == "start" else sizes.cumsum(0)
        if shift == "unfilled":
            starts = counts.cumsum(0) - counts
        order = flat.argsort(stable=True)
        within = torch.arange(len(flat)) - (counts.cumsum(0) - counts)[flat[order]]
        row = torch.empty_like(flat)
        if not inverse:
            row = starts[flat[order]] + within
        else:
            row[order] = starts[flat[order]] + within
        return (sizes, row) if swapped else (row, sizes)

    return wrong


def _dropped_empty(ids, experts, multiple):
    row, sizes = layout(ids, experts, multiple)
    return row, sizes[sizes > 0]


def _no_minlength(ids, experts, multiple):
    row, sizes = layout(ids, experts, multiple)
    return row, sizes[: int(ids.max()) + 1]


def _at_least(ids, experts, multiple):
    row, sizes = layout(ids, experts, multiple)
    more = (sizes == 0) * multiple
    return row + (more.cumsum(0) - more)[ids.flatten()], sizes + more


def _assignments(generator: Generator) -> list[Case]:
    cases = []
    for tokens, multiple, note in (
        (_whole(generator, 6, 9), 1, "multiple = 1"),
        (_whole(generator, 9, 14), _whole(generator, 3, 4), "a multiple above 1"),
        (1, 4, "one token"),
    ):
        experts, top_k = _whole(generator, 7, 9), _whole(generator, 2, 3)
        quiet = _choices(generator, tokens, experts - 2, top_k)  # the last two experts get no token
        cases.append(Case((quiet, experts, multiple), note=note))
    return cases


LAYOUT = Exercise(
    id="6.3",
    idea="deepseekmoe",
    title="where each assignment stands when slices are filled up",
    minutes=15,
    answer="layout",
    reference=layout,
    cases=_assignments,
    dims=("M", "E"),
    mistakes=(
        Mistake(
            "empty experts left out",
            _dropped_empty,
            "Experts without a token are missing in the sizes, so everything behind them moves up. Every expert has a "
            "size; theirs is 0 (bincount has a minlength).",
        ),
        Mistake(
            "last experts left out",
            _no_minlength,
            "The sizes end with the last expert that has a token. Idle experts behind it have a size, too: 0 (bincount "
            "has a minlength).",
        ),
        Mistake(
            "ends instead of sizes",
            lambda ids, experts, multiple: (
                layout(ids, experts, multiple)[0],
                layout(ids, experts, multiple)[1].cumsum(0),
            ),
            "The second part is where the slices end; asked are their sizes.",
        ),
        Mistake(
            "idle rows for idle experts",
            _at_least,
            "An expert without tokens is given rows all the same. It needs none: 0 is a multiple of anything.",
        ),
        Mistake(
            "order instead of row",
            _layout(inverse=False),
            "You list the rows in the order of the experts. Asked is the other direction: for assignment m, the row in "
            "which it stands. The two are inverse to each other.",
        ),
        Mistake(
            "slots first",
            _layout(slots_first=True),
            "The assignments are numbered slot by slot: first choices of all tokens, then second choices. Assignment m "
            "should belong to token m // K.",
        ),
        Mistake("not filled up", _layout(fill="never"), "The sizes are those of the slices before filling up."),
        Mistake(
            "always one more",
            _layout(fill="always"),
            "A slice that needs no filling is filled up all the same, and an expert without tokens gets rows, too.",
        ),
        Mistake(
            "rounded down",
            _layout(fill="down"),
            "The sizes are rounded down: some assignments have no row of their own.",
        ),
        Mistake(
            "ends instead of starts",
            _layout(shift="end"),
            "Every slice begins where it should end: cumsum gives the ends of the slices.",
        ),
        Mistake(
            "rows of the unfilled slices",
            _layout(shift="unfilled"),
            "The sizes are right, but the rows are counted as if nothing had been filled up: a slice behind a filled "
            "one must move back.",
        ),
        Mistake("swapped", _layout(swapped=True), "First the rows, then the sizes, please."),
    ),
    hints=(
        "Sizes first: count the assignments of each expert and round up. (n + 7) // 8 * 8 rounds up to eights.",
        "Where does the slice of an expert start? Where all slices before it end: a cumsum, less the own size.",
        "The stable argsort lists assignments by expert. The i-th of that list is number i - (assignments of earlier "
        "experts) within its slice, and its row is the start of the slice plus that number.",
        "You know the row of order[i]; asked is the row of m. Writing row[order] = ... turns it round.",
    ),
    after="With multiple = 1 it is the inverse permutation; with 16, what the package does for bf16 on a CPU.",
)
