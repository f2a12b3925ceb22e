"""Random inputs that several exercises of lesson 04 need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from dsv3_mini import ModelConfig


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
