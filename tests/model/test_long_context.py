"""YaRN by explicit flag: another way to read positions, around the very same weights."""

from __future__ import annotations

import pytest
import torch

from dsv3_mini import DeepSeekV3, ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.model.long_context import extended
from dsv3_mini.model.rope import rope_frequencies, softmax_scale

TINY = ModelConfig.preset(
    "nano", vocab_size=64, hidden_size=32, num_hidden_layers=2, intermediate_size=48, moe_intermediate_size=16,
    num_attention_heads=2, q_lora_rank=16, kv_lora_rank=16, max_position_embeddings=64,
)  # fmt: skip


@pytest.fixture
def model() -> DeepSeekV3:
    torch.manual_seed(0)
    return DeepSeekV3(TINY).eval()


def test_a_config_with_yarn_reads_as_far_as_asked_and_never_less_far_than_before() -> None:
    assert TINY.with_yarn(4, 32).max_position_embeddings == 128
    assert TINY.with_yarn(1.5, 32).max_position_embeddings == 64
    yarn = TINY.with_yarn(4, 32).rope_scaling
    assert (yarn.factor, yarn.original_max_position_embeddings) == (4, 32)
    assert (yarn.beta_fast, yarn.beta_slow) == (32, 1)  # the report's


@pytest.mark.parametrize(("factor", "original"), [(0.5, 32), (float("nan"), 32), (4, 0), ("4", 32), (4, 2.5)])
def test_a_factor_or_a_length_that_cannot_be_is_named(factor: float, original: int) -> None:
    with pytest.raises(InputError, match=r"rope_scaling\.(factor|original_max_position_embeddings)"):
        TINY.with_yarn(factor, original)


def test_extended_equals_a_model_that_was_built_with_yarn(model: DeepSeekV3) -> None:
    built = DeepSeekV3(TINY.with_yarn(4, 32)).eval()
    built.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 64, (2, 100))
    torch.testing.assert_close(extended(model, 4, 32)(tokens).logits, built(tokens).logits, rtol=0, atol=0)


def test_extended_shares_its_weights_and_leaves_the_model_as_it_was(model: DeepSeekV3) -> None:
    tokens = torch.randint(0, 64, (1, 50))
    before = model(tokens).logits
    longer = extended(model, 4, 32)
    assert not torch.allclose(longer(tokens).logits, before, atol=1e-3)
    torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=0)
    ours = dict(longer.named_parameters()) | dict(longer.named_buffers())
    for name, tensor in (dict(model.named_parameters()) | dict(model.named_buffers())).items():
        assert ours[name].data_ptr() == tensor.data_ptr(), name
    assert not longer.training


def test_every_layer_gets_the_frequencies_and_the_scale_of_yarn(model: DeepSeekV3) -> None:
    longer = extended(model, 4, 32)
    cfg = TINY.with_yarn(4, 32)
    torch.testing.assert_close(longer.model.rotary.frequencies, rope_frequencies(cfg), rtol=0, atol=0)
    scales = {layer.self_attn.scale for layer in longer.model.layers}
    assert scales == {softmax_scale(cfg)} != {softmax_scale(TINY)}


def test_a_factor_of_one_changes_nothing(model: DeepSeekV3) -> None:
    tokens = torch.randint(0, 64, (1, 50))
    torch.testing.assert_close(extended(model, 1, 64)(tokens).logits, model(tokens).logits)


def test_a_model_with_yarn_is_not_extended_again(model: DeepSeekV3) -> None:
    with pytest.raises(InputError, match="has YaRN already"):
        extended(extended(model, 4, 32), 4, 32)
