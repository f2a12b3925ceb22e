"""Exercise 6.5: the whole layer.

Shapes: N tokens, D model width, E routed experts, K of them per token.
"""

from __future__ import annotations

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_06.inputs import _expert, _randn, _whole


def moe(x, scores, top_k, scaling, experts, shared):
    chosen, ids = scores.topk(top_k, dim=-1)  # [N, K]
    weights = scaling * chosen / chosen.sum(-1, keepdim=True)
    out = shared(x)  # every token, no gate, no factor
    for number, expert in enumerate(experts):
        token, slot = torch.where(ids == number)
        out = out.index_add(0, token, expert(x[token]) * weights[token, slot, None])
    return out


def moe__factor_on_the_sum(x, scores, top_k, scaling, experts, shared):
    chosen, ids = scores.topk(top_k, dim=-1)  # [N, K]
    weights = chosen / chosen.sum(-1, keepdim=True)
    out = shared(x)
    for number, expert in enumerate(experts):
        token, slot = torch.where(ids == number)
        out = out.index_add(0, token, expert(x[token]) * weights[token, slot, None])
    return scaling * out


def _moe(of_shared=lambda shared, x, weights: shared(x), of_weights=None, of_input=lambda expert, x, w: expert(x) * w):
    """The layer above with one of its parts changed."""

    def wrong(x, scores, top_k, scaling, experts, shared):
        chosen, ids = scores.topk(top_k, dim=-1)
        weights = scaling * chosen / chosen.sum(-1, keepdim=True)
        if of_weights is not None:
            weights = of_weights(chosen, scaling)
        out = of_shared(shared, x, weights)
        for number, expert in enumerate(experts):
            token, slot = torch.where(ids == number)
            out = out.index_add(0, token, of_input(expert, x[token], weights[token, slot, None]))
        return out

    return wrong


def _overwriting_moe(x, scores, top_k, scaling, experts, shared):
    chosen, ids = scores.topk(top_k, dim=-1)
    weights = scaling * chosen / chosen.sum(-1, keepdim=True)
    out = shared(x)
    for number, expert in enumerate(experts):
        token, slot = torch.where(ids == number)
        out[token] = expert(x[token]) * weights[token, slot, None]
    return out


def _layers(generator: Generator) -> list[Case]:
    cases = []
    for tokens, note in ((_whole(generator, 8, 12), ""), (1, "one token")):
        width, experts, top_k = _whole(generator, 5, 7), _whole(generator, 6, 9), _whole(generator, 2, 4)
        networks = [_expert(generator, width) for _ in range(experts)]
        scores = _randn(generator, tokens, experts).sigmoid()
        scaling = 1.5 + _whole(generator, 1, 4) / 4
        x = _randn(generator, tokens, width)
        cases.append(Case((x, scores, top_k, scaling, networks, _expert(generator, width)), note=note))
    return cases


MOE = Exercise(
    id="6.5",
    idea="deepseekmoe",
    title="the whole layer: routed and shared experts",
    minutes=10,
    answer="moe",
    reference=moe,
    cases=_layers,
    dims="N D",
    mistakes=(
        Mistake(
            "factor_on_the_sum",
            moe__factor_on_the_sum,
            "The factor reaches the shared expert, too. It belongs to the routed experts only: what the shared one "
            "says is added as it is.",
        ),
        Mistake(
            "no shared expert",
            _moe(lambda shared, x, weights: torch.zeros_like(x)),
            "The shared expert is missing.",
        ),
        Mistake(
            "no factor",
            _moe(of_weights=lambda chosen, scaling: chosen / chosen.sum(-1, keepdim=True)),
            "The factor `scaling` on the routed experts is missing.",
        ),
        Mistake(
            "not normalised",
            _moe(of_weights=lambda chosen, scaling: scaling * chosen),
            "The gate weights are not divided by their sum over the chosen experts (Eq. 13).",
        ),
        Mistake(
            "softmax",
            _moe(of_weights=lambda chosen, scaling: scaling * chosen.softmax(-1)),
            "The gate weights go through a softmax. The scores are sigmoids, and are divided by their sum.",
        ),
        Mistake(
            "normalised over all",
            lambda x, scores, k, f, *networks: _moe(
                of_weights=lambda chosen, scaling: scaling * chosen / scores.sum(-1, keepdim=True)
            )(x, scores, k, f, *networks),
            "The gate weights are divided by the sum over all experts. Eq. 13 adds up the chosen ones.",
        ),
        Mistake(
            "weight of the first choice",
            _moe(
                of_weights=lambda chosen, scaling: (scaling * chosen / chosen.sum(-1, keepdim=True))[:, :1].expand_as(
                    chosen
                )
            ),
            "Every expert gets the weight of the token's first choice. Which slot did the token choose it in?",
        ),
        Mistake(
            "overwriting",
            _overwriting_moe,
            "Each expert writes over what stood there: of a token only its last expert is left. They must add up, and "
            "the shared expert with them.",
        ),
        Mistake(
            "shared expert in the loop",
            lambda x, scores, k, f, experts, shared: moe(x, scores, k, f, experts, lambda x: k * shared(x)),
            "The shared expert is added once for every choice of a token. Once is enough.",
        ),
        Mistake(
            "all experts work",
            lambda x, scores, k, f, experts, shared: moe(x, scores, scores.shape[1], f, experts, shared),
            "All experts work for every token. Only the `top_k` best should.",
        ),
        Mistake(
            "no gate weights",
            _moe(of_input=lambda expert, x, w: expert(x)),
            "The chosen experts are added up without their gate weights.",
        ),
        Mistake(
            "weights on the input",
            _moe(of_input=lambda expert, x, w: expert(x * w)),
            "The gate weight is multiplied to what goes into an expert. An expert is not linear, so that is not the "
            "same as weighting what comes out.",
        ),
        Mistake(
            "residual",
            _moe(lambda shared, x, weights: x + shared(x)),
            "You add the input of the layer. Eq. 12 has that term, but the block adds it, from before the norm "
            "(lesson 08); this function gives only what the experts say.",
        ),
        Mistake(
            "mean with the shared expert",
            lambda *given: moe(*given) / 2,
            "The sum of shared and routed part is halved. They are added, not averaged.",
        ),
    ),
    hints=(
        "Three parts: who is chosen and with which weight; what the chosen experts say; the shared expert.",
        "Begin with out = shared(x) and add the experts one after the other, as in the loop of the lesson.",
        "For expert number e, torch.where(ids == e) gives its tokens and the slot in which they chose it. "
        "out.index_add adds the weighted results at these tokens.",
    ),
    after="This is what one MoE layer of DeepSeek-V3 does, apart from the node limit of lesson 07.",
)
