"""Exercise 2.5: let a model write, with a cache.

Shapes: T new tokens.
"""

# mypy: check-untyped-defs=False

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_02.chunk_mask import chunk_mask
from dsv3_mini.course.exercises.lesson_02.inputs import _randn, _whole


def write(model, prompt, new):
    cache = []
    scores = model(prompt, torch.arange(len(prompt)), cache)  # prefill
    written = [scores[-1].argmax()]
    while len(written) < new:
        position = len(prompt) + len(written) - 1  # tokens before it
        scores = model(written[-1][None], torch.tensor([position]), cache)  # decode
        written.append(scores[-1].argmax())
    return written


def write__position_of_the_step(model, prompt, new):
    cache = []
    scores = model(prompt, torch.arange(len(prompt)), cache)  # prefill
    written = [scores[-1].argmax()]
    while len(written) < new:
        newest = written[-1][None]
        scores = model(newest, torch.arange(len(newest)), cache)  # decode
        written.append(scores[-1].argmax())
    return written


def _write(model, prompt, new, offset=None, keep=True, again=False, pick=lambda scores: scores[-1].argmax()):
    """The solution with one of its parts changed."""
    cache = []
    written = [pick(model(prompt, torch.arange(len(prompt)), cache))]
    while len(written) < new:
        cache = cache if keep else []
        text = torch.stack([*prompt, *written]) if again else written[-1][None]
        start = 0 if again else (len(prompt) if offset is None else offset) + len(written) - 1
        written.append(pick(model(text, torch.arange(start, start + len(text)), cache)))
    return written


def _starts_from_the_prompt(model, prompt, new):
    cache, written = [], [prompt[-1]]
    model(prompt, torch.arange(len(prompt)), cache)
    for position in range(len(prompt), len(prompt) + new):
        written.append(model(written[-1][None], torch.tensor([position]), cache)[-1].argmax())
    return written[1:]


class Model:
    """One attention layer with random weights; it counts the tokens that it reads and keeps."""

    def __init__(self, generator: Generator, letters: int, width: int = 16, positions: int = 40) -> None:
        self.embed, self.places = _randn(generator, letters, width), _randn(generator, positions, width)
        self.w_q, self.w_k, self.w_v = (_randn(generator, width, width) / 4 for _ in range(3))
        self.head = _randn(generator, width, letters)
        self.read = self.kept = 0

    def __call__(self, tokens: Tensor, positions: Tensor, cache: list[Tensor]) -> Tensor:
        if not tokens.shape == positions.shape == (len(positions.flatten()),):
            shapes = f"{list(tokens.shape)} and {list(positions.shape)}"
            raise ValueError(f"the model wants tokens [T] and positions [T]; it was given the shapes {shapes}")
        if tokens.is_floating_point():
            raise ValueError("the model wants tokens, whole numbers; it was given scores")
        self.read += len(tokens)
        h = self.embed[tokens] + self.places[positions]
        k, v = h @ self.w_k, h @ self.w_v
        if cache:
            k, v = torch.cat([cache[0], k]), torch.cat([cache[1], v])
        cache[:] = [k, v]
        self.kept = max(self.kept, len(k))
        scores = h @ self.w_q @ k.T / math.sqrt(h.shape[-1])
        may_see = chunk_mask(len(k) - len(tokens), len(tokens))
        out = h / 4 + scores.masked_fill(~may_see, -math.inf).softmax(-1) @ v
        return out / out.norm(dim=-1, keepdim=True) @ self.head  # no row is louder than the others


def _prompts(generator: Generator) -> list[Case]:
    letters, seed = _whole(generator, 40, 50), _whole(generator, 0, 10**6)
    return [
        Case((seed, letters, torch.randint(letters, (length,), generator=generator), new), note=note)
        for length, new, note in (
            (_whole(generator, 4, 7), _whole(generator, 9, 12), "a prompt of several tokens"),
            (1, 6, "a prompt of one token"),
            (9, 1, "one token to write"),
            (11, 2, "two tokens to write"),
        )
    ]


def _run_write(answer, case):
    seed, letters, prompt, new = case.args
    model = Model(torch.Generator().manual_seed(seed), letters)
    written = answer(model, prompt, new)
    if isinstance(written, (list, tuple, Tensor)):
        written = [int(token) for token in written]
    # One token more than needed is no harm: many read the last one, too, although nobody asks what follows it.
    most = len(prompt) + new
    return {
        "tokens": written,
        "tokens read again": max(0, model.read - most),
        "tokens kept twice": max(0, model.kept - most),
    }


WRITE = Exercise(
    id="2.5",
    idea="kv_cache",
    title="let a model write, with a cache",
    minutes=15,
    answer="write",
    reference=write,
    cases=_prompts,
    use=_run_write,
    mistakes=(
        Mistake(
            "position of the step",
            write__position_of_the_step,
            "The first token is right, then it goes wrong: each decode step gives its token the position 0. The "
            "position of a token is the number of tokens before it.",
        ),
        Mistake(
            "positions without the prompt",
            lambda model, prompt, new: _write(model, prompt, new, offset=0),
            "The first token is right, then it goes wrong: the positions of the decode steps start again from 0, "
            "although the prompt stands before them.",
        ),
        Mistake(
            "one position too far",
            lambda model, prompt, new: _write(model, prompt, new, offset=len(prompt) + 1),
            "The positions of the decode steps are one too high. The first new token comes right behind the prompt: "
            "how many tokens are before it?",
        ),
        Mistake(
            "one position too low",
            lambda model, prompt, new: _write(model, prompt, new, offset=len(prompt) - 1),
            "The positions of the decode steps are one too low: the first new token gets the position that the last "
            "token of the prompt has already.",
        ),
        Mistake(
            "an empty cache at every step",
            lambda model, prompt, new: _write(model, prompt, new, keep=False),
            "The first token is right, then the model has forgotten everything: each decode step starts with an empty "
            "cache. The list of the prefill must go into every step.",
        ),
        Mistake(
            "no use of the cache",
            lambda model, prompt, new: _write(model, prompt, new, keep=False, again=True),
            "The tokens are right, but the model reads the whole text again for each of them. After the prefill, one "
            "new token a step is enough.",
        ),
        Mistake(
            "everything again into the cache",
            lambda model, prompt, new: _write(model, prompt, new, again=True),
            "Each step puts the whole text into the cache again, behind what is there, so that old tokens count "
            "several times. Give only the newest token to a decode step.",
        ),
        Mistake(
            "first scores",
            lambda model, prompt, new: _write(model, prompt, new, pick=lambda scores: scores[0].argmax()),
            "Already the first token is wrong: you read the scores of the first token of the prompt. What follows the "
            "prompt is said by its last token.",
        ),
        Mistake(
            "largest of all scores",
            lambda model, prompt, new: _write(model, prompt, new, pick=lambda scores: scores.argmax()),
            "The largest score is looked for in all rows. Only the last row says what follows the text.",
        ),
        Mistake(
            "without the first token",
            lambda model, prompt, new: write(model, prompt, new + 1)[1:],
            "The first new token is missing: the prefill already gives it, before any decode step.",
        ),
        Mistake(
            "last token of the prompt again",
            _starts_from_the_prompt,
            "The last token of the prompt is read a second time, as the first decode step. The prefill has read it: "
            "its last scores give the first new token.",
        ),
        Mistake(
            "prompt included",
            lambda model, prompt, new: [*prompt, *write(model, prompt, new)],
            "The prompt is part of what you return. Asked are the new tokens alone.",
        ),
    ),
    hints=(
        "Two parts: one call with the whole prompt (prefill), then one call for each further token (decode). The same "
        "list goes into all of them.",
        "After the prefill, scores[-1].argmax() is the first new token. The next call gets this token alone, as a "
        "tensor of shape [1].",
        "The position of the newest token is the number of tokens before it: those of the prompt and those written "
        "before it. It also comes as a tensor of shape [1].",
    ),
    after="This loop is what every chat program runs, and lessons 04, 05 and 12 make it cheaper.",
)
