"""The whole model: embedding, blocks, final norm, head, and the MTP modules behind them (§2, Figures 2 and 3).

Modules carry the names of the Hugging Face checkpoint, so the state dict *is* a checkpoint, except that experts are
stacked in memory. MTP module k is layer L + k - 1, as on disk.

Shapes: B batch, T tokens, D model width, V vocabulary, E experts, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.model.balance import batch_balance_loss, sequence_balance_loss
from dsv3_mini.model.block import Block
from dsv3_mini.model.experts import Experts, ExpertsPath
from dsv3_mini.model.loss import IGNORE, chunked_cross_entropy
from dsv3_mini.model.mla import MLA, Path
from dsv3_mini.model.moe import MoE
from dsv3_mini.model.mtp import MTPModule
from dsv3_mini.model.norm import RMSNorm
from dsv3_mini.model.rope import RotaryEmbedding
from dsv3_mini.model.router import Router, Routing

if TYPE_CHECKING:
    from dsv3_mini.generate.cache import LatentCache


@dataclass
class RoutingRecord:
    """Where the tokens of one MoE layer went. `layer` counts from 0; MTP modules come after the last layer."""

    layer: int
    ids: Tensor  # [B, T, K]
    weights: Tensor  # [B, T, K]
    scores: Tensor  # [B, T, E], without the bias


@dataclass
class ModelOutput:
    """What one forward pass gives."""

    logits: Tensor  # [B, T, V]; empty without `keep_logits`
    hidden: Tensor  # [B, T, D], after the final norm: what the head and the first MTP module read
    mtp_logits: list[Tensor] = field(default_factory=list)  # by depth k = 1..D, [B, T - k, V]
    losses: dict[str, Tensor] = field(default_factory=dict)  # main, mtp, balance, batch_balance: unweighted
    expert_counts: Tensor | None = None  # [MoE layers, E] tokens per expert; with targets or a routing record
    routing: list[RoutingRecord] | None = None  # by MoE layer, if asked for


class Decoder(nn.Module):
    """Embedding, blocks (then MTP modules) and final norm: `model.*` in a checkpoint."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        depth = cfg.num_hidden_layers
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList([Block(cfg, i) for i in range(depth)])
        self.layers.extend(MTPModule(cfg, depth + k) for k in range(cfg.num_nextn_predict_layers))
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.rotary = RotaryEmbedding(cfg)


class DeepSeekV3(nn.Module):
    """DeepSeek-V3 of any size.

    >>> import torch
    >>> model = DeepSeekV3(ModelConfig.preset("nano"))
    >>> model(torch.tensor([[1, 2, 3]])).logits.shape
    torch.Size([1, 3, 4096])

    On the meta device (`with torch.device("meta"): DeepSeekV3(cfg)`) it takes no memory, the 671B preset included.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.model = Decoder(cfg)
        self.lm_head = nn.Linear(cfg.hidden_size, cfg.vocab_size, bias=False)
        self.attention_path: Path = "auto"
        self.reset_parameters()

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        *,
        cache: LatentCache | None = None,
        mtp: bool | None = None,
        record_routing: bool = False,
        keep_logits: bool = True,
    ) -> ModelOutput:
        """tokens [B, T] int -> `ModelOutput`; with targets [B, T] (the next tokens, -100 to ignore) also the losses.

        With a cache the tokens continue what is in it. `mtp`: run the MTP modules; by default whenever there is no
        cache. `keep_logits=False` leaves the logits out, which saves the largest tensors of a training step: the losses
        never need them whole. Raises `InputError` for tokens of the wrong shape or type, outside the vocabulary, or
        beyond the context.
        """
        if targets is not None and targets.shape != tokens.shape:
            raise InputError(
                f"targets must have the shape of tokens, {list(tokens.shape)}; these have {list(targets.shape)}"
            )
        if targets is not None and not targets.is_cuda:  # looking would make a GPU wait; there the lookup itself fails
            bad = targets[(targets != IGNORE) & ((targets < 0) | (targets >= self.cfg.vocab_size))]
            if bad.numel():
                raise InputError(
                    f"targets hold {int(bad[0])}, which is no token id: they go from 0 to {self.cfg.vocab_size - 1} "
                    f"(vocab_size = {self.cfg.vocab_size}), and {IGNORE} is ignored"
                )
        hidden, (cos, sin), routings = self._main_model(tokens, cache)
        states = [hidden]  # what the head reads: the main model's, then by MTP depth

        if mtp or (mtp is None and cache is None):
            for k, module in enumerate(self.mtp_modules, start=1):
                # Eq. 21: position i gets h_i and the embedding of t_{i+k}; the last k positions have no such token.
                keep = max(tokens.shape[1] - k, 0)
                embedded, previous = self._embed(tokens[:, k:]), states[-1][:, :keep]
                state, routing = module.predict(embedded, previous, cos[..., :keep, :], sin[..., :keep, :])
                states.append(state)
                if routing is not None:
                    routings.append((self.cfg.num_hidden_layers + k - 1, routing))

        logits = [self.lm_head(state) for state in states] if keep_logits else []
        out = ModelOutput(logits[0] if keep_logits else hidden.new_empty(0), hidden, logits[1:])
        if targets is not None:
            out.losses = self._losses(states, targets, routings)
        if targets is not None or record_routing:
            out.expert_counts = self._stack_counts(routings)
        if record_routing:
            out.routing = [_record(layer, routing, tokens.shape[0]) for layer, routing in routings]
        return out

    def hidden_states(self, tokens: Tensor, cache: LatentCache | None = None) -> Tensor:
        """The main model without its head: tokens [B, T] -> states after the final norm [B, T, D].

        For decoding, which needs the logits of a few positions only and would pay for all of them.
        """
        return self._main_model(tokens, cache)[0]

    def _main_model(
        self, tokens: Tensor, cache: LatentCache | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor], list[tuple[int, Routing]]]:
        """States after the final norm [B, T, D], the rotary cos and sin, and the routing of each MoE layer."""
        positions = self._positions(tokens, cache)
        x = self._embed(tokens)  # [B, T, D]
        cos, sin = self.model.rotary(positions)
        routings: list[tuple[int, Routing]] = []
        for i, layer in enumerate(self.main_layers):
            x, routing = layer(x, cos, sin, cache, self.attention_path)
            if routing is not None:
                routings.append((i, routing))
        if cache is not None:
            cache.commit()
        return self.model.norm(x), (cos, sin), routings

    def _losses(self, states: list[Tensor], targets: Tensor, routings: list[tuple[int, Routing]]) -> dict[str, Tensor]:
        # Eq. 24 divides the sum over the T - k positions of depth k by T, like the main loss over its T (D15).
        positions = (targets != IGNORE).sum().clamp_min(1)
        by_depth = [
            chunked_cross_entropy(state.flatten(0, 1), self.lm_head.weight, targets[:, k:].flatten()) / positions
            for k, state in enumerate(states)
        ]
        losses = {"main": by_depth[0]}
        if len(by_depth) > 1:  # Eq. 25 without lambda
            losses["mtp"] = torch.stack(by_depth[1:]).mean()
        # Eq. 17 without alpha, summed over the MoE layers
        top_k = self.cfg.num_experts_per_tok
        scores = [routing.scores.unflatten(0, (targets.shape[0], -1)) for _, routing in routings]  # [B, T, E] each
        if scores and self.cfg.balance_loss_alpha > 0:
            losses["balance"] = torch.stack([sequence_balance_loss(s, top_k) for s in scores]).sum()
        if scores and self.cfg.batch_balance_loss_alpha > 0:
            losses["batch_balance"] = torch.stack([batch_balance_loss(s, top_k) for s in scores]).sum()
        return losses

    def _stack_counts(self, routings: list[tuple[int, Routing]]) -> Tensor:
        if not routings:
            return torch.zeros(0, self.cfg.n_routed_experts, dtype=torch.long, device=self.lm_head.weight.device)
        return torch.stack([routing.counts for _, routing in routings])

    def _embed(self, tokens: Tensor) -> Tensor:
        try:
            return self.model.embed_tokens(tokens)
        except IndexError as error:  # on a GPU an id outside the table stops the device instead
            raise InputError(
                f"token ids must lie in 0..{self.cfg.vocab_size - 1} (vocab_size = {self.cfg.vocab_size}); "
                f"these reach from {int(tokens.min())} to {int(tokens.max())}"
            ) from error

    def _positions(self, tokens: Tensor, cache: LatentCache | None) -> Tensor:
        """Positions of the tokens: [T], or [B, T] with a cache. Raises `InputError` for input that cannot be."""
        if tokens.ndim != 2 or tokens.dtype not in (torch.int64, torch.int32) or tokens.shape[1] == 0:
            raise InputError(
                "tokens must be whole numbers of shape [B, T] with T >= 1; "
                f"these are {tokens.dtype} of shape {list(tokens.shape)}"
            )
        total = tokens.shape[1] + (0 if cache is None else max(cache.lengths))
        if total > self.cfg.max_position_embeddings:
            raise InputError(
                f"{total} tokens are more than the context holds "
                f"(max_position_embeddings = {self.cfg.max_position_embeddings})"
            )
        if cache is not None:
            return cache.begin(tokens.shape[1], batch=tokens.shape[0])
        return torch.arange(tokens.shape[1], device=tokens.device)

    @property
    def main_layers(self) -> list[Block]:
        """The L blocks of the main model."""
        return list(self.model.layers)[: self.cfg.num_hidden_layers]  # type: ignore[return-value]

    @property
    def mtp_modules(self) -> list[MTPModule]:
        """The MTP modules by depth."""
        return list(self.model.layers)[self.cfg.num_hidden_layers :]  # type: ignore[return-value]

    @property
    def routers(self) -> list[Router]:
        """The routers in the order of `ModelOutput.expert_counts`: main layers, then MTP modules."""
        return [layer.mlp.gate for layer in self.model.layers if isinstance(layer.mlp, MoE)]

    def set_experts_path(self, path: ExpertsPath) -> None:
        """Force one of the equal ways to run the experts (see `experts`), or let each call choose (`auto`)."""
        for module in self.modules():
            if isinstance(module, Experts):
                module.force_path(path)

    def set_recompute(self, on: bool) -> None:
        """In training, compute norms and MLA up-projections again in the backward pass instead of keeping them."""
        for module in self.modules():
            if isinstance(module, Block | MLA):
                module.recompute = on

    def num_parameters(self, *, include_mtp: bool = True) -> int:
        """Parameters plus routing biases, which a checkpoint holds although no gradient trains them."""
        skipped = {id(t) for m in self.mtp_modules for t in m.state_dict(keep_vars=True).values()}
        tensors = self.state_dict(keep_vars=True).values()
        return sum(t.numel() for t in tensors if include_mtp or id(t) not in skipped)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights: normal with std `initializer_range`; where that is None, 1/sqrt(fan-in). Norms 1, biases 0.

        An embedding row is picked, not summed, so its fan-in is 1. At this width that matters: rows as small as
        those of a matrix drown in what the first blocks add to them, and training starts more slowly.
        """
        for name, parameter in self.named_parameters():
            if parameter.is_meta:
                continue
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
                continue
            fan_in = 1 if name.endswith("embed_tokens.weight") else parameter.shape[-1]
            std = fan_in**-0.5 if self.cfg.initializer_range is None else self.cfg.initializer_range
            parameter.normal_(0.0, std, generator=generator)
        for router in self.routers:
            router.e_score_correction_bias.zero_()


def _record(layer: int, routing: Routing, batch: int) -> RoutingRecord:
    ids, weights, scores = (t.detach().unflatten(0, (batch, -1)) for t in routing[:3])
    return RoutingRecord(layer, ids, weights, scores)
