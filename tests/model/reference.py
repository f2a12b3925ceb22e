"""Pairs of models with the same weights, one ours and one of `transformers`, and the distance between the two.

The parity tests and the mutation tests measure with the same functions from here, so that a mutation that goes
unnoticed says something about the parity tests and not about a second yardstick.

The weights are drawn to make mistakes expensive: norm weights of 1 +- 0.2 (a norm that forgets its weight shows),
latents of standard deviation 0.3 (a wrong epsilon shows), routing biases as wide as the scores (a forgotten bias
shows), query, key and value widths that all differ (a wrong reshape fails).
"""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import MtpModel
from transformers.models.deepseek_v3 import DeepseekV3Config, DeepseekV3ForCausalLM

from dsv3_mini.config import ModelConfig, YarnConfig
from dsv3_mini.model.transformer import DeepSeekV3

# Both sides agree to a few 1e-6 when logits have a standard deviation around 1: the order of the sums differs. The
# cheapest mistake we know (a wrong epsilon in MLA) costs more than three times this.
LOGITS_TOLERANCE = 2e-5


@dataclasses.dataclass
class Pair:
    """Our model and its twin; `hf_mtp` is None without MTP modules."""

    cfg: ModelConfig
    ours: DeepSeekV3
    hf: DeepseekV3ForCausalLM
    hf_mtp: MtpModel | None


def small_config(**changes: Any) -> ModelConfig:
    """A model small enough for a test of milliseconds, with all widths different and every part of V3 in it."""
    fields: dict[str, Any] = dict(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=3,
        first_k_dense_replace=1,
        intermediate_size=48,
        num_nextn_predict_layers=1,
        num_attention_heads=4,
        q_lora_rank=20,
        kv_lora_rank=12,
        qk_nope_head_dim=10,
        qk_rope_head_dim=6,
        v_head_dim=14,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=3,
        moe_intermediate_size=16,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,  # not the 1e-6 of the norms inside MLA: mixing them up must show
    )
    return ModelConfig(**{**fields, **changes})


def small_yarn(**changes: Any) -> YarnConfig:
    """YaRN whose ramp falls inside our few RoPE pairs, so that no pair is treated like its neighbour."""
    return YarnConfig(**{**dict(factor=8.0, original_max_position_embeddings=32, beta_fast=6.0), **changes})


# One list of values per choice; a random config takes one of each. `test_parity` checks that the grid meets them all.
CHOICES: dict[str, list[Any]] = {
    "q_lora_rank": [None, 20],
    "rope_scaling": [None, small_yarn(), small_yarn(factor=40.0, mscale=0.7, mscale_all_dim=1.0)],
    "experts": [(8, 1, 1, 3), (8, 4, 2, 3), (8, 2, 1, 4), (12, 3, 2, 2), (16, 4, 4, 5)],  # N_r, groups, kept, K_r
    "first_k_dense_replace": [0, 1, 2],
    "n_shared_experts": [1, 2],
    "head_dims": [(10, 6, 14), (8, 4, 6), (6, 10, 16), (4, 2, 8)],  # nope, rope, value
    "routed_scaling_factor": [1.0, 2.5, 0.7],
    "norm_topk_prob": [True, True, False],
    "num_nextn_predict_layers": [0, 1, 2],
    "rms_norm_eps": [1e-5, 1e-6],
    "rope_theta": [10000.0, 500.0],
    "bias": ["random", "negative", "negative", "random", "positive"],
    "attention": ["sdpa", "eager"],
    "hf_experts": ["eager", "grouped_mm"],
}


def random_choices(seed: int) -> dict[str, Any]:
    """One value per choice: the k-th seed of each round over a list meets each of its values once."""
    picked = {}
    for name, values in CHOICES.items():
        order = list(values)
        random.Random(f"{name}/{seed // len(values)}").shuffle(order)
        picked[name] = order[seed % len(values)]
    return picked


def random_pair(seed: int) -> Pair:
    """The pair number `seed` of the grid."""
    choice = random_choices(seed)
    n_routed, n_group, topk_group, top_k = choice["experts"]
    nope, rope, value = choice["head_dims"]
    plain = ("q_lora_rank rope_scaling first_k_dense_replace n_shared_experts routed_scaling_factor norm_topk_prob "
             "num_nextn_predict_layers rms_norm_eps rope_theta").split()  # fmt: skip
    cfg = small_config(
        n_routed_experts=n_routed,
        n_group=n_group,
        topk_group=topk_group,
        num_experts_per_tok=top_k,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=value,
        **{name: choice[name] for name in plain},
    )
    return make_pair(cfg, seed=seed, bias=choice["bias"], attention=choice["attention"], experts=choice["hf_experts"])


def hf_config(cfg: ModelConfig, attention: str = "sdpa", experts: str = "eager") -> DeepseekV3Config:
    """The same model in the words of `transformers`, written out here and not by our own interop."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": cfg.rope_theta}
    if cfg.rope_scaling is not None:
        rope = {"rope_type": "yarn", "rope_theta": cfg.rope_theta, **dataclasses.asdict(cfg.rope_scaling)}
    same_name = {f.name for f in dataclasses.fields(cfg)} - {"rope_scaling", "rope_theta", "balance_loss_alpha"}
    fields = {name: getattr(cfg, name) for name in same_name - {"initializer_range"}}
    return DeepseekV3Config(
        **fields,
        num_key_value_heads=cfg.num_attention_heads,
        rope_parameters=rope,
        rope_interleave=True,
        attn_implementation=attention,
        experts_implementation=experts,
    )


def randomise(model: nn.Module, kv_lora_rank: int, seed: int = 0, bias: str = "random") -> None:
    """Draw every weight as the module docstring says; `bias` is "random", "negative", "positive" or "zero"."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        with torch.no_grad():
            if weight.ndim == 1:  # norms
                weight.uniform_(0.8, 1.2, generator=generator)
                continue
            std = 1.0 if name.endswith("embed_tokens.weight") else weight.shape[-1] ** -0.5
            weight.normal_(0.0, std, generator=generator)
            if name.endswith("q_a_proj.weight"):
                weight.mul_(0.3)
            if name.endswith("kv_a_proj_with_mqa.weight"):
                weight[:kv_lora_rank].mul_(0.3)
    low, high = {"random": (-0.5, 0.5), "negative": (-1.6, -1.1), "positive": (1.5, 2.5), "zero": (0.0, 0.0)}[bias]
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.uniform_(low, high, generator=generator)


def make_pair(
    cfg: ModelConfig, *, seed: int = 0, bias: str = "random", attention: str = "sdpa", experts: str = "eager"
) -> Pair:
    """Build both models in eval mode with the same random weights, matched name by name, none left over."""
    ours = DeepSeekV3(cfg).eval()
    randomise(ours, cfg.kv_lora_rank, seed, bias)
    hf = DeepseekV3ForCausalLM(hf_config(cfg, attention, experts)).eval()
    # The MTP model re-initialises the embedding and head that it shares with the main model: fill both afterwards.
    hf_mtp = MtpModel(hf, cfg.num_nextn_predict_layers).eval() if cfg.num_nextn_predict_layers else None
    main, mtp = split_state(ours.state_dict(), cfg)
    hf.load_state_dict(main, strict=True)
    if hf_mtp is not None:
        missing, unexpected = hf_mtp.load_state_dict(mtp, strict=False)
        assert not unexpected and set(missing) == {"embed_tokens.weight", "shared_head.weight"}, (missing, unexpected)
    return Pair(cfg, ours, hf, hf_mtp)


def split_state(state: dict[str, Tensor], cfg: ModelConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our state dict as that of `DeepseekV3ForCausalLM` and that of `MtpModel`."""
    main, mtp = {}, {}
    for name, value in state.items():
        target = mtp_name(name, cfg)
        if target is None:
            main[name] = value
        else:
            mtp[target] = value
    return main, mtp


def mtp_name(name: str, cfg: ModelConfig) -> str | None:
    """Our `model.layers.{L+k}.X` as `MtpModel` calls it, or None for a name of the main model."""
    parts = name.split(".")
    if parts[:2] != ["model", "layers"] or int(parts[2]) < cfg.num_hidden_layers:
        return None
    depth, rest = int(parts[2]) - cfg.num_hidden_layers, ".".join(parts[3:])
    if rest.split(".")[0] in ("enorm", "hnorm", "eh_proj"):
        return f"layers.{depth}.{rest}"
    if rest == "shared_head.norm.weight":
        return f"layers.{depth}.post_norm.weight"
    return f"layers.{depth}.mtp_block.{rest}"


def random_tokens(cfg: ModelConfig, batch: int = 2, length: int = 23, seed: int = 0) -> Tensor:
    """Token ids [batch, length]."""
    return torch.randint(0, cfg.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1000 + seed))


def hf_forward(pair: Pair, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits [B,T,V] of `transformers`, and its MTP driven over a whole sequence (Eq. 21-23): by depth, [B,T-k,V]."""
    hidden = pair.hf.model(input_ids=tokens, use_cache=False).last_hidden_state  # after the final norm
    logits, mtp_logits = pair.hf.lm_head(hidden), []
    for k in range(1, pair.cfg.num_nextn_predict_layers + 1):
        ahead = tokens[:, k:]  # t_{i+k}, and with it its own position
        positions = torch.arange(k, tokens.shape[1]).expand_as(ahead)
        assert pair.hf_mtp is not None
        hidden = pair.hf_mtp.forward_layer(k - 1, hidden[:, : ahead.shape[1]], positions, None, input_ids=ahead)
        mtp_logits.append(pair.hf.lm_head(hidden))
    return logits, mtp_logits


def our_forward(pair: Pair, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and MTP logits of our model."""
    out = pair.ours(tokens)
    return out.logits, list(out.mtp_logits)


def max_diff(ours: Tensor, theirs: Tensor) -> float:
    """max |a - b|; infinite for different shapes or anything that is not a finite number."""
    if ours.shape != theirs.shape or not torch.isfinite(ours).all():
        return math.inf
    return (ours.float() - theirs.float()).abs().max().item()


@torch.no_grad()
def logits_distance(pair: Pair, tokens: Tensor) -> tuple[float, float]:
    """Largest difference of the main logits, and of the MTP logits over all depths."""
    (ours, ours_mtp), (theirs, theirs_mtp) = our_forward(pair, tokens), hf_forward(pair, tokens)
    if len(ours_mtp) != len(theirs_mtp):
        return max_diff(ours, theirs), math.inf
    return max_diff(ours, theirs), max((max_diff(a, b) for a, b in zip(ours_mtp, theirs_mtp)), default=0.0)


def sum_of_losses(logits: Tensor, mtp_logits: list[Tensor], tokens: Tensor) -> Tensor:
    """Cross entropy of the next token, plus that of each depth: a loss in which every parameter takes part."""
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    for k, mtp in enumerate(mtp_logits, start=1):
        loss = loss + F.cross_entropy(mtp[:, :-1].flatten(0, 1), tokens[:, k + 1 :].flatten())
    return loss


def gradient_distances(pair: Pair, tokens: Tensor) -> dict[str, float]:
    """By parameter of ours: max |difference| of the gradients over max |gradient| of `transformers`."""
    for model in (pair.ours, pair.hf, pair.hf_mtp):
        if model is not None:
            model.zero_grad(set_to_none=True)
    sum_of_losses(*our_forward(pair, tokens), tokens).backward()
    sum_of_losses(*hf_forward(pair, tokens), tokens).backward()
    theirs = {**dict(pair.hf.named_parameters())}
    mtp_theirs = dict(pair.hf_mtp.named_parameters()) if pair.hf_mtp is not None else {}
    distances = {}
    for name, parameter in pair.ours.named_parameters():
        target = mtp_name(name, pair.cfg)
        reference = theirs[name].grad if target is None else mtp_theirs[target].grad
        assert reference is not None, name
        if parameter.grad is None:
            distances[name] = math.inf
            continue
        distances[name] = max_diff(parameter.grad, reference) / max(reference.abs().max().item(), 1e-12)
    return distances
