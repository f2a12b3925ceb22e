"""Exercise 12.3: where a rejected draft was, from what is the token drawn (`generate.speculative.accept_sampled`)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_12.inputs import whole


def after_rejection(p, q, draft):
    left = (p - q).clamp(min=0)
    return left / left.sum()


def _scaled(weights):
    return weights / weights.sum()


def _without(p, draft):
    others = p.clone()
    others[draft] = 0
    return _scaled(others)


def _cases(generator: Generator) -> list[Case]:
    def distribution(size: int, zeros: int = 0) -> Tensor:
        weights = torch.rand(size, generator=generator) + 0.05
        weights[torch.randperm(size, generator=generator)[:zeros]] = 0
        return weights / weights.sum()

    def case(size: int, zeros: int, note: str) -> Case:
        p, q = distribution(size, zeros), distribution(size, zeros)
        while ((p - q).abs() > 0.02).sum() < 4:  # far enough apart for every mistake to show
            p, q = distribution(size, zeros), distribution(size, zeros)
        draft = int((q - p).argmax())  # one that is rejected now and then
        return Case((p, q, draft), note=note)

    return [
        case(whole(generator, 5, 9), 0, ""),
        case(whole(generator, 10, 14), 0, ""),
        case(whole(generator, 8, 12), 3, "distributions in which some tokens cannot come"),
    ]


AFTER_REJECTION = Exercise(
    id="12.3",
    idea="specdec",
    title="what is left of p",
    minutes=5,
    answer="after_rejection",
    reference=after_rejection,
    cases=_cases,
    dims="V",
    mistakes=(
        Mistake(
            "all of p",
            lambda p, q, draft: p.clone(),
            "The token is drawn from p, as if nothing had been drawn before. What p and q have in common has had its "
            "chance already, as an accepted draft, and would come too often.",
        ),
        Mistake(
            "p without the draft",
            lambda p, q, draft: _without(p, draft),
            "Only the rejected token is ruled out, and the rest of p is rescaled. Other tokens, too, have had a part "
            "of their chance as drafts; each loses that part.",
        ),
        Mistake(
            "not rescaled",
            lambda p, q, draft: (p - q).clamp(min=0),
            "The right shape, and it does not add up to 1: rescale what is left.",
        ),
        Mistake(
            "the wrong way round",
            lambda p, q, draft: _scaled((q - p).clamp(min=0)),
            "This is what q has more than p. Those tokens were drafted too often already; the missing ones are those "
            "of which p has more.",
        ),
        Mistake(
            "absolute difference",
            lambda p, q, draft: _scaled((p - q).abs()),
            "Where q has more than p nothing is missing, and the absolute value makes something of it. Negative "
            "differences become zero.",
        ),
        Mistake(
            "negative chances",
            lambda p, q, draft: p - q,
            "Where q has more than p this is negative, and no chance is. It also adds up to 0.",
        ),
        Mistake(
            "softmax of the difference",
            lambda p, q, draft: (p - q).softmax(-1),
            "A softmax is for logits; these are differences of chances. It gives every token a chance, and those that "
            "q has too often are drawn again.",
        ),
        Mistake(
            "softmax of what is left",
            lambda p, q, draft: (p - q).clamp(min=0).softmax(-1),
            "What is left is right and then put through a softmax, which gives a chance to tokens that have none "
            "left. Divide by the sum.",
        ),
        Mistake(
            "what they share",
            lambda p, q, draft: _scaled(torch.minimum(p, q)),
            "This is what p and q have in common, and just that is served by accepted drafts. What is missing is the "
            "rest of p.",
        ),
        Mistake(
            "from q",
            lambda p, q, draft: q.clone(),
            "The token is drawn from q, the module's distribution, a second time. The text must come from p.",
        ),
    ),
    hints=(
        "An accepted draft that is token x comes with chance min(p(x), q(x)). How much of p(x) is missing then?",
        "p(x) - min(p(x), q(x)): nothing where q has more, the difference where p has more.",
        "Negative differences become 0, and the rest is divided by its sum. Which token was rejected does not matter.",
    ),
    after="The rejected token needs no rule of its own: where a draft can be rejected, q has more than p.",
)
