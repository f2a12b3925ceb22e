"""Where a text goes in a model, layer by layer: the numbers behind the routing explorer.

Besides the chosen experts, two kinds of *almost* chosen ones are marked. `NEXT` is the best expert that the token could
have had with one choice more: the highest score plus bias among those left in its groups. `SHUT_OUT` are experts that
would be among the K best if there were no groups, and stand in a group that the token may not use.

Shapes: L MoE layers, T tokens, E experts, G groups, K experts per token.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.model.balance import max_violation
from dsv3_mini.model.router import Router
from dsv3_mini.viz.routing import token_label

CHOSEN, NEXT, SHUT_OUT = 1, 2, 3
ALLOWED = 4  # added to a cell of a group that the token may use
MAX_TOKENS = 2048  # a longer text takes long to compute and nobody scrolls through it


@dataclass(frozen=True)
class RoutingView:
    """A text in a model. `cells` and `weights` have one entry for each layer, token and expert."""

    pieces: list[bytes]  # the T tokens as bytes
    layers: list[int]  # the L layers that have experts, counted from 0
    cells: np.ndarray  # [L, T, E] uint8: 0, CHOSEN, NEXT or SHUT_OUT; plus ALLOWED
    weights: np.ndarray  # [L, T, E] fp32 gate weights, 0 where not chosen
    scores: np.ndarray  # [L, T, E] fp32 scores without the bias
    bias: np.ndarray  # [L, E] fp32
    note: str = ""  # what is not shown, if anything

    @property
    def labels(self) -> list[str]:
        """The tokens as text that shows everything."""
        return [token_label(piece) for piece in self.pieces]

    def load(self, layer: int) -> np.ndarray:
        """Tokens that each expert of a layer received, [E]."""
        return (self.cells[self.layers.index(layer)] % ALLOWED == CHOSEN).sum(0)

    def max_violation(self, layer: int) -> float:
        """MaxVio of one layer: how far the busiest expert is above the mean, in means."""
        return float(max_violation(torch.from_numpy(self.load(layer))[None])[0])

    def experts(self, layer: int, token: int, kind: int = CHOSEN) -> list[int]:
        """Experts of one kind for one token, the largest weight first."""
        row = self.layers.index(layer)
        found = np.flatnonzero(self.cells[row, token] % ALLOWED == kind)
        return sorted(found.tolist(), key=lambda expert: -self.weights[row, token, expert])


def open_model(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The model and tokenizer that are meant: objects as they are, folders loaded, None for those that are shipped.

    Raises:
        InputError: for a folder that holds no model or tokenizer, or a model without its tokenizer.
    """
    from dsv3_mini.interop.load import load_pretrained
    from dsv3_mini.paths import data_dir
    from dsv3_mini.train.checkpoint import latest_checkpoint
    from dsv3_mini.train.tokenizer import Tokenizer

    if model is None or isinstance(model, str | os.PathLike):
        folder = latest_checkpoint(data_dir() / "checkpoints" / "nano" if model is None else Path(model))
        model = load_pretrained(folder, dtype=torch.float32)
        tokenizer = folder if tokenizer is None else tokenizer
    if tokenizer is None:
        raise InputError("tokenizer is missing: give the one that the model was trained with, or its folder")
    return model, Tokenizer.load(tokenizer) if isinstance(tokenizer, str | os.PathLike) else tokenizer


@torch.no_grad()
def view_text(model: Any, tokenizer: Any, text: str) -> RoutingView:
    """Run `text` through `model` and record where each token goes.

    A text longer than the context, or than `MAX_TOKENS`, is cut after its first tokens; `note` says so.

    Raises:
        InputError: for an empty text, for a model without experts, and for tokens that the model does not know.
    """
    cfg: ModelConfig = model.cfg
    routers = _routers(model)
    if not routers:
        raise InputError(
            f"this model is dense: first_k_dense_replace = {cfg.first_k_dense_replace} leaves none of its "
            f"num_hidden_layers = {cfg.num_hidden_layers} layers with experts, so there is no routing to show"
        )
    ids = tokenizer.encode(text)
    if not ids:
        raise InputError("the text is empty: type something, and its tokens appear here")
    limit = min(cfg.max_position_embeddings, MAX_TOKENS)
    note = ""
    if len(ids) > limit:
        why = "the context of this model holds" if limit < MAX_TOKENS else "the explorer shows at most"
        note = f"The text has {len(ids)} tokens; {why} {limit}: these are the first {limit}."
    tokens = torch.tensor([ids[:limit]], device=model.lm_head.weight.device)
    records = model(tokens, record_routing=True, mtp=False, keep_logits=False).routing
    parts = [_layer(record, routers[record.layer], cfg) for record in records]
    pieces = [tokenizer.decode_bytes([token]) for token in ids[:limit]]
    cells, weights, scores, bias = (np.stack([part[i] for part in parts]) for i in range(4))
    return RoutingView(pieces, [record.layer for record in records], cells, weights, scores, bias, note)


def _routers(model: Any) -> dict[int, Router]:
    """The routers of the main model by layer."""
    return {i: block.mlp.gate for i, block in enumerate(model.main_layers) if hasattr(block.mlp, "gate")}


def _layer(record: Any, router: Router, cfg: ModelConfig) -> tuple[np.ndarray, ...]:
    """cells, weights, scores [T, E] and bias [E] of one layer."""
    ids, weights, scores = (part[0].cpu() for part in (record.ids, record.weights, record.scores))
    bias = router.e_score_correction_bias.detach().float().cpu()
    cells, gates = torch.zeros_like(scores, dtype=torch.uint8), torch.zeros_like(scores)
    biased = scores + bias
    allowed = _allowed(biased, cfg)
    chosen = torch.zeros_like(allowed).scatter_(-1, ids, True)

    best = torch.zeros_like(allowed).scatter_(-1, biased.topk(cfg.num_experts_per_tok, dim=-1).indices, True)
    cells[best & ~allowed] = SHUT_OUT
    left = biased.masked_fill(~allowed | chosen, float("-inf"))
    following = left.max(-1)
    some = following.values.isfinite()  # none is left where the kept groups hold just K experts
    cells[some.nonzero()[:, 0], following.indices[some]] = NEXT
    cells[chosen] = CHOSEN
    gates.scatter_(-1, ids, weights.float())
    return (cells + ALLOWED * allowed.byte()).numpy(), gates.numpy(), scores.float().numpy(), bias.numpy()


def _allowed(biased: Tensor, cfg: ModelConfig) -> Tensor:
    """Which experts stand in a group that the token may use: the node limit of `Router.choose`. [T, E] -> bool."""
    if cfg.n_group == 1:
        return torch.ones_like(biased, dtype=torch.bool)
    by_group = biased.unflatten(-1, (cfg.n_group, -1))  # [T, G, E/G]
    kept = by_group.topk(2, dim=-1).values.sum(-1).topk(cfg.topk_group, dim=-1).indices
    allowed = torch.zeros(by_group.shape[:2], dtype=torch.bool).scatter_(-1, kept, True)
    return allowed.repeat_interleave(by_group.shape[2], dim=-1)
