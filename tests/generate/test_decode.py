"""Generation: prompts of different lengths in one batch do not notice each other."""

from __future__ import annotations

import torch

from dsv3_mini import ModelConfig
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
