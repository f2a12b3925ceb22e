"""Small models, ours and of `transformers`, for tests that write and read checkpoint folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.deepseek_v3 import DeepseekV3Config, DeepseekV3ForCausalLM

from dsv3_mini.config import ModelConfig, YarnConfig
from dsv3_mini.model.transformer import DeepSeekV3

# fp32: the two implementations sum in different orders and agree to a few 1e-6 on logits of standard deviation about 1.
LOGITS_TOLERANCE = 2e-5


# What the released model says, with the fields that its own code and others' look at.
RELEASED: dict[str, Any] = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "torch_dtype": "bfloat16",
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "transformers_version": "4.33.1",
    "vocab_size": 129280, "hidden_size": 7168, "num_hidden_layers": 61, "num_nextn_predict_layers": 1,
    "intermediate_size": 18432, "first_k_dense_replace": 3, "moe_layer_freq": 1, "hidden_act": "silu",
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "attention_bias": False,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048,
    "n_group": 8, "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc", "seq_aux": True, "aux_loss_alpha": 0.001, "ep_size": 1, "pretraining_tp": 1,
    "max_position_embeddings": 163840, "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
        "mscale": 1.0, "mscale_all_dim": 1.0,
    },
    "rms_norm_eps": 1e-06, "initializer_range": 0.02, "attention_dropout": 0.0, "tie_word_embeddings": False,
    "use_cache": True, "bos_token_id": 0, "eos_token_id": 1,
    "quantization_config": {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
    },
}  # fmt: skip


def tiny_hf_json(**changes: Any) -> dict[str, Any]:
    """A foreign config.json in the released spelling, small; `...` removes a field."""
    small = {
        "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "first_k_dense_replace": 1,
        "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 20,
        "kv_lora_rank": 12, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 14, "n_routed_experts": 8,
        "num_experts_per_tok": 3, "moe_intermediate_size": 16, "n_group": 4, "topk_group": 2,
        "max_position_embeddings": 256, "rope_scaling": None,
    }  # fmt: skip
    return {key: value for key, value in {**RELEASED, **small, **changes}.items() if value is not ...}


def tiny_config(**changes: Any) -> ModelConfig:
    """Every part of V3 in a model of some 30,000 parameters, no two widths alike."""
    fields: dict[str, Any] = dict(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=3,
        first_k_dense_replace=1,
        intermediate_size=40,
        num_attention_heads=4,
        q_lora_rank=20,
        kv_lora_rank=12,
        qk_nope_head_dim=10,
        qk_rope_head_dim=6,
        v_head_dim=14,
        n_routed_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=16,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        max_position_embeddings=64,
    )
    return ModelConfig(**{**fields, **changes})


def tiny_yarn(**changes: Any) -> YarnConfig:
    """YaRN whose ramp lies within the few RoPE pairs of `tiny_config`."""
    return YarnConfig(**{**dict(factor=8.0, original_max_position_embeddings=32, beta_fast=6.0), **changes})


def tiny_model(seed: int = 0, **changes: Any) -> DeepSeekV3:
    """A model with random weights, norms and routing biases, in eval mode."""
    return randomise(DeepSeekV3(tiny_config(**changes)), seed).eval()


def tiny_hf_model(seed: int = 0, **changes: Any) -> DeepseekV3ForCausalLM:
    """The like of `tiny_model` that has never met our code: config and weights are of `transformers`' making."""
    fields = dict(
        vocab_size=61, hidden_size=32, num_hidden_layers=3, first_k_dense_replace=1, intermediate_size=40,
        num_attention_heads=4, num_key_value_heads=4, q_lora_rank=20, kv_lora_rank=12, qk_nope_head_dim=10,
        qk_rope_head_dim=6, v_head_dim=14, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=16,
        n_group=4, topk_group=2, routed_scaling_factor=1.7, max_position_embeddings=64, rms_norm_eps=1e-5,
        eos_token_id=2,
    )  # fmt: skip
    return randomise(DeepseekV3ForCausalLM(DeepseekV3Config(**{**fields, **changes})), seed).eval()


def randomise(model: nn.Module, seed: int) -> Any:
    """Weights that make mistakes visible: norms away from 1, routing biases as wide as the scores."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.uniform_(0.8, 1.2, generator=generator)
            else:
                weight.normal_(0.0, 1.0 if "embed_tokens" in name else weight.shape[-1] ** -0.5, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.uniform_(-0.5, 0.5, generator=generator)
    return model


def some_tokens(seed: int = 0) -> Tensor:
    """Token ids [2, 23]."""
    return torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def distance(ours: DeepSeekV3, theirs: DeepseekV3ForCausalLM) -> float:
    """max |difference of logits| on some tokens."""
    tokens = some_tokens()
    return (ours(tokens).logits - theirs(tokens).logits).abs().max().item()


def load_with_transformers(folder: Path, **options: Any) -> DeepseekV3ForCausalLM:
    """Stock `from_pretrained`, which must find every key in its shape. (Keys of MTP modules it has no use for.)"""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not info["missing_keys"] and not info["mismatched_keys"] and not info["error_msgs"], info
    first_mtp_layer = model.config.num_hidden_layers
    strangers = [key for key in info["unexpected_keys"] if int(key.split(".")[2]) < first_mtp_layer]
    assert not strangers, strangers
    return model.eval()


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """The same names, types and bits."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def edit_json(path: Path, **changes: Any) -> None:
    """Change top-level fields of a JSON file; the value `...` removes one."""
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def edit_tensors(path: Path, **changes: Tensor | None) -> None:
    """Change, add (or with None remove) tensors of a safetensors file. In names, `__` stands for a dot."""
    tensors = {**load_file(path), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, metadata={"format": "pt"})


def tensor_names(path: Path) -> set[str]:
    """What a safetensors file holds."""
    with safe_open(path, "pt") as file:
        return set(file.keys())
