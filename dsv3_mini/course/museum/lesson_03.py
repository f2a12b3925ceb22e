"""Bug museum of lesson 03: the other layout, and a key that is turned again at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3_mini.course.exercises.lesson_03.by_hand import rope
from dsv3_mini.course.exercises.lesson_03.decode_step import decode_step, decode_step__turned_twice
from dsv3_mini.course.exercises.lesson_03.head_scores import head_scores, head_scores__half_split
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

# -- 3.A --


def look_five_back() -> tuple[Tensor, Tensor]:
    """A head made to look five tokens back, read in both layouts: scores by distance 0 to 20, [21] each."""
    generator = torch.Generator().manual_seed(6)
    width, tokens = 64, 21
    key = torch.randn(width, generator=generator)
    query = rope(key[None], torch.tensor([-5]))[0]  # turned by 5 more, it is the key again
    w_q, w_k = torch.diag(query), torch.diag(key)  # a token of all ones gives that query and that key
    text, positions = torch.ones(tokens, width), torch.arange(tokens)
    right = head_scores(text, w_q, w_k, positions)[-1].flip(0)  # the last query; its own key first
    wrong = head_scores__half_split(text, w_q, w_k, positions)[-1].flip(0)
    return right, wrong


def other_layout() -> Picture:
    right, wrong = look_five_back()
    print("A head that was made to look five tokens back. Its score by distance:")
    print("distance   interleaved (right)   half-split")
    for distance in (0, 1, 4, 5, 6, 20):
        print(f"{distance:8}   {right[distance]:19.2f}   {wrong[distance]:10.2f}")
    print(f"The right score is largest at distance {int(right.argmax())}, the other at {int(wrong.argmax())}.")
    figure = Picture(*style.SIZE, layout="constrained")
    ax = figure.subplots()
    for scores, name, (colour, line, marker) in zip(
        (right, wrong), ("interleaved (right)", "half-split"), style.STYLES
    ):
        ax.plot(scores, color=colour, linestyle=line, marker=marker, markersize=4, label=name)
    ax.axvline(5, color=style.GREY, linewidth=1, linestyle=":")
    ax.set(xlabel="distance between query and key", ylabel="score", xticks=range(0, 21, 5))
    ax.set_title("A head that should look five tokens back")
    ax.legend()
    return figure


OTHER_LAYOUT = Exhibit(
    id="3.A",
    title="weights of one layout, code of the other",
    exercise="3.2",
    mistake="half-split",
    story="Somebody loads the weights of DeepSeek-V3 into attention code that was written for another model. All "
    "shapes fit, nothing is missing, nothing is left over.",
    question="A head learned to look exactly five tokens back: with the right code its score is largest at distance "
    "five. What will its scores be with this code?",
    choices={
        "a": "the same peak at five, since both layouts are rotations",
        "b": "at distance 0 the right score, elsewhere other scores",
        "c": "other scores everywhere",
    },
    seen="b",
    symptom=other_layout,
    diagnosis=(
        "At distance 0 query and key are turned by the same angles, so nothing is turned relative to anything. At "
        "every other distance the two layouts turn different pairs of numbers.",
        "Which of our checks would notice? Not the lengths, and not the table of distances and places: half-split RoPE "
        "is a faultless RoPE, only not the one that these weights grew up with. Training from scratch never shows it.",
        "It shows when somebody else's weights come in, and only in a comparison with a reference, on more than one "
        "token. The report does not name the layout; the released code does, and takes neighbours.",
    ),
    caught_by="tests/model/test_rope.py::test_a_quarter_turn_of_one_pair",
)

# -- 3.B --

PROMPT, TOKENS, WIDTH = 6, 12, 64


def whole_text(q: Tensor, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """All tokens at once, the first at position `start`: outputs [T, V] and turned keys [T, R]."""
    positions = torch.arange(start, start + len(q))
    q, k = rope(q, positions), rope(k, positions)
    future = torch.ones(len(q), len(q)).triu(1).bool()
    scores = (q @ k.T / q.shape[-1] ** 0.5).masked_fill(future, -torch.inf)
    return scores.softmax(-1) @ v, k


def written(q: Tensor, k: Tensor, v: Tensor, step, start: int = 0) -> Tensor:  # type: ignore[no-untyped-def]
    """Outputs [T, V] of a prefill of `PROMPT` tokens and then one `step` for each of the others."""
    first, keys = whole_text(q[:PROMPT], k[:PROMPT], v[:PROMPT], start)
    outputs = [first]
    for t in range(PROMPT, len(q)):
        now = slice(t, t + 1)
        output, keys = step(q[now], k[now], v[now], keys, v[:t], start + t)
        outputs.append(output)
    return torch.cat(outputs)


def turned_again() -> Picture:
    q, k, v = torch.randn(3, TOKENS, WIDTH, generator=torch.Generator().manual_seed(7))
    expected = whole_text(q, k, v, 0)[0]
    figure = Picture(*style.SIZE, layout="constrained")
    ax = figure.subplots()
    print(f"Largest difference from the whole text at once: {PROMPT} tokens of prefill | single steps")
    for name, step, (colour, line, marker) in zip(
        ("right", "exhibit"), (decode_step, decode_step__turned_twice), style.STYLES
    ):
        off = (written(q, k, v, step) - expected).abs().amax(-1)
        shown = [f"{number:.1f}" for number in off.tolist()]
        print(f"{name:8}", *shown[:PROMPT], "|", *shown[PROMPT:])
        ax.plot(range(TOKENS), off, color=colour, linestyle=line, marker=marker, label=name)
    for name, step in (("right", decode_step), ("exhibit", decode_step__turned_twice)):
        moved = (written(q, k, v, step, start=1000) - written(q, k, v, step)).abs().max()
        print(f"{name:8} the same text begun at position 1000: the outputs change by {moved:.1e}")
    ax.axvline(PROMPT - 0.5, color=style.GREY, linewidth=1, linestyle=":")
    ax.set(xlabel="token (prefill on the left of the dotted line)", ylabel="largest difference")
    ax.set_title("Against the whole text at once")
    ax.legend(loc="upper left")
    return figure


TURNED_AGAIN = Exhibit(
    id="3.B",
    title="turned on the way in, turned again at every step",
    exercise="3.5",
    mistake="turned twice",
    story="The cache holds turned keys. The code of a step was taken from training, where every key that attention "
    "gets has to be turned.",
    question="A prompt is read at once, and its turned keys go into the cache. Then the text goes on one token at a "
    "time with this code. What will you see?",
    choices={
        "a": "nothing: turning is relative, so it cancels",
        "b": "the prompt comes out right, every step after it wrong",
        "c": "everything comes out wrong",
    },
    seen="b",
    symptom=turned_again,
    diagnosis=(
        "A key that was turned twice stands at the angle of twice its position, and the next step turns it once more. "
        "The query is turned once. So the positions no longer cancel.",
        "Hence the test in the last two lines: begin the same text at position 1000. Nothing may change but rounding, "
        "because only distances count. Here the outputs change.",
        "The cure is a rule, written down where the cache is defined. In this package cached keys are turned, and a "
        "later step never touches them again.",
    ),
    caught_by="tests/model/test_attention.py::test_cache_holds_two_vectors_per_key_value_head_and_decoding_equals_one_pass",
)

EXHIBITS = (OTHER_LAYOUT, TURNED_AGAIN)
