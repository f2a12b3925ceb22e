"""Speculative decoding, round by round, in tokens and words: what the animated strip shows.

`speculate` runs the model once with drafts and once without, and keeps what each round did. Each token has a kind, and
each kind a sign, so that colour does not stand alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.patches import FancyBboxPatch

from dsv3_mini.generate.decode import generate
from dsv3_mini.generate.speculative import Round, SpeculationStats
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture
from dsv3_mini.viz.routing import token_label

# kind: (sign, what it means)
KINDS = {
    "first": ("•", "said after reading the prompt, without a draft"),
    "accepted": ("✓", "accepted draft"),
    "rejected": ("✗", "rejected draft"),
    "unjudged": ("–", "draft behind a rejected one, never judged"),
    "bonus": ("+", "bonus token, the model's own"),
}
MOST_LINES = 16  # rounds in the picture
LONGEST = 14  # characters of a token in the picture


@dataclass(frozen=True)
class Step:
    """What one forward pass of the model gave.

    Attributes:
        tokens: (label, kind) of each draft and of the bonus token, in order.
        words: the same in a sentence.
        text: prompt and tokens so far, those that were kept.
        made: tokens so far.
        drafts: first drafts so far, and how many of them were accepted.
    """

    tokens: tuple[tuple[str, str], ...]
    words: str
    text: str
    made: int
    drafts: tuple[int, int]


@dataclass(frozen=True)
class Speculation:
    """A text that was made with drafts. `steps[0]` is the prefill, each further one a round."""

    steps: tuple[Step, ...]
    as_plain: bool  # the same tokens come out without drafts
    stats: SpeculationStats

    def words(self) -> str:
        """All of it in one sentence or two."""
        made, rounds = self.steps[-1].made, len(self.steps) - 1
        if not rounds:
            return f"{count(made, 'token')} from the prefill alone."
        same = "the same tokens" if self.as_plain else "other tokens (a near-tie, decided by rounding)"
        return (
            f"{count(made, 'token')}: 1 from the prefill, {made - 1} from {count(rounds, 'round')}, "
            f"{self.stats.tokens_per_forward:.2f} a round; {self.stats.acceptance:.0%} of the first drafts accepted. "
            f"Plain decoding says {same} in {count(made - 1, 'step')}."
        )


def speculate(model: Any, tokenizer: Any, prompt: str, *, depth: int, new_tokens: int) -> Speculation:
    """Greedy decoding of `new_tokens` tokens with `depth` drafts in a round.

    Raises `InputError` for a prompt that is empty or too long, and for a model without an MTP module.
    """
    ids, rounds, stats = tokenizer.encode(prompt), list[Round](), SpeculationStats()
    (made,) = generate(model, [ids], new_tokens, speculative=depth, stats=stats, on_round=rounds.append)
    (plain,) = generate(model, [ids], new_tokens)

    def label(token: int) -> str:
        return token_label(tokenizer.token_bytes[token]) or f"<{token}>"

    first = Step(
        ((label(made[0]), "first"),),
        f"The prompt is read, {count(len(ids), 'token')} in one forward pass; the model says the first new token.",
        tokenizer.decode(ids + made[:1]),
        1,
        (0, 0),
    )
    steps = [first]
    for number, done in enumerate(rounds, start=1):
        judged = [*(["accepted"] * done.accepted), "rejected"] + ["unjudged"] * len(done.drafted)
        tokens = [(label(token), kind) for token, kind in zip(done.drafted, judged)]
        before, (drafts, kept) = steps[-1].made, steps[-1].drafts
        so_far = before + done.accepted + 1
        steps.append(
            Step(
                (*tokens, (label(done.bonus), "bonus")),
                _round_in_words(number, done),
                tokenizer.decode(ids + made[:so_far]),
                so_far,
                (drafts + bool(done.drafted), kept + (done.accepted > 0)),
            )
        )
    return Speculation(tuple(steps), made == plain, stats)


def _round_in_words(number: int, done: Round) -> str:
    if not done.drafted:
        return f"Round {number}: one token is left to make, so nothing is drafted; the model says it itself."
    return (
        f"Round {number}: {count(len(done.drafted), 'draft')}, {done.accepted} accepted, and the bonus token: "
        f"{count(done.accepted + 1, 'token')} from one forward pass."
    )


def draw_rounds(steps: tuple[Step, ...], title: str = "Drafts, round by round") -> Picture:
    """One line a round, one box a token; the sign in front says what became of it."""
    shown = steps[:MOST_LINES]
    height = 0.3 * (len(shown) + 3)
    figure = Picture(style.SIZE[0], height, layout="constrained")
    axes = figure.subplots()
    wide = 0.088  # inches of a character
    text: dict[str, Any] = dict(va="center", color=style.INK, fontsize=9, parse_math=False)
    mono = {**text, "family": ["DejaVu Sans Mono", "DejaVu Sans"]}
    looks = {
        "first": (style.GREY, "-"), "accepted": (style.GREEN, "-"), "rejected": (style.VERMILLION, "--"),
        "unjudged": (style.GREY, ":"), "bonus": (style.BLUE, "-"),
    }  # fmt: skip
    right = 6.0
    for line, step in enumerate(shown):
        y, x = -0.3 * line, 0.95
        axes.text(0, y, "prefill" if line == 0 else f"round {line}", **text)
        for label, kind in step.tokens:
            short = label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"
            said, (colour, edge) = f"{KINDS[kind][0]} {short}", looks[kind]
            width = wide * len(said) + 0.1
            box = FancyBboxPatch(
                (x, y - 0.1), width, 0.2, boxstyle="round,pad=0.01,rounding_size=0.04", linestyle=edge,
                edgecolor=colour, facecolor=style.tint(colour),
            )  # fmt: skip
            axes.add_patch(box)
            axes.text(x + 0.05, y, said, **mono)
            x += width + 0.09
        right = max(right, x)
    left_out = len(steps) - len(shown)
    below = -0.3 * len(shown)
    if left_out:
        axes.text(0, below, f"and {count(left_out, 'more round', 'more rounds')}", **text)
        below -= 0.3
    for row, kinds in enumerate((("accepted", "rejected", "unjudged"), ("bonus", "first"))):
        key = "    ".join(f"{KINDS[kind][0]} {KINDS[kind][1]}" for kind in kinds)
        axes.text(0, below - 0.26 * row, key, **{**text, "fontsize": 8.5})
    axes.set(xlim=(-0.05, right), ylim=(below - 0.45, 0.25))
    axes.set_axis_off()
    axes.set_title(title)
    return figure


def count(number: int, one: str, many: str = "") -> str:
    """ "1 token", "2 tokens"."""
    return f"{number} {one if number == 1 else many or one + 's'}"
