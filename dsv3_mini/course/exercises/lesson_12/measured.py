"""Exercise 12.4: acceptance by depth and tokens per forward pass, from a log (as in `SpeculationStats`)."""

from __future__ import annotations

from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_12.inputs import whole


def measured(rounds):
    by_depth = []
    for j in range(max(drafted for drafted, _ in rounds)):
        judged = [kept for drafted, kept in rounds if drafted > j and kept >= j]  # all before it were accepted
        by_depth.append(sum(kept > j for kept in judged) / len(judged))
    tokens = sum(kept + 1 for _, kept in rounds)  # the bonus token comes in every round
    return by_depth, tokens / len(rounds)


def _by_depth(counts, rounds):
    """Acceptance of draft j, when `counts(drafted, kept, j)` says whether it is counted as made."""
    found = []
    for j in range(max(drafted for drafted, _ in rounds)):
        made = [kept for drafted, kept in rounds if counts(drafted, kept, j)]
        found.append(sum(kept > j for kept in made) / len(made))
    return found


def _with(counts):
    return lambda rounds: (_by_depth(counts, rounds), measured(rounds)[1])


def _tokens(rule):
    return lambda rounds: (measured(rounds)[0], rule(rounds))


def _one_rate(rounds):
    rate = sum(kept for _, kept in rounds) / sum(drafted for drafted, _ in rounds)
    return [rate] * max(drafted for drafted, _ in rounds)


def _bonus_accepted(rounds):
    found = []
    for j in range(max(drafted for drafted, _ in rounds)):
        judged = [kept for drafted, kept in rounds if drafted > j and kept >= j]
        found.append(sum(kept + 1 > j for kept in judged) / len(judged))
    return found


def _cases(generator: Generator) -> list[Case]:
    def log(deepest: int, least: int, number: int) -> list[tuple[int, int]]:
        rounds = []
        for _ in range(number):
            drafted = whole(generator, least, deepest)
            kept = 0
            while kept < drafted and whole(generator, 0, 9) < 7:
                kept += 1
            rounds.append((drafted, kept))
        # So that each depth was judged, with both outcomes, and some drafts were made and not judged.
        must = [(deepest, kept) for kept in range(deepest + 1)]
        must += [(drafted, drafted) for drafted in range(least, deepest)]
        return must + rounds

    deepest = whole(generator, 2, 4)
    return [
        Case((log(1, 1, whole(generator, 3, 8)),), note="one draft in every round"),
        Case((log(deepest, deepest, whole(generator, 5, 12)),), note=f"{deepest} drafts in every round"),
        Case((log(4, 0, whole(generator, 8, 16)),), note="rounds with more and fewer drafts, some with none"),
    ]


MEASURED = Exercise(
    id="12.4",
    idea="specdec",
    title="acceptance, from a log",
    minutes=10,
    answer="measured",
    reference=measured,
    cases=_cases,
    tolerance=1e-9,
    mistakes=(
        Mistake(
            "never judged, counted as rejected",
            _with(lambda drafted, kept, j: drafted > j),
            "A draft behind a rejected one counts as rejected. It was never judged: the model saw it in a text with a "
            "wrong token. Count the draft at depth j only where all drafts before it were accepted.",
        ),
        Mistake(
            "never made, counted as rejected",
            _with(lambda drafted, kept, j: kept >= j),
            "A round that made fewer drafts counts against the deeper ones. A draft that was not made can be neither "
            "accepted nor rejected.",
        ),
        Mistake(
            "all rounds",
            _with(lambda drafted, kept, j: True),
            "At each depth you divide by the number of all rounds. Drafts that were not made, or stood behind a "
            "rejected one, were not judged and do not count.",
        ),
        Mistake(
            "one rate for all",
            lambda rounds: (_one_rate(rounds), measured(rounds)[1]),
            "All depths get one rate, accepted over drafted. The first draft is made from the model's own state and "
            "the later ones are not: they have rates of their own.",
        ),
        Mistake(
            "bonus taken for a draft",
            lambda rounds: (_bonus_accepted(rounds), measured(rounds)[1]),
            "The bonus token is taken for an accepted draft.",
        ),
        Mistake(
            "bonus forgotten",
            _tokens(lambda rounds: sum(kept for _, kept in rounds) / len(rounds)),
            "Only accepted drafts are counted as tokens. Each round also gives its bonus token.",
        ),
        Mistake(
            "drafts counted as tokens",
            _tokens(lambda rounds: sum(drafted + 1 for drafted, _ in rounds) / len(rounds)),
            "Rejected drafts are counted as tokens that came out.",
        ),
        Mistake(
            "tokens per draft",
            _tokens(lambda rounds: sum(kept + 1 for _, kept in rounds) / sum(drafted for drafted, _ in rounds)),
            "You divide the tokens by the number of drafts. A forward pass is a round, however many drafts it judges.",
        ),
        Mistake(
            "multiplied out",
            _tokens(lambda rounds: 1 + measured(rounds)[0][0]),
            "The tokens per forward pass are worked out from the first draft alone. Count what came out of the rounds.",
        ),
    ),
    hints=(
        "Two things are counted: tokens that came out of all rounds, and for each depth, drafts that were judged.",
        "The draft at depth j (from 0) was judged if it was made, drafted > j, and all j before it were accepted.",
        "Of the judged ones, those with more than j accepted drafts were accepted. A round gives its accepted drafts "
        "and one bonus token.",
    ),
    after="Two reports of an acceptance rate can be compared only if both say what is in the denominator.",
)
