"""A block with plain attention instead of MLA: the layer of lessons 1 to 3, in the place of the other."""

from __future__ import annotations

import pytest
import torch

from dsv3_mini.model.attention import MultiHeadAttention
from dsv3_mini.model.block import Block
from dsv3_mini.model.mla import MLA
from dsv3_mini.model.rope import RotaryEmbedding
from dsv3_mini.model.transformer import DeepSeekV3

from .reference import small_config

PLAIN = dict(qk_nope_head_dim=0, qk_rope_head_dim=8, v_head_dim=8)


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_plain_attention_is_that_of_the_lessons(kv_heads: int) -> None:
    torch.manual_seed(0)
    cfg = small_config(plain_kv_heads=kv_heads, first_k_dense_replace=1, **PLAIN)
    block, alone = Block(cfg, 0), MultiHeadAttention(cfg.hidden_size, 4, 8, kv_heads)
    alone.load_state_dict(block.self_attn.state_dict())
    x, (cos, sin) = torch.randn(2, 7, cfg.hidden_size), RotaryEmbedding(cfg)(torch.arange(7))
    y = x + alone(block.input_layernorm(x), cos, sin)
    expected = y + block.mlp(block.post_attention_layernorm(y))
    torch.testing.assert_close(block(x, cos, sin)[0], expected)
    assert not torch.allclose(block(x, *RotaryEmbedding(cfg)(torch.arange(7) * 3))[0], expected), "positions count"


def test_every_layer_has_the_attention_that_was_asked_for() -> None:
    for changes, kind in (({}, MLA), (dict(plain_kv_heads=2, **PLAIN), MultiHeadAttention)):
        model = DeepSeekV3(small_config(num_nextn_predict_layers=1, **changes))
        assert len(model.model.layers) == 4 and all(type(layer.self_attn) is kind for layer in model.model.layers)
