"""Exhibit 12.B: rejected drafts stay in the latent cache."""

from __future__ import annotations

import torch

from dsv3_mini.course.exercises.lesson_12.one_round import one_round, one_round__kept
from dsv3_mini.course.museum.lesson_12.drafting import NEW, PROMPTS, draft_behind, nano, plain, same_until, texts
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.generate.cache import LatentCache


@torch.no_grad()
def text_with_ghosts() -> None:
    model, tokenizer = nano()

    def forward(tokens: list[int], cache: LatentCache) -> torch.Tensor:
        return model.lm_head(model.hidden_states(torch.tensor([tokens]), cache))[0]

    print(f"{len(texts())} texts, {NEW} tokens each, one draft in a round")
    first_text = []
    for name, rule in (("right", one_round), ("exhibit", one_round__kept)):
        same, first, read, slots = [], [], 0, 0
        for number, text in enumerate(texts()):
            cache = LatentCache(model.cfg, 1, len(text) + 3 * NEW)
            said = [int(forward(text, cache)[-1].argmax())]
            rejected = []  # tokens that were there when a draft was rejected
            while len(said) < NEW:
                new = rule(forward, cache, said[-1], [draft_behind(text + said)])
                if len(new) == 1:
                    rejected.append(len(said))
                said += new
            same.append(same_until(said[:NEW], plain(text)))
            first.append(rejected[0] if rejected else NEW)
            read, slots = read + len(text) + len(said) - 1, slots + cache.lengths[0]
            if number == 0:
                first_text.append(f"  {name:8} {tokenizer.decode(said[:NEW])!r}")
        print(f"{name:8} first draft rejected behind {first} tokens; as plain decoding for {same} tokens;", end=" ")
        print(f"{read} tokens read, {slots} slots in the caches")
    print(f"the first text, behind {PROMPTS[0].splitlines()[-1].strip()!r}:", *first_text, sep="\n")


MISSING_CROP = Exhibit(
    id="12.B",
    title="rejected drafts stay in the cache",
    exercise="12.2",
    mistake="no crop",
    story="The forward pass has read the draft, and the draft was wrong. The right token is given back, and the next "
    "round goes on with it.",
    question="The shipped nano decodes with this round. What will be seen?",
    choices={
        "a": "the text of plain decoding; only the cache is larger than it need be",
        "b": "an error, because the positions do not fit",
        "c": "the text of plain decoding up to a rejected draft; some tokens later, in most texts, another one",
    },
    seen="c",
    symptom=text_with_ghosts,
    diagnosis=(
        "The rejected draft has a slot like any other token. All later tokens attend to it, and the right token is "
        "written behind it, one position too late.",
        "Nothing fails: the shapes are right, and the model goes on from what it believes was written. A test whose "
        "drafts are all accepted does not see it, and neither does one that looks at a few tokens.",
        "Compare long texts with plain decoding, token by token, and the length of the cache with that of the text.",
    ),
    caught_by="tests/generate/test_speculative.py::test_greedy_text_is_that_of_plain_decoding",
)
