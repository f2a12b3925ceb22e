"""The two sides of a comparison: our model and transformers' DeepseekV3 with the same config and the same weights."""

from __future__ import annotations

from typing import Any

import torch

from dsv3_mini import DeepSeekV3, ModelConfig
from dsv3_mini.interop.config_json import config_to_hf


def build_pair(cfg: ModelConfig) -> tuple[DeepSeekV3, Any]:
    """Ours and theirs, equal weights, on the CPU in fp32. Theirs runs the experts as grouped products, like ours."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.manual_seed(0)
    ours = DeepSeekV3(cfg)
    plain = {k: v for k, v in config_to_hf(cfg).items() if k not in ("dsv3_mini", "architectures")}
    theirs = DeepseekV3ForCausalLM(
        DeepseekV3Config(**plain, attn_implementation="sdpa", experts_implementation="grouped_mm")
    )
    main_model = {k: v for k, v in ours.state_dict().items() if k in theirs.state_dict()}
    theirs.load_state_dict(main_model)
    tokens = torch.randint(0, cfg.vocab_size, (1, 32))
    with torch.no_grad():
        difference = (ours(tokens, mtp=False).logits - theirs(tokens).logits).abs().max().item()
    if difference > 2e-5:
        raise RuntimeError(f"the two sides differ by {difference}: there is nothing to compare")
    return ours, theirs
