"""Exercise 5.4: operations of the absorbed path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dsv3_mini.config import ModelConfig
from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_05.inputs import _size
from dsv3_mini.model.decode_cost import decode_cost


def absorbed_flops(cfg, context):
    N, R, V, C = cfg.qk_nope_head_dim, cfg.qk_rope_head_dim, cfg.v_head_dim, cfg.kv_lora_rank
    once = N * C + C * V  # the query absorbs W^UK, the sum goes through W^UV
    each = (C + R) + C  # a score and a share of the sum, for each token of the past
    return 2 * cfg.num_attention_heads * (once + context * each)


def _flops(once: Any, each: Any, factor: int = 2, heads: bool = True) -> Any:
    """A wrong count: operations once a step, and for each token of the past, of one head."""

    def count(cfg: ModelConfig, context: int) -> int:
        return factor * (cfg.num_attention_heads if heads else 1) * (once(cfg) + context * each(cfg))

    return count


def _up(cfg: ModelConfig) -> int:
    return cfg.kv_lora_rank * (cfg.qk_nope_head_dim + cfg.v_head_dim)


def _pair(cfg: ModelConfig) -> int:
    return 2 * cfg.kv_lora_rank + cfg.qk_rope_head_dim


def _flop_cases(generator: torch.Generator) -> Sequence[Case]:
    cfg = ModelConfig.preset(
        "nano",
        num_attention_heads=_size(generator, 3, 9),
        qk_nope_head_dim=_size(generator, 20, 40),
        qk_rope_head_dim=2 * _size(generator, 3, 9),
        v_head_dim=_size(generator, 41, 60),
        kv_lora_rank=_size(generator, 61, 90),
    )
    context = _size(generator, 100, 5000)
    return Case((cfg, context), note=f"{cfg.num_attention_heads} heads and {context} tokens"), Case((cfg, 1))


ABSORBED_FLOPS = Exercise(
    id="5.4",
    idea="mla",
    title="operations of the absorbed path",
    minutes=8,
    answer="absorbed_flops",
    reference=absorbed_flops,
    cases=_flop_cases,
    mistakes=(
        Mistake(
            "multiplications",
            _flops(_up, _pair, factor=1),
            "Those are the multiplications. Each comes with an addition: count both.",
        ),
        Mistake(
            "one head",
            _flops(_up, _pair, heads=False),
            "That is one head. All of them read the memory.",
        ),
        Mistake(
            "whole layer",
            lambda cfg, context: decode_cost(cfg, "absorbed", context).flops,
            "That is the whole layer, with the projections of the new token. Asked for is what lies between its query "
            "and the output of its heads.",
        ),
        Mistake(
            "all layers",
            lambda cfg, context: cfg.num_hidden_layers * absorbed_flops(cfg, context),
            "That is all layers; one is asked for.",
        ),
        Mistake(
            "pairs only",
            _flops(lambda cfg: 0, _pair),
            "What happens once for each new token is missing: the query absorbs W^UK, the sum goes through W^UV.",
        ),
        Mistake(
            "only the query absorbs",
            _flops(lambda cfg: cfg.kv_lora_rank * cfg.qk_nope_head_dim, _pair),
            "W^UV is missing: the summed latent still has to become a value.",
        ),
        Mistake(
            "scores only",
            _flops(_up, lambda cfg: cfg.kv_lora_rank + cfg.qk_rope_head_dim),
            "The weighted sum of the latents is missing: it also takes operations for each token of the past.",
        ),
        Mistake(
            "sum too wide",
            _flops(_up, lambda cfg: 2 * (cfg.kv_lora_rank + cfg.qk_rope_head_dim)),
            "The sum runs over latents only; the positional key takes part in the scores and nowhere else.",
        ),
        Mistake(
            "scores too narrow",
            _flops(_up, lambda cfg: 2 * cfg.kv_lora_rank),
            "The scores forget the positional part.",
        ),
        Mistake(
            "naive",
            _flops(_up, lambda cfg: cfg.qk_head_dim + cfg.v_head_dim),
            "Those are the widths of expanded keys and values. In the latent a score multiplies the whole memory, "
            "and the sum is one of latents.",
        ),
        Mistake(
            "rebuilt",
            _flops(lambda cfg: 0, lambda cfg: _up(cfg) + cfg.qk_head_dim + cfg.v_head_dim),
            "That is the path that rebuilds keys and values for each token of the past.",
        ),
        Mistake(
            "absorbed for each token",
            _flops(lambda cfg: 0, lambda cfg: _up(cfg) + _pair(cfg)),
            "W^UK and W^UV are used once for a new token, not once for each token of the past.",
        ),
    ),
    hints=(
        "There are four products for each head. Two of them happen once, two for each token of the past.",
        "Once: [N] times [N, C], and [C] times [C, V]. For each token: a product of width C + R, and C numbers "
        "times a share.",
        "A multiplication comes with an addition: 2 operations. Then all heads.",
    ),
    after="One more token of the past costs 2 H (2C + R) of them. For V3 that is more than a quarter of a million.",
)
