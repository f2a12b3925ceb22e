"""Prefill: from prompts to caches that decoding can go on from.

* *In chunks*: a long prompt goes through the model some hundred tokens at a time, so that what attention needs besides
  the cache stays small. Whether a chunk is attended to expanded or absorbed is decided by their costs (`MLA`).
* *Ragged*: short prompts are filled up on the right. Their filling lands beyond the row's length in the cache, where
  nobody reads.
* *Prefixes once*: what all prompts of a batch begin with is computed for one row and copied to the others, and a
  `Prefix` carries what one call has computed to the next.

With `drafts` the first MTP module reads along (`speculative`): at position i it takes h_i and the token t_{i+1}, so of
a prompt of n tokens it reads n - 1, and its cache is one token behind.

Shapes: B rows, T tokens, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsv3_mini.generate.cache import LatentCache

if TYPE_CHECKING:
    from dsv3_mini.model.transformer import DeepSeekV3

CHUNK = 512  # tokens of a row in one forward pass
WORTH_SHARING = 16  # tokens that the prompts of a batch must share before they are computed apart


@dataclass
class Prefix:
    """What a row has been through, for a later prompt that begins in the same way (a conversation, a shared preamble).

    Give one `Prefix` to several calls of `generate` with one model: each reuses what it can, and leaves its own.
    """

    tokens: list[int] = field(default_factory=list)  # those in `cache`, and perhaps a last one that is not yet
    cache: LatentCache | None = None
    drafts: LatentCache | None = None
    reused: int = 0  # tokens that the last call did not have to compute

    def shared_with(self, prompts: list[list[int]], drafts: bool) -> int:
        """How many tokens of the caches all prompts can begin with."""
        if self.cache is None or (drafts and self.drafts is None):
            return 0
        held = min(self.cache.lengths[0], self.drafts.lengths[0] if drafts and self.drafts else len(self.tokens))
        return min(held, _reusable([self.tokens, *prompts], prompts, drafts))


@dataclass
class Prefilled:
    """Prompts that have been read."""

    cache: LatentCache
    drafts: LatentCache | None  # of the first MTP module
    hidden: Tensor  # [B, D], the state at the last token of each row


def prefill(
    model: DeepSeekV3,
    prompts: list[list[int]],
    room: int,
    *,
    drafts: bool = False,
    prefix: Prefix | None = None,
    chunk: int = CHUNK,
) -> Prefilled:
    """Read the prompts, with room for `room` more tokens in each row."""
    lengths = [len(prompt) for prompt in prompts]
    made = _caches(model, len(prompts), max(lengths) + room, drafts)
    known = 0 if prefix is None else prefix.shared_with(prompts, drafts)
    shared = _reusable(prompts, prompts, drafts) if len(prompts) > 1 else 0
    if shared >= max(WORTH_SHARING, known + 1):
        first = prompts[0][: shared + 1]  # one more, so that of the drafts' cache, too, `shared` tokens are there
        one = prefill(model, [first], 0, drafts=drafts, prefix=prefix, chunk=chunk)
        _take(made, (one.cache, one.drafts), shared)
        start = shared
    else:
        if known and prefix is not None:
            _take(made, (prefix.cache, prefix.drafts), known)
        start = known
    if prefix is not None:
        prefix.reused = known
    hidden = _read(model, prompts, start, made, chunk)
    made[0].crop(lengths)
    if made[1] is not None:
        made[1].crop([length - 1 for length in lengths])
    return Prefilled(made[0], made[1], hidden)


def _read(
    model: DeepSeekV3, prompts: list[list[int]], start: int, caches: tuple[LatentCache, LatentCache | None], chunk: int
) -> Tensor:
    """All tokens from `start` on, into the caches; gives the state at the end of each row [B, D]."""
    cache, drafts = caches
    device = model.lm_head.weight.device
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    padded = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=device)
    ends: list[Tensor | None] = [None] * len(prompts)
    for begin in range(start, longest, chunk):
        end = min(begin + chunk, longest)
        hidden = model.hidden_states(padded[:, begin:end], cache)
        for row, length in enumerate(lengths):
            if begin < length <= end:
                ends[row] = hidden[row, length - 1 - begin]
        following = padded[:, begin + 1 : end + 1]
        if drafts is not None and following.shape[1]:
            module = model.mtp_modules[0]
            cos, sin = model.model.rotary(drafts.begin(following.shape[1], len(prompts)))
            embedded = model.model.embed_tokens(following)
            module.predict(embedded, hidden[:, : following.shape[1]], cos, sin, drafts)
            drafts.commit()
    return torch.stack([end for end in ends if end is not None])


def _caches(model: DeepSeekV3, rows: int, slots: int, drafts: bool) -> tuple[LatentCache, LatentCache | None]:
    cfg, weight = model.cfg, model.lm_head.weight
    main = LatentCache(cfg, rows, slots, weight.dtype, weight.device)
    if not drafts:
        return main, None
    depth = cfg.num_hidden_layers
    return main, LatentCache(cfg, rows, slots, weight.dtype, weight.device, layers=range(depth, depth + 1))


def _take(
    caches: tuple[LatentCache, LatentCache | None], others: tuple[LatentCache | None, LatentCache | None], tokens: int
) -> None:
    for cache, other in zip(caches, others, strict=True):
        if cache is not None and other is not None:
            cache.take_from(other, tokens)


def _reusable(texts: list[list[int]], prompts: list[list[int]], drafts: bool) -> int:
    """Tokens that all texts share, less what has to be computed anyway.

    The last token of each prompt: its state is asked for, and a cache holds no states. With drafts also the last
    shared token: the MTP module reads its state together with the token after it, which is not shared.
    """
    shared = 0
    for column in zip(*texts, strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    return max(0, min(shared - drafts, min(map(len, prompts)) - 1))
