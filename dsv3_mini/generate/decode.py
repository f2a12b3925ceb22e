"""Generation: one prefill over the prompts, then one token a step for every row, out of the latent cache.

Shapes: B rows, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsv3_mini.errors import InputError
from dsv3_mini.generate.cache import LatentCache
from dsv3_mini.generate.sampling import check_sampling, sample

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
) -> list[list[int]]:
    """Continue each prompt by at most `max_new_tokens`; gives the new tokens of each row, the end token included.

    tokens: [B, T], or a list of prompts of any lengths. A row ends with `eos_token_id` (None: never early). `seed`
    makes sampling repeatable. `on_token` is called after every step with one new token per row, None for rows that have
    ended. Raises `InputError` for an empty prompt, or one that leaves no room for the new tokens in the context.
    """
    rows: list[list[int]] = []
    for step in stream(model, tokens, max_new_tokens, temperature, top_p, seed, eos_token_id):
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
) -> Iterator[list[int | None]]:
    """The steps of `generate`, one by one: a new token per row, None for rows that have ended."""
    prompts = _check(model, tokens, max_new_tokens, temperature, top_p, eos_token_id)
    # Checked here and not at the first `next`: a caller should hear of bad input before it starts to wait.
    return _steps(model, prompts, max_new_tokens, temperature, top_p, seed, eos_token_id)


@torch.inference_mode()  # as a decorator: a `with` would stay on in the caller between two steps
def _steps(
    model: DeepSeekV3,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    eos_token_id: int | None,
) -> Iterator[list[int | None]]:
    if max_new_tokens == 0:
        return
    device, dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    # Short prompts are filled up on the right. Their filling lands beyond the row's length in the cache, where
    # nobody reads.
    padded = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=device)
    cache = LatentCache(model.cfg, len(prompts), longest + max_new_tokens, dtype, device)

    hidden = model.hidden_states(padded, cache)
    cache.crop(lengths)
    ends = torch.tensor(lengths, device=device) - 1
    logits = model.lm_head(hidden[torch.arange(len(prompts), device=device), ends])  # [B, V], at each row's own end
    ended = [False] * len(prompts)
    for step in range(max_new_tokens):
        new = sample(logits, temperature, top_p, generator)
        step_tokens = [None if over else token for over, token in zip(ended, new.tolist(), strict=True)]
        ended = [over or token == eos_token_id for over, token in zip(ended, step_tokens, strict=True)]
        yield step_tokens
        if all(ended) or step == max_new_tokens - 1:
            return
        logits = model.lm_head(model.hidden_states(new[:, None], cache)[:, -1])


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
                f"context of {context} (max_position_embeddings). Shorten the prompt or ask for fewer tokens"
            )
    return prompts
