"""Exercise 11.4: from tokens per second to the share of the machine that is used."""

from __future__ import annotations

from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_11.inputs import between, whole


def mfu(tokens_per_second, weights, layers, heads, key_width, value_width, length, peak):
    matrices = 6 * weights
    attention = 6 * layers * heads * (key_width + value_width) * (length + 1) / 2
    return tokens_per_second * (matrices + attention) / peak


def _mfu(passes=6, seen=lambda length: (length + 1) / 2, attention=6, widths=lambda k, v: k + v, layered=True):
    """The share above with one of its parts changed."""

    def wrong(tokens_per_second, weights, layers, heads, key_width, value_width, length, peak):
        scores = attention * (layers if layered else 1) * heads * widths(key_width, value_width) * seen(length)
        return tokens_per_second * (passes * weights + scores) / peak

    return wrong


def _cases(generator: Generator) -> list[Case]:
    cases = []
    for length, note in ((whole(generator, 100, 5000), ""), (1, "sequences of one token")):
        weights, layers = whole(generator, 10**6, 10**7), whole(generator, 3, 9)
        heads, key_width, value_width = whole(generator, 2, 16), whole(generator, 24, 48), whole(generator, 8, 20)
        rate, peak = between(generator, 1e3, 1e5), 10 ** between(generator, 11.5, 12.5)
        args = (rate, weights, layers, heads, key_width, value_width, length, peak)
        cases.append(Case(args, note=note))
    return cases


MFU = Exercise(
    id="11.4",
    idea="cost",
    title="how well the machine is used",
    minutes=10,
    answer="mfu",
    reference=mfu,
    cases=_cases,
    tolerance=1e-9,
    mistakes=(
        Mistake(
            "forward only",
            _mfu(passes=2, attention=2),
            "These are the operations of the forward pass. The backward pass costs twice as much again.",
        ),
        Mistake(
            "one operation for a multiply-add",
            _mfu(passes=3, attention=3),
            "A multiplication and an addition count as one. They are two operations.",
        ),
        Mistake(
            "four instead of six",
            _mfu(passes=4, attention=4),
            "The backward pass counts like the forward pass. It needs two products for each of the forward pass: one "
            "for the gradient of the input, one for that of the weights.",
        ),
        Mistake(
            "recomputation counted",
            _mfu(passes=8, attention=8),
            "Four passes are counted, as if the forward pass were done twice. MFU counts what the model needs, not "
            "what a program repeats to save memory.",
        ),
        Mistake(
            "no attention",
            _mfu(attention=0),
            "Only the products with weights are counted. Scores and weighted values cost operations too, and more "
            "of them the longer the text is.",
        ),
        Mistake(
            "forward attention",
            _mfu(attention=2),
            "The attention is counted for the forward pass only.",
        ),
        Mistake(
            "every pair of tokens",
            _mfu(seen=lambda length: length),
            "Each token is compared with all tokens of its sequence. It may only look back: at (length + 1) / 2 "
            "tokens in the mean, itself included.",
        ),
        Mistake(
            "itself left out",
            _mfu(seen=lambda length: length / 2),
            "A token looks at itself, too: the mean is (length + 1) / 2, and with sequences of one token that is 1.",
        ),
        Mistake(
            "keys twice",
            _mfu(widths=lambda key, value: 2 * key),
            "Values are as wide as keys here. In MLA they are not: scores cost the width of a key, the weighted sum "
            "that of a value.",
        ),
        Mistake(
            "scores only",
            _mfu(widths=lambda key, value: key),
            "The scores are counted, and the sum of the values that they weigh is not.",
        ),
        Mistake(
            "twelve times layers, heads, width, length",
            _mfu(seen=lambda length: length, widths=lambda key, value: 2 * key),
            "This is the formula of many papers, 12 times layers, heads, width and length. It compares each token "
            "with all others and takes values to be as wide as keys; here a token only looks back, and values have "
            "a width of their own.",
        ),
        Mistake(
            "whole sequence",
            _mfu(seen=lambda length: length * (length + 1) / 2),
            "The attention of a whole sequence is counted for every token. One token looks at (length + 1) / 2 tokens "
            "in the mean.",
        ),
        Mistake(
            "one layer",
            _mfu(layered=False),
            "The attention of one layer is counted; there is one in every layer.",
        ),
    ),
    hints=(
        "Operations per token times tokens per second is what is done; the peak is what could be done.",
        "Every weight costs 2 operations forward and 4 backward. The same six go with every pair of query and key.",
        "For one head and layer: 6 times (key width + value width) times the number of tokens looked at, "
        "(length + 1) / 2 in the mean.",
    ),
    after="Whoever quotes an MFU must say what is counted: with other conventions it moves by a quarter and more.",
)
