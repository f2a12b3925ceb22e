"""Which experts work on which text, and how much of that is topic and how much is spelling (Figure 9, Appendix C).

The report shows the relative load of each expert on encyclopedia, code and mathematics: its share of the tokens,
divided by an even share. But the domains differ in their tokens too. Mathematics is full of digits, and an expert for
digits looks like an expert for mathematics. So the same load is also shown

* by kind of token: word, number, punctuation, space, mixed;
* by domain after matching: every domain is reweighted until all have the same mix of kinds (or of tokens, one by one).
  A router that looks at the kind (the token) alone shows no difference between domains any more; what is left has
  to do with what stands around the token.

And since two samples of one and the same text differ as well, `chance_effect` says how large an effect would be with
the domains shuffled among the documents.

Shapes: N tokens, L MoE layers, K experts a token, E experts, G groups of tokens (domains or kinds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch

from dsv3_mini.errors import InputError
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.documents import Document
from dsv3_mini.train.token_data import IGNORE, held_out_windows
from dsv3_mini.train.tokenizer import Tokenizer

KINDS = ("word", "number", "punctuation", "space", "mixed")
_WINDOWS_AT_ONCE = 16


@dataclass(frozen=True)
class RoutedTokens:
    """N tokens of some documents, and the experts that they went to."""

    tokens: np.ndarray  # [N] token ids
    kinds: np.ndarray  # [N] index into KINDS
    domains: np.ndarray  # [N] index into domain_names
    documents: np.ndarray  # [N] number of the document
    chosen: np.ndarray  # [N, L, K] experts
    domain_names: tuple[str, ...]
    layers: tuple[int, ...]  # L layer numbers
    experts: int  # E


def token_kind(piece: bytes) -> str:
    """What a token is made of, one of `KINDS`. White space at its beginning does not count: " the" is a word."""
    text = piece.decode("utf-8", errors="replace")
    body = text.strip()
    if not body:
        return "space"
    if all(character.isalpha() or character == "_" for character in body):
        return "word"
    if all(character.isdigit() for character in body):
        return "number"
    if not any(character.isalnum() or character == "_" for character in body):
        return "punctuation"
    return "mixed"


@torch.inference_mode()
def route_documents(
    model: DeepSeekV3, tokenizer: Tokenizer, documents: Sequence[Document], seq_len: int = 256
) -> RoutedTokens:
    """Send held-out documents through the main model and keep where each token went.

    In windows that overlap by half, as in `evaluate`; the last token of a document predicts nothing and is left out.
    Raises `InputError` for a dense model, or without any text.
    """
    cfg = model.cfg
    if cfg.first_k_dense_replace >= cfg.num_hidden_layers:
        raise InputError(
            f"this model is dense (first_k_dense_replace = {cfg.first_k_dense_replace}, num_hidden_layers = "
            f"{cfg.num_hidden_layers}): it has no routed experts"
        )
    seq_len = min(seq_len, cfg.max_position_embeddings)
    names = tuple(sorted({document.domain for document in documents}))
    kind_of = np.array([KINDS.index(token_kind(piece)) for piece in tokenizer.token_bytes])
    training = model.training
    model.eval()
    tokens, domains, numbers, chosen = [], [], [], []
    layers: tuple[int, ...] = ()
    for number, (document, ids) in enumerate(
        zip(documents, tokenizer.encode_batch([document.text for document in documents]), strict=True)
    ):
        for part in held_out_windows([ids], tokenizer, seq_len, overlap=seq_len // 2).batches(_WINDOWS_AT_ONCE):
            routing = model(part.inputs, mtp=False, record_routing=True, keep_logits=False).routing
            layers = tuple(record.layer for record in routing)
            # Where the next token is asked for, this one is seen for the first time; the end token is no text.
            new = (part.targets != IGNORE) & (part.inputs != tokenizer.eos_id)
            tokens.append(part.inputs[new].numpy())
            chosen.append(torch.stack([record.ids[new] for record in routing], dim=1).numpy().astype(np.int16))
            domains.append(np.full(len(tokens[-1]), names.index(document.domain)))
            numbers.append(np.full(len(tokens[-1]), number))
    model.train(training)
    if not sum(map(len, tokens)):
        raise InputError("documents hold no text to route: at least two tokens are needed")
    seen = np.concatenate(tokens)
    return RoutedTokens(
        tokens=seen,
        kinds=kind_of[seen],
        domains=np.concatenate(domains),
        documents=np.concatenate(numbers),
        chosen=np.concatenate(chosen),
        domain_names=names,
        layers=layers,
        experts=cfg.n_routed_experts,
    )


def load_by_domain(routed: RoutedTokens, match: str | None = None) -> np.ndarray:
    """Relative load [domains, L, E]: 1 is an even share, 0 never chosen. Every [domain, layer] row has mean 1.

    match: None, "kind" or "token": weigh the tokens so that all domains have the same mix of these. Raises `InputError`
    when the domains have none of them in common.
    """
    return _relative_load(routed, routed.domains, len(routed.domain_names), matching_weights(routed, match))


def load_by_kind(routed: RoutedTokens) -> np.ndarray:
    """Relative load [kinds, L, E] by kind of token, in the order of `KINDS`; NaN for a kind that does not occur."""
    return _relative_load(routed, routed.kinds, len(KINDS), np.ones(len(routed.tokens)))


def matching_weights(routed: RoutedTokens, match: str | None) -> np.ndarray:
    """[N] weights under which every domain has the same mix of kinds or tokens; they sum to 1 in every domain.

    The common mix is what the domains share: of each kind (token) as much as the domain has that has least of it. So
    no token is weighed up by more than what was left out, and what occurs in one domain only drops out.
    """
    shares, strata = _shares(routed, match)
    common = shares.min(axis=0)  # [strata]
    if common.sum() == 0:
        raise InputError(f'match = "{match}" cannot be: the domains have no {match} in common')
    weight = np.divide(common / common.sum(), shares, out=np.zeros_like(shares), where=shares > 0)
    sizes = np.bincount(routed.domains, minlength=len(routed.domain_names))
    return weight[routed.domains, strata] / sizes[routed.domains]


def shared_part(routed: RoutedTokens, match: str | None) -> float:
    """How much text is left to compare after matching: the part of a domain's tokens that all domains share, 0 to 1."""
    return float(_shares(routed, match)[0].min(axis=0).sum())


def effect(load: np.ndarray) -> np.ndarray:
    """How differently groups are routed, by layer. load [G, L, E] -> [L]: 0 alike, 1 no expert in common.

    The share of its choices that one group makes of other experts than another does (half the sum of the absolute
    differences of the expert shares), as a mean over all pairs of groups. A group that does not occur is left out.
    """
    shares = load[~np.isnan(load).any(axis=(1, 2))] / load.shape[-1]
    pairs = list(combinations(range(len(shares)), 2))
    if not pairs:
        raise InputError("load has fewer than two groups: there is nothing to compare")
    return np.mean([np.abs(shares[a] - shares[b]).sum(-1) / 2 for a, b in pairs], axis=0)


def chance_effect(routed: RoutedTokens, match: str | None = None, rounds: int = 20, seed: int = 0) -> np.ndarray:
    """`effect` of the domains [L] when they mean nothing: dealt out anew among the documents, a mean over `rounds`.

    Whole documents are dealt, because the tokens of one document resemble each other: that, too, is chance here.
    """
    generator = np.random.default_rng(seed)
    domain_of = np.zeros(routed.documents.max() + 1, dtype=int)
    domain_of[routed.documents] = routed.domains
    present = np.unique(routed.documents)
    found = []
    for _ in range(rounds):
        dealt = domain_of.copy()
        dealt[present] = generator.permutation(domain_of[present])
        found.append(effect(load_by_domain(replace(routed, domains=dealt[routed.documents]), match)))
    return np.mean(found, axis=0)


def _shares(routed: RoutedTokens, match: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Share of each kind (token) in each domain [domains, strata], and the kind (token) of each token [N]."""
    if match not in (None, "kind", "token"):
        raise InputError(f'match = {match!r} cannot be: it must be None, "kind" or "token"')
    strata = {None: np.zeros_like(routed.tokens), "kind": routed.kinds, "token": routed.tokens}[match]
    counts = np.zeros((len(routed.domain_names), int(strata.max()) + 1))
    np.add.at(counts, (routed.domains, strata), 1.0)
    for name, total in zip(routed.domain_names, counts.sum(axis=1)):
        if total == 0:
            raise InputError(f"domain {name!r} has no tokens: give it more text")
    return counts / counts.sum(axis=1, keepdims=True), strata


def _relative_load(routed: RoutedTokens, groups: np.ndarray, number: int, weights: np.ndarray) -> np.ndarray:
    """[number of groups, L, E], the weighted load of each group over an even share."""
    layers = routed.chosen.shape[1]
    load = np.zeros((number, layers, routed.experts))
    for layer in range(layers):
        place = groups[:, None] * routed.experts + routed.chosen[:, layer]  # [N, K]
        weighed = np.broadcast_to(weights[:, None], place.shape)
        load[:, layer] = np.bincount(place.ravel(), weighed.ravel(), number * routed.experts).reshape(number, -1)
    total = load.sum(-1, keepdims=True)
    return np.divide(load * routed.experts, total, out=np.full_like(load, np.nan), where=total > 0)
