"""Random inputs that several exercises of lesson 08 need."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dsv3_mini.config import ModelConfig


def _whole(generator: Generator, low: int, high: int) -> int:
    """A whole number from low to high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _randn(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _config(generator: Generator, **changes: object) -> ModelConfig:
    """A small model with no two sizes alike."""
    sizes = dict(
        vocab_size=_whole(generator, 200, 300),
        hidden_size=16 * _whole(generator, 4, 6),  # any share of an expert is then a whole number
        num_hidden_layers=_whole(generator, 3, 5),
        first_k_dense_replace=_whole(generator, 1, 2),
        intermediate_size=_whole(generator, 130, 160),
        num_attention_heads=_whole(generator, 3, 5),
        q_lora_rank=_whole(generator, 40, 50),
        kv_lora_rank=_whole(generator, 25, 35),
        qk_nope_head_dim=_whole(generator, 17, 20),
        qk_rope_head_dim=2 * _whole(generator, 3, 5),
        v_head_dim=_whole(generator, 12, 15),
        n_routed_experts=4 * _whole(generator, 3, 4),
        num_experts_per_tok=3,
        moe_intermediate_size=_whole(generator, 8, 11),
    )
    return ModelConfig.preset("nano", **{**sizes, **changes})
