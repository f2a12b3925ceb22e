"""The equations of §2 once more, written as literally and as slowly as they can be, for the tests to compare with.

`literal_router` and `literal_mla` take a set of `mistakes`: without any they are the reference of `test_router` and
`test_mla`; with one they are the broken model of `test_mutations`. So each mistake is one visible `if`.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from dsv3_mini.config import ModelConfig
from dsv3_mini.model.mla import MLA
from dsv3_mini.model.router import Router, Routing


def literal_router(router: Router, cfg: ModelConfig, x: Tensor, mistakes: Collection[str] = ()) -> Routing:
    """Eq. 13, 15, 16 with the node limit, token by token. x [N, D]. Ties go to the lower number.

    Mistakes: "no bias", "bias sign", "bias in weights", "mask 0", "group max", "not normalised", "bias not in groups",
    "all to expert 0".
    """
    size = cfg.n_routed_experts // cfg.n_group
    bias = router.e_score_correction_bias.tolist()
    all_ids, all_weights, all_scores = [], [], (x.float() @ router.weight.float().T).sigmoid().tolist()
    for scores in all_scores:
        biased = [s + b for s, b in zip(scores, bias)]  # for the choice only, Eq. 16
        if "no bias" in mistakes:
            biased = scores
        if "bias sign" in mistakes:
            biased = [s - b for s, b in zip(scores, bias)]
        for_groups = scores if "bias not in groups" in mistakes else biased
        groups = [sorted(for_groups[g * size : (g + 1) * size], reverse=True) for g in range(cfg.n_group)]
        rank = [group[0] if "group max" in mistakes else sum(group[:2]) for group in groups]
        kept = sorted(range(cfg.n_group), key=lambda g: -rank[g])[: cfg.topk_group]
        forbidden = 0.0 if "mask 0" in mistakes else -math.inf
        masked = [value if i // size in kept else forbidden for i, value in enumerate(biased)]
        ids = sorted(range(len(masked)), key=lambda i: -masked[i])[: cfg.num_experts_per_tok]
        if "all to expert 0" in mistakes:
            ids = [0] * len(ids)
        gates = [(biased if "bias in weights" in mistakes else scores)[i] for i in ids]
        total = sum(gates) if cfg.norm_topk_prob and "not normalised" not in mistakes else 1.0  # Eq. 13
        all_ids.append(ids)
        all_weights.append([gate / total * cfg.routed_scaling_factor for gate in gates])
    ids = torch.tensor(all_ids)
    counts = torch.bincount(ids.flatten(), minlength=cfg.n_routed_experts)
    return Routing(ids, torch.tensor(all_weights), torch.tensor(all_scores), counts)


def literal_experts(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Last sum of Eq. 12: token by token, choice by choice. x [N, D] -> [N, D]; differentiable."""
    rows, width = [], down.shape[-1]
    for n in range(x.shape[0]):
        row = torch.zeros_like(x[n])
        for k in range(ids.shape[1]):
            expert = int(ids[n, k])
            gate, up = gate_up[expert, :width] @ x[n], gate_up[expert, width:] @ x[n]
            row = row + weights[n, k] * (down[expert] @ (gate / (1 + torch.exp(-gate)) * up))
        rows.append(row)
    return torch.stack(rows)


def turn(x: Tensor, cos: Tensor, sin: Tensor, half_split: bool = False) -> Tensor:
    """RoPE of one vector x [R], pair by pair; cos, sin [R/2]."""
    out, half = torch.empty_like(x), x.shape[0] // 2
    for j in range(half):
        a, b = (j, j + half) if half_split else (2 * j, 2 * j + 1)
        out[a], out[b] = x[a] * cos[j] - x[b] * sin[j], x[b] * cos[j] + x[a] * sin[j]
    return out


def literal_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight."""
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


@torch.no_grad()
def literal_mla(
    mla: MLA, cfg: ModelConfig, x: Tensor, cos: Tensor, sin: Tensor, mistakes: Collection[str] = ()
) -> Tensor:
    """Eq. 1-11 in fp64, the report's matrices apart (D9), head by head, token by token. x [B, T, D] -> [B, T, D].

    cos, sin [T, R/2] or [B, T, R/2]. Mistakes: "latent eps", "half split", "rope key per head", "rope key normalised",
    "latent not normalised", "mscale on cos and sin", "scale without mscale", "scale of nope only", "no causal mask".
    """
    weights = {name: p.double() for name, p in mla.named_parameters()}
    x, cos, sin = x.double(), cos.double().expand(x.shape[0], -1, -1), sin.double().expand(x.shape[0], -1, -1)
    heads, latent, rope = cfg.num_attention_heads, cfg.kv_lora_rank, cfg.qk_rope_head_dim
    nope, value = cfg.qk_nope_head_dim, cfg.v_head_dim
    eps = cfg.rms_norm_eps if "latent eps" in mistakes else 1e-6
    half_split = "half split" in mistakes

    mscale = 1.0
    if cfg.rope_scaling is not None:
        mscale = 0.1 * cfg.rope_scaling.mscale_all_dim * math.log(cfg.rope_scaling.factor) + 1
    scale = (nope + rope) ** -0.5 * mscale**2
    if "mscale on cos and sin" in mistakes:
        cos, sin = cos * mscale, sin * mscale
    if "scale without mscale" in mistakes or "mscale on cos and sin" in mistakes:
        scale = (nope + rope) ** -0.5
    if "scale of nope only" in mistakes:
        scale = nope**-0.5 * mscale**2

    w_dkv, w_kr = weights["kv_a_proj_with_mqa.weight"].split((latent, rope))
    w_uk, w_uv = weights["kv_b_proj.weight"].view(heads, nope + value, latent).split((nope, value), dim=1)
    if cfg.q_lora_rank is None:
        c_q, w_q = x, weights["q_proj.weight"]
    else:
        c_q, w_q = x @ weights["q_a_proj.weight"].T, weights["q_b_proj.weight"]  # Eq. 6
        c_q = literal_norm(c_q, weights["q_a_layernorm.weight"], eps)
    w_uq, w_qr = w_q.view(heads, nope + rope, -1).split((nope, rope), dim=1)

    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        keys, values = [], []
        for t in range(x.shape[1]):
            c_kv = w_dkv @ x[b, t]  # Eq. 1
            if "latent not normalised" not in mistakes:
                c_kv = literal_norm(c_kv, weights["kv_a_layernorm.weight"], eps)  # D8
            k_r = w_kr @ x[b, t]
            if "rope key normalised" in mistakes:
                k_r = literal_norm(k_r, torch.ones_like(k_r), eps)
            k_r = turn(k_r, cos[b, t], sin[b, t], half_split)  # Eq. 3
            rope_keys = [k_r] * heads  # one for all heads, Eq. 4
            if "rope key per head" in mistakes:  # out of the latent, each head its own
                rope_keys = [turn((w_uk[i] @ c_kv).repeat(rope)[:rope], cos[b, t], sin[b, t]) for i in range(heads)]
            keys.append([torch.cat((w_uk[i] @ c_kv, rope_keys[i])) for i in range(heads)])  # Eq. 2, 4
            values.append([w_uv[i] @ c_kv for i in range(heads)])  # Eq. 5
        for t in range(x.shape[1]):
            reach = x.shape[1] if "no causal mask" in mistakes else t + 1
            by_head = []
            for i in range(heads):
                q_r = turn(w_qr[i] @ c_q[b, t], cos[b, t], sin[b, t], half_split)  # Eq. 8
                q = torch.cat((w_uq[i] @ c_q[b, t], q_r))  # Eq. 7, 9
                scores = torch.stack([q @ keys[j][i] for j in range(reach)]) * scale
                attention = scores.exp() / scores.exp().sum()
                by_head.append(sum(a * values[j][i] for j, a in enumerate(attention)))  # Eq. 10
            out[b, t] = weights["o_proj.weight"] @ torch.cat(by_head)  # Eq. 11
    return out


def literal_balance_loss(scores: list[list[float]], top_k: int) -> float:
    """Eq. 17-20 without alpha for one sequence, [T][E], in plain numbers."""
    tokens, experts = len(scores), len(scores[0])
    total = 0.0
    for i in range(experts):
        chosen = sum(i in sorted(range(experts), key=lambda j: -row[j])[:top_k] for row in scores)
        f = experts / (top_k * tokens) * chosen  # Eq. 18
        p = sum(row[i] / sum(row) for row in scores) / tokens  # Eq. 19, 20
        total += f * p
    return total
