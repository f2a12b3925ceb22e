"""The latent cache: what MLA keeps of the past (the two boxed vectors of Eq. 1 and 3).

Per token and layer it holds the normalised latent c^KV (C numbers) and the rotated shared key k^R (R numbers), side by
side, and nothing else: C + R = 576 numbers in V3, where plain multi-head attention would keep 32,768.

One rule makes prompts of different lengths, several tokens at once and rolling back all work: *the slot of a token
is its position*. Row b has `lengths[b]` tokens; the next T tokens go to slots lengths[b], lengths[b] + 1, ...; a
query at position p may read slots 0..p. What stands beyond a row's length is left-over that nobody reads.

MTP modules keep a cache of their own: when drafts are made they are behind the main model by a token (`speculative`).

Shapes: L layers, B batch, S slots, T new tokens, C latent, R RoPE dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError


class LatentCache:
    """Room for `max_len` tokens in each of `batch` rows, allocated once.

    `layers`: which layers of the model write here; those of the main model, unless others are named.

    `lengths` are plain Python numbers: the loop that decodes knows them anyway, and reading them back from a GPU would
    make every step wait.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        batch: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        layers: range | None = None,
    ) -> None:
        self.latent_width = cfg.kv_lora_rank
        self.layers = range(cfg.num_hidden_layers) if layers is None else layers
        self.store = torch.zeros(len(self.layers), batch, max_len, cfg.cache_width, dtype=dtype, device=device)
        self.lengths = [0] * batch
        self.positions = torch.zeros(batch, 0, dtype=torch.long, device=device)  # of the tokens of this forward pass
        self.hidden: Tensor | None = None  # [B, T, S] slots that may not be read; None where all in reach may

    @property
    def max_len(self) -> int:
        """Slots per row."""
        return self.store.shape[2]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token of one row takes, over all layers: (C + R) * L * bytes per number."""
        layers, _, _, width = self.store.shape
        return layers * width * self.store.element_size()

    @property
    def is_empty(self) -> bool:
        """True before the first token: a prefill then sees nothing but its own tokens."""
        return not any(self.lengths)

    def begin(self, new: int, batch: int | None = None) -> Tensor:
        """Prepare a forward pass over `new` more tokens a row; gives their positions [B, T].

        Raises `InputError` if they do not fit, or if `batch`, the rows of those tokens, is not the cache's.
        """
        if batch not in (None, len(self.lengths)):
            raise InputError(f"the cache was made for {len(self.lengths)} rows; tokens with {batch} rows were given")
        if max(self.lengths) + new > self.max_len:
            raise InputError(
                f"the cache has room for {self.max_len} tokens; {max(self.lengths)} are in it and {new} more were given"
            )
        device = self.store.device
        self.new, self.end = new, max(self.lengths) + new
        self.uniform = min(self.lengths) == max(self.lengths)
        starts = torch.tensor(self.lengths, device=device)
        self.positions = starts[:, None] + torch.arange(new, device=device)
        single = self.uniform and new == 1  # the newest token of equally long rows may read everything there is
        self.hidden = None if single else torch.arange(self.end, device=device) > self.positions[..., None]
        return self.positions

    def write(self, layer: int, latent: Tensor, k_pe: Tensor) -> Tensor:
        """Put latent [B, T, C] and rotated key [B, T, R] into their slots; gives what may be read, [B, S, C + R]."""
        if latent.dtype != self.store.dtype:
            raise InputError(
                f"the cache holds {self.store.dtype}, the model computes {latent.dtype}: give the cache that dtype"
            )
        return self.write_joined(layer, torch.cat((latent, k_pe), dim=-1))

    def write_joined(self, layer: int, memory: Tensor) -> Tensor:
        """`write` of latent and key side by side already: memory [B, T, C + R]."""
        store = self.store[layer - self.layers.start]
        if self.uniform:
            store[:, self.end - self.new : self.end] = memory
        else:
            rows = torch.arange(store.shape[0], device=store.device)[:, None]
            store[rows, self.positions] = memory
        return store[:, : self.end]

    @property
    def mask(self) -> Tensor | None:
        """[B, T, S], the slots that may be read; None where all in reach may."""
        return None if self.hidden is None else ~self.hidden

    def commit(self) -> None:
        """The forward pass is through: its tokens now belong to every row."""
        self.lengths = [length + self.new for length in self.lengths]

    def crop(self, lengths: list[int]) -> None:
        """Forget what lies beyond `lengths`, row by row: padding of a short prompt, or a rejected draft."""
        for row, (keep, has) in enumerate(zip(lengths, self.lengths, strict=True)):
            if not 0 <= keep <= has:
                raise InputError(f"row {row} of the cache holds {has} tokens and cannot be cropped to {keep}")
        self.lengths = list(lengths)

    def select(self, rows: list[int]) -> None:
        """Keep these rows only, in this order; a row named twice becomes two."""
        self.store = self.store[:, torch.tensor(rows, device=self.store.device)]
        self.lengths = [self.lengths[row] for row in rows]

    def take_from(self, other: LatentCache, tokens: int) -> None:
        """Every row begins with the first `tokens` tokens of the single row of `other`: a prefix that all share."""
        if len(other.lengths) != 1 or not 0 <= tokens <= min(other.lengths[0], self.max_len):
            raise InputError(
                f"{tokens} tokens cannot be taken from a cache whose rows hold {other.lengths} into one with room for "
                f"{self.max_len}: it must be one row that holds them"
            )
        self.store[:, :, :tokens] = other.store[:, :, :tokens]
        self.lengths = [tokens] * len(self.lengths)
