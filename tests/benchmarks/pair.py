"""The two sides of a comparison: our model and transformers' DeepseekV3 with the same config and the same weights."""

from __future__ import annotations

from typing import Any

import torch

from dsv3_mini import DeepSeekV3, ModelConfig
from dsv3_mini.interop.config_json import config_to_hf


def build_pair(cfg: ModelConfig, device: str | torch.device = "cpu") -> tuple[DeepSeekV3, Any]:
    """Ours and theirs, equal weights, in fp32. Theirs runs the experts as grouped products, like ours."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        ours = DeepSeekV3(cfg)
    plain = {k: v for k, v in config_to_hf(cfg).items() if k not in ("dsv3_mini", "architectures")}
    with torch.device(device):
        theirs = DeepseekV3ForCausalLM(
            DeepseekV3Config(**plain, attn_implementation="sdpa", experts_implementation="grouped_mm")
        )
    main_model = {k: v for k, v in ours.state_dict().items() if k in theirs.state_dict()}
    theirs.load_state_dict(main_model)
    tokens = torch.randint(0, cfg.vocab_size, (1, 32), device=device)
    with torch.no_grad():
        differences = (ours(tokens, mtp=False).logits - theirs(tokens).logits).abs()
    # On a GPU models are deep and products rounded in another order: now and then a near-tie sends one token elsewhere.
    exact = torch.device(device).type == "cpu"
    difference = (differences.max() if exact else differences.median()).item()
    if difference > (2e-5 if exact else 1e-3):
        raise RuntimeError(f"the two sides differ by {difference}: there is nothing to compare")
    return ours, theirs
