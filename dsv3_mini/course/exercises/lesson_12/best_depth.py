"""Exercise 12.5: how many drafts pay, from acceptance and costs."""

from __future__ import annotations

import math

from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_12.inputs import between, whole


def best_depth(acceptance, verify, draft):
    best, fastest = 0, 1.0  # without drafts
    tokens, reached = 1.0, 1.0
    for depth, chance in enumerate(acceptance, start=1):
        reached = reached * chance
        tokens = tokens + reached
        speed_up = tokens / (verify[depth] + depth * draft)
        if speed_up > fastest:
            best, fastest = depth, speed_up
    return best, fastest


def _best(
    cost=lambda depth, verify, draft: verify[depth] + depth * draft,
    tokens=lambda chances: 1 + _reached(chances),
    least=1.0,
    choose=max,
):
    """The search with another cost, another number of tokens, or another way to choose."""

    def wrong(acceptance, verify, draft):
        found = [(least, 0)] if least is not None else []
        for depth in range(1, len(acceptance) + 1):
            found.append((tokens(acceptance[:depth]) / cost(depth, verify, draft), -depth))
        speed_up, depth = choose(found)
        return -depth, speed_up

    return wrong


def _reached(chances):
    """Accepted drafts to be expected."""
    return sum(math.prod(chances[: j + 1]) for j in range(len(chances)))


def _first_gain(found):
    """The first depth that pays, with what it gives."""
    return next(((speed, depth) for speed, depth in found if speed > 1), found[0])


def _deepest(found):
    return found[-1]


def _cases(generator: Generator) -> list[Case]:
    def costs(k: int, each: float) -> list[float]:
        return [1.0 + each * depth * between(generator, 0.97, 1.03) for depth in range(k + 1)]

    k = whole(generator, 3, 5)
    falling = [0.9 - 0.03 * j - between(generator, 0, 0.02) for j in range(k)]
    return [
        Case(([between(generator, 0.8, 0.9)], [1.0, between(generator, 1.05, 1.15)], 0.1), note="one draft that pays"),
        Case(([between(generator, 0.5, 0.7)], [1.0, 1.4], between(generator, 0.5, 0.7)), note="a draft that is dear"),
        Case((falling, [1.0, *costs(k, 0.05)[1:]], between(generator, 0.06, 0.1)), note=f"{k} cheap drafts at most"),
        Case(
            ([0.9, 0.8, 0.55, between(generator, 0.2, 0.3), 0.2], [1.0, *costs(5, 0.12)[1:]], 0.15),
            note="drafts that get worse and worse",
        ),
        Case(([0.3, 0.95, 0.95, 0.9], [1.0, 1.2, 1.3, 1.4, 1.5], 0.15), note="a first draft that is often wrong"),
        Case(([0.9, 0.9], [1.0, 2.1, 3.2], 0.02), note="verifying that costs as much as decoding"),
    ]


BEST_DEPTH = Exercise(
    id="12.5",
    idea="specdec",
    title="how many drafts pay",
    minutes=10,
    answer="best_depth",
    reference=best_depth,
    cases=_cases,
    tolerance=1e-9,
    mistakes=(
        Mistake(
            "as deep as possible",
            _best(choose=_deepest),
            "The deepest drafts are taken, whatever they cost. Each further draft adds less and costs the same.",
        ),
        Mistake(
            "most tokens",
            _best(cost=lambda depth, verify, draft: 1.0),
            "These are tokens per forward pass. A pass that verifies drafts costs more than one of a single token, "
            "and the drafts have to be made.",
        ),
        Mistake(
            "drafts for nothing",
            _best(cost=lambda depth, verify, draft: verify[depth]),
            "Making the drafts is not paid for: each one is a pass through the module.",
        ),
        Mistake(
            "one draft paid",
            _best(cost=lambda depth, verify, draft: verify[depth] + draft),
            "Drafting is paid once, whatever the depth. Chained drafts are made one after the other, and each costs a "
            "pass through the module.",
        ),
        Mistake(
            "verifying for nothing",
            _best(cost=lambda depth, verify, draft: 1 + depth * draft),
            "A forward pass is taken to cost 1 however many tokens it reads. `verify` says what it costs.",
        ),
        Mistake(
            "cost of a step counted twice",
            _best(cost=lambda depth, verify, draft: 1 + verify[depth] + depth * draft),
            "A plain step is paid besides the verifying one. There is only one pass of the model in a round; "
            "`verify` is all of it.",
        ),
        Mistake(
            "drafts on their own",
            _best(tokens=lambda chances: 1 + sum(chances)),
            "The chances are added. A later draft comes out only if all before it were accepted, too.",
        ),
        Mistake(
            "bonus forgotten",
            _best(tokens=_reached),
            "The bonus token is not counted: a round gives at least one token.",
        ),
        Mistake(
            "never without drafts",
            _best(least=None),
            "The best number of drafts is looked for among 1 and more. Where none of them pays, the answer is 0 "
            "drafts, and a speed-up of 1.",
        ),
        Mistake(
            "the first that pays",
            _best(choose=_first_gain),
            "The search ends at the first depth that is faster than plain decoding. A deeper one may be faster still.",
        ),
    ),
    hints=(
        "Speed-up: tokens per round over what a round costs, when a plain step costs 1 and gives 1 token.",
        "Tokens of a round: 1 for the bonus, plus for each draft the product of the chances up to it.",
        "A round with k drafts costs verify[k] plus k times draft. No drafts at all are a choice too: speed-up 1.",
    ),
    after="With one draft it comes to this: acceptance must exceed the extra cost of verifying plus that of drafting.",
)
