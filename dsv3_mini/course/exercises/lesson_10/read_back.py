"""Exercise 10.5: from the stream that a model is trained on back to the documents."""

from __future__ import annotations

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_10.inputs import whole, wholes


def read_back(stream, eos, begin, hole, end):
    documents, document = [], []
    for token in stream:
        if token != eos:
            document.append(token)
            continue
        if document[:1] == [begin]:
            first, last = document.index(hole), document.index(end)
            prefix, suffix, middle = document[1:first], document[first + 1 : last], document[last + 1 :]
            document = prefix + middle + suffix
        documents.append(document)
        document = []
    return documents


def _with(join, plain=lambda document: document):
    """`read_back` with another way to join (prefix, suffix, middle), or to treat a document in plain order."""

    def wrong(stream, eos, begin, hole, end):
        documents = []
        for document in _cut(stream, eos):
            if document[:1] == [begin]:
                first, last = document.index(hole), document.index(end)
                document = join(document[1:first], document[first + 1 : last], document[last + 1 :])
            else:
                document = plain(document)
            documents.append(document)
        return documents

    return wrong


def _cut(stream, eos):
    documents: list[list[int]] = [[]]
    for token in stream:
        if token == eos:
            documents.append([])
        else:
            documents[-1].append(token)
    return documents[:-1]


def _special_kept(stream, eos, begin, hole, end):
    joined = _with(lambda prefix, suffix, middle: [begin, *prefix, end, *middle, hole, *suffix])
    return joined(stream, eos, begin, hole, end)


def _only_cut(stream, eos, begin, hole, end):
    return _cut(stream, eos)


def _cut_with_eos(stream, eos, begin, hole, end):
    return [[*document, eos] for document in _cut(stream, eos)]


def _eos_kept(stream, eos, begin, hole, end):
    return [[*document, eos] for document in read_back(stream, eos, begin, hole, end)]


def _empty_dropped(stream, eos, begin, hole, end):
    return [document for document in read_back(stream, eos, begin, hole, end) if document]


def _one_more(stream, eos, begin, hole, end):
    return [*read_back(stream, eos, begin, hole, end), []]


def _rearranged_dropped(stream, eos, begin, hole, end):
    return [document for document in _cut(stream, eos) if document[:1] != [begin]]


def _rearranged_only(stream, eos, begin, hole, end):
    kept = [[*document, eos] for document in _cut(stream, eos) if document[:1] == [begin]]
    return read_back([token for document in kept for token in document], eos, begin, hole, end)


def _first_only(stream, eos, begin, hole, end):
    documents, done = [], False
    for document in _cut(stream, eos):
        if document[:1] == [begin] and not done:
            document, done = read_back([*document, eos], eos, begin, hole, end)[0], True
        documents.append([token for token in document if token not in (begin, hole, end)])
    return documents


def _one_list(stream, eos, begin, hole, end):
    return [token for document in read_back(stream, eos, begin, hole, end) for token in document]


def _streams(generator: Generator) -> list[Case]:
    special = torch.randperm(9, generator=generator)[:4].tolist()
    eos, begin, hole, end = special
    ordinary = [token for token in range(40) if token not in special]

    def text(low: int, high: int) -> list[int]:
        return [ordinary[i] for i in wholes(generator, whole(generator, low, high), 0, len(ordinary) - 1)]

    def psm(prefix: list[int], suffix: list[int], middle: list[int]) -> list[int]:
        return [begin, *prefix, hole, *suffix, end, *middle, eos]

    usual = [*text(3, 6), eos, *psm(text(2, 4), text(2, 5), text(2, 4)), *text(2, 4), eos]
    several = [*psm(text(2, 3), text(2, 3), text(2, 3)), *psm(text(1, 3), text(2, 3), text(3, 4)), *text(3, 3), eos]
    return [
        Case((usual, *special), note="one rearranged document among plain ones"),
        Case((several, *special), note="two rearranged documents in a row"),
        Case((psm([], text(2, 3), text(1, 3)), *special), note="a rearranged document without a prefix"),
        Case(([*psm(text(2, 3), [], text(1, 2)), *psm(text(1, 2), text(1, 2), [])], *special), note="empty parts"),
        Case(([eos, *text(2, 3), eos, *psm([], [], [])], *special), note="empty documents"),
        Case(([], *special), note="an empty stream"),
    ]


READ_BACK = Exercise(
    id="10.5",
    idea="pretraining",
    title="from the training stream back to documents",
    minutes=15,
    answer="read_back",
    reference=read_back,
    cases=_streams,
    mistakes=(
        Mistake(
            "not put back in order",
            _with(lambda prefix, suffix, middle: prefix + suffix + middle),
            "The special tokens are gone, but the middle still stands behind the suffix. In the text it stands between "
            "prefix and suffix.",
        ),
        Mistake(
            "only cut",
            _only_cut,
            "You cut at the ends of documents. Documents that were rearranged are still in the order of training, with "
            "their special tokens.",
        ),
        Mistake(
            "only cut, eos kept",
            _cut_with_eos,
            "You cut behind the end tokens, and keep them. They are no part of the text, and documents that were "
            "rearranged are still in the order of training.",
        ),
        Mistake(
            "special tokens kept",
            _special_kept,
            "The order is right. The special tokens of fill-in-the-middle are still there; they are no part of the "
            "text.",
        ),
        Mistake(
            "middle first",
            _with(lambda prefix, suffix, middle: middle + prefix + suffix),
            "The middle comes first for you. It belongs where the hole was cut: behind the prefix.",
        ),
        Mistake(
            "suffix and prefix swapped",
            _with(lambda prefix, suffix, middle: suffix + middle + prefix),
            "Prefix and suffix are swapped: what stands between the begin and the hole token is the start of the text.",
        ),
        Mistake(
            "suffix lost",
            _with(lambda prefix, suffix, middle: prefix + middle),
            "The suffix is lost: what stands between the hole token and the end token is the rest of the text.",
        ),
        Mistake(
            "middle lost",
            _with(lambda prefix, suffix, middle: prefix + suffix),
            "The middle is lost. It stands last in the stream, between the end token of the hole and the end of the "
            "document.",
        ),
        Mistake("eos kept", _eos_kept, "The end-of-document token is still there; it is no part of the text."),
        Mistake(
            "empty documents dropped",
            _empty_dropped,
            "Empty documents are lost. An end token with nothing before it ends a document without tokens.",
        ),
        Mistake(
            "one too many",
            _one_more,
            "There is one empty document too many at the end. The end token ends a document; it does not begin one.",
        ),
        Mistake(
            "rearranged ones dropped",
            _rearranged_dropped,
            "Documents that were rearranged are left out. They are documents like the others.",
        ),
        Mistake(
            "rearranged ones only",
            _rearranged_only,
            "Only rearranged documents come out. Most documents are in plain order.",
        ),
        Mistake(
            "first one only",
            _first_only,
            "Only the first rearranged document is put back in order. There can be several.",
        ),
        Mistake(
            "one flat list",
            _one_list,
            "All documents come in one list. Asked is a list of documents, each a list of ids.",
        ),
    ),
    hints=(
        "Cut at the end tokens first. Which documents were rearranged, and how do you see that?",
        "A rearranged document begins with `begin`. In it the list method `index` finds `hole` and `end`; between the "
        "three and behind the last lie prefix, suffix and middle.",
        "Join them in the order of the text: prefix, middle, suffix. A document in plain order stays as it is. Append "
        "a document when you meet its end token.",
    ),
    after="Nothing was lost: the objective is still the next token, only the order of the text was another.",
)
