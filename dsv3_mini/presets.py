"""The sizes of the course: `nano`, `mini`, `small`, and the real one (§4.2). `ModelConfig.preset` makes the configs."""

from __future__ import annotations

from typing import Any

from dsv3_mini.yarn_config import YarnConfig

# Every part of V3 is in every preset; only the sizes differ. What stays in proportion with the original: the dense
# FFN is exactly as wide as the experts a token uses (K_r + N_s), two experts per kept group (K_r / M = 2), half of
# the groups kept, d_h^R = d_h / 2, and an MTP module that is one more MoE block.
PRESETS: dict[str, dict[str, Any]] = {
    # Trains in minutes on two CPU cores.
    "nano": dict(
        vocab_size=4096, hidden_size=160, num_hidden_layers=3, first_k_dense_replace=1, intermediate_size=400,
        num_attention_heads=4, q_lora_rank=80, kv_lora_rank=48,
        qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
        n_routed_experts=16, num_experts_per_tok=4, moe_intermediate_size=80, n_group=4, topk_group=2,
        routed_scaling_factor=2.5, max_position_embeddings=4096,
    ),
    # An hour or two on one CPU core. Deep and narrow, so that one MTP module is a small part of a decoding step.
    "mini": dict(
        vocab_size=4096, hidden_size=192, num_hidden_layers=16, first_k_dense_replace=1, intermediate_size=320,
        num_attention_heads=6, q_lora_rank=96, kv_lora_rank=64,
        qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
        n_routed_experts=24, num_experts_per_tok=4, moe_intermediate_size=64, n_group=4, topk_group=2,
        routed_scaling_factor=2.5, max_position_embeddings=4096,
    ),
    # A serious run on one GPU.
    "small": dict(
        vocab_size=32768, hidden_size=1024, num_hidden_layers=12, first_k_dense_replace=1, intermediate_size=2304,
        num_attention_heads=16, q_lora_rank=512, kv_lora_rank=256,
        qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64,
        n_routed_experts=64, num_experts_per_tok=8, moe_intermediate_size=256, n_group=8, topk_group=4,
        routed_scaling_factor=2.5, max_position_embeddings=4096,
    ),
    # The real one (§4.2 and the released config): built on the meta device, to count and to name.
    "v3-671b": dict(
        vocab_size=129280, hidden_size=7168, num_hidden_layers=61, first_k_dense_replace=3, intermediate_size=18432,
        num_attention_heads=128, q_lora_rank=1536, kv_lora_rank=512,
        qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
        n_routed_experts=256, num_experts_per_tok=8, moe_intermediate_size=2048, n_group=8, topk_group=4,
        routed_scaling_factor=2.5, max_position_embeddings=163840, rope_scaling=YarnConfig(),
        initializer_range=0.006, bos_token_id=0, eos_token_id=1,
    ),
}  # fmt: skip
