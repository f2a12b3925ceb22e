"""Exhibits of lesson 02: decode steps at position 0, and slots that nobody wrote."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv3_mini.course.exercises.lesson_02.decode_batch import decode_batch, decode_batch__all_slots
from dsv3_mini.course.exercises.lesson_02.write import write, write__position_of_the_step
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.model.attention import MultiHeadAttention
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

SENTENCE = "what is cached need not be computed again; what is wrong in the cache stays wrong. "
LETTERS = sorted(set(SENTENCE))
PROMPT, NEW, STEPS, WIDTH = "what is cach", 30, 60, 64


class Reciter(nn.Module):
    """Letters, a learned vector for each position, one attention layer: enough to know one sentence by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(len(LETTERS), WIDTH), nn.Embedding(len(SENTENCE), WIDTH)
        self.attention = MultiHeadAttention(WIDTH, num_heads=4, head_dim=16)
        self.head = nn.Linear(WIDTH, len(LETTERS))

    def forward(self, tokens: Tensor, positions: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        """tokens, positions [T] -> scores of the next letter [T, letters]."""
        h = (self.embed(tokens) + self.places(positions))[None]
        scores: Tensor = self.head(h + self.attention(h, cache=cache))[0]
        return scores


def numbers(text: str) -> Tensor:
    return torch.tensor([LETTERS.index(letter) for letter in text])


def train() -> Reciter:
    """A model that has learned the sentence."""
    torch.manual_seed(0)
    model, text = Reciter(), numbers(SENTENCE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        loss = F.cross_entropy(model(text[:-1], torch.arange(len(text) - 1)), text[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def recite() -> None:
    """What the same trained model writes behind a prompt, with the right loop and with the bug."""
    with torch.random.fork_rng(devices=[]):
        model = train()
    print("A small model knows one sentence by heart. It writes what stands behind the bar; a blank is shown as _")
    with torch.no_grad():
        for name, loop in (("right", write), ("with the bug", write__position_of_the_step)):
            written = "".join(LETTERS[token] for token in loop(model, numbers(PROMPT), NEW))
            line = f"{PROMPT}|{written}".replace(" ", "_")
            wanted = SENTENCE[len(PROMPT) :]
            right = next((i for i, letter in enumerate(written) if letter != wanted[i]), NEW)
            print(f"  {name:13} {line}   right up to letter {right} of {NEW}")


ROOM, HEADS, K = 32, 4, 16
LENGTHS = {"A": 6, "B": 20}  # tokens of two texts that use the same room, one after the other


def left_overs() -> Picture:
    """Text A, text B and text A again in the same room; how far each answer is from the right one."""
    generator = torch.Generator().manual_seed(5)
    texts = {name: torch.randn(3, 1, HEADS, size, K, generator=generator) for name, size in LENGTHS.items()}
    k_room, v_room = torch.zeros(2, 1, HEADS, ROOM, K)
    answers: dict[str, list[Tensor]] = {}
    print(f"Room for {ROOM} tokens; text A has {LENGTHS['A']}, text B has {LENGTHS['B']}. How far off is the answer?")
    for text in ("A", "B", "A"):
        q, k, v = texts[text]
        size = LENGTHS[text]
        k_room[:, :, :size], v_room[:, :, :size] = k, v
        right, wrong = (
            answer(q[:, :, -1], k_room, v_room, torch.tensor([size]))
            for answer in (decode_batch, decode_batch__all_slots)
        )
        again = " again" if text in answers else ""
        print(f"  {text + again:8} with the bug {(wrong - right).abs().max():.2f}")
        answers.setdefault(text, []).append(wrong)
    first, second = answers["A"]
    print(f"  between the two answers to A: {(first - second).abs().max():.2f}")
    return _shares(texts["A"])


def _shares(text: Tensor) -> Picture:
    """Where the last token of text A looks in an empty room."""
    q, k, _ = text[:, 0]  # [H, T, K] each
    scores = torch.zeros(HEADS, ROOM)  # the key of an empty slot is zero, and so is its score
    scores[:, : LENGTHS["A"]] = (k @ q[:, -1, :, None]).squeeze(-1) / math.sqrt(K)
    shares = scores.softmax(-1).mean(0)
    written, empty = shares[: LENGTHS["A"]], shares[LENGTHS["A"] :]
    print(f"Share of the {len(empty)} empty slots the first time, mean of the heads: {empty.sum():.0%}")
    figure = Picture(*style.SIZE, layout="constrained")
    ax = figure.subplots()
    ax.bar(range(len(written)), written.tolist(), color=style.BLUE, label="slots that text A wrote")
    places = range(len(written), ROOM)
    ax.bar(places, empty.tolist(), color=style.tint(style.VERMILLION, 0.5), hatch="//", label="slots that nobody wrote")
    ax.set(xlabel="slot", ylabel="share", title="Where the last token of text A looks, with the bug")
    ax.legend()
    return figure


EXHIBITS = (
    Exhibit(
        id="2.A",
        title="a cache without the position offset",
        exercise="2.5",
        mistake="position of the step",
        story=(
            "In training, the positions of a text are arange of its length. Somebody writes the same for a decode "
            "step, which reads a text of one token."
        ),
        question=(
            "A small model knows one sentence by heart. It gets the beginning of it and goes on, with this loop. The "
            "cache itself is right. What will it write?"
        ),
        choices={
            "a": "nonsense from the first letter on",
            "b": "one right letter, then nonsense",
            "c": "the right sentence, because the cache keeps the order",
        },
        seen="b",
        symptom=recite,
        diagnosis=(
            "arange(1) is 0: each new token is taken for the first of the text. The letter right behind the bar comes "
            "from the prefill, whose positions are right; the first decode step is the first wrong one.",
            "How to recognise it: right after the prefill and wrong after one step means that the step is at fault, "
            "not the weights. The position of a token is the number of tokens before it. And a test of decoding must "
            "take several steps and compare them with one full pass.",
        ),
        caught_by=("tests/model/test_parity.py::test_decoding_with_the_latent_cache_equals_one_pass_of_transformers"),
    ),
    Exhibit(
        id="2.B",
        title="reading slots that nobody wrote",
        exercise="2.4",
        mistake="all slots",
        story="A cache with room made in advance. What is not written yet is zero, and what is zero adds nothing.",
        question=(
            "The same room serves text A, then text B, which is longer, then text A again, with this code. Which "
            "answers will be right?"
        ),
        choices={
            "a": "all three: every text overwrites its slots",
            "b": "A and B; A again is wrong, because slots of B are left over",
            "c": "none, and the two answers to A differ",
        },
        seen="c",
        symptom=left_overs,
        diagnosis=(
            "The key of an empty slot is zero, so its score is 0. That is not the same as no score: e to the power 0 "
            "is 1, and the slot gets its share. Most of what the last token receives are zeros of empty slots.",
            "After text B the slots behind A hold keys and values of B, so that the answer to A depends on what was "
            "asked before. In a server this is not only wrong: it gives away somebody else's text. Clearing the room "
            "between two texts mends the second part and not the first.",
            "How to recognise it: ask the same thing twice with something longer in between. Or write rubbish into the "
            "slots that nobody should read, and see whether anything moves.",
        ),
        caught_by="tests/model/test_mla.py::test_what_lies_beyond_a_rows_length_is_never_read",
    ),
)
