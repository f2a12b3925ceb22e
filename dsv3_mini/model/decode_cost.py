"""What one decode step of an attention layer costs, by arithmetic: operations and bytes (§2.1.1; no torch).

Decoding is a race between two clocks: the arithmetic of the device, and its memory, out of which weights and cache must
be fetched. Which of the two is slower follows from the *intensity*, the operations for each byte that is fetched. This
module counts both, for three ways to decode with latent attention that give the same numbers:

* `absorbed`: the cache holds latents, and W^UK and W^UV go to the query and to the output (D10);
* `expanded`: the cache holds latents, and the keys and values of the whole past are rebuilt from them at every step;
* `naive`: the cache holds the keys and values of all heads.

Where the counts come from. Shapes: D model width, H heads, N, R content and positional width of a key, V width of a
value, C latent, C' latent of the queries, S tokens in the memory (the new ones included). A matrix [a, b] times a
vector is a * b multiplications and as many additions: 2ab operations. For each new token:

    with the weights   D C' + C' H (N + R)   query, down and up
                     + D (C + R)             latent and positional key
                     + H V D                 output
                     + H C (N + V)           W^UK and W^UV, once: absorbed onto its query and its output, or (naive) its
                                             own key and value. Not in `expanded`, which uses them on the past:
    with the memory    absorbed              H S (C + R)  scores      + H S C  sum of the latents
                       naive, expanded       H S (N + R)  scores      + H S V  sum of the values
    rebuilding         expanded only         S H C (N + V), for a whole row of the batch, however many its new tokens

Softmax, norms and rotations are left out: they are few operations and need no weights. A causal mask is not counted
either: with several new tokens their products with each other are computed and thrown away, as the plain formula does.
Bytes are what must be read: every weight once a step, whatever the batch; the whole memory of each row once. What the
new tokens write, and the vectors between the products, are small beside that when few tokens are new.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dsv3_mini.checks import is_count, require
from dsv3_mini.config import ModelConfig

Way = Literal["absorbed", "expanded", "naive"]
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True)
class DecodeCost:
    """Operations and bytes of one step of one layer, for all rows of the batch together."""

    weight_flops: int  # products of the new tokens with weights: the same at any context
    memory_flops: int  # everything that grows with the context
    weight_bytes: int
    memory_bytes: int

    @property
    def flops(self) -> int:
        """All operations."""
        return self.weight_flops + self.memory_flops

    @property
    def bytes(self) -> int:
        """All bytes that must be read (for rebuilt keys and values that are written out: written and read)."""
        return self.weight_bytes + self.memory_bytes

    @property
    def memory_intensity(self) -> float:
        """Operations for each byte of the memory."""
        return self.memory_flops / self.memory_bytes

    @property
    def weight_intensity(self) -> float:
        """Operations for each byte of the weights."""
        return self.weight_flops / self.weight_bytes

    def seconds(self, peak: float, bandwidth: float) -> float:
        """The least time the step can take on a device of `peak` operations and `bandwidth` bytes per second.

        Weights first, then memory; in each part the slower of the two clocks decides. This is a bound, not a
        forecast: real kernels stay above it.
        """
        weights = max(self.weight_flops / peak, self.weight_bytes / bandwidth)
        memory = max(self.memory_flops / peak, self.memory_bytes / bandwidth)
        return weights + memory


def decode_cost(
    cfg: ModelConfig,
    way: Way,
    context: int,
    *,
    batch: int = 1,
    new: int = 1,
    bytes_per_number: int = 2,
    written_out: bool = False,
) -> DecodeCost:
    """Count one step of one attention layer.

    Args:
        cfg: the sizes.
        way: `absorbed`, `expanded` or `naive`.
        context: S, tokens that each new one attends to, itself included.
        batch: rows, each with a memory of its own.
        new: new tokens in a row: 1 when decoding, 2 with one drafted token, all of S in a prefill.
        bytes_per_number: 2 for BF16, for weights and memory alike.
        written_out: `expanded` only: the rebuilt keys and values go to memory and come back, as they do between two
            separate operations. Otherwise they are used up where they are made.

    Raises `InputError` that names the argument.
    """
    require(way in WAYS, "way", way, f"one of {', '.join(WAYS)}")
    for name, value in (("context", context), ("batch", batch), ("new", new), ("bytes_per_number", bytes_per_number)):
        require(is_count(value), name, value, "a whole number of at least 1")
    require(new <= context, "new", new, f"at most context = {context}, which includes the new tokens")

    heads, latent, rope = cfg.num_attention_heads, cfg.kv_lora_rank, cfg.qk_rope_head_dim
    key, value_dim = cfg.qk_head_dim, cfg.v_head_dim
    up = heads * latent * (cfg.qk_nope_head_dim + value_dim)  # numbers in W^UK and W^UV
    others = _projections(cfg)  # numbers in all other matrices
    tokens, pairs = batch * new, batch * new * context

    if way == "absorbed":
        with_weights, with_memory = tokens * (others + up), pairs * heads * (latent + rope + latent)
        read = latent + rope  # numbers of the memory for each token of the past
    elif way == "naive":
        with_weights, with_memory = tokens * (others + up), pairs * heads * (key + value_dim)
        read = heads * (key + value_dim)
    else:
        with_weights, with_memory = tokens * others, pairs * heads * (key + value_dim) + batch * context * up
        read = latent + rope
        if written_out:
            read += 2 * heads * (cfg.qk_nope_head_dim + value_dim)  # once out, once in
    return DecodeCost(
        weight_flops=2 * with_weights,
        memory_flops=2 * with_memory,
        weight_bytes=(others + up) * bytes_per_number,
        memory_bytes=batch * context * read * bytes_per_number,
    )


def _projections(cfg: ModelConfig) -> int:
    """Numbers in the matrices of a layer, without W^UK and W^UV."""
    queries = cfg.num_attention_heads * cfg.qk_head_dim
    if cfg.q_lora_rank is None:
        query_path = cfg.hidden_size * queries
    else:
        query_path = cfg.q_lora_rank * (cfg.hidden_size + queries)
    memory_path = cfg.hidden_size * cfg.cache_width
    return query_path + memory_path + cfg.num_attention_heads * cfg.v_head_dim * cfg.hidden_size
