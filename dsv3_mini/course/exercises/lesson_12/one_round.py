"""Exercise 12.2: a whole round with a cache: verify, accept, roll back (`generate.speculative.Speculator.round`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_12.inputs import VOCABULARY, ToyCache, ToyModel, whole


def one_round(forward, cache, newest, drafts):
    start = cache.lengths[0]  # `newest` is not in the cache yet
    wanted = forward([newest, *drafts], cache).argmax(-1).tolist()
    kept = 0
    while kept < len(drafts) and drafts[kept] == wanted[kept]:
        kept += 1
    cache.crop([start + 1 + kept])
    return [*drafts[:kept], wanted[kept]]


def one_round__kept(forward, cache, newest, drafts):
    wanted = forward([newest, *drafts], cache).argmax(-1).tolist()
    kept = 0
    while kept < len(drafts) and drafts[kept] == wanted[kept]:
        kept += 1
    return [*drafts[:kept], wanted[kept]]


def _round(keep=lambda start, kept, k: start + 1 + kept, after=lambda forward, cache, new: None, bonus=True):
    """A round with another length of the cache, something done behind it, or without its bonus token."""

    def wrong(forward, cache, newest, drafts):
        start = cache.lengths[0]
        wanted = forward([newest, *drafts], cache).argmax(-1).tolist()
        kept = 0
        while kept < len(drafts) and drafts[kept] == wanted[kept]:
            kept += 1
        cache.crop([keep(start, kept, len(drafts))])
        new = [*drafts[:kept], wanted[kept]]
        after(forward, cache, new)
        return new if bonus else new[:-1]

    return wrong


def _drafts_only(forward, cache, newest, drafts):
    start = cache.lengths[0]
    wanted = forward(drafts, cache).argmax(-1).tolist()
    kept = 0
    while kept < len(drafts) and drafts[kept] == wanted[kept]:
        kept += 1
    cache.crop([start + kept])
    return [*drafts[:kept], wanted[min(kept, len(wanted) - 1)]]


def _one_by_one(forward, cache, newest, drafts):
    new = []
    for token in [newest, *drafts]:
        new.append(forward([token], cache)[0].argmax().item())
        if len(new) > len(drafts) or new[-1] != drafts[len(new) - 1]:
            break
    return new


def _rounds(answer: Any, case: Case) -> Any:
    """A text made by several rounds: new tokens by round, tokens in the cache at the end, number of forward passes."""
    seed, text, drafted = case.args
    model, cache, made = ToyModel(seed), ToyCache(), []
    newest = int(model(text, cache)[-1].argmax())
    model.passes = 0
    for drafts in drafted:
        new = answer(model, cache, newest, list(drafts))
        if not isinstance(new, list) or not all(isinstance(token, int) for token in new):
            return new
        made.append(new)
        newest = new[-1] if new else newest
    return made, list(cache.tokens), model.passes


def _cases(generator: Generator) -> list[Case]:
    def case(rounds: list[tuple[int, int]], note: str) -> Case:
        """rounds: so many drafts, of which so many are right before the first wrong one."""
        seed, text = whole(generator, 1, 10_000), torch.randint(VOCABULARY, (4,), generator=generator).tolist()
        model, drafted, so_far = ToyModel(seed), [], list(text)
        so_far.append(model.next(so_far))
        for k, right in rounds:
            said = model.goes_on(so_far, k + 1)
            drafts = list(said[:k])
            if right < k:  # a wrong one, and what comes behind it is right again of the true text
                drafts[right] = (drafts[right] + whole(generator, 1, VOCABULARY - 1)) % VOCABULARY
            drafted.append(drafts)
            so_far += said[: right + 1]
        return Case((seed, text, drafted), note=note)

    k = whole(generator, 2, 4)
    return [
        case([(1, 1), (1, 1), (1, 1)], "one draft, always right"),
        case([(1, 0), (1, 0), (1, 1), (1, 0)], "one draft, often wrong"),
        case([(k, whole(generator, 1, k - 1)), (k, 0), (k, k), (k, k - 1)], f"{k} drafts in a round"),
        case([(3, 1), (1, 1), (2, 0), (3, 3), (2, 1)], "rounds with more and fewer drafts"),
    ]


ONE_ROUND = Exercise(
    id="12.2",
    idea="specdec",
    title="a round with a cache",
    minutes=12,
    answer="one_round",
    reference=one_round,
    cases=_cases,
    use=_rounds,
    mistakes=(
        Mistake(
            "no crop",
            one_round__kept,
            "Rejected drafts stay in the cache. The text goes on as if they had been written, and every later token "
            "stands at a wrong position.",
        ),
        Mistake(
            "one slot short",
            _round(keep=lambda start, kept, k: start + kept),
            "The cache is one token short: `newest` was read in this round, too, and it stays, whatever becomes of "
            "the drafts.",
        ),
        Mistake(
            "one slot too many",
            _round(keep=lambda start, kept, k: start + 2 + kept),
            "The cache is cropped one slot too late, as if the bonus token were in it. The bonus token has been said "
            "and not read; it is the `newest` of the next round.",
        ),
        Mistake(
            "one slot too many, where there is one",
            _round(keep=lambda start, kept, k: start + min(2 + kept, 1 + k)),
            "Behind the accepted drafts one rejected draft is left in the cache: its slot is taken for that of the "
            "bonus token. The bonus token has been said and not read.",
        ),
        Mistake(
            "everything rolled back",
            _round(keep=lambda start, kept, k: start),
            "The cache is put back to where the round began. `newest` and the drafts that were accepted belong to "
            "the text, and nobody will read them again.",
        ),
        Mistake(
            "cropped only by the rejected number",
            _round(keep=lambda start, kept, k: start + 1 if kept < k else start + 1 + k),
            "When one draft is rejected, all of them are cropped away. Those in front of it were accepted and stay.",
        ),
        Mistake(
            "newest not read",
            _drafts_only,
            "Only the drafts are read. `newest` is not in the cache yet, and the first draft is judged by what the "
            "model says at `newest`.",
        ),
        Mistake(
            "one by one",
            _one_by_one,
            "The tokens are right, and each one costs a forward pass of its own: nothing is gained. All of them go "
            "through the model together.",
        ),
        Mistake(
            "bonus read at once",
            _round(after=lambda forward, cache, new: forward(new[-1:], cache)),
            "The bonus token is read at once, by a forward pass of its own, and then again as `newest` of the next "
            "round.",
        ),
        Mistake(
            "no bonus",
            _round(bonus=False),
            "The bonus token is missing from what is given back.",
        ),
    ),
    hints=(
        "What goes through the model: `newest`, which nobody has read yet, and behind it the drafts. Row j of the "
        "logits then says what belongs in the place of draft j.",
        "Note the length of the cache before the forward pass, which makes it grow by one and the number of drafts.",
        "Of these, `newest` and the accepted drafts stay. The bonus token is not in the cache: it becomes the next "
        "`newest`.",
    ),
    after="This function works with the latent cache and the shipped model as well; the second exhibit does that.",
)
