"""Exercise 10.1: which texts are kept for measuring, so that no copy of them is trained on."""

from __future__ import annotations

from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_10.inputs import letters, whole, wholes
from dsv3_mini.train.documents import hash_fraction


def split(texts, share):
    different = list(dict.fromkeys(texts))  # each once, in the order of its first appearance
    train = [text for text in different if hash_fraction(text) >= share]
    heldout = [text for text in different if hash_fraction(text) < share]
    return train, heldout


def split__by_position(texts, share):
    border = round(len(texts) * (1 - share))
    return texts[:border], texts[border:]


def _different_then_position(texts, share):
    return split__by_position(list(dict.fromkeys(texts)), share)


def _position_then_different(texts, share):
    train, heldout = split__by_position(texts, share)
    return list(dict.fromkeys(train)), list(dict.fromkeys(heldout))


def _position_then_copies_removed(texts, share):
    train, heldout = _position_then_different(texts, share)
    return [text for text in train if text not in heldout], heldout


def _copies_kept(texts, share):
    return [t for t in texts if hash_fraction(t) >= share], [t for t in texts if hash_fraction(t) < share]


def _by_number(texts, share):
    train: list[str] = []
    heldout: list[str] = []
    for place, text in enumerate(texts):
        (heldout if hash_fraction(str(place)) < share else train).append(text)
    return train, heldout


def _different_then_by_number(texts, share):
    return _by_number(list(dict.fromkeys(texts)), share)


def _swapped(texts, share):
    return split(texts, share)[::-1]


def _other_side(texts, share):
    return split(texts, 1 - share)


def _once_only(texts, share):
    return split([text for text in texts if texts.count(text) == 1], share)


def _sorted(texts, share):
    return split(sorted(texts), share)


def _lowest(texts, share):
    by_hash = sorted(dict.fromkeys(texts), key=hash_fraction)
    heldout = by_hash[: round(len(by_hash) * share)]
    return [text for text in dict.fromkeys(texts) if text not in heldout], heldout


def _lowest_in_order(texts, share):
    train, heldout = _lowest(texts, share)
    return train, [text for text in dict.fromkeys(texts) if text in heldout]


def _sorted_then_position(texts, share):
    in_order = sorted(set(texts))
    border = int(share * len(in_order))
    return in_order[border:], in_order[:border]


def _copies_held_out(texts, share):
    return split(texts, share)[0], _copies_kept(texts, share)[1]


def _every_kth(texts, share):
    different = list(dict.fromkeys(texts))
    heldout = different[:: round(1 / share)]
    return [text for text in different if text not in heldout], heldout


def _python_hash(texts, share):
    different = list(dict.fromkeys(texts))
    chosen = [hash(text) % 1000 < 1000 * share for text in different]
    heldout = [text for text, held_out in zip(different, chosen) if held_out]
    return [text for text in different if text not in heldout], heldout


def _texts(generator: Generator) -> list[Case]:
    cases = []
    for share, note in ((0.3, "copies far apart"), (0.15 + whole(generator, 0, 5) / 10, "copies")):
        texts = [letters(generator, whole(generator, 3, 12), "abcdef ") for _ in range(whole(generator, 24, 33))]
        places = wholes(generator, whole(generator, 5, 9), 0, len(texts) - 1)
        texts += [texts[place] for place in places]
        cases.append(Case((texts, share), note=note))
    several = [letters(generator, 6, "abcdef") for _ in range(12)]
    cases.append(Case(([text for text in several for _ in range(2)], 0.5), note="every text twice, side by side"))
    return cases


SPLIT = Exercise(
    id="10.1",
    idea="pretraining",
    title="a split that lets no copy through",
    minutes=6,
    answer="split",
    reference=split,
    cases=_texts,
    mistakes=(
        Mistake(
            "by position",
            split__by_position,
            "The side is decided by the place in the list. A text that comes twice can be on both sides: then you "
            "measure on what was trained on.",
        ),
        Mistake(
            "position, then each once",
            _position_then_different,
            "You remove copies inside each side, after the split. The copy that does the harm is the one on the other "
            "side.",
        ),
        Mistake(
            "each once, then position",
            _different_then_position,
            "No copy is left. But the side still depends on the place: put one text in front, and others change "
            "sides, so that two runs no longer hold the same texts out.",
        ),
        Mistake(
            "position, copies removed from training",
            _position_then_copies_removed,
            "Nothing leaks. But the side still depends on the place: put one text in front, and others change sides.",
        ),
        Mistake(
            "copies kept",
            _copies_kept,
            "The sides are right. A text that comes several times still comes several times; keep each once.",
        ),
        Mistake(
            "hash of the number",
            _by_number,
            "You hash the number of a text. Two copies have two numbers, and can come to two sides. Hash what must "
            "decide.",
        ),
        Mistake(
            "each once, then hash of the number",
            _different_then_by_number,
            "No copy is left, but you hash the number of a text: another text in front of it, and it changes sides.",
        ),
        Mistake("sides swapped", _swapped, "The two sides are swapped: the larger part is for training."),
        Mistake(
            "share of training",
            _other_side,
            "`share` is the share to hold out; here it is the share that is trained on.",
        ),
        Mistake(
            "repeated texts dropped",
            _once_only,
            "A text that comes twice is gone altogether. One copy of it should stay, on one side.",
        ),
        Mistake(
            "order changed", _sorted, "The right texts are on the right sides, sorted. Keep the order of the list."
        ),
        Mistake(
            "exact share",
            _lowest,
            "You hold out the texts with the lowest hashes, an exact share of them. Then the side of a text depends on "
            "which others there are. Its own hash must decide alone.",
        ),
        Mistake(
            "exact share, in order",
            _lowest_in_order,
            "An exact share of the texts is held out, those with the lowest hashes. With other texts beside it, the "
            "same text may change sides. Its own hash must decide alone.",
        ),
        Mistake(
            "sorted, then position",
            _sorted_then_position,
            "You sort, and cut the list at one place. A text that is added moves the border for others, and texts "
            "that begin alike come to one side together.",
        ),
        Mistake(
            "copies held out",
            _copies_held_out,
            "The training side is right. On the other side a text can still come several times, and then it counts "
            "several times when you measure.",
        ),
        Mistake(
            "every k-th text",
            _every_kth,
            "You hold out every k-th text of the list. One more text in front, and all others change their places and "
            "with them their sides.",
        ),
        Mistake(
            "Python's hash",
            _python_hash,
            "Python's own hash of a text is salted: it differs from process to process, so tomorrow other texts are "
            "held out. `hash_fraction` is the same everywhere.",
        ),
    ),
    hints=(
        "Two things can go wrong: a copy on the other side, and a side that depends on what else is in the list.",
        "`dict.fromkeys(texts)` keeps each text once, in order. `hash_fraction(text)` gives a number from 0 to 1 that "
        "depends on the text alone.",
        "A text is held out when its own number lies below `share`. Go through the different texts once for each side.",
    ),
    after="The package decides so, too; exhibit 10.B shows what a split by position does to the score.",
)
