"""Exhibits of lesson 00: reading the guess at the wrong position, and digits that match inside other numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dsv3_mini.course.exercises.lesson_00.is_grounded import is_grounded, is_grounded__bare_digits
from dsv3_mini.course.exercises.lesson_00.next_tokens import next_tokens, next_tokens__last_column
from dsv3_mini.course.grounding import SOURCE
from dsv3_mini.course.showcase import Exhibit

PROMPTS = ("import os", "def add(a, b):\n    return")
NEW_TOKENS = 8
FILLING = 0  # the token that fills short texts up; which one it is makes no difference

# What the summary shows as its key figures.
FIGURES = ("671B total parameters", "37B active per token", "$6M training costs", "4o")


def wrong_position() -> None:
    """Continue two prompts, each alone and both in one batch, with the right code and with the mistake."""
    from dsv3_mini import load_pretrained
    from dsv3_mini.paths import data_dir
    from dsv3_mini.train.checkpoint import latest_checkpoint
    from dsv3_mini.train.tokenizer import Tokenizer

    folder = latest_checkpoint(data_dir() / "checkpoints" / "nano")
    model, tokenizer = load_pretrained(folder, dtype=torch.float32), Tokenizer.load(folder)

    def continued(prompts: list[list[int]], choose: Callable[[Tensor, list[int]], list[int]]) -> list[list[int]]:
        """Greedy: `choose(logits, lengths)` says the next token of each text; gives the new tokens."""
        texts = [list(prompt) for prompt in prompts]
        for _ in range(NEW_TOKENS):
            lengths = [len(text) for text in texts]
            filled = [text + [FILLING] * (max(lengths) - len(text)) for text in texts]
            with torch.no_grad():
                logits = model(torch.tensor(filled), mtp=False).logits  # [B, T, V]
            for text, token in zip(texts, choose(logits, lengths), strict=True):
                text.append(token)
        return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]

    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    alone = [continued([prompt], next_tokens)[0] for prompt in prompts]
    right, wrong = continued(prompts, next_tokens), continued(prompts, next_tokens__last_column)
    for row, name in enumerate(("shorter", "longer")):
        print(f"the {name} text, {len(prompts[row])} tokens: {PROMPTS[row]!r}")
        print(f"  {'alone':28}{tokenizer.decode(alone[row])!r}")
        for words, tokens in (("together, right position", right[row]), ("together, with the mistake", wrong[row])):
            same = sum(a == b for a, b in zip(tokens, alone[row], strict=True))
            print(f"  {words:28}{tokenizer.decode(tokens)!r}: {same} of {NEW_TOKENS} tokens as alone")


def matching_digits() -> None:
    """Score the key figures of the summary against a short text with the numbers of the abstract, both ways."""
    print(f"{'':24}{'bare digits':>12}{'whole numbers':>15}")
    passed = {"bare": 0, "whole": 0}
    for figure in FIGURES:
        bare, whole = is_grounded__bare_digits(figure, SOURCE), is_grounded(figure, SOURCE)
        passed["bare"] += bare
        passed["whole"] += whole
        print(f"{figure:24}{'passes' if bare else 'fails':>12}{'passes' if whole else 'fails':>15}")
    print(f"{'':24}{passed['bare']:>7} of {len(FIGURES)}{passed['whole']:>10} of {len(FIGURES)}")


EXHIBITS = (
    Exhibit(
        id="0.A",
        title="the wrong position",
        exercise="0.3",
        mistake="last_column",
        story=(
            "With one text, the guess about the next token stands in the last column of the logits. Then two texts of "
            "different lengths go through the model together, the shorter one filled up on the right, and the line "
            "stays."
        ),
        question="Two prompts of different lengths are continued together by this code. What will you see?",
        choices={
            "a": "an error: the shapes do not fit",
            "b": "both texts go wrong, since the filling disturbs everything",
            "c": "the longer text is as if it were alone, the shorter one is not",
            "d": "both are right: the filling comes behind the text, and no position looks ahead",
        },
        seen="c",
        symptom=wrong_position,
        diagnosis=(
            "The last column is the end of the longest text only. For the shorter one it is a guess about what follows "
            "filling. It is true that no position looks ahead, so the right guess is there too, unharmed, a few "
            "columns to the left. Nobody read it.",
            "How to recognise it: a result that depends on what else is in the batch. Run one text alone and together "
            "with a longer one; the two runs must agree.",
        ),
        caught_by="tests/generate/test_decode.py::test_prompts_of_different_lengths_continue_as_if_alone",
    ),
    Exhibit(
        id="0.B",
        title="digits that match",
        exercise="0.4",
        mistake="bare_digits",
        story=(
            "A popular summary of the report grades itself: do the digits of its key figures occur in the text that it "
            "was written from? Four key figures: " + ", ".join(f'"{figure}"' for figure in FIGURES) + ". The text here "
            "has the numbers of the report's abstract: 3, 671, 37, 2, 14.8, 2.788 and 800."
        ),
        question="How many of the four figures pass?",
        choices={
            "a": "two: 671B and 37B are in the text, 6 and 4 are not",
            "b": "three: $6M too, as the price is somewhere in the text",
            "c": "all four",
        },
        seen="c",
        symptom=matching_digits,
        diagnosis=(
            "`number in source` asks whether one string occurs anywhere in another. The 6 is found in 671 and the 4 in "
            "14.8; neither a price nor the other model is in the text at all.",
            "How to recognise it: feed the check something that must fail. A check that has never said no has not been "
            "checked.",
        ),
        caught_by=(
            "tests/course/test_grounding.py::test_bare_digits_match_inside_other_numbers_and_whole_numbers_do_not"
        ),
    ),
)
