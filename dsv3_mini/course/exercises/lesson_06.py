"""Exercises of lesson 06, mixture of experts: count, gates, layout, combine, the whole layer, and a part of it.

Shapes: N tokens, D model width, E routed experts, K of them per token, M rows (token-expert pairs, N * K if all).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dsv3_mini.config import ModelConfig
from dsv3_mini.course.checking import Case, Exercise, Mistake

# -- random inputs --


def _whole(generator: Generator, low: int, high: int) -> int:
    """A whole number from low to high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _randn(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _choices(generator: Generator, tokens: int, experts: int, top_k: int) -> Tensor:
    """ids [N, K]: for every token K different experts."""
    return torch.rand(tokens, experts, generator=generator).topk(top_k).indices


def _expert(generator: Generator, width: int):
    """A small network, [n, D] -> [n, D]."""
    inner, outer = _randn(generator, width, width) / width**0.5, _randn(generator, width, width) / width**0.5
    return lambda x: torch.tanh(x @ inner) @ outer


# -- 6.1: parameters that exist, parameters that work --


def moe_parameters(config):
    expert = 3 * config.hidden_size * config.moe_intermediate_size  # gate, up, down
    router = config.n_routed_experts * (config.hidden_size + 1)  # a centroid and a bias for each expert
    total = (config.n_routed_experts + config.n_shared_experts) * expert + router
    active = (config.num_experts_per_tok + config.n_shared_experts) * expert + router
    return total, active


def _counted(
    matrices=3, shared=None, active_routers=None, bias=1, width="moe_intermediate_size", per_token=None, routers=True
):
    """The count above with one of its parts changed."""

    def wrong(config):
        expert = matrices * config.hidden_size * getattr(config, width)
        number = config.n_shared_experts if shared is None else shared
        one = config.hidden_size + bias if routers else 0
        active = (config.num_experts_per_tok + number) * expert
        active += (config.n_routed_experts if active_routers is None else config.num_experts_per_tok) * one
        return (config.n_routed_experts + number) * expert + config.n_routed_experts * one, active

    return wrong


def _shared(config):
    return config.n_shared_experts * 3 * config.hidden_size * config.moe_intermediate_size


def _router(config):
    return config.n_routed_experts * (config.hidden_size + 1)


def _configs(generator: Generator) -> list[Case]:
    small = ModelConfig.preset(
        "nano",
        hidden_size=_whole(generator, 20, 90),
        moe_intermediate_size=_whole(generator, 10, 19),
        intermediate_size=_whole(generator, 200, 300),
        n_routed_experts=4 * _whole(generator, 5, 9),
        n_shared_experts=_whole(generator, 2, 3),
        num_experts_per_tok=_whole(generator, 4, 6),
    )
    return [
        Case((small,), note=f"{small.n_routed_experts} routed and {small.n_shared_experts} shared experts"),
        Case((ModelConfig.preset("v3-671b"),), note="the sizes of V3"),
    ]


MOE_PARAMETERS = Exercise(
    id="6.1",
    idea="deepseekmoe",
    title="parameters of one MoE layer, and those that work for a token",
    minutes=5,
    answer="moe_parameters",
    reference=moe_parameters,
    cases=_configs,
    mistakes=(
        Mistake(
            "no shared experts",
            _counted(shared=0),
            "The shared experts are missing. They exist, and every token passes them.",
        ),
        Mistake(
            "one shared expert",
            _counted(shared=1),
            "This counts one shared expert. V3 has one, but the config may say another number.",
        ),
        Mistake(
            "two matrices",
            _counted(matrices=2),
            "This gives an expert two matrices. A SwiGLU network has one more: the gate.",
        ),
        Mistake(
            "width of the dense layers",
            _counted(width="intermediate_size"),
            "That is the width of a dense FFN. An expert has a width of its own in the config.",
        ),
        Mistake("no router", _counted(routers=False), "The experts are right, and the router is missing."),
        Mistake(
            "no routing bias",
            _counted(bias=0),
            "The routing bias is missing: besides its centroid, each routed expert has one number for the choice.",
        ),
        Mistake(
            "only the chosen centroids",
            _counted(active_routers=0),
            "The total is right. For the active part you count the centroids of the chosen experts only. A token must "
            "be compared with all of them before one can be chosen.",
        ),
        Mistake(
            "swapped", lambda config: moe_parameters(config)[::-1], "First the total, then the active part, please."
        ),
        Mistake(
            "shared experts idle",
            lambda config: (moe_parameters(config)[0], moe_parameters(config)[1] - _shared(config)),
            "The total is right. The active part lacks the shared experts: every token passes them.",
        ),
        Mistake(
            "router idle",
            lambda config: (moe_parameters(config)[0], moe_parameters(config)[1] - _router(config)),
            "The total is right. The active part lacks the router: no token can be sent without it.",
        ),
        Mistake(
            "bias idle",
            lambda config: (moe_parameters(config)[0], moe_parameters(config)[1] - config.n_routed_experts),
            "The total is right. The active part lacks the routing bias: it is added to the scores of every token.",
        ),
        Mistake(
            "all work",
            lambda config: (moe_parameters(config)[0],) * 2,
            "Both numbers are the total. A token meets only some of the routed experts.",
        ),
        Mistake(
            "all layers",
            lambda config: tuple(
                (config.num_hidden_layers - config.first_k_dense_replace) * n for n in moe_parameters(config)
            ),
            "That is the sum over all MoE layers; one layer is asked for.",
        ),
    ),
    hints=(
        "Begin with one expert: how many matrices, of which shape? Then count experts.",
        "The router holds a vector of hidden_size numbers and one bias for every routed expert. All of it works for "
        "every token.",
        "Both numbers have the form (experts) * (size of one) + router; only the number of experts differs.",
    ),
    after="At the sizes of V3 the second number hardly depends on how many experts there are to choose from.",
)


# -- 6.2: scores to gates --


def gates(scores, bias, top_k, scaling):
    ids = (scores + bias).topk(top_k, dim=-1).indices  # the bias has a say in the choice only
    chosen = torch.zeros_like(scores).scatter(-1, ids, scores.gather(-1, ids))  # Eq. 16: s, or 0
    return scaling * chosen / chosen.sum(-1, keepdim=True)  # Eq. 13, and the released factor


def _gates(choose_by=lambda s, b: s + b, weigh_by=lambda s, b: s, divide="chosen", largest=True, scaled=True):
    """The gates above with one of their parts changed."""

    def wrong(scores, bias, top_k, scaling):
        ids = choose_by(scores, bias).topk(top_k, dim=-1, largest=largest).indices
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, ids, True)
        values = weigh_by(scores, bias)
        chosen = values * mask
        if divide == "softmax of the chosen":
            chosen = values.masked_fill(~mask, float("-inf")).softmax(-1)
        elif divide == "softmax of all":
            chosen = values.softmax(-1) * mask
        elif divide == "chosen":
            chosen = chosen / chosen.sum(-1, keepdim=True)
        elif divide == "all":
            chosen = chosen / values.sum(-1, keepdim=True)
        elif divide == "tokens":
            chosen = chosen / chosen.sum(0, keepdim=True).clamp_min(1e-20)
        elif divide == "top_k":
            chosen = chosen / top_k
        return chosen * scaling if scaled else chosen

    return wrong


def _scores(generator: Generator) -> list[Case]:
    cases = []
    for tokens, note in ((_whole(generator, 5, 9), ""), (1, "one token")):
        experts, top_k = _whole(generator, 12, 20), _whole(generator, 3, 5)
        scores = _randn(generator, tokens, experts).sigmoid()
        bias = _randn(generator, experts) / 2 + 0.7 * _whole(generator, -1, 1)
        cases.append(Case((scores, bias, top_k, 1.5 + _whole(generator, 1, 4) / 4), note=note))
    return cases


GATES = Exercise(
    id="6.2",
    idea="sigmoid_gate",
    title="from scores to gates, with a bias that only chooses",
    minutes=10,
    answer="gates",
    reference=gates,
    cases=_scores,
    dims="N E",
    mistakes=(
        Mistake(
            "bias leaks",
            _gates(weigh_by=lambda s, b: s + b),
            "The bias leaks into the gates: they are made of scores + bias. The bias has a say in who is chosen, never "
            "in how much it counts.",
        ),
        Mistake(
            "bias ignored",
            _gates(choose_by=lambda s, b: s),
            "The bias has no effect: the choice is by the scores alone.",
        ),
        Mistake(
            "normalised over all",
            _gates(divide="all"),
            "You divide by the sum over all experts, so the gates of a token do not add up to the factor. Eq. 13 adds "
            "up the chosen ones.",
        ),
        Mistake(
            "softmax over all",
            _gates(divide="softmax of all"),
            "This is a softmax over all experts. The scores have been through a sigmoid already, and are only divided "
            "by their sum over the chosen ones.",
        ),
        Mistake(
            "softmax over the chosen",
            _gates(divide="softmax of the chosen"),
            "This is a softmax over the chosen experts. Eq. 13 takes no exponential: each score is divided by a sum.",
        ),
        Mistake(
            "factor forgotten",
            _gates(scaled=False),
            "The gates of a token add up to 1: the factor `scaling` is missing.",
        ),
        Mistake(
            "not normalised",
            _gates(divide=""),
            "The scores are not divided by their sum over the chosen experts (Eq. 13).",
        ),
        Mistake(
            "divided by K",
            _gates(divide="top_k"),
            "You divide by the number of chosen experts. Eq. 13 divides by the sum of their scores.",
        ),
        Mistake(
            "normalised over tokens",
            _gates(divide="tokens"),
            "The sum runs over the tokens. Each token's own gates should add up to the factor.",
        ),
        Mistake(
            "bias in the sum",
            lambda scores, bias, top_k, scaling: _bias_in_the_sum(scores, bias, top_k, scaling),
            "The gates are made of the scores alone, but the sum that you divide by contains the bias.",
        ),
        Mistake(
            "bias subtracted",
            _gates(choose_by=lambda s, b: s - b),
            "The bias is subtracted: who should be helped is held back.",
        ),
        Mistake(
            "sigmoid again",
            _gates(weigh_by=lambda s, b: s.sigmoid()),
            "The gates go through a sigmoid once more. `scores` have been through it already (Eq. 15).",
        ),
        Mistake(
            "sigmoid again for all",
            lambda scores, bias, top_k, scaling: gates(scores.sigmoid(), bias, top_k, scaling),
            "You apply a sigmoid to the scores. They have been through it already (Eq. 15).",
        ),
        Mistake("smallest", _gates(largest=False), "These are the experts with the lowest scores."),
        Mistake(
            "all experts work",
            lambda scores, bias, top_k, scaling: scaling * scores / scores.sum(-1, keepdim=True),
            "No expert is left out: those that were not chosen must have gate 0.",
        ),
        Mistake(
            "only the chosen, as [N, K]",
            lambda scores, bias, top_k, scaling: _chosen_only(scores, bias, top_k, scaling),
            "These are the gates of the chosen experts only, one column for each choice. Asked is a table with a "
            "column for every expert, 0 where it was not chosen.",
        ),
    ),
    hints=(
        "Two questions, two numbers: who is chosen, and with which weight. Which of the two does the bias enter?",
        "topk gives the numbers of the chosen experts. Make a table of zeros and scatter the unbiased scores of the "
        "chosen ones into it: that is Eq. 16.",
        "Then divide each row by its sum, and multiply by `scaling`.",
    ),
    after="Where the bias comes from, and what it is good for, is lesson 07.",
)


def _chosen_only(scores: Tensor, bias: Tensor, top_k: int, scaling: float) -> Tensor:
    chosen = scores.gather(-1, (scores + bias).topk(top_k, dim=-1).indices)
    return scaling * chosen / chosen.sum(-1, keepdim=True)


def _bias_in_the_sum(scores: Tensor, bias: Tensor, top_k: int, scaling: float) -> Tensor:
    best = (scores + bias).topk(top_k, dim=-1)
    chosen = torch.zeros_like(scores).scatter(-1, best.indices, scores.gather(-1, best.indices))
    return scaling * chosen / best.values.sum(-1, keepdim=True)


# -- 6.3: in which row does an assignment stand --


def layout(ids, experts, multiple):
    flat = ids.flatten()  # assignment m belongs to token m // K
    counts = torch.bincount(flat, minlength=experts)
    sizes = (counts + multiple - 1) // multiple * multiple  # rounded up; 0 stays 0
    order = flat.argsort(stable=True)
    within = torch.arange(len(flat)) - (counts.cumsum(0) - counts)[flat[order]]  # place in its own slice
    row = torch.empty_like(flat)
    row[order] = (sizes.cumsum(0) - sizes)[flat[order]] + within
    return row, sizes


def _layout(slots_first=False, fill="up", shift="start", swapped=False, inverse=True):
    """The layout above with one of its parts changed."""

    def wrong(ids, experts, multiple):
        flat = ids.T.flatten() if slots_first else ids.flatten()
        counts = torch.bincount(flat, minlength=experts)
        sizes = (counts + multiple - 1) // multiple * multiple
        if fill == "always":
            sizes = (counts // multiple + 1) * multiple
        elif fill == "never":
            sizes = counts
        elif fill == "down":
            sizes = counts // multiple * multiple
        starts = sizes.cumsum(0) - sizes if shift == "start" else sizes.cumsum(0)
        if shift == "unfilled":
            starts = counts.cumsum(0) - counts
        order = flat.argsort(stable=True)
        within = torch.arange(len(flat)) - (counts.cumsum(0) - counts)[flat[order]]
        row = torch.empty_like(flat)
        if not inverse:
            row = starts[flat[order]] + within
        else:
            row[order] = starts[flat[order]] + within
        return (sizes, row) if swapped else (row, sizes)

    return wrong


def _dropped_empty(ids, experts, multiple):
    row, sizes = layout(ids, experts, multiple)
    return row, sizes[sizes > 0]


def _no_minlength(ids, experts, multiple):
    row, sizes = layout(ids, experts, multiple)
    return row, sizes[: int(ids.max()) + 1]


def _at_least(ids, experts, multiple):
    row, sizes = layout(ids, experts, multiple)
    more = (sizes == 0) * multiple
    return row + (more.cumsum(0) - more)[ids.flatten()], sizes + more


def _assignments(generator: Generator) -> list[Case]:
    cases = []
    for tokens, multiple, note in (
        (_whole(generator, 6, 9), 1, "multiple = 1"),
        (_whole(generator, 9, 14), _whole(generator, 3, 4), "a multiple above 1"),
        (1, 4, "one token"),
    ):
        experts, top_k = _whole(generator, 7, 9), _whole(generator, 2, 3)
        quiet = _choices(generator, tokens, experts - 2, top_k)  # the last two experts get no token
        cases.append(Case((quiet, experts, multiple), note=note))
    return cases


LAYOUT = Exercise(
    id="6.3",
    idea="deepseekmoe",
    title="where each assignment stands when slices are filled up",
    minutes=15,
    answer="layout",
    reference=layout,
    cases=_assignments,
    dims=("M", "E"),
    mistakes=(
        Mistake(
            "empty experts left out",
            _dropped_empty,
            "Experts without a token are missing in the sizes, so everything behind them moves up. Every expert has a "
            "size; theirs is 0 (bincount has a minlength).",
        ),
        Mistake(
            "last experts left out",
            _no_minlength,
            "The sizes end with the last expert that has a token. Idle experts behind it have a size, too: 0 (bincount "
            "has a minlength).",
        ),
        Mistake(
            "ends instead of sizes",
            lambda ids, experts, multiple: (
                layout(ids, experts, multiple)[0],
                layout(ids, experts, multiple)[1].cumsum(0),
            ),
            "The second part is where the slices end; asked are their sizes.",
        ),
        Mistake(
            "idle rows for idle experts",
            _at_least,
            "An expert without tokens is given rows all the same. It needs none: 0 is a multiple of anything.",
        ),
        Mistake(
            "order instead of row",
            _layout(inverse=False),
            "You list the rows in the order of the experts. Asked is the other direction: for assignment m, the row in "
            "which it stands. The two are inverse to each other.",
        ),
        Mistake(
            "slots first",
            _layout(slots_first=True),
            "The assignments are numbered slot by slot: first choices of all tokens, then second choices. Assignment m "
            "should belong to token m // K.",
        ),
        Mistake("not filled up", _layout(fill="never"), "The sizes are those of the slices before filling up."),
        Mistake(
            "always one more",
            _layout(fill="always"),
            "A slice that needs no filling is filled up all the same, and an expert without tokens gets rows, too.",
        ),
        Mistake(
            "rounded down",
            _layout(fill="down"),
            "The sizes are rounded down: some assignments have no row of their own.",
        ),
        Mistake(
            "ends instead of starts",
            _layout(shift="end"),
            "Every slice begins where it should end: cumsum gives the ends of the slices.",
        ),
        Mistake(
            "rows of the unfilled slices",
            _layout(shift="unfilled"),
            "The sizes are right, but the rows are counted as if nothing had been filled up: a slice behind a filled "
            "one must move back.",
        ),
        Mistake("swapped", _layout(swapped=True), "First the rows, then the sizes, please."),
    ),
    hints=(
        "Sizes first: count the assignments of each expert and round up. (n + 7) // 8 * 8 rounds up to eights.",
        "Where does the slice of an expert start? Where all slices before it end: a cumsum, less the own size.",
        "The stable argsort lists assignments by expert. The i-th of that list is number i - (assignments of earlier "
        "experts) within its slice, and its row is the start of the slice plus that number.",
        "You know the row of order[i]; asked is the row of m. Writing row[order] = ... turns it round.",
    ),
    after="With multiple = 1 it is the inverse permutation; with 16, what the package does for bf16 on a CPU.",
)


# -- 6.4: back to the tokens --


def combine(rows, token, weights, tokens):
    out = torch.zeros(tokens, rows.shape[1])
    return out.index_add(0, token, rows * weights[:, None])


def _overwrites(rows, token, weights, tokens):
    out = torch.zeros(tokens, rows.shape[1])
    for row, place in zip(rows * weights[:, None], token.tolist(), strict=True):
        out[place] = row
    return out


def _keeps_first(rows, token, weights, tokens):
    return _overwrites(rows.flip(0), token.flip(0), weights.flip(0), tokens)


def _averages(rows, token, weights, tokens):
    times = torch.bincount(token, minlength=tokens).clamp_min(1)
    return combine(rows, token, weights, tokens) / times[:, None]


def _cut(rows, token, weights, tokens):
    return combine(rows, token, weights, tokens)[: int(token.max()) + 1]


def _leaves_out_idle(rows, token, weights, tokens):
    return combine(rows, token, weights, tokens)[token.unique()]


def _rows_of_a_machine(generator: Generator) -> list[Case]:
    cases = []
    for tokens, note in ((_whole(generator, 6, 9), ""), (3, "three tokens")):
        count, width = _whole(generator, 2 * tokens, 3 * tokens), _whole(generator, 4, 7)
        # The last token and token 1 get nothing, token 0 gets three rows: experts on other machines do the rest.
        token = torch.randint(2, tokens, (count,), generator=generator) if tokens > 3 else torch.zeros(count).long()
        token[:3], token[token == tokens - 1] = 0, 0
        token = token[torch.randperm(count, generator=generator)]
        weights = torch.rand(count, generator=generator) + 0.1
        cases.append(Case((_randn(generator, count, width), token, weights, tokens), note=note))
    return cases


COMBINE = Exercise(
    id="6.4",
    idea="deepseekmoe",
    title="rows of experts back to their tokens",
    minutes=5,
    answer="combine",
    reference=combine,
    cases=_rows_of_a_machine,
    dims="N D",
    mistakes=(
        Mistake(
            "overwriting",
            _overwrites,
            "Of several rows of one token only the last one is left. out[token] = rows writes them over each other, "
            "and so does out[token] += rows: it reads, adds once and writes back. Rows of one token must add up.",
        ),
        Mistake(
            "only the first",
            _keeps_first,
            "Of several rows of one token only the first one is left. They must add up.",
        ),
        Mistake(
            "weights forgotten", lambda r, t, w, n: combine(r, t, torch.ones_like(w), n), "The weights are missing."
        ),
        Mistake("mean", _averages, "The rows of a token are averaged; they should add up."),
        Mistake(
            "tokens missing at the end",
            _cut,
            "The result ends with the last token that has a row. There is a row of zeros for each token without one.",
        ),
        Mistake(
            "tokens missing",
            _leaves_out_idle,
            "Tokens without a row are left out. Their sum is zero, and they keep their place.",
        ),
        Mistake(
            "weights twice",
            lambda r, t, w, n: combine(r, t, w * w, n),
            "Each row is multiplied by its weight twice.",
        ),
    ),
    hints=(
        "Start from zeros, one row for each token. Multiply every row by its weight first.",
        "Which operation adds rows at given places, also several at the same place? The loop of the lesson uses it.",
    ),
    after="Tokens without a row occur when the experts are spread over several machines: exercise 6.6.",
)


# -- 6.5: the whole layer --


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


# -- 6.6: experts on several machines --


def local_part(x, ids, weights, first, experts):
    out = torch.zeros_like(x)
    for number, expert in enumerate(experts, start=first):  # the number that this expert has in the whole model
        token, slot = torch.where(ids == number)
        out = out.index_add(0, token, expert(x[token]) * weights[token, slot, None])
    return out


def local_part__clamped(x, ids, weights, first, experts):
    local = (ids - first).clamp(0, len(experts) - 1)  # numbers on this machine
    out = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        token, slot = torch.where(local == number)
        out = out.index_add(0, token, expert(x[token]) * weights[token, slot, None])
    return out


def local_part__foreign_to_zero(x, ids, weights, first, experts):
    local = ids - first  # numbers on this machine
    is_here = (local >= 0) & (local < len(experts))
    local = torch.where(is_here, local, 0)  # an index must not point outside the list
    out = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        token, slot = torch.where(local == number)
        out = out.index_add(0, token, expert(x[token]) * weights[token, slot, None])
    return out


def _global_numbers(x, ids, weights, first, experts):
    return local_part(x, ids, weights, 0, experts)


def _wraps_round(x, ids, weights, first, experts):
    return local_part(x, (ids - first) % len(experts), weights, 0, experts)


def _share_of_the_machine(x, ids, weights, first, experts):
    is_here = (ids >= first) & (ids < first + len(experts))
    here = weights * is_here
    full = here / here.sum(-1, keepdim=True).clamp_min(1e-20) * weights.sum(-1, keepdim=True)
    return local_part(x, ids, full, first, experts)


def _one_hit(x, ids, weights, first, experts):
    out = torch.zeros_like(x)
    for token in range(len(x)):
        for slot in range(ids.shape[1]):
            number = int(ids[token, slot]) - first
            if 0 <= number < len(experts):
                out[token] = weights[token, slot] * experts[number](x[token : token + 1])[0]
    return out


def _all_here(x, ids, weights, first, experts):
    stays = ((ids >= first) & (ids < first + len(experts))).all(-1, keepdim=True)
    return local_part(x, ids, weights, first, experts) * stays


def _machines(generator: Generator) -> list[Case]:
    width, here, top_k = _whole(generator, 5, 7), _whole(generator, 3, 4), _whole(generator, 3, 4)
    experts, tokens = 3 * here, _whole(generator, 12, 16)
    cases = []
    for first, count, note in (
        (0, experts, "all experts on one machine"),
        (0, here, "the first of three machines"),
        (here, here, "the second of three machines"),
        (2 * here, here, "the last of three machines"),
    ):
        networks = [_expert(generator, width) for _ in range(count)]
        ids = _choices(generator, tokens, experts, top_k)
        weights = torch.rand(tokens, top_k, generator=generator) + 0.1
        cases.append(Case((_randn(generator, tokens, width), ids, weights, first, networks), note=note))
    return cases


LOCAL_PART = Exercise(
    id="6.6",
    idea="deepseekmoe",
    title="the part of one machine, when experts are spread over several",
    minutes=10,
    answer="local_part",
    reference=local_part,
    cases=_machines,
    dims="N D",
    mistakes=(
        Mistake(
            "foreign_to_zero",
            local_part__foreign_to_zero,
            "Tokens for experts of other machines are sent to your expert number 0, with their full weight. They "
            "should be left out here: their own machine adds them.",
        ),
        Mistake(
            "clamped",
            local_part__clamped,
            "Tokens for experts of other machines are sent to your first or your last expert: clamp keeps an index "
            "inside the list, and it does not make the token yours.",
        ),
        Mistake(
            "wraps round",
            _wraps_round,
            "Tokens for experts of other machines wrap round and are given to yours: an index below zero counts from "
            "the end, and so does %.",
        ),
        Mistake(
            "numbers of the whole model",
            _global_numbers,
            "You take `ids` for numbers on this machine. They number the experts of the whole model; yours begin with "
            "`first`.",
        ),
        Mistake(
            "weights normalised again",
            _share_of_the_machine,
            "The weights are normalised again among the experts of this machine. They were made for all chosen "
            "experts, wherever those are.",
        ),
        Mistake(
            "residual",
            lambda x, *more: x + local_part(x, *more),
            "You add the input itself. With several machines it would be added several times; the block adds it once.",
        ),
        Mistake(
            "only tokens that stay",
            _all_here,
            "Tokens that also chose experts of other machines are left out altogether. Your part of them is needed.",
        ),
        Mistake(
            "overwriting",
            _one_hit,
            "When a token has chosen several experts of this machine, only the last one is left. They must add up.",
        ),
    ),
    hints=(
        "It is the loop of the lesson over fewer experts. What changes is the number under which an expert is known.",
        "Expert j of this machine is expert first + j in `ids`. What happens to numbers that are none of yours?",
        "Nothing at all: a token that chose none of your experts has a row of zeros.",
    ),
    after="The sum over all machines is the whole layer. Lesson 16 sends the tokens there and back.",
)

EXERCISES = (MOE_PARAMETERS, GATES, LAYOUT, COMBINE, MOE, LOCAL_PART)
