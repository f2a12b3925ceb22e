"""Exercise 10.2: encoding one piece of text with merges that were learned elsewhere."""

from __future__ import annotations

from itertools import pairwise

from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_10.inputs import learned, letters, merge, whole


def encode_piece(piece, merges, table):
    ids = [table.index(bytes([byte])) for byte in piece]
    while True:
        known = [pair for pair in pairwise(ids) if pair in merges]
        if not known:
            return ids
        first = min(known, key=lambda pair: merges[pair])  # learned before all others that are here
        ids = merge(ids, first, merges[first])


def encode_piece__longest_match(piece, merges, table):
    number = {content: i for i, content in enumerate(table)}
    ids = []
    while piece:
        length = max(n for n in range(1, len(piece) + 1) if piece[:n] in number)
        ids.append(number[piece[:length]])
        piece = piece[length:]
    return ids


def _longest_from_the_right(piece, merges, table):
    number = {content: i for i, content in enumerate(table)}
    ids: list[int] = []
    while piece:
        start = min(n for n in range(len(piece)) if piece[n:] in number)
        ids.insert(0, number[piece[start:]])
        piece = piece[:start]
    return ids


def _with(choose, *, again=True):
    """`encode_piece` with another choice among the pairs that have a merge: `choose(known, merges)`."""

    def wrong(piece, merges, table):
        ids = [table.index(bytes([byte])) for byte in piece]
        while known := [pair for pair in pairwise(ids) if pair in merges]:
            pair = choose(known, merges)
            ids = merge(ids, pair, merges[pair])
            if not again:
                break
        return ids

    return wrong


def _first_come(piece, merges, table):
    ids = [table.index(bytes([byte])) for byte in piece]
    place = 0
    while place < len(ids) - 1:
        new = merges.get((ids[place], ids[place + 1]))
        if new is None:
            place += 1
        else:
            ids[place : place + 2] = [new]
    return ids


def _from_the_right(piece, merges, table):
    ids = [table.index(bytes([byte])) for byte in piece]
    while known := [pair for pair in pairwise(ids) if pair in merges]:
        first = min(known, key=lambda pair: merges[pair])
        place = max(i for i in range(len(ids) - 1) if (ids[i], ids[i + 1]) == first)
        ids[place : place + 2] = [merges[first]]
    return ids


def _longest_first(piece, merges, table):
    longest = _with(lambda known, merges: max(known, key=lambda pair: len(table[merges[pair]])))
    return longest(piece, merges, table)


def _one_round(piece, merges, table):
    ids = [table.index(bytes([byte])) for byte in piece]
    for pair in dict.fromkeys(pairwise(ids)):
        if pair in merges:
            ids = merge(ids, pair, merges[pair])
    return ids


def _one_round_in_order(piece, merges, table):
    ids = [table.index(bytes([byte])) for byte in piece]
    for pair in sorted(set(pairwise(ids)) & set(merges), key=lambda pair: merges[pair]):
        ids = merge(ids, pair, merges[pair])
    return ids


def _whole_or_bytes(piece, merges, table):
    return [table.index(piece)] if piece in table else [table.index(bytes([byte])) for byte in piece]


def _byte_values(piece, merges, table):
    ids = list(piece)
    for pair, new in merges.items():
        ids = merge(ids, pair, new)
    return ids


def _as_bytes(piece, merges, table):
    return [table[i] for i in encode_piece(piece, merges, table)]


def _as_pairs(piece, merges, table):
    ids = [table.index(bytes([byte])) for byte in piece]
    return [merges[pair] for pair in pairwise(ids) if pair in merges]


def _pieces(generator: Generator) -> list[Case]:
    cases = []
    for alphabet, note in (("abc", "three different bytes"), ("ab", "two different bytes"), ("abcde", "five bytes")):
        text = alphabet + letters(generator, 60, alphabet)
        merges, table = learned(text, whole(generator, 8, 14))
        for _ in range(2):
            piece = letters(generator, whole(generator, 9, 16), alphabet).encode()
            cases.append(Case((piece, merges, table), note=note))
    table = [b"a", b"b", b"c", b"bc", b"ab", b"aa", b"abc"]
    small = {(1, 2): 3, (0, 1): 4, (0, 0): 5, (0, 3): 6}
    cases += [
        Case((b"aaab", small, table), note="the piece b'aaab'"),
        # What a draw may hide: after `bc` the leftmost pair makes `aa` and the longest one `abc`; `ab` is more frequent
        # than `bc`; and whoever merges on the way meets `aa` before the second `ab`.
        Case((b"bcaabc", small, table), note="the piece b'bcaabc'"),
        Case((b"abcabab", small, table), note="the piece b'abcabab'"),
        Case((b"abcaabc", small, table), note="the piece b'abcaabc'"),
        Case((b"ab", {}, table), note="no merges at all"),
        Case((b"", small, table), note="an empty piece"),
    ]
    return cases


ENCODE = Exercise(
    id="10.2",
    idea="pretraining",
    title="encode a piece with learned merges",
    minutes=10,
    answer="encode_piece",
    reference=encode_piece,
    cases=_pieces,
    mistakes=(
        Mistake(
            "longest match",
            encode_piece__longest_match,
            "You take the longest token that fits, from the left. Its text is right, but training never merged in "
            "that order: the same piece becomes other ids than the model has learned from.",
        ),
        Mistake(
            "longest match from the right",
            _longest_from_the_right,
            "You take the longest token that fits, from the right. Merges do not ask for length; the one that was "
            "learned first comes first.",
        ),
        Mistake(
            "leftmost pair",
            _with(lambda known, merges: known[0]),
            "You merge the leftmost pair that has a merge. A pair further right may have been learned earlier, and "
            "then it has the right of way.",
        ),
        Mistake(
            "first come",
            _first_come,
            "You go through the piece once and merge what you meet. A pair further right may have been learned "
            "earlier; and a merge can make a new pair with what lies to its left, behind you.",
        ),
        Mistake(
            "last learned first",
            _with(lambda known, merges: max(known, key=lambda pair: merges[pair])),
            "You begin with the merge that was learned last. It is the other way round: the first that was learned "
            "is the first to be applied.",
        ),
        Mistake(
            "most frequent pair",
            _with(lambda known, merges: max(known, key=lambda pair: (known.count(pair), -merges[pair]))),
            "You merge the pair that is most frequent in this piece. Counting is over once training is: what was "
            "learned first goes first.",
        ),
        Mistake(
            "lowest pair",
            _with(lambda known, merges: min(known)),
            "You merge the pair with the lowest ids. What counts is when the merge was learned: the id of what the "
            "pair becomes.",
        ),
        Mistake(
            "longest merge first",
            _longest_first,
            "You begin with the merge that gives the longest token. Length has no say; the merge that was learned "
            "first comes first.",
        ),
        Mistake(
            "one round",
            _one_round,
            "You try each pair of bytes once, in the order of the text. The order is that of learning; and merges "
            "make new pairs, which want to be tried, too.",
        ),
        Mistake(
            "one round in order",
            _one_round_in_order,
            "The order is right for the pairs of bytes. Their merges make new pairs, and these you do not look at.",
        ),
        Mistake(
            "one merge only",
            _with(lambda known, merges: min(known, key=lambda pair: merges[pair]), again=False),
            "You stop after one merge. Go on until no neighbouring pair has a merge.",
        ),
        Mistake(
            "runs from the right",
            _from_the_right,
            "The order of merges is right. In a run such as `aaa` you merge the last two; `merge` goes from left to "
            "right.",
        ),
        Mistake(
            "whole piece or bytes",
            _whole_or_bytes,
            "A piece that is in the table becomes one token, every other one stays bytes. Most pieces are made of "
            "several tokens.",
        ),
        Mistake(
            "not merged",
            lambda piece, merges, table: [table.index(bytes([byte])) for byte in piece],
            "These are the ids of the bytes. Nothing is merged yet.",
        ),
        Mistake(
            "byte values",
            _byte_values,
            "You take the value of a byte for its id. The id of a byte is its place in `table`.",
        ),
        Mistake("bytes instead of ids", _as_bytes, "These are the bytes of the tokens. Asked are their ids."),
        Mistake(
            "one merge for each pair",
            _as_pairs,
            "You look every neighbouring pair up, and drop the bytes that have no partner. Pairs overlap, and a byte "
            "can be merged only once.",
        ),
    ),
    hints=(
        "Start from the ids of the single bytes. Then merge again and again; the only question is which pair next.",
        "In training, every merge was done in the whole text before the next one was looked for. So a piece must be "
        "merged in that order, too. New ids were given in the order of learning.",
        "Collect the neighbouring pairs that are in `merges`; of these take the one with the lowest new id, and let "
        "`merge` replace it everywhere. Stop when there are none.",
    ),
    after="A real tokenizer does this for each piece, and keeps the result for pieces that come again.",
)
