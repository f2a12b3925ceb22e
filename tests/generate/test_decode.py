"""Generation: prompts of different lengths in one batch do not notice each other."""

from __future__ import annotations

import pytest
import torch

from dsv3_mini import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.generate.decode import generate
from dsv3_mini.model.transformer import DeepSeekV3


def test_prompts_of_different_lengths_continue_as_if_alone() -> None:
    torch.manual_seed(0)
    cfg = ModelConfig.preset("nano", vocab_size=97)
    model = DeepSeekV3(cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # fresh weights say nearly the same at every position
    prompts = [torch.randint(97, (length,)).tolist() for length in (5, 11, 1)]
    alone = [generate(model, [prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert len({tuple(row) for row in alone}) == 3
    assert generate(model, prompts, max_new_tokens=6) == alone


@torch.no_grad()
def test_a_dense_twin_generates_what_whole_passes_say() -> None:
    torch.manual_seed(0)
    model = DeepSeekV3(ModelConfig.preset("nano", vocab_size=97).dense_twin()).eval()
    for parameter in model.parameters():
        parameter.mul_(3)
    text = torch.randint(97, (9,)).tolist()
    (made,) = generate(model, [text], max_new_tokens=6)
    for token in made:
        assert model(torch.tensor([text]), mtp=False).logits[0, -1].argmax().item() == token
        text.append(token)


def test_a_model_with_plain_attention_says_that_it_cannot_generate() -> None:
    plain = dict(plain_kv_heads=2, qk_nope_head_dim=0, qk_rope_head_dim=32)
    model = DeepSeekV3(ModelConfig.preset("nano", vocab_size=97, **plain)).eval()
    with pytest.raises(InputError, match=r"plain_kv_heads = 2.*cannot generate"):
        generate(model, [[1, 2, 3]], max_new_tokens=2)
