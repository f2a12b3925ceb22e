"""Exercise 4.5: the cached part of MLA, as the checkpoint has it.

Shapes: B texts, T tokens, D model width, H heads, C width of the latent, R positional width of a key.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_04.inputs import one_of, small_config
from dsv3_mini.model.rope import RotaryEmbedding, apply_rope, apply_rope_half_split


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
