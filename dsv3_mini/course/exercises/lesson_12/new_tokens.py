"""Exercise 12.1: which drafts stay, and which token follows them (`generate.speculative.accept_greedy`)."""

from __future__ import annotations

from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_12.inputs import logits_that_say, shuffled, whole


def new_tokens(logits, text, drafts):
    wanted = logits.argmax(-1).tolist()  # wanted[i]: what the model says behind token i
    last = len(text) - 1
    kept = 0
    while kept < len(drafts) and drafts[kept] == wanted[last + kept]:
        kept += 1
    return [*drafts[:kept], wanted[last + kept]]


def new_tokens__early(logits, text, drafts):
    wanted = logits.argmax(-1).tolist()
    last = len(text) - 1
    kept = 0
    while kept < len(drafts) and drafts[kept] == wanted[last - 1 + kept]:
        kept += 1
    return [*drafts[:kept], wanted[last + kept]]


def _rule(kept=None, bonus=lambda wanted, kept: [wanted[kept]], stays=lambda drafts, kept: drafts[:kept]):
    """The rule with one part changed. `wanted` here begins with what the model says behind the text."""

    def count(drafts, wanted):
        number = 0
        while number < len(drafts) and drafts[number] == wanted[number]:
            number += 1
        return number

    def wrong(logits, text, drafts):
        wanted = logits.argmax(-1).tolist()[len(text) - 1 :]
        number = (kept or count)(drafts, wanted)
        return stays(drafts, number) + bonus(wanted, number)

    return wrong


def _late(drafts, wanted):
    number = 0
    while number < len(drafts) and drafts[number] == wanted[number + 1]:
        number += 1
    return number


def _matching(drafts, wanted):
    return [draft for draft, said in zip(drafts, wanted) if draft == said]


def _cases(generator: Generator) -> list[Case]:
    def case(right: list[bool], note: str, first: int | None = None) -> Case:
        """Drafts that are right or not; a wrong first one may be what the model says `first` places away."""
        text_length, k = whole(generator, 3, 6), len(right)
        vocabulary = text_length + 2 * k + 4
        said = shuffled(generator, vocabulary)
        wanted, others = said[: text_length + k], said[text_length + k :]
        behind = wanted[text_length - 1 :]
        drafts = [behind[j] if good else others[j] for j, good in enumerate(right)]
        if first is not None:
            drafts[0] = wanted[text_length - 1 + first]
        text = [whole(generator, 0, vocabulary - 1), *wanted[: text_length - 1]]
        return Case((logits_that_say(wanted, vocabulary, generator), text, drafts), note=note)

    some = whole(generator, 1, 2)
    return [
        case([True] * some + [False, True, False], "a wrong draft in the middle"),
        case([True] * whole(generator, 2, 4), "drafts that are all right"),
        case([False, True, False], "a wrong first draft"),
        case([False, False], "a first draft that says the last token of the text again", first=-1),
        case([False, False], "a first draft that is right one place later", first=1),
        case([True], "one draft, and right"),
        case([], "no drafts"),
    ]


NEW_TOKENS = Exercise(
    id="12.1",
    idea="specdec",
    title="which drafts stay",
    minutes=8,
    answer="new_tokens",
    reference=new_tokens,
    cases=_cases,
    mistakes=(
        Mistake(
            "early",
            new_tokens__early,
            "Each draft is compared with what the model said one place too early. The first draft stands behind the "
            "text, and the model says what comes there at the last token of the text; one earlier, it says that last "
            "token itself.",
        ),
        Mistake(
            "late",
            _rule(kept=_late),
            "Each draft is compared with what the model says at the draft itself. That is the token after it; the "
            "draft's own place was predicted one position earlier.",
        ),
        Mistake(
            "no bonus",
            _rule(bonus=lambda wanted, kept: []),
            "Only accepted drafts come out. The model has also said which token follows the last one kept, and that "
            "one is right for certain: without it a round may give nothing at all.",
        ),
        Mistake(
            "all that match",
            lambda logits, text, drafts: (
                (found := _matching(drafts, logits.argmax(-1).tolist()[len(text) - 1 :]))
                + [logits.argmax(-1).tolist()[len(text) - 1 + len(found)]]
            ),
            "A draft behind a wrong one is kept. What the model said there was said of a text with the wrong token in "
            "it, so it means nothing: stop at the first that is wrong.",
        ),
        Mistake(
            "all or nothing",
            _rule(kept=lambda drafts, wanted: len(drafts) if drafts == wanted[: len(drafts)] else 0),
            "One wrong draft throws all of them away. Those in front of it are what the model would have said, and "
            "they stay.",
        ),
        Mistake(
            "bonus from the end",
            _rule(bonus=lambda wanted, kept: [wanted[-1]]),
            "The bonus token is taken behind the last draft, accepted or not. It belongs behind the last one that "
            "was kept.",
        ),
        Mistake(
            "bonus behind the rejected draft",
            _rule(bonus=lambda wanted, kept: [wanted[min(kept + 1, len(wanted) - 1)]]),
            "The bonus token is what the model says after it has read the rejected draft. Take what it says in that "
            "draft's place.",
        ),
        Mistake(
            "rejected draft kept",
            _rule(stays=lambda drafts, kept: drafts[: kept + 1]),
            "The first rejected draft comes out as well. Count: with none accepted, only the bonus token is new.",
        ),
        Mistake(
            "everything accepted",
            _rule(kept=lambda drafts, wanted: len(drafts)),
            "Nothing is ever rejected: the text is the module's, not the model's.",
        ),
        Mistake(
            "nothing accepted",
            _rule(kept=lambda drafts, wanted: 0),
            "No draft is ever kept. The text comes out right, one token a forward pass, and the drafts were for "
            "nothing.",
        ),
    ),
    hints=(
        "What the model says behind token i is in row i. Which row is about the place of the first draft?",
        "The last token of the text has index len(text) - 1, and there the model says what it wants in place of the "
        "first draft.",
        "Count from the first draft on, and stop at the first that differs. What the model wanted in that place, or "
        "behind the last draft, is the bonus token.",
    ),
    after="Greedy, a draft is kept only if plain decoding would have said the same, so nothing else can come out.",
)
