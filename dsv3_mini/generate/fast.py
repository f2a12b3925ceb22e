"""The same model with its weights prepared for decoding (§2.1.1, D10).

A decoding step of a small model is a chain of some fifty small operations a layer, and their number is what it costs;
that of a large one costs the bytes of its weights. What can be done once, when decoding begins, is therefore not done
in every step. In each layer

    down     [W^DQ; W^DKV; W^KR] in one matrix, the weight of the norm in front multiplied in
    query    the softmax scale and W^UK multiplied into W^UQ, so that queries come out in the latent space of the keys
    output   W^UV multiplied into W^O, so that what was read from the latents goes straight to the model's width
    gate_up  gate and up projection of a dense FFN, or of the shared experts, in one matrix

`query` and `output` are H (C + R) C' and H C D numbers. For narrow models that is hardly more than the matrices they
come from; for V3 it is three times as much, and reading them would cost more than one operation saves. There W^UK and
W^UV stay by themselves (`merges`). The routed experts, most of the weights, are not copied in either case.

`MLA.attend_absorbed` is the same computation as it is written down; the two are equal to rounding.

Shapes: B rows, T new tokens, N = B * T, D model width, H heads, S slots in reach, C latent, R RoPE dim, C' latent of
the queries (D where they are not compressed), F width of an FFN.
"""

from __future__ import annotations

import math
import weakref

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3_mini.generate.cache import LatentCache
from dsv3_mini.model.block import Block
from dsv3_mini.model.experts import add_tokenwise
from dsv3_mini.model.mla import MLA
from dsv3_mini.model.moe import MLP, MoE
from dsv3_mini.model.norm import RMSNorm, unit
from dsv3_mini.model.rope import RotaryEmbedding, apply_rope
from dsv3_mini.model.transformer import DeepSeekV3


class FastModel:
    """`model` for steps of a few tokens out of a cache. Weights are those of the moment when it was made."""

    def __init__(self, model: DeepSeekV3, merge: bool | None = None) -> None:
        """merge: W^UK and W^UV multiplied into their neighbours; None: where that does not make them much larger."""
        self.cfg, self.decoder, self.head = model.cfg, model.model, model.lm_head
        self.layers = [FastLayer(layer, merge) for layer in model.main_layers]
        self.module = next(iter(model.mtp_modules), None)  # the first MTP module: drafts are chained from it
        self.draft_layer = None if self.module is None else FastLayer(self.module, merge)
        self.turns = Turns(model.model.rotary, model.lm_head.weight.device)

    @torch.inference_mode()
    def hidden_states(self, tokens: Tensor, cache: LatentCache) -> Tensor:
        """As `DeepSeekV3.hidden_states`: tokens [B, T] -> states after the final norm [B, T, D]."""
        return self.decoder.norm(self._through(self.layers, self.decoder.embed_tokens(tokens), cache))

    @torch.inference_mode()
    def draft_states(self, tokens: Tensor, previous: Tensor, cache: LatentCache) -> Tensor:
        """The first MTP module on tokens t_{i+1} and states h_i, [B, T] and [B, T, D] -> [B, T, D], normed."""
        assert self.module is not None and self.draft_layer is not None
        x = self.module.join(self.decoder.embed_tokens(tokens), previous)
        return self.module.shared_head.norm(self._through([self.draft_layer], x, cache))

    def _through(self, layers: list[FastLayer], x: Tensor, cache: LatentCache) -> Tensor:
        batch, new, width = x.shape
        cache.begin(new, batch)
        turn = self.turns.at(cache)
        x = x.reshape(batch * new, width)
        for layer in layers:
            x = layer.step(x, turn, cache, new)
        cache.commit()
        return x.view(batch, new, width)


class Turns:
    """How far each position turns the pairs of a rotary vector, as complex numbers cos + i sin, computed once."""

    def __init__(self, rotary: RotaryEmbedding, device: torch.device) -> None:
        self.rotary, self.device = rotary, device
        self.by_position = torch.empty(0, 0)  # [S, R/2]

    def at(self, cache: LatentCache) -> Tensor:
        """Of the tokens whose forward pass `cache` has begun: [N, R/2], or [1, R/2] where all are at one position."""
        if len(self.by_position) < cache.end:
            self.by_position = torch.complex(*self.rotary(torch.arange(2 * cache.end, device=self.device)))
        if cache.uniform and cache.new == 1:
            return self.by_position[cache.end - 1 : cache.end]  # a view
        return self.by_position[cache.positions.flatten()]


class FastLayer:
    """One block. `step`: x [N, D] -> [N, D]."""

    def __init__(self, block: Block, merge: bool | None = None) -> None:
        assert isinstance(block.self_attn, MLA)  # plain attention has no latent cache, and the prefill has said so
        self.attention = FastAttention(block.self_attn, block.input_layernorm, merge)
        norm = block.post_attention_layernorm
        self.norm_eps, self.norm_weight = norm.eps, norm.weight.detach() * norm.weight.numel() ** 0.5  # see `unit`
        self.moe = block.mlp if isinstance(block.mlp, MoE) else None
        dense: MLP = block.mlp.shared_experts if isinstance(block.mlp, MoE) else block.mlp
        self.gate_up = torch.cat((dense.gate_proj.weight, dense.up_proj.weight)).detach().t().contiguous()  # [D, 2F]
        self.down = dense.down_proj.weight.detach().t().contiguous()  # [F, D]
        if self.moe is not None:
            self.centroids = exact(self.moe.gate.weight.detach()).t().contiguous()  # [D, E]
            # Views: each expert by itself.
            self.gate_ups = self.moe.experts.gate_up_proj.detach().transpose(1, 2).unbind(0)
            self.downs = self.moe.experts.down_proj.detach().transpose(1, 2).unbind(0)

    def step(self, x: Tensor, turn: Tensor, cache: LatentCache, new: int) -> Tensor:
        x = self.attention.step(x, turn, cache, new)
        normed = unit(x, self.norm_eps).mul_(self.norm_weight)
        gate, up = torch.mm(normed, self.gate_up).chunk(2, dim=-1)
        out = torch.addmm(x, F.silu(gate).mul_(up), self.down)
        return out if self.moe is None else self._add_experts(out, normed)

    def _add_experts(self, out: Tensor, x: Tensor) -> Tensor:
        assert self.moe is not None
        gate, experts = self.moe.gate, self.moe.experts
        scores = torch.mm(exact(x), self.centroids).sigmoid_()
        ids = gate.choose(scores)
        if experts.choose_path(x, ids.numel()) == "tokenwise":
            weights = gate.gate_weights(scores, ids).to(x.dtype)
            return add_tokenwise(out, x, ids, weights, self.gate_ups, self.downs)
        return out.add_(experts(x, gate.routing(scores, ids)))


class FastAttention:
    """The norm in front of MLA, and MLA, absorbed. `step`: x [N, D] -> x + attention [N, D]."""

    def __init__(self, mla: MLA, norm: RMSNorm, merge: bool | None = None) -> None:
        self.layer, self.heads, self.latent, self.rope = mla.layer, mla.heads, mla.latent_dim, mla.rope_dim
        self.norm_eps, self.kv_norm = norm.eps, mla.kv_a_layernorm
        self.kv_weight = self.kv_norm.weight.detach() * self.latent**0.5  # `unit` leaves the square root out
        compressed = not hasattr(mla, "q_proj")
        self.q_norm = mla.q_a_layernorm if compressed else None
        dtype = mla.o_proj.weight.dtype
        with torch.inference_mode():
            w_uk, w_uv = (exact(w) for w in mla.absorbed_weights())  # [H, N, C], [H, V, C]
            front = exact(norm.weight) * norm.weight.numel() ** 0.5
            w_uq = exact((mla.q_b_proj if compressed else mla.q_proj).weight)
            if compressed:
                front_of_queries = exact(mla.q_a_layernorm.weight) * mla.q_a_layernorm.weight.numel() ** 0.5
            w_uq = w_uq * (front_of_queries if compressed else front) * mla.scale
            w_uq = w_uq.unflatten(0, (self.heads, -1))  # [H, N + R, C']
            content, position = w_uq.split((mla.nope_dim, mla.rope_dim), dim=1)
            w_o = exact(mla.o_proj.weight).unflatten(1, (self.heads, -1))  # [D, H, V]
            down = exact(mla.kv_a_proj_with_mqa.weight) * front
            if compressed:
                down = torch.cat((exact(mla.q_a_proj.weight) * front, down))

            self.merged = merges(mla) if merge is None else merge
            if self.merged:
                content = torch.einsum("hnc,hnq->hcq", w_uk, content)
                w_o = torch.einsum("dhv,hvc->dhc", w_o, w_uv)
            self.query = torch.cat((content, position), dim=1).flatten(0, 1).to(dtype).t().contiguous()
            self.output = w_o.flatten(1).to(dtype).t().contiguous()
            self.down = down.to(dtype).t().contiguous()
            self.w_uk, self.w_uv = w_uk.to(dtype).contiguous(), w_uv.to(dtype).transpose(1, 2).contiguous()

    def step(self, x: Tensor, turn: Tensor, cache: LatentCache, new: int) -> Tensor:
        rows, batch = x.shape[0], x.shape[0] // new
        normed = unit(x, self.norm_eps)
        joined = torch.mm(normed, self.down)  # [N, C' + C + R]
        memory = joined[:, -self.latent - self.rope :]
        if self.q_norm is not None:
            normed = unit(joined[:, : -self.latent - self.rope], self.q_norm.eps)
        q = torch.mm(normed, self.query).view(rows, self.heads, -1)  # [N, H, C + R]
        if not self.merged:
            content = torch.bmm(q[..., : -self.rope].transpose(0, 1), self.w_uk).transpose(0, 1)
            q = torch.cat((content, q[..., -self.rope :]), dim=-1)
        turn_pairs(q[..., self.latent :], turn.unsqueeze(1))
        turn_pairs(memory[:, self.latent :], turn)
        memory[:, : self.latent] = unit(memory[:, : self.latent], self.kv_norm.eps).mul_(self.kv_weight)
        past = cache.write_joined(self.layer, memory.view(batch, new, -1))  # [B, S, C + R]

        scores = torch.bmm(q.view(batch, new * self.heads, -1), past.transpose(1, 2))  # the scale is in `query`
        if new > 1 or not cache.uniform:
            scores = hide(scores.view(batch, new, self.heads, -1), cache).view(batch, new * self.heads, -1)
        weights = exact(scores).softmax(-1).to(x.dtype)
        seen = torch.bmm(weights, past[..., : self.latent]).view(rows, self.heads, -1)  # [N, H, C]
        if not self.merged:
            seen = torch.bmm(seen.transpose(0, 1), self.w_uv).transpose(0, 1)
        return torch.addmm(x, seen.reshape(rows, -1), self.output)


def exact(x: Tensor) -> Tensor:
    """In fp32, unless it is more exact already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def hide(scores: Tensor, cache: LatentCache) -> Tensor:
    """-inf for what lies ahead: scores [B, T, H, S]. Where rows are equally long, only new tokens can be."""
    newest = scores[..., -cache.new :] if cache.uniform else scores
    assert cache.hidden is not None
    newest.masked_fill_(cache.hidden[..., -newest.shape[-1] :].unsqueeze(-2), -math.inf)
    return scores


def turn_pairs(x: Tensor, turn: Tensor) -> None:
    """`apply_rope` in place. x [..., R], turn [..., R/2]."""
    if x.dtype == torch.float32 and all(stride % 2 == 0 for stride in (*x.stride()[:-1], x.storage_offset())):
        torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(turn)  # pairs are where complex numbers may be
    else:
        x.copy_(apply_rope(x.unsqueeze(-2), turn.real, turn.imag).squeeze(-2))


def merges(mla: MLA) -> bool:
    """Whether W^UK and W^UV multiplied into W^UQ and W^O are at most half as large again as all four apart."""
    up = mla.q_proj if hasattr(mla, "q_proj") else mla.q_b_proj
    q_width, width = up.in_features, mla.o_proj.out_features
    apart = mla.heads * (mla.nope_dim * (q_width + mla.latent_dim) + mla.v_dim * (mla.latent_dim + width))
    return mla.heads * mla.latent_dim * (q_width + width) <= 1.5 * apart


_PREPARED: weakref.WeakKeyDictionary[DeepSeekV3, tuple[object, FastModel]] = weakref.WeakKeyDictionary()


def fast(model: DeepSeekV3) -> FastModel:
    """The `FastModel` of `model`: prepared at the first call, and again when a weight has changed since."""
    weights = (*model.parameters(), *model.buffers())
    state = tuple((id(w), w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights)
    kept = _PREPARED.get(model)
    if kept is None or kept[0] != state:
        kept = state, FastModel(model)
        _PREPARED[model] = kept
    return kept[1]
