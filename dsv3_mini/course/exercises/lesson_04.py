"""Exercises of lesson 04, Multi-head latent attention: what is cached, how large it is, how the checkpoint stores it.

References and mistakes are written as a learner would write them in the lesson, without type hints.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from dsv3_mini import ModelConfig
from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.model.rope import RotaryEmbedding, apply_rope, apply_rope_half_split


def one_of(generator: Generator, *choices: Any) -> Any:
    return choices[int(torch.randint(len(choices), (1,), generator=generator))]


def small_config(generator: Generator) -> ModelConfig:
    """All widths different, so that no mix-up can hide; the eps of the other norms is not that of the latents."""
    return ModelConfig.preset(
        "nano",
        hidden_size=one_of(generator, 44, 52),
        num_attention_heads=one_of(generator, 3, 5),
        num_hidden_layers=one_of(generator, 7, 9),
        kv_lora_rank=one_of(generator, 20, 36),
        qk_rope_head_dim=one_of(generator, 6, 8),
        qk_nope_head_dim=one_of(generator, 10, 14),
        v_head_dim=one_of(generator, 16, 18),
        rms_norm_eps=1e-5,
    )


# -- 4.1 --


def cache_bytes(config, bytes_per_number=2):
    """A ModelConfig -> bytes that one token takes in the cache, over all layers."""
    numbers = config.kv_lora_rank + config.qk_rope_head_dim  # the latent and the shared key
    return numbers * config.num_hidden_layers * bytes_per_number


def cache_bytes_cases(generator: Generator) -> list[Case]:
    return [
        Case((small_config(generator),), note="two bytes a number"),
        Case((small_config(generator), 4), note="four bytes a number"),
        Case((small_config(generator), 1), note="one byte a number"),
    ]


def cache_bytes__of(numbers):
    return lambda config, bytes_per_number=2: numbers(config) * config.num_hidden_layers * bytes_per_number


CACHE_BYTES = Exercise(
    id="4.1",
    idea="mla",
    title="The cache of a whole model",
    minutes=5,
    answer="cache_bytes",
    reference=cache_bytes,
    cases=cache_bytes_cases,
    mistakes=(
        Mistake(
            "latent alone",
            cache_bytes__of(lambda c: c.kv_lora_rank),
            "That is the latent alone. It carries no position: what else has to be in the cache for the scores?",
        ),
        Mistake(
            "positional key alone",
            cache_bytes__of(lambda c: c.qk_rope_head_dim),
            "That is the positional key alone. Content keys and values have to come from something in the cache, too.",
        ),
        Mistake(
            "one layer",
            lambda config, bytes_per_number=2: config.cache_width * bytes_per_number,
            "That is one layer. Every layer has a cache of its own.",
        ),
        Mistake(
            "numbers",
            lambda config, bytes_per_number=2: config.cache_width * config.num_hidden_layers,
            "You count numbers, and bytes are asked for: how many does each number take?",
        ),
        Mistake(
            "always two bytes",
            lambda config, bytes_per_number=2: config.cache_width * config.num_hidden_layers * 2,
            "You always take two bytes a number. The function is told how many, in `bytes_per_number`.",
        ),
        Mistake(
            "keys and values",
            cache_bytes__of(lambda c: 2 * c.cache_width),
            "You count everything twice, as if keys and values were cached apart. They come out of one latent, which "
            "is cached once.",
        ),
        Mistake(
            "latent twice",
            cache_bytes__of(lambda c: 2 * c.kv_lora_rank + c.qk_rope_head_dim),
            "You count the latent twice, once for the keys and once for the values. Both come out of the same one.",
        ),
        Mistake(
            "positional key of each head",
            cache_bytes__of(lambda c: c.kv_lora_rank + c.num_attention_heads * c.qk_rope_head_dim),
            "You count a positional key for each head. All heads share one.",
        ),
        Mistake(
            "all for each head",
            cache_bytes__of(lambda c: c.num_attention_heads * c.cache_width),
            "You multiply by the number of heads. Neither the latent nor the positional key belongs to a head.",
        ),
        Mistake(
            "content key",
            cache_bytes__of(lambda c: c.kv_lora_rank + c.qk_nope_head_dim),
            "You add the width of the content part of a key. That part comes out of the latent again; it is the part "
            "with the position that cannot.",
        ),
        Mistake(
            "one value",
            cache_bytes__of(lambda c: c.kv_lora_rank + c.v_head_dim),
            "You add the width of a value. Values come out of the latent again; what else do the scores need?",
        ),
        Mistake(
            "no brackets",
            lambda config, bytes_per_number=2: (
                config.kv_lora_rank + config.qk_rope_head_dim * config.num_hidden_layers * bytes_per_number
            ),
            "Only the second width is multiplied: a product binds more tightly than a sum, so brackets are missing.",
        ),
        Mistake(
            "hidden state",
            cache_bytes__of(lambda c: c.hidden_size),
            "That is a cache of hidden states. All keys could be made from them, but MLA keeps less than that.",
        ),
        Mistake(
            "sizes of V3",
            cache_bytes__of(lambda c: 512 + 64),
            "You use the widths of V3. The function is given a config: take the widths from it.",
        ),
        Mistake(
            "answer for V3",
            lambda config, bytes_per_number=2: 70_272,
            "That is the number for V3. The function is given a config, and should work for any.",
        ),
        Mistake(
            "plain attention",
            cache_bytes__of(lambda c: 2 * c.num_attention_heads * c.v_head_dim),
            "That is the cache of plain attention, with keys and values of all heads.",
        ),
        Mistake(
            "query latent",
            cache_bytes__of(lambda c: c.q_lora_rank + c.cache_width),
            "You count the latent of the queries, too. Queries are used once, at their own step, and never cached.",
        ),
        Mistake(
            "expanded",
            cache_bytes__of(lambda c: c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim)),
            "That is the cache of the expanded keys and values of all heads. They can be made again from something "
            "much smaller.",
        ),
    ),
    hints=(
        "Look at the picture under `attend`: two boxes have a double frame. How wide is each of them?",
        "One token leaves these two vectors in every layer: multiply by the layers, then by the bytes a number.",
        "The widths are `config.kv_lora_rank` and `config.qk_rope_head_dim`; the layers are "
        "`config.num_hidden_layers`.",
    ),
    after="Try cache_bytes(v3): it is the number of the table above.",
)


# -- 4.2 --

EQUAL_GROUPS = Exercise(
    id="4.2",
    idea="kv_cache",
    title="The grouped-query attention with the same cache",
    minutes=5,
    answer="equal_groups",
    reference="equal_groups = (d_c + d_r) / (2 * d_h)",
    value=2.25,
    mistakes=(
        Mistake("keys only", 4.5, "You count one vector a group. A group caches a key and a value."),
        Mistake(
            "latent alone",
            2.0,
            "That fits the latent alone (or is rounded). MLA caches the positional key as well, and the answer need "
            "not be a whole number.",
        ),
        Mistake("latent alone, keys only", 4.0, "A group caches a key and a value, and MLA more than the latent."),
        Mistake("against MHA", 512 / 9, "That is how many times smaller than plain attention it is, not the groups."),
        Mistake("against MHA, one decimal", 56.9, "That is how many times smaller than plain attention it is."),
        Mistake("against MHA, two decimals", 56.89, "That is how many times smaller than plain attention it is."),
        Mistake("against MHA, rounded", 57.0, "That is how many times smaller than plain attention it is."),
        Mistake(
            "whole keys",
            576 / (192 + 128),
            "You give a group the key of MLA, content and position. A plain group has a key and a value of width d_h.",
        ),
        Mistake("upside down", 256 / 576, "Turn it round: how many times does one group go into the cache of MLA?"),
        Mistake(
            "two vectors too many", 1.125, "You divide by two once too often: d_c and d_r are cached once, not twice."
        ),
        Mistake("numbers", 576.0, "These are the numbers that MLA caches. How many groups cache as many?"),
        Mistake(
            "numbers of a group",
            256.0,
            "These are the numbers that one group caches. How many groups cache as many as MLA does?",
        ),
        Mistake("one key for each head", 128.0, "128 groups are plain attention: each head with a key of its own."),
    ),
    hints=(
        "How many numbers does one group cache per token and layer, and how many does MLA?",
        "A group has one key and one value, each `d_h` wide; MLA has `d_c` and `d_r`. Divide.",
    ),
    after="A quarter of a group more than two, and yet all heads have keys and values of their own.",
)


# -- 4.3 --


def score_scale(config):
    """A ModelConfig -> the factor in front of q . k."""
    return (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5


def score_scale__content_only(config):
    """A ModelConfig -> the factor in front of q . k."""
    return config.qk_nope_head_dim**-0.5


SCORE_SCALE = Exercise(
    id="4.3",
    idea="mla",
    title="The factor in front of the scores",
    minutes=5,
    answer="score_scale",
    reference=score_scale,
    cases=lambda generator: [Case((small_config(generator),)), Case((ModelConfig.preset("v3-671b"),), note="V3")],
    mistakes=(
        Mistake(
            "content width",
            score_scale__content_only,
            "That is the width of the content part. The scores of a key add up over both of its parts.",
        ),
        Mistake(
            "positional width",
            lambda config: config.qk_rope_head_dim**-0.5,
            "That is the width of the positional part. The scores of a key add up over both of its parts.",
        ),
        Mistake(
            "value width",
            lambda config: config.v_head_dim**-0.5,
            "That is the width of a value. Values play no part in a score: look at the width of a whole key.",
        ),
        Mistake(
            "latent width",
            lambda config: config.kv_lora_rank**-0.5,
            "That is the width of the latent. Scores compare queries with keys, and these are narrower.",
        ),
        Mistake(
            "cache width",
            lambda config: config.cache_width**-0.5,
            "That is the width of what is cached. In the absorbed form of lesson 05 the vectors are as wide as that, "
            "but the scores are the same numbers, so their scale is the same, too.",
        ),
        Mistake(
            "with the value",
            lambda config: (config.qk_head_dim + config.v_head_dim) ** -0.5,
            "You add the width of a value. Values play no part in a score.",
        ),
        Mistake(
            "all heads",
            lambda config: (config.num_attention_heads * config.qk_head_dim) ** -0.5,
            "You take the keys of all heads together. Each head has scores of its own, from one key.",
        ),
        Mistake(
            "positional parts of all heads",
            lambda config: (config.qk_nope_head_dim + config.num_attention_heads * config.qk_rope_head_dim) ** -0.5,
            "You count the positional part once for every head. A key of one head has it once.",
        ),
        Mistake(
            "hidden size",
            lambda config: config.hidden_size**-0.5,
            "That is the width of a token. Scores compare the queries and keys of one head.",
        ),
        Mistake(
            "width itself",
            lambda config: config.qk_head_dim,
            "That is the width of a key. What is asked for is the factor that it leads to (Eq. 10).",
        ),
        Mistake(
            "answer for V3",
            lambda config: 192**-0.5,
            "That is the number for V3. The function is given a config, and should work for any.",
        ),
        Mistake(
            "model width",
            lambda config: (config.hidden_size / config.num_attention_heads) ** -0.5,
            "You divide the width of a token among the heads, as in plain attention. In MLA the width of a head is "
            "chosen freely.",
        ),
        Mistake(
            "two roots",
            lambda config: config.qk_nope_head_dim**-0.5 + config.qk_rope_head_dim**-0.5,
            "You take two roots and add them. Add the widths first: it is one key of two parts.",
        ),
        Mistake(
            "product",
            lambda config: (config.qk_nope_head_dim * config.qk_rope_head_dim) ** -0.5,
            "You multiply the widths. The parts stand side by side in one key, so their widths add up.",
        ),
        Mistake(
            "one over it",
            lambda config: (config.qk_nope_head_dim + config.qk_rope_head_dim) ** 0.5,
            "Scores are divided by this number. The factor in front is one over it.",
        ),
        Mistake(
            "no root",
            lambda config: 1 / (config.qk_nope_head_dim + config.qk_rope_head_dim),
            "The width is right, its square root is missing.",
        ),
    ),
    hints=(
        "Plain attention divides by the square root of the width of a key. Which vectors meet in a score of MLA?",
        "Eq. 4: a key is a content part and a positional part side by side. How wide is that?",
    ),
    after="At the size of V3 it is 0.07217, and with YaRN the package multiplies it by one more factor (lesson 15).",
)


# -- 4.4 --


def split_kv_b(weight, heads, nope_dim):
    """kv_b_proj.weight [H * (N + V), C] -> W^UK [H, N, C] and W^UV [H, V, C]."""
    by_head = weight.unflatten(0, (heads, -1))  # [H, N + V, C]
    return by_head[:, :nope_dim], by_head[:, nope_dim:]


def split_kv_b__cut_once(weight, heads, nope_dim):
    """kv_b_proj.weight [H * (N + V), C] -> W^UK [H, N, C] and W^UV [H, V, C]."""
    keys, values = weight[: heads * nope_dim], weight[heads * nope_dim :]
    return keys.unflatten(0, (heads, -1)), values.unflatten(0, (heads, -1))


def split_kv_b__heads_inside(weight, heads, nope_dim):
    by_row = weight.unflatten(0, (-1, heads)).transpose(0, 1)  # row r belongs to head r % heads
    return by_row[:, :nope_dim], by_row[:, nope_dim:]


def split_kv_b__values_first(weight, heads, nope_dim):
    by_head = weight.unflatten(0, (heads, -1))
    value_dim = by_head.shape[1] - nope_dim
    return by_head[:, value_dim:], by_head[:, :value_dim]


def split_kv_b_cases(generator: Generator) -> list[Case]:
    c = small_config(generator)
    rows = c.qk_nope_head_dim + c.v_head_dim
    weight = torch.randn(c.num_attention_heads * rows, c.kv_lora_rank, generator=generator)
    return [
        Case((weight, c.num_attention_heads, c.qk_nope_head_dim)),
        Case((weight[:rows], 1, c.qk_nope_head_dim), note="a single head"),
    ]


SPLIT_KV_B = Exercise(
    id="4.4",
    idea="mla",
    title="Cut a fused matrix of the checkpoint",
    minutes=10,
    answer="split_kv_b",
    reference=split_kv_b,
    cases=split_kv_b_cases,
    dims=("H N C", "H V C"),
    mistakes=(
        Mistake(
            "cut once",
            split_kv_b__cut_once,
            "You cut the matrix once, as if all keys came first and all values after them. It is stacked head by "
            "head: the rows of one head lie together.",
        ),
        Mistake(
            "values first",
            split_kv_b__values_first,
            "Within a head you take the rows of the value first. In the checkpoint those of the key come first.",
        ),
        Mistake(
            "swapped",
            lambda weight, heads, nope_dim: split_kv_b(weight, heads, nope_dim)[::-1],
            "Each part is right, and the two are swapped: W^UK is asked for first.",
        ),
        Mistake(
            "heads dealt out",
            split_kv_b__heads_inside,
            "You give row 0 to the first head, row 1 to the second, and so on, like cards. The rows of one head lie "
            "together.",
        ),
        Mistake(
            "flat",
            lambda weight, heads, nope_dim: tuple(t.flatten(0, 1) for t in split_kv_b(weight, heads, nope_dim)),
            "The rows are the right ones; the heads are missing as a dimension of their own: [H, N, C], not "
            "[H * N, C].",
        ),
        Mistake(
            "cut once, flat",
            lambda weight, heads, nope_dim: (weight[: heads * nope_dim], weight[heads * nope_dim :]),
            "You cut the matrix once, as if all keys came first and all values after them. It is stacked head by head, "
            "and the heads should be a dimension of the result.",
        ),
        Mistake(
            "not split",
            lambda weight, heads, nope_dim: weight.unflatten(0, (heads, -1)),
            "Sorted by head, and not cut yet: within each head the rows of the key have to be told from those of the "
            "value. Give back two tensors.",
        ),
        Mistake(
            "cut in the middle",
            lambda weight, heads, nope_dim: weight.unflatten(0, (heads, -1)).chunk(2, dim=1),
            "You cut each head in the middle. Keys and values need not be equally wide: the cut is after the N rows of "
            "the key.",
        ),
        Mistake(
            "pieces of N",
            lambda weight, heads, nope_dim: weight.unflatten(0, (heads, -1)).split(nope_dim, dim=1),
            "split(N) cuts into pieces of N rows until nothing is left. Two pieces are asked for: N rows, and all the "
            "others.",
        ),
        Mistake(
            "keys only",
            lambda weight, heads, nope_dim: split_kv_b(weight, heads, nope_dim)[0],
            "That is W^UK, and it is right. W^UV is asked for as well: give back both.",
        ),
        Mistake(
            "transposed",
            lambda weight, heads, nope_dim: tuple(t.mT for t in split_kv_b(weight, heads, nope_dim)),
            "The rows are the right ones, but each matrix is transposed: C, the width of the latent, comes last.",
        ),
    ),
    hints=(
        "Draw the rows for two heads: N rows of the first head's key, V rows of its value, and then?",
        "Make the head a dimension of its own first: [H * (N + V), C] -> [H, N + V, C]. `unflatten` does that, or "
        "`view`.",
        "Now each head is a block of N + V rows, and one cut at N along dimension 1 does the rest.",
    ),
    after="Absorption in lesson 05 begins with this cut.",
)


# -- 4.5 --


class LatentMemory(nn.Module):
    """What a layer caches: x [B, T, D] -> [B, T, C + R], the latents and behind them the positional keys."""

    def __init__(self, config):
        super().__init__()
        self.C, self.R = config.kv_lora_rank, config.qk_rope_head_dim
        self.kv_a_proj_with_mqa = nn.Linear(config.hidden_size, self.C + self.R, bias=False)  # [W^DKV; W^KR]
        self.kv_a_layernorm = nn.RMSNorm(self.C, eps=1e-6)

    def forward(self, x, cos, sin):
        latent, key = self.kv_a_proj_with_mqa(x).split([self.C, self.R], dim=-1)
        key = apply_rope(key.unsqueeze(-2), cos, sin).squeeze(-2)  # [B, T, 1, R]: one head
        return torch.cat([self.kv_a_layernorm(latent), key], dim=-1)


class LatentMemory__key_per_head(nn.Module):
    """What a layer caches: everything comes out of the latent, and each head has a positional key of its own."""

    def __init__(self, config):
        super().__init__()
        self.H, self.R = config.num_attention_heads, config.qk_rope_head_dim
        self.kv_a_proj = nn.Linear(config.hidden_size, config.kv_lora_rank, bias=False)
        self.kv_a_layernorm = nn.RMSNorm(config.kv_lora_rank, eps=1e-6)
        self.k_rope_proj = nn.Linear(config.kv_lora_rank, self.H * self.R, bias=False)

    def forward(self, x, cos, sin):
        latent = self.kv_a_layernorm(self.kv_a_proj(x))  # [B, T, C]
        keys = self.k_rope_proj(latent).unflatten(-1, (self.H, self.R))  # [B, T, H, R]
        return torch.cat([latent, apply_rope(keys, cos, sin).flatten(-2)], dim=-1)


class LatentMemory__raw_latent(nn.Module):
    """What a layer caches: x [B, T, D] -> [B, T, C + R]. The up-projections take care of the norm."""

    def __init__(self, config):
        super().__init__()
        self.C, self.R = config.kv_lora_rank, config.qk_rope_head_dim
        self.kv_a_proj_with_mqa = nn.Linear(config.hidden_size, self.C + self.R, bias=False)
        self.kv_a_layernorm = nn.RMSNorm(self.C, eps=1e-6)

    def forward(self, x, cos, sin):
        latent, key = self.kv_a_proj_with_mqa(x).split([self.C, self.R], dim=-1)
        key = apply_rope(key.unsqueeze(-2), cos, sin).squeeze(-2)  # [B, T, 1, R]: one head
        return torch.cat([latent, key], dim=-1)


def latent_memory(forward=LatentMemory.forward, eps=1e-6, norm=None, projection=None):
    """A `LatentMemory` with something else in one place."""

    class Changed(LatentMemory):
        def __init__(self, config):
            super().__init__(config)
            if projection is not None:
                self.kv_a_proj_with_mqa = projection(config)
            self.kv_a_layernorm = nn.RMSNorm(self.C, eps=eps) if norm is None else norm(config)

    Changed.forward = forward  # type: ignore[method-assign]
    return Changed


def both_normalised(self, x, cos, sin):
    latent, key = self.kv_a_proj_with_mqa(x).split([self.C, self.R], dim=-1)
    key = key * (key.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    return torch.cat([self.kv_a_layernorm(latent), turned(key, cos, sin)], dim=-1)


def normalised_as_one(self, x, cos, sin):
    whole = self.kv_a_proj_with_mqa(x)
    scale = (whole.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    latent, key = (whole * scale).split([self.C, self.R], dim=-1)
    return torch.cat([latent * self.kv_a_layernorm.weight, turned(key, cos, sin)], dim=-1)


def key_not_turned(self, x, cos, sin):
    latent, key = self.kv_a_proj_with_mqa(x).split([self.C, self.R], dim=-1)
    return torch.cat([self.kv_a_layernorm(latent), key], dim=-1)


def key_turned_half_split(self, x, cos, sin):
    latent, key = self.kv_a_proj_with_mqa(x).split([self.C, self.R], dim=-1)
    key = apply_rope_half_split(key.unsqueeze(-2), cos, sin).squeeze(-2)
    return torch.cat([self.kv_a_layernorm(latent), key], dim=-1)


def key_rows_first(self, x, cos, sin):
    key, latent = self.kv_a_proj_with_mqa(x).split([self.R, self.C], dim=-1)
    return torch.cat([self.kv_a_layernorm(latent), turned(key, cos, sin)], dim=-1)


def key_in_front(self, x, cos, sin):
    latent, key = LatentMemory.forward(self, x, cos, sin).split([self.C, self.R], dim=-1)
    return torch.cat([key, latent], dim=-1)


def norm_weight_left_out(self, x, cos, sin):
    latent, key = LatentMemory.forward(self, x, cos, sin).split([self.C, self.R], dim=-1)
    return torch.cat([latent / self.kv_a_layernorm.weight, key], dim=-1)


def raw_and_unturned(self, x, cos, sin):
    return self.kv_a_proj_with_mqa(x)


def key_without_a_head(self, x, cos, sin):
    latent, key = self.kv_a_proj_with_mqa(x).split([self.C, self.R], dim=-1)
    return torch.cat([self.kv_a_layernorm(latent), apply_rope(key, cos, sin)], dim=-1)


def head_left_in(self, x, cos, sin):
    latent, key = self.kv_a_proj_with_mqa(x).split([self.C, self.R], dim=-1)
    return torch.cat([self.kv_a_layernorm(latent), apply_rope(key.unsqueeze(-2), cos, sin)], dim=-1)


def cut_the_other_way(self, x, cos, sin):
    latent, key = self.kv_a_proj_with_mqa(x).split([self.R, self.C], dim=-1)
    key = turned(key, cos, sin)
    return torch.cat([self.kv_a_layernorm(latent), key], dim=-1)


def latent_only(self, x, cos, sin):
    return LatentMemory.forward(self, x, cos, sin)[..., : self.C]


def two_parts(self, x, cos, sin):
    return LatentMemory.forward(self, x, cos, sin).split([self.C, self.R], dim=-1)


def turned(key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return apply_rope(key.unsqueeze(-2), cos, sin).squeeze(-2)


def latent_memory_cases(generator: Generator) -> list[Case]:
    config = small_config(generator)
    D, C, R = config.hidden_size, config.kv_lora_rank, config.qk_rope_head_dim
    weights = {
        "kv_a_proj_with_mqa.weight": torch.randn(C + R, D, generator=generator) / D**0.5,
        "kv_a_layernorm.weight": 1 + 0.3 * torch.rand(C, generator=generator),
    }
    T = one_of(generator, 4, 7)
    x = torch.randn(2, T, D, generator=generator)
    cos, sin = RotaryEmbedding(config)(torch.arange(3, 3 + T))
    return [
        Case((config, weights, x, cos, sin)),
        Case((config, weights, x[:, :1], cos[:1], sin[:1]), note="a single token"),
        Case((config, weights, x / 50, cos, sin), note="hidden states of a fiftieth of the size"),
    ]


def load_and_run(answer: Any, case: Case) -> dict[str, Any]:
    """Build the module, load weights under the names of the checkpoint, run it."""
    config, weights, *inputs = case.args
    module = answer(config)
    if not isinstance(module, nn.Module):
        raise TypeError("LatentMemory(config) should give an nn.Module")
    shapes = {name: str(list(weight.shape)) for name, weight in module.named_parameters()}
    if shapes != {name: str(list(weight.shape)) for name, weight in weights.items()}:
        return {"parameters": shapes, "cached": None}  # the weights cannot be loaded
    module.load_state_dict(weights, strict=False)
    with torch.no_grad():
        return {"parameters": shapes, "cached": module(*inputs)}


LATENT_MEMORY = Exercise(
    id="4.5",
    idea="mla",
    title="The cached part of MLA, as the checkpoint has it",
    minutes=20,
    answer="LatentMemory",
    reference=LatentMemory,
    cases=latent_memory_cases,
    use=load_and_run,
    mistakes=(
        Mistake(
            "key per head",
            LatentMemory__key_per_head,
            "The positional keys come out of the latent, one for each head. In MLA one key, made from the hidden "
            "state, serves all heads. The checkpoint has no weights for yours, and the cache would be many times "
            "as large.",
        ),
        Mistake(
            "raw latent",
            LatentMemory__raw_latent,
            "The latent goes into the cache without its norm. Whoever reads the cache hands it straight to the "
            "up-projections, and these were trained on normalised latents.",
        ),
        Mistake(
            "raw and unturned",
            latent_memory(forward=raw_and_unturned),
            "That is what the projection gives. Before it is cached the latent still needs its norm, and the key its "
            "turn.",
        ),
        Mistake(
            "key not turned",
            latent_memory(forward=key_not_turned),
            "The latent is right. The positional key goes into the cache unturned, so that it carries no position.",
        ),
        Mistake(
            "other layout",
            latent_memory(forward=key_turned_half_split),
            "The latent is right. The key is turned in the half-split layout, and DeepSeek-V3 takes neighbours "
            "(lesson 03).",
        ),
        Mistake(
            "key normalised",
            latent_memory(forward=both_normalised),
            "The latent is right. The positional key is normalised, too, and it should not be: the norm sits behind "
            "the latent only.",
        ),
        Mistake(
            "one norm over both",
            latent_memory(forward=normalised_as_one),
            "One norm runs over latent and positional key together. It belongs to the latent alone: cut first.",
        ),
        Mistake(
            "norm of both widths",
            latent_memory(norm=lambda c: nn.RMSNorm(c.kv_lora_rank + c.qk_rope_head_dim, eps=1e-6)),
            "`kv_a_layernorm` is as wide as latent and key together. It belongs to the latent alone.",
        ),
        Mistake(
            "key rows first",
            latent_memory(forward=key_rows_first),
            "You cut the key off the front of the projection. In the checkpoint the rows of the latent come first, "
            "those of the key behind them.",
        ),
        Mistake(
            "key in front",
            latent_memory(forward=key_in_front),
            "Both parts are right, but the key stands in front. The latent comes first, the key behind it.",
        ),
        Mistake(
            "norm weight left out",
            latent_memory(forward=norm_weight_left_out),
            "The latents have the right length, but the norm's weight, one number for each channel, is left out.",
        ),
        Mistake(
            "eps 1e-5",
            latent_memory(eps=1e-5),
            "The eps of the norm is 1e-5 (`config.rms_norm_eps` here). It shows with small hidden states only, and it "
            "is real all the same: the norms of the latents have an eps of their own, as in `compress`.",
        ),
        Mistake(
            "default eps",
            latent_memory(eps=None),
            "The norm has torch's own eps, which is smaller than 1e-6. It shows with small hidden states only: give "
            "the eps that `compress` has.",
        ),
        Mistake(
            "layer norm",
            latent_memory(norm=lambda c: nn.LayerNorm(c.kv_lora_rank, bias=False, eps=1e-6)),
            "That is a LayerNorm, which also takes the mean away. DeepSeek-V3 has RMSNorm, whatever the name in the "
            "checkpoint sounds like.",
        ),
        Mistake(
            "layer norm with bias",
            latent_memory(norm=lambda c: nn.LayerNorm(c.kv_lora_rank, eps=1e-6)),
            "That is a LayerNorm, with a bias that the checkpoint does not have. DeepSeek-V3 has RMSNorm, whatever the "
            "name sounds like.",
        ),
        Mistake(
            "bias",
            latent_memory(projection=lambda c: nn.Linear(c.hidden_size, c.cache_width)),
            "The projection has a bias, and the checkpoint has none for it: nn.Linear needs to be told.",
        ),
        Mistake(
            "no rows for the key",
            latent_memory(projection=lambda c: nn.Linear(c.hidden_size, c.kv_lora_rank, bias=False)),
            "`kv_a_proj_with_mqa` gives the latent alone. The checkpoint stacks W^KR under W^DKV: it gives the "
            "positional key as well.",
        ),
        Mistake(
            "projection the wrong way",
            latent_memory(projection=lambda c: nn.Linear(c.cache_width, c.hidden_size, bias=False)),
            "The projection goes the wrong way, from the cache to the hidden state. nn.Linear takes the width of its "
            "input first.",
        ),
        Mistake(
            "key without a head",
            latent_memory(forward=key_without_a_head),
            "`apply_rope` wants [B, T, H, R] and gets [B, T, R], so it takes the tokens for heads. Give the key a "
            "dimension for its one head.",
        ),
        Mistake(
            "head left in",
            latent_memory(forward=head_left_in),
            "The turned key has one dimension more than the latent. The dimension of the head stands in front of the "
            "channels for the turn, and has to go again after it.",
        ),
        Mistake(
            "cut the other way",
            latent_memory(forward=cut_the_other_way),
            "Look at the widths in your split: the latent, C numbers, comes first in the projection, and the key, R "
            "numbers, behind it.",
        ),
        Mistake(
            "latent only",
            latent_memory(forward=latent_only),
            "The positional key is missing in what you give back: it is cached beside the latent.",
        ),
        Mistake(
            "two parts",
            latent_memory(forward=two_parts),
            "Both parts are right. Give them back as one tensor, the latent first and the key behind it.",
        ),
    ),
    hints=(
        "It is `compress` of the lesson as a module. What is new: W^DKV and W^KR are one matrix here, C rows and then "
        "R rows.",
        "Two parts in __init__: `kv_a_proj_with_mqa`, a Linear without bias from `hidden_size` to C + R, and "
        "`kv_a_layernorm`, an nn.RMSNorm as wide as the latent, with the eps of `compress`.",
        "In forward: project, split([C, R], dim=-1), then one part goes through the norm and the other is turned. "
        "`apply_rope` wants [B, T, H, R], and the key has one head.",
        "unsqueeze(-2) before the turn and squeeze(-2) after it; torch.cat([...], dim=-1) puts the parts together.",
    ),
    after="That is all a layer of DeepSeek-V3 remembers of a token, and the released weights would load into it.",
)

EXERCISES = (CACHE_BYTES, EQUAL_GROUPS, SCORE_SCALE, SPLIT_KV_B, LATENT_MEMORY)
