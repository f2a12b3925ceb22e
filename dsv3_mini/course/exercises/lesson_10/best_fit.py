"""Exercise 10.4: packing that cuts no document which would fit whole."""

from __future__ import annotations

from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_10.inputs import whole, wholes


def best_fit(lengths, room):
    parts = []
    for length in lengths:
        parts += [room] * (length // room)  # what is longer than a row is cut, and there is no other way
        if length % room:
            parts.append(length % room)
    rows: list[list[int]] = []
    for part in sorted(parts, reverse=True):
        fitting = [row for row in rows if sum(row) + part <= room]
        if fitting:
            max(fitting, key=sum).append(part)  # the fullest; of equally full ones, the first
        else:
            rows.append([part])
    return rows


def _with(choose=max, order=lambda parts: sorted(parts, reverse=True), room_left=0, cut="all"):
    """`best_fit` with one of its parts changed."""

    def wrong(lengths, room):
        parts = []
        for length in lengths:
            if cut == "all":
                parts += [room] * (length // room) + [length % room] * (length % room > 0)
            elif cut == "rest dropped":
                parts.append(min(length, room))
            elif cut == "empty rests":
                parts += [room] * (length // room) + [length % room]
            elif cut == "none" or length <= room:
                parts.append(length)
        rows: list[list[int]] = []
        for part in order(parts):
            fitting = [row for row in rows if sum(row) + part <= room - room_left]
            if fitting:
                choose(fitting, key=sum).append(part)
            else:
                rows.append([part])
        return rows

    return wrong


def _by_document(lengths, room):
    """Longest document first, cut when it is its turn."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        rows += [[room] for _ in range(length // room)]
        rest = length % room
        fitting = [row for row in rows if sum(row) + rest <= room]
        if rest and fitting:
            max(fitting, key=sum).append(rest)
        elif rest:
            rows.append([rest])
    return rows


def _new_rows_in_front(lengths, room):
    rows: list[list[int]] = []
    for part in sorted((part for row in best_fit(lengths, room) for part in row), reverse=True):
        fitting = [row for row in rows if sum(row) + part <= room]
        if fitting:
            max(fitting, key=sum).append(part)
        else:
            rows.insert(0, [part])
    return rows


def _first(rows, key):
    return rows[0]


def _next_fit(lengths, room):
    rows: list[list[int]] = []
    for part in sorted((part for row in best_fit(lengths, room) for part in row), reverse=True):
        if rows and sum(rows[-1]) + part <= room:
            rows[-1].append(part)
        else:
            rows.append([part])
    return rows


def _end_to_end(lengths, room):
    rows: list[list[int]] = [[]]
    for length in lengths:
        while length:
            left = room - sum(rows[-1])
            if not left:
                rows.append([])
                continue
            rows[-1].append(min(length, left))
            length -= min(length, left)
    return rows


def _one_each(lengths, room):
    return [[part] for part in sorted((part for row in best_fit(lengths, room) for part in row), reverse=True)]


def _last_of_equals(rows, key):
    return max(reversed(rows), key=key)


def _documents(generator: Generator) -> list[Case]:
    cases = []
    for room, note in ((whole(generator, 30, 40), "documents shorter than a row"), (20, "some longer than a row")):
        longest = room - 1 if note.startswith("documents") else 3 * room
        cases.append(Case((wholes(generator, whole(generator, 14, 20), 1, longest), room), note=note))
    return [
        *cases,
        Case(([6, 5, 4, 3, 2], 10), note="the lengths 6, 5, 4, 3, 2 and room for 10"),
        Case(([13, 1, 11, 8], 20), note="a fuller row behind an emptier one"),
        Case(([25, 10, 20, 7], 10), note="lengths that are a multiple of the room"),
        Case(([7, 6, 4, 3, 3, 7], 10), note="a row that is filled to the last token"),
        Case(([2, 5, 4, 5, 3, 1, 4], 8), note="equally full rows"),
    ]


BEST_FIT = Exercise(
    id="10.4",
    idea="pretraining",
    title="pack without cutting what fits",
    minutes=12,
    answer="best_fit",
    reference=best_fit,
    cases=_documents,
    mistakes=(
        Mistake(
            "end to end",
            _end_to_end,
            "That is end to end packing: every row is full, and a document that does not fit into the rest of a row "
            "is cut. Cut only what is longer than a whole row.",
        ),
        Mistake(
            "order as given",
            _with(order=list),
            "You place the parts in the order of the list. Place the longest first: small ones fill gaps, large ones "
            "do not.",
        ),
        Mistake("shortest first", _with(order=sorted), "You place the shortest first. Then the long ones find no gap."),
        Mistake(
            "first that fits",
            _with(choose=_first),
            "You take the first row with room. Best fit takes the fullest row with room, to keep larger gaps for "
            "larger parts.",
        ),
        Mistake(
            "emptiest row",
            _with(choose=min),
            "You take the emptiest row with room. Best fit takes the fullest one that still has room.",
        ),
        Mistake(
            "last row only",
            _next_fit,
            "You look at the last row only. A gap in an earlier row is lost that way.",
        ),
        Mistake(
            "last of equals",
            _with(choose=_last_of_equals),
            "Of equally full rows you take the last one. That packs as well; here the first is asked for, so that the "
            "result is the same everywhere.",
        ),
        Mistake(
            "full row refused",
            _with(room_left=1),
            "A part that fills a row to its last token is refused. It fits: a row may hold exactly `room` tokens.",
        ),
        Mistake(
            "rest dropped",
            _with(cut="rest dropped"),
            "Of a document longer than a row you keep the first `room` tokens, and the rest is lost. Every token must "
            "be in some row.",
        ),
        Mistake(
            "long ones dropped",
            _with(cut="long ones dropped"),
            "Documents longer than a row are left out. Cut them into parts of `room` tokens, and a rest.",
        ),
        Mistake(
            "not cut",
            _with(cut="none"),
            "A document longer than a row is placed whole, in a row that cannot hold it. First cut it into parts of "
            "`room` tokens, and a rest.",
        ),
        Mistake(
            "not cut, first that fits",
            _with(choose=_first, cut="none"),
            "You take the first row with room, not the fullest; and what is longer than a row is placed whole.",
        ),
        Mistake(
            "empty rests",
            _with(cut="empty rests"),
            "A length that is a multiple of `room` leaves no rest, and you place a part of 0 tokens for it.",
        ),
        Mistake(
            "order of documents",
            _by_document,
            "You go through the documents from the longest on, and place the rest of each at once. Cut all of them "
            "first: a rest is a part like others, and its own length says when it is its turn.",
        ),
        Mistake(
            "new rows in front",
            _new_rows_in_front,
            "You put new rows in front. Append them, so that the first of equally full rows is the oldest.",
        ),
        Mistake(
            "rows sorted",
            lambda lengths, room: sorted(best_fit(lengths, room)),
            "The rows are sorted. Leave them in the order in which they were begun.",
        ),
        Mistake(
            "number of rows",
            lambda lengths, room: len(best_fit(lengths, room)),
            "That is the number of rows. Asked is what is in each of them.",
        ),
        Mistake("one each", _one_each, "Every part has a row of its own: nothing is packed."),
        Mistake(
            "one flat list",
            lambda lengths, room: [part for row in best_fit(lengths, room) for part in row],
            "The parts come one after the other in one list. Asked is a list of rows, each a list of lengths.",
        ),
    ),
    hints=(
        "Two steps. First make parts that fit: a document of 25 with room for 10 becomes 10, 10, 5. Then place them.",
        "Go through the parts from the longest to the shortest. Which rows still have room? If none has, begin a new "
        "one.",
        "Of the rows with room, `max(..., key=sum)` is the fullest, and the first of equally full ones.",
    ),
    after="Only what is longer than a row is cut now, and nearly all rows are full: small documents fill the gaps.",
)
