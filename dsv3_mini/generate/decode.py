"""Generation: one prefill over the prompts, then steps out of the latent cache.

A step gives one token for every row, or with `speculative` drafts up to as many more as the model accepts.

Shapes: B rows, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsv3_mini.checks import is_count
from dsv3_mini.errors import InputError
from dsv3_mini.generate.fast import fast
from dsv3_mini.generate.prefill import Prefilled, Prefix, prefill
from dsv3_mini.generate.sampling import check_sampling, sample
from dsv3_mini.generate.speculative import MAX_DRAFTS, Round, SpeculationStats, Speculator, speculative_steps

if TYPE_CHECKING:
    from dsv3_mini.model.transformer import DeepSeekV3


def generate(
    model: DeepSeekV3,
    tokens: Tensor | Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    eos_token_id: int | None = None,
    on_token: Callable[[list[int | None]], None] | None = None,
    speculative: int = 0,
    confidence: float = 0.0,
    stats: SpeculationStats | None = None,
    on_round: Callable[[Round], None] | None = None,
    prefix: Prefix | None = None,
) -> list[list[int]]:
    """Continue each prompt by at most `max_new_tokens`; gives the new tokens of each row, the end token included.

    tokens: [B, T], or a list of prompts of any lengths. A row ends with `eos_token_id` (None: never early). `seed`
    makes sampling repeatable. `on_token` is called with one new token per row, None for rows that have none: they have
    ended, or fewer of their drafts were accepted than of others.

    `speculative`: so many drafts of the MTP module in a round (`speculative`), 0 for none; what is generated is the
    same, or with a temperature, distributed the same. `confidence`, `stats` and `on_round` belong to it: see there.
    `prefix` carries what this call computes to the next one.

    Raises `InputError` for an empty prompt, one that leaves no room for the new tokens in the context, and drafts asked
    of a model without an MTP module.
    """
    rows: list[list[int]] = []
    steps = stream(
        model, tokens, max_new_tokens, temperature, top_p, seed, eos_token_id,
        speculative=speculative, confidence=confidence, stats=stats, on_round=on_round, prefix=prefix,
    )  # fmt: skip
    for step in steps:
        rows = rows or [[] for _ in step]
        for row, token in zip(rows, step, strict=True):
            if token is not None:
                row.append(token)
        if on_token is not None:
            on_token(step)
    return rows or [[] for _ in tokens]


def stream(
    model: DeepSeekV3,
    tokens: Tensor | Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    eos_token_id: int | None = None,
    *,
    speculative: int = 0,
    confidence: float = 0.0,
    stats: SpeculationStats | None = None,
    on_round: Callable[[Round], None] | None = None,
    prefix: Prefix | None = None,
) -> Iterator[list[int | None]]:
    """The tokens of `generate` as they come: one per row, None for rows that have none this time."""
    prompts = _check(model, tokens, max_new_tokens, temperature, top_p, eos_token_id)
    _check_speculation(model, speculative, confidence)
    generator = None if seed is None else torch.Generator(model.lm_head.weight.device).manual_seed(seed)
    # Checked here and not at the first `next`: a caller should hear of bad input before it starts to wait.
    if not speculative:
        return _plain_steps(model, prompts, max_new_tokens, temperature, top_p, generator, eos_token_id, prefix)

    @torch.inference_mode()  # as a decorator: a `with` would stay on in the caller between two steps
    def steps() -> Iterator[list[int | None]]:
        if max_new_tokens == 0:
            return
        read = prefill(model, prompts, max_new_tokens + speculative, drafts=True, prefix=prefix)
        speculator = Speculator(
            fast(model), read, speculative,
            confidence=confidence, temperature=temperature, top_p=top_p, generator=generator,
        )  # fmt: skip
        texts = [list(prompt) for prompt in prompts]
        counts = stats if stats is not None else SpeculationStats()
        for news in speculative_steps(speculator, max_new_tokens, eos_token_id, counts, on_round):
            for text, new in zip(texts, news, strict=True):
                text += new
            _leave(prefix, texts, read)
            for j in range(max(map(len, news))):
                yield [new[j] if j < len(new) else None for new in news]

    return steps()


@torch.inference_mode()
def _plain_steps(
    model: DeepSeekV3,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    generator: torch.Generator | None,
    eos_token_id: int | None,
    prefix: Prefix | None,
) -> Iterator[list[int | None]]:
    if max_new_tokens == 0:
        return
    read = prefill(model, prompts, max_new_tokens, prefix=prefix)
    # A path that somebody forces is one of the model's own.
    hidden_states = fast(model).hidden_states if model.attention_path == "auto" else model.hidden_states
    texts = [list(prompt) for prompt in prompts]
    alive, hidden = list(range(len(prompts))), read.hidden  # rows that go on, and their last states [B, D]
    for step in range(max_new_tokens):
        new = sample(model.lm_head(hidden), temperature, top_p, generator)
        column: list[int | None] = [None] * len(prompts)
        for row, token in zip(alive, new.tolist(), strict=True):
            column[row] = token
            texts[row].append(token)
        _leave(prefix, texts, read)
        yield column
        going = [place for place, row in enumerate(alive) if column[row] != eos_token_id]
        if not going or step == max_new_tokens - 1:
            return
        if len(going) < len(alive):  # rows that have ended leave the batch
            read.cache.select(going)
            new, alive = new[going], [alive[place] for place in going]
        hidden = hidden_states(new.unsqueeze(1), read.cache)[:, -1]


def _leave(prefix: Prefix | None, texts: list[list[int]], read: Prefilled) -> None:
    """For the next call: the caches of a single row, and the tokens that are in them."""
    if prefix is not None and len(texts) == 1:
        prefix.tokens, prefix.cache, prefix.drafts = texts[0], read.cache, read.drafts


def _check_speculation(model: DeepSeekV3, speculative: int, confidence: float) -> None:
    if not (is_count(speculative, least=0) and speculative <= MAX_DRAFTS):
        raise InputError(f"speculative = {speculative!r} cannot be: it must be a number of drafts, 0 to {MAX_DRAFTS}")
    if not 0 <= confidence <= 1:
        raise InputError(f"confidence = {confidence} cannot be: it must be from 0 to 1")
    if speculative and not model.cfg.num_nextn_predict_layers:
        raise InputError(
            "num_nextn_predict_layers = 0: this model has no MTP module that could draft; generate without speculative"
        )


def _check(
    model: DeepSeekV3,
    tokens: Tensor | Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    eos_token_id: int | None,
) -> list[list[int]]:
    check_sampling(temperature, top_p)
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens = {max_new_tokens} cannot be: it must be at least 0")
    prompts = tokens.tolist() if isinstance(tokens, Tensor) else [list(prompt) for prompt in tokens]
    if not prompts or not all(isinstance(prompt, list) for prompt in prompts):
        raise InputError("tokens must be a [B, T] tensor or a list of prompts, each a list of token ids, at least one")
    vocabulary, context = model.cfg.vocab_size, model.cfg.max_position_embeddings
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise InputError(
                f"prompt {row} is empty: a model continues at least one token (for a fresh start, the end token)"
            )
        for token in prompt:
            if not isinstance(token, int) or not 0 <= token < vocabulary:
                raise InputError(
                    f"prompt {row} holds {token!r}, which is no token id: they go from 0 to {vocabulary - 1}"
                )
        if len(prompt) + max_new_tokens > context:
            raise InputError(
                f"prompt {row} has {len(prompt)} tokens; with max_new_tokens = {max_new_tokens} that is more than the "
                f"context of {context} (max_position_embeddings). Shorten the prompt, ask for fewer tokens, or extend "
                "the context by YaRN: `dsv3-mini generate --yarn FACTOR`, or `model.long_context.extended` in Python"
            )
    return prompts
