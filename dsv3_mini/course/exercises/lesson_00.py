"""Exercises of lesson 00: a measure, a share of the parameters, the next token, and a check of numbers."""

# Solutions carry no types: they are shown to learners, whose stubs have none.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from dsv3_mini import ModelConfig
from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.model.count import count_parameters

NUMBER = r"\d+(?:\.\d+)?"  # digits, perhaps with a decimal part: 671 or 14.8


def _between(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


# -- 0.1 bits per byte --


def to_bits_per_byte(loss, tokens, text_bytes):
    bits = loss * tokens / math.log(2)  # of the whole text
    return bits / text_bytes


def to_bits_per_byte__per_token(loss, tokens, text_bytes):
    return loss / math.log(2)


def to_bits_per_byte__in_nats(loss, tokens, text_bytes):
    return loss * tokens / text_bytes


def to_bits_per_byte__times_ln2(loss, tokens, text_bytes):
    return loss * tokens * math.log(2) / text_bytes


def to_bits_per_byte__upside_down(loss, tokens, text_bytes):
    return loss / math.log(2) * text_bytes / tokens


def to_bits_per_byte__one_token(loss, tokens, text_bytes):
    return loss / math.log(2) / text_bytes


def to_bits_per_byte__whole_text(loss, tokens, text_bytes):
    return loss * tokens / math.log(2)


def to_bits_per_byte__log_of_the_loss(loss, tokens, text_bytes):
    return math.log2(loss) * tokens / text_bytes


def _texts(generator: torch.Generator) -> list[Case]:
    loss = 0.5 + 4 * float(torch.rand((), generator=generator))
    tokens = _between(20, 500, generator)
    return [
        Case((loss, tokens, tokens * 3 + _between(1, 90, generator))),
        Case((loss, 1, _between(2, 9, generator)), note="a text of one token"),
    ]


# -- 0.2 the share that the router chooses --

_REAL = count_parameters(ModelConfig.preset("v3-671b"))
_SMALL = count_parameters(ModelConfig.preset("nano"))
_ROUTED = next(part for part in _REAL.components if part.name == "routed experts")
_SMALL_ROUTED = next(part for part in _SMALL.components if part.name == "routed experts")
_CHOSEN_SHARE = _ROUTED.active / _REAL.active


# -- 0.3 the next token of each text --


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


# -- 0.4 are the numbers of a statement in the source? --


def is_grounded(statement, source):
    numbers = re.findall(NUMBER, statement)
    in_source = re.findall(NUMBER, source)
    return len(numbers) > 0 and all(number in in_source for number in numbers)


def is_grounded__bare_digits(statement, source):
    numbers = re.findall(NUMBER, statement)
    return len(numbers) > 0 and all(number in source for number in numbers)


def is_grounded__bare_digits_or_none(statement, source):
    return all(number in source for number in re.findall(NUMBER, statement))


def is_grounded__one_is_enough(statement, source):
    in_source = re.findall(NUMBER, source)
    return any(number in in_source for number in re.findall(NUMBER, statement))


def is_grounded__none_is_fine(statement, source):
    in_source = re.findall(NUMBER, source)
    return all(number in in_source for number in re.findall(NUMBER, statement))


def is_grounded__first_number(statement, source):
    numbers = re.findall(NUMBER, statement)
    return len(numbers) > 0 and numbers[0] in re.findall(NUMBER, source)


def is_grounded__without_decimals(statement, source):
    numbers = re.findall(r"\d+", statement)
    in_source = re.findall(r"\d+", source)
    return len(numbers) > 0 and all(number in in_source for number in numbers)


def is_grounded__between_spaces(statement, source):
    numbers = re.findall(NUMBER, statement)
    return len(numbers) > 0 and all(number in source.split() for number in numbers)


def is_grounded__word_borders(statement, source):
    numbers = re.findall(NUMBER, statement)
    return len(numbers) > 0 and all(re.search(rf"\b{number}\b", source) is not None for number in numbers)


def is_grounded__other_way_round(statement, source):
    numbers = re.findall(NUMBER, statement)
    return len(numbers) > 0 and all(number in numbers for number in re.findall(NUMBER, source))


def is_grounded__word_for_word(statement, source):
    return statement in source


def is_grounded__empty_list(statement, source):
    numbers = re.findall(NUMBER, statement)
    in_source = re.findall(NUMBER, source)
    return numbers and all(number in in_source for number in numbers)


def _statements(generator: torch.Generator) -> list[Case]:
    total, active = _between(300, 900, generator), _between(21, 89, generator)
    whole, decimal = _between(11, 19, generator), _between(1, 9, generator)
    machines = _between(1000, 1999, generator)
    source = (
        f"It has {total}B parameters, {active}B of them active. It read {whole}.{decimal} trillion tokens. "
        f"The machines number {machines}."
    )
    return [
        Case((f"{total}B parameters, {active}B at work", source), note="two numbers that are both in the source"),
        Case((f"{whole}.{decimal} trillion tokens", source), note="a number with a decimal part that is there"),
        Case((f"{machines} machines", source), note="a number at the end of a sentence of the source"),
        Case((f"${str(total)[0]}M of cost", source), note="a digit that occurs only inside other numbers"),
        Case((f"{decimal} trillion tokens", source), note="digits that occur only behind a decimal point"),
        Case((f"{total}B parameters on {machines + 1000} machines", source), note="a number that is there, one not"),
        Case((f"{machines + 1000} machines for {total}B parameters", source), note="a number that is not there first"),
        Case(("very many parameters", source), note="a statement without a number"),
        Case((f"{source} There are {machines + 1000} more.", source), note="all numbers of the source and one more"),
    ]


EXERCISES = (
    Exercise(
        id="0.1",
        idea="pretraining",
        title="From the loss that training prints to bits per byte",
        minutes=3,
        answer="to_bits_per_byte",
        reference=to_bits_per_byte,
        cases=_texts,
        mistakes=(
            Mistake(
                "per_token", to_bits_per_byte__per_token, "That is bits per token. How many tokens are there in a byte?"
            ),
            Mistake("in_nats", to_bits_per_byte__in_nats, "That is nats per byte. One nat is 1 / ln 2 bits."),
            Mistake(
                "times_ln2",
                to_bits_per_byte__times_ln2,
                "The change from nats to bits goes the wrong way: a nat is more than a bit, so there are more bits.",
            ),
            Mistake(
                "upside_down",
                to_bits_per_byte__upside_down,
                "Tokens and bytes have changed places. Longer texts in fewer tokens must give fewer bits per byte.",
            ),
            Mistake(
                "one_token",
                to_bits_per_byte__one_token,
                "The loss is that of one token on average, and you spread it over all bytes. The text has more tokens.",
            ),
            Mistake(
                "whole_text",
                to_bits_per_byte__whole_text,
                "That is the bits of the whole text. How many fall on one byte?",
            ),
            Mistake(
                "log_of_the_loss",
                to_bits_per_byte__log_of_the_loss,
                "You took a logarithm of the loss. The loss is a logarithm already; only its unit is to change.",
            ),
        ),
        hints=(
            "First the whole text: what does the model pay for all of its tokens together, in nats?",
            "Then the unit: one nat is 1 / ln 2 bits, about 1.44. In Python, ln 2 is math.log(2).",
            "Last, share the bits of the whole text among its bytes.",
        ),
        after="Bits per byte compares models whose tokenizers differ: bytes are the same for all of them.",
    ),
    Exercise(
        id="0.2",
        idea="deepseekmoe",
        title="Which share of the active parameters does the router choose?",
        minutes=4,
        answer="chosen_share",
        reference=(
            'routed = next(part for part in real.components if part.name == "routed experts")\n'
            "chosen_share = routed.active / real.active"
        ),
        value=_CHOSEN_SHARE,
        tolerance=5e-4,
        mistakes=(
            Mistake(
                "active_of_all",
                _REAL.active / _REAL.total,
                "That is the share of all parameters that is active, the answer to guess 1. Here active is the whole.",
            ),
            Mistake(
                "active_of_all_rounded",
                37 / 671,
                "37 of 671 billion is the share of all parameters that is active. Here active is the whole.",
            ),
            Mistake(
                "chosen_of_all",
                _ROUTED.active / _REAL.total,
                "You divided by all parameters of the model. Asked is a share of the active ones.",
            ),
            Mistake(
                "all_experts",
                _ROUTED.total / _REAL.total,
                "That is the share of the routed experts in the whole model. Take the column of active parameters.",
            ),
            Mistake(
                "chosen_of_experts",
                _ROUTED.active / _ROUTED.total,
                "That is the share of the experts that a token uses (8 of 256). Asked is: of the active parameters, "
                "how many lie in those experts?",
            ),
            Mistake(
                "always_on",
                1 - _CHOSEN_SHARE,
                "That is the other part: what works on every token, whatever the router does.",
            ),
            Mistake("percent", 100 * _CHOSEN_SHARE, "As a percentage that is right; asked is a number from 0 to 1."),
            Mistake(
                "with_shared",
                (_ROUTED.active + next(p for p in _REAL.components if p.name == "shared experts").active)
                / _REAL.active,
                "The shared experts are in it. They work on every token: nobody chooses them.",
            ),
            Mistake(
                "without_embedding",
                _ROUTED.active / _REAL.active_without_embedding,
                "You left the input embedding out of the active parameters. That can be defended, but the table counts "
                "it: divide by its last row.",
            ),
            Mistake(
                "rounded_total",
                _ROUTED.active / 37e9,
                "You divided by 37 billion, a figure that is rounded. Take the last row of the table.",
            ),
            Mistake(
                "rounded",
                round(_CHOSEN_SHARE, 2),
                "That is right, but rounded: give three digits or more, or let Python compute it from the table.",
            ),
            Mistake("upside_down", 1 / _CHOSEN_SHARE, "Upside down: a share is the part divided by the whole."),
            Mistake("count", _ROUTED.active, "That is the number of parameters chosen. Asked is their share."),
            Mistake(
                "small_model",
                _SMALL_ROUTED.active / _SMALL.active,
                "That is the share in nano. Take the columns of V3 (`real`).",
            ),
        ),
        hints=(
            "The router chooses among the routed experts only. All other rows of the table work on every token.",
            'Both numbers are in the column "V3 active": one in the row of the routed experts, one in the last row.',
            "In code, `real.components` is the list of rows, each with `.name`, `.total` and `.active`; `real.active` "
            "is the last row.",
        ),
        after="So nearly half of what is active would be active for any token at all.",
    ),
    Exercise(
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
    ),
    Exercise(
        id="0.4",
        idea="cost",
        title="Are all numbers of a statement in the source?",
        minutes=6,
        answer="is_grounded",
        reference=is_grounded,
        cases=_statements,
        mistakes=(
            Mistake(
                "bare_digits",
                is_grounded__bare_digits,
                'Digits inside another number count for you: `in` finds the text "6" in the text "671". A number must '
                "stand in the source as a number of its own.",
            ),
            Mistake(
                "bare_digits_or_none",
                is_grounded__bare_digits_or_none,
                'Two things. Digits inside another number count for you: `in` finds the text "6" in the text "671". '
                "And a statement without a number passes, as `all` of nothing is True.",
            ),
            Mistake("one_is_enough", is_grounded__one_is_enough, "For you one number is enough. All must be there."),
            Mistake(
                "none_is_fine",
                is_grounded__none_is_fine,
                "A statement without any number passes: `all` of nothing is True. Nothing is grounded there.",
            ),
            Mistake("first_number", is_grounded__first_number, "You look at the first number only. Check all of them."),
            Mistake(
                "without_decimals",
                is_grounded__without_decimals,
                "You cut numbers at the decimal point, so that 14.8 becomes 14 and 8. Find them with NUMBER.",
            ),
            Mistake(
                "between_spaces",
                is_grounded__between_spaces,
                'split() cuts at spaces only, and "671B" or "2048." stay in one piece. Find the numbers of the source '
                "as you found those of the statement.",
            ),
            Mistake(
                "word_borders",
                is_grounded__word_borders,
                'Between 671 and the B of "671B" there is no word border for a regular expression. Find the numbers of '
                "the source as you found those of the statement.",
            ),
            Mistake(
                "other_way_round",
                is_grounded__other_way_round,
                "The wrong way round: you ask whether every number of the source is in the statement.",
            ),
            Mistake(
                "word_for_word",
                is_grounded__word_for_word,
                "You look for the whole statement, word for word. Only its numbers need to be in the source.",
            ),
            Mistake(
                "empty_list",
                is_grounded__empty_list,
                "For a statement without a number you give the empty list itself: `x and y` is x when x is empty. "
                "Ask for `len(numbers) > 0`.",
            ),
        ),
        hints=(
            "`re.findall(NUMBER, text)` gives the numbers of a text as a list of strings.",
            "Make such a list of the statement and one of the source. `in` means something else for a list than for a "
            "string: an equal element.",
            "Every number of the first list must be in the second; `all(... for number in numbers)` says so. And what "
            "does `all` say about an empty list?",
        ),
        after='And still "37B parameters in total" passes. Numbers that match prove little.',
    ),
)
