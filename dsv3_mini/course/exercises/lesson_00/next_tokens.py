"""Exercise 0.3: the next token of each text in a batch.

Shapes: B texts, T positions, V scores of a position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_00.inputs import _between


def next_tokens(logits, lengths):
    return [int(logits[row, length - 1].argmax()) for row, length in enumerate(lengths)]


def next_tokens__last_column(logits, lengths):
    return logits[:, -1].argmax(-1).tolist()


def next_tokens__first_column(logits, lengths):
    return logits[:, 0].argmax(-1).tolist()


def next_tokens__one_too_far(logits, lengths):
    return [int(logits[row, length].argmax()) for row, length in enumerate(lengths)]


def next_tokens__one_too_early(logits, lengths):
    return [int(logits[row, length - 2].argmax()) for row, length in enumerate(lengths)]


def next_tokens__scores(logits, lengths):
    return [float(logits[row, length - 1].max()) for row, length in enumerate(lengths)]


def next_tokens__over_everything(logits, lengths):
    return [int(logits[row].argmax()) for row in range(len(lengths))]


def next_tokens__over_the_text(logits, lengths):
    return [int(logits[row, :length].argmax()) for row, length in enumerate(lengths)]


def next_tokens__over_positions(logits, lengths):
    return [int(logits[row].argmax(0)[length - 1]) for row, length in enumerate(lengths)]


def next_tokens__least_likely(logits, lengths):
    return [int(logits[row, length - 1].argsort()[0]) for row, length in enumerate(lengths)]


def next_tokens__longest_for_all(logits, lengths):
    return logits[:, max(lengths) - 1].argmax(-1).tolist()


def next_tokens__line_for_one_text(logits, lengths):
    return int(logits[0, -1].argmax())


def next_tokens__one_row(logits, lengths):
    return [int(logits[0, length - 1].argmax()) for length in lengths]


def next_tokens__all_scores(logits, lengths):
    return [logits[row, length - 1].tolist() for row, length in enumerate(lengths)]


def next_tokens__every_position(logits, lengths):
    return logits.argmax(-1).tolist()


def _batches(generator: torch.Generator) -> list[Case]:
    longest = _between(6, 9, generator)
    lengths = [_between(2, longest - 2, generator), longest, 1]
    vocabulary = _between(23, 40, generator)

    def scores(rows: int, width: int) -> Tensor:
        return torch.randn(rows, width, vocabulary, generator=generator)

    # Wider than the longest text, so that one place too far is a wrong number and not an error.
    return [
        Case((scores(3, longest + 2), lengths), note=f"texts of {lengths[0]}, {lengths[1]} and {lengths[2]} tokens"),
        Case((scores(2, longest + 1), [longest, 3]), note=f"texts of {longest} and 3 tokens"),
        Case((scores(1, longest + 1), [longest]), note="a single text"),
    ]


def _as_tensor(answer: Any, case: Case) -> Any:
    """Call the answer; a list of numbers becomes a tensor, so that both forms are welcome."""
    result = answer(*case.args)
    if not isinstance(result, (list, tuple)):
        return result
    parts = [part.item() if isinstance(part, Tensor) and part.numel() == 1 else part for part in result]
    return torch.tensor(parts) if all(isinstance(part, (int, float)) for part in parts) else result


NEXT_TOKENS = Exercise(
    id="0.3",
    idea="transformer_block",
    title="The next token of each text in a batch",
    minutes=6,
    answer="next_tokens",
    reference=next_tokens,
    cases=_batches,
    use=_as_tensor,
    dims="B",
    mistakes=(
        Mistake(
            "last_column",
            next_tokens__last_column,
            "You read the last column for every text. Where a text is shorter than the batch is wide, there is "
            "only filling. Each text ends at a place of its own.",
        ),
        Mistake(
            "longest_for_all",
            next_tokens__longest_for_all,
            "You read every text at the place where the longest one ends. Each text ends at a place of its own.",
        ),
        Mistake(
            "first_column",
            next_tokens__first_column,
            "You read position 0. That is the guess about the second token, made before the rest was read.",
        ),
        Mistake(
            "one_too_far",
            next_tokens__one_too_far,
            "You read one place too far: positions count from 0, so a text of 5 tokens has them at 0 to 4.",
        ),
        Mistake(
            "one_too_early",
            next_tokens__one_too_early,
            "You read one place too early: that position guesses the last token of the text, which is known.",
        ),
        Mistake(
            "scores",
            next_tokens__scores,
            "You give the highest score itself. Asked is which token has it: its place among the V scores.",
        ),
        Mistake(
            "all_scores",
            next_tokens__all_scores,
            "The position is right. You give all V scores of it; asked is which token has the highest.",
        ),
        Mistake(
            "over_everything",
            next_tokens__over_everything,
            "You look for the best score over all positions at once, so the result is a place in T times V "
            "numbers. First pick the position, then look among its V scores.",
        ),
        Mistake(
            "over_the_text",
            next_tokens__over_the_text,
            "You look for the best score over all positions of a text at once. One position is enough: which?",
        ),
        Mistake(
            "over_positions",
            next_tokens__over_positions,
            "The maximum runs over positions (T) instead of over tokens (V): it says where, not which.",
        ),
        Mistake(
            "least_likely",
            next_tokens__least_likely,
            "That is the token with the lowest score: argsort puts the smallest first.",
        ),
        Mistake(
            "line_for_one_text",
            next_tokens__line_for_one_text,
            "That line is for a single text: one number, from the last column of row 0. Here are B texts, and each "
            "ends at a place of its own.",
        ),
        Mistake("one_row", next_tokens__one_row, "You read the first text (row 0) for all of them."),
        Mistake(
            "every_position",
            next_tokens__every_position,
            "You give one token for every position. Asked is one for every text: that behind its last token.",
        ),
    ),
    hints=(
        "Take one text first. `logits[row]` is [T, V]. Which of its T positions is the last that is not filling?",
        "A text of `length` tokens has its last one at position `length - 1`.",
        "The V scores at a position are one row of numbers; `.argmax()` says where the highest stands. "
        "`enumerate(lengths)` gives row and length together.",
    ),
    after="This is the step that `generate` repeats for every new token.",
)
