"""Exercise 10.3: what one merge changes in the counts of pairs, so that nothing has to be counted again."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_10.inputs import merge, wholes


def changes(ids, pair, new):
    merged = merge(ids, pair, new)
    changed = Counter(pairwise(merged))
    changed.subtract(Counter(pairwise(ids)))
    return {found: change for found, change in changed.items() if change}


def _kept(keep):
    """`changes` of which only the entries stay for which `keep(pair, change, merged pair, new id)` is true."""

    def wrong(ids, pair, new):
        return {found: n for found, n in changes(ids, pair, new).items() if keep(found, n, pair, new)}

    return wrong


def _zeros_kept(ids, pair, new):
    merged = merge(ids, pair, new)
    changed = Counter(pairwise(merged))
    changed.subtract(Counter(pairwise(ids)))
    return dict(changed)


def _by_old_neighbours(ids, pair, new):
    """Each occurrence with the neighbours that it had before anything was merged."""
    changed: Counter = Counter()
    place = 0
    while place < len(ids) - 1:
        if (ids[place], ids[place + 1]) != pair:
            place += 1
            continue
        changed[pair] -= 1
        if place > 0:
            changed[ids[place - 1], ids[place]] -= 1
            changed[ids[place - 1], new] += 1
        if place + 2 < len(ids):
            changed[ids[place + 1], ids[place + 2]] -= 1
            changed[new, ids[place + 2]] += 1
        place += 2
    return {found: change for found, change in changed.items() if change}


def _overlapping(ids, pair, new):
    merged: list[int] = []
    place = 0
    while place < len(ids):
        if tuple(ids[place : place + 2]) == pair:
            merged.append(new)
            place += 1 if pair[0] == pair[1] and tuple(ids[place + 1 : place + 3]) == pair else 2
        else:
            merged.append(ids[place])
            place += 1
    return _between(ids, merged)


def _first_only(ids, pair, new):
    found = [i for i in range(len(ids) - 1) if (ids[i], ids[i + 1]) == pair][:1]
    return _between(ids, [*ids[: found[0]], new, *ids[found[0] + 2 :]]) if found else {}


def _between(ids, merged):
    changed = Counter(pairwise(merged))
    changed.subtract(Counter(pairwise(ids)))
    return {found: change for found, change in changed.items() if change}


def _kinds(ids, pair, new):
    merged = merge(ids, pair, new)
    before, after = set(pairwise(ids)), set(pairwise(merged))
    return {found: 1 if found in after else -1 for found in before ^ after}


def _new_by_old_neighbours(ids, pair, new):
    return {found: n for found, n in _by_old_neighbours(ids, pair, new).items() if n > 0}


def _pieces(generator: Generator) -> list[Case]:
    cases = [
        Case(([0, 1, 2, 0, 1, 3, 0, 1], (0, 1), 9), note="a pair that comes three times"),
        Case(([2, 0, 1, 0, 1, 3], (0, 1), 9), note="the same pair twice in a row"),
        Case(([0, 0, 0, 1, 0, 0, 0, 0], (0, 0), 9), note="a run of one token"),
        Case(([0, 1], (0, 1), 9), note="nothing but the pair"),
        Case(([3, 2, 1], (0, 1), 9), note="a piece without the pair"),
    ]
    for _ in range(3):
        ids = wholes(generator, 14, 0, 2)
        cases.append(Case((ids, tuple(ids[4:6]), 7)))
    return cases


CHANGES = Exercise(
    id="10.3",
    idea="pretraining",
    title="what a merge changes in the counts",
    minutes=10,
    answer="changes",
    reference=changes,
    cases=_pieces,
    mistakes=(
        Mistake(
            "zeros kept",
            _zeros_kept,
            "Pairs whose count stays the same are listed with a 0. List only what changes.",
        ),
        Mistake(
            "the other way round",
            lambda ids, pair, new: {found: -n for found, n in changes(ids, pair, new).items()},
            "The signs are the other way round: a pair that there are fewer of after the merge has a negative number.",
        ),
        Mistake(
            "the other way round, with zeros",
            lambda ids, pair, new: {found: -n for found, n in _zeros_kept(ids, pair, new).items()},
            "Two things: the signs are the other way round, and pairs whose count stays the same are listed with a 0.",
        ),
        Mistake(
            "without signs",
            lambda ids, pair, new: {found: abs(n) for found, n in changes(ids, pair, new).items()},
            "The sizes are right, the signs are missing: a pair that there are fewer of has a negative number.",
        ),
        Mistake(
            "only what comes",
            _kept(lambda found, change, pair, new: change > 0),
            "You list the pairs that come to be. Others go: the merged pair, and the pairs that it had with its "
            "neighbours.",
        ),
        Mistake(
            "only what goes",
            _kept(lambda found, change, pair, new: change < 0),
            "You list the pairs that go. The new token has neighbours, too, and makes pairs with them.",
        ),
        Mistake(
            "merged pair forgotten",
            _kept(lambda found, change, pair, new: found != pair),
            "The pairs with the neighbours are right. The merged pair itself is missing: there are fewer of it now.",
        ),
        Mistake(
            "only the merged pair",
            _kept(lambda found, change, pair, new: found == pair),
            "You count the merged pair alone. Its neighbours have lost a partner, and found a new one.",
        ),
        Mistake(
            "old neighbours",
            _by_old_neighbours,
            "You look at the neighbours as they were before the merge. When the pair comes twice in a row, the "
            "neighbour is merged, too: new token next to new token.",
        ),
        Mistake(
            "overlapping merges",
            _overlapping,
            "In a run such as `aaa` you merge twice, and use the middle token both times. A token can be merged only "
            "once; `merge` goes from left to right.",
        ),
        Mistake(
            "only what comes, by old neighbours",
            _new_by_old_neighbours,
            "Two things: you list only the pairs that come to be, and when the pair comes twice in a row, you do not "
            "see that the neighbour is merged, too.",
        ),
        Mistake(
            "first place only",
            _first_only,
            "You merge the pair in its first place only. It can come several times in one piece.",
        ),
        Mistake(
            "kinds instead of counts",
            _kinds,
            "You ask whether a pair occurs, not how often. A pair can lose one place and keep another.",
        ),
        Mistake(
            "merged piece",
            lambda ids, pair, new: merge(ids, pair, new),
            "That is the piece after the merge. Asked is how the counts of its pairs change.",
        ),
        Mistake(
            "new counts",
            lambda ids, pair, new: dict(Counter(pairwise(merge(ids, pair, new)))),
            "These are the counts after the merge. Asked is by how much they change.",
        ),
    ),
    hints=(
        "Write `a b a b c` down, merge (a, b), and count pairs before and after.",
        "The slow way is right and short: count the pairs of the piece before, count them after, take the difference.",
        "`Counter(pairwise(ids))` counts neighbouring pairs. A Counter has a method `subtract` that, unlike the "
        "minus sign, keeps negative numbers. In the end leave the zeros out.",
    ),
    after="With an index of the pieces that hold a pair, a merge then costs as much as the places it changes.",
)
