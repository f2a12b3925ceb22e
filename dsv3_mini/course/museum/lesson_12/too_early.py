"""Exhibit 12.A: a draft is compared with what the model said one place too early."""

from __future__ import annotations

import torch

from dsv3_mini.course.exercises.lesson_12.new_tokens import new_tokens, new_tokens__early
from dsv3_mini.course.museum.lesson_12.drafting import NEW, draft_behind, nano, plain, same_until, texts
from dsv3_mini.course.showcase import Exhibit


@torch.no_grad()
def rejected_without_reason() -> None:
    model, tokenizer = nano()
    print(f"{len(texts())} texts, {NEW} tokens each, one draft in a round")
    for name, rule in (("right", new_tokens), ("exhibit", new_tokens__early)):
        rounds = accepted = 0
        parted = []
        for text in texts():
            said: list[int] = []
            while len(said) < NEW:
                drafts = [draft_behind(text + said)]
                logits = model(torch.tensor([text + said + drafts]), mtp=False).logits[0]  # [T + 1, V]
                new = rule(logits, text + said, drafts)
                rounds, accepted = rounds + 1, accepted + len(new) - 1
                said += new
            if (same := same_until(said, plain(text))) < NEW:
                parted.append(tokenizer.decode(said[max(0, same - 3) : same + 1]))
        print(f"{name:8} {rounds:3} rounds, {accepted / rounds:3.0%} of the drafts accepted,", end=" ")
        print(f"{len(texts()) - len(parted)} of {len(texts())} texts as by plain decoding")
        for end in parted:
            print(f"{'':9}one leaves plain decoding with the last token of {end!r}")


TOO_EARLY = Exhibit(
    id="12.A",
    title="the draft of t+2 compared with p(t+1)",
    exercise="12.1",
    mistake="early",
    story="The text ends with token t+1, which the model has just chosen. The module drafts t+2, and the forward pass "
    "gives a row of logits for each token. Somebody counts the rows from the last token that the model had read.",
    question="The shipped nano decodes with this rule. What will be seen?",
    choices={
        "a": "nonsense, from the first round on",
        "b": "hardly a draft is accepted, and nearly all texts are those of plain decoding",
        "c": "most drafts are accepted, and all texts leave plain decoding after a while",
    },
    seen="b",
    symptom=rejected_without_reason,
    diagnosis=(
        "p(t+1) is the distribution that t+1 was chosen from. Its largest token is t+1 itself, so a draft passes only "
        "if it says the last token once more.",
        "The bonus token is taken from the right row, so most texts come out right, and a test that compares a few of "
        "them is content. What shows is the number of forward passes: with so few drafts accepted, speculation makes "
        "decoding slower.",
        "And it is not lossless: a draft that repeats the last token is accepted whether the model wants it or not. "
        "The text that leaves plain decoding does so at such a draft.",
    ),
    caught_by="tests/generate/test_speculative.py::test_greedy_keeps_drafts_up_to_the_first_that_differs",
)
