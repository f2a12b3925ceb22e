"""Exercises of lesson 05: decoding in the latent, and what it costs.

Shapes: B batch, T new tokens, S tokens in the memory, H heads, N and R content and positional width of a key, V width
of a value, C width of the latent.
"""

# Solutions carry no types: they are shown to learners, whose stubs have none.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dsv3_mini.config import ModelConfig
from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.compare import close
from dsv3_mini.model.decode_cost import decode_cost


def _size(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


# -- 5.1 --


def absorb_query(q_c, kv_b):
    heads, nope_dim = q_c.shape[-2:]
    w_uk = kv_b.unflatten(0, (heads, -1))[:, :nope_dim]  # [H, N + V, C] -> [H, N, C]
    return torch.einsum("bthn,hnc->bthc", q_c, w_uk)


def absorb_query__value_rows(q_c, kv_b):
    heads, nope_dim = q_c.shape[-2:]
    w_uk = kv_b.unflatten(0, (heads, -1))[:, nope_dim:]  # [H, N + V, C] -> [H, N, C]
    return torch.einsum("bthn,hnc->bthc", q_c, w_uk)


def absorb_query__cut_once(q_c, kv_b):
    heads, nope_dim = q_c.shape[-2:]
    w_uk = kv_b[: heads * nope_dim].unflatten(0, (heads, nope_dim))  # [H, N, C]
    return torch.einsum("bthn,hnc->bthc", q_c, w_uk)


def absorb_query__heads_inside(q_c, kv_b):
    heads, nope_dim = q_c.shape[-2:]
    w_uk = kv_b.unflatten(0, (-1, heads))[:nope_dim]  # [N, H, C]
    return torch.einsum("bthn,nhc->bthc", q_c, w_uk)


def _query_cases(generator: torch.Generator) -> Sequence[Case]:
    B, T, H, N = _size(generator, 2, 3), _size(generator, 4, 5), _size(generator, 6, 7), _size(generator, 8, 11)
    C = _size(generator, 13, 19)
    q_c, kv_b = torch.randn(B, T, H, N, generator=generator), torch.randn(H * 2 * N, C, generator=generator)
    return Case((q_c, kv_b)), Case((q_c[:1, :1], kv_b), note="one new token")


ABSORB_QUERY = Exercise(
    id="5.1",
    idea="mla",
    title="let the query absorb the up-projection",
    minutes=5,
    answer="absorb_query",
    reference=absorb_query,
    cases=_query_cases,
    dims="B T H C",
    mistakes=(
        Mistake(
            "value rows",
            absorb_query__value_rows,
            "You multiplied with W^UV, the rows of the values. Which rows of a head come first in kv_b_proj? In V3 "
            "keys and values are equally wide, so no shape tells you.",
        ),
        Mistake(
            "cut once",
            absorb_query__cut_once,
            "You cut kv_b_proj once through the middle. Its rows lie head by head: keys of head 0, values of head "
            "0, keys of head 1, ... (lesson 04).",
        ),
        Mistake(
            "heads inside",
            absorb_query__heads_inside,
            "You read the rows as if the heads alternated from row to row. All rows of a head lie together, so the "
            "head is the outer of the two dimensions that you unfold.",
        ),
        Mistake(
            "one matrix",
            lambda q_c, kv_b: q_c @ kv_b[: q_c.shape[-1]],
            "Every head went through the matrix of head 0. Each head has a W^UK of its own.",
        ),
        Mistake(
            "summed",
            lambda q_c, kv_b: absorb_query(q_c, kv_b).sum(2),
            "The heads were added up: their letter is missing behind the arrow. Each head asks its own question, in "
            "the latent as before.",
        ),
        Mistake(
            "scaled",
            lambda q_c, kv_b: absorb_query(q_c, kv_b) / q_c.shape[-1] ** 0.5,
            "That is right, and then divided by a square root. The scale belongs to the scores, once.",
        ),
    ),
    hints=(
        "Lesson 04 has taken kv_b_proj apart: unfold its rows into heads first, [H, N + V, C].",
        "The first N rows of a head are its W^UK. N is the last size of q_c, H the one before it.",
        "For head h: q [N] times W^UK_h [N, C] gives [C]. In an einsum h stands on both inputs and in the result, n "
        "on both inputs only.",
    ),
    after="This product costs the same however long the text is.",
)


# -- 5.2 --


def latent_scores(q_latent, q_r, memory, nope_dim):
    query = torch.cat([q_latent, q_r], dim=-1)  # [B, T, H, C + R]
    scores = torch.einsum("bthc,bsc->bhts", query, memory)
    return scores / (nope_dim + q_r.shape[-1]) ** 0.5


def latent_scores__scale_of_the_memory(q_latent, q_r, memory, nope_dim):
    query = torch.cat([q_latent, q_r], dim=-1)  # [B, T, H, C + R]
    scores = torch.einsum("bthc,bsc->bhts", query, memory)
    return scores / query.shape[-1] ** 0.5


def _scores_over(divisor):
    """The right products with another scale; `divisor` of C, N and R."""

    def scores(q_latent, q_r, memory, nope_dim):
        products = torch.einsum("bthc,bsc->bhts", torch.cat([q_latent, q_r], dim=-1), memory)
        return products / divisor(q_latent.shape[-1], nope_dim, q_r.shape[-1])

    return scores


def latent_scores__no_position(q_latent, q_r, memory, nope_dim):
    latent = memory[..., : q_latent.shape[-1]]  # [B, S, C]
    scores = torch.einsum("bthc,bsc->bhts", q_latent, latent)
    return scores / (nope_dim + q_r.shape[-1]) ** 0.5


def latent_scores__one_part_scaled(q_latent, q_r, memory, nope_dim):
    latent, k_r = memory.split((q_latent.shape[-1], q_r.shape[-1]), dim=-1)
    content = torch.einsum("bthc,bsc->bhts", q_latent, latent) / (nope_dim + q_r.shape[-1]) ** 0.5
    return content + torch.einsum("bthr,bsr->bhts", q_r, k_r)


def latent_scores__each_part_its_scale(q_latent, q_r, memory, nope_dim):
    latent, k_r = memory.split((q_latent.shape[-1], q_r.shape[-1]), dim=-1)
    content = torch.einsum("bthc,bsc->bhts", q_latent, latent) / nope_dim**0.5
    return content + torch.einsum("bthr,bsr->bhts", q_r, k_r) / q_r.shape[-1] ** 0.5


def latent_scores__position_first(q_latent, q_r, memory, nope_dim):
    query = torch.cat([q_r, q_latent], dim=-1)
    return torch.einsum("bthc,bsc->bhts", query, memory) / (nope_dim + q_r.shape[-1]) ** 0.5


def _score_cases(generator: torch.Generator) -> Sequence[Case]:
    B, T, H, R = _size(generator, 2, 3), _size(generator, 4, 5), _size(generator, 6, 7), 2 * _size(generator, 4, 5)
    N, S, C = _size(generator, 11, 13), _size(generator, 14, 17), _size(generator, 18, 23)
    q_latent, q_r = torch.randn(B, T, H, C, generator=generator), torch.randn(B, T, H, R, generator=generator)
    memory = torch.randn(B, S, C + R, generator=generator)
    return (
        Case((q_latent, q_r, memory, N)),
        Case((q_latent[:, :1], q_r[:, :1], memory[:, :1], N), note="one token that sees itself"),
    )


LATENT_SCORES = Exercise(
    id="5.2",
    idea="mla",
    title="scores in the latent",
    minutes=5,
    answer="latent_scores",
    reference=latent_scores,
    cases=_score_cases,
    dims="B H T S",
    mistakes=(
        Mistake(
            "scale of the memory",
            latent_scores__scale_of_the_memory,
            "You divided by the square root of the width that is multiplied now. The number itself is that of the "
            "expanded path, so its scale is that one, too: how wide were query and key there?",
        ),
        Mistake(
            "scale of the latent",
            _scores_over(lambda C, N, R: C**0.5),
            "You divided by the square root of the latent's width. The scores are those of the expanded path: their "
            "scale does not know the latent.",
        ),
        Mistake(
            "scale of the content",
            _scores_over(lambda C, N, R: N**0.5),
            "The scale forgets the positional part: a whole key of the expanded path has two parts.",
        ),
        Mistake(
            "no scale",
            _scores_over(lambda C, N, R: 1),
            "The scores are right up to their scale (Eq. 10), which is missing.",
        ),
        Mistake(
            "scaled twice",
            _scores_over(lambda C, N, R: N + R),
            "Divided by the width of a key, not by its square root: that scales twice.",
        ),
        Mistake(
            "no position",
            latent_scores__no_position,
            "The positional part is missing: with these scores the model does not know the order of the words.",
        ),
        Mistake(
            "one part scaled",
            latent_scores__one_part_scaled,
            "Only the content part is scaled. Add the two parts first, then scale the sum.",
        ),
        Mistake(
            "each part its scale",
            latent_scores__each_part_its_scale,
            "Each part is scaled by its own width. It is one score of one key: add the parts, then scale once.",
        ),
        Mistake(
            "position first",
            latent_scores__position_first,
            "Query and memory have their parts in different order: in the memory the latent comes first.",
        ),
        Mistake(
            "shares",
            lambda *inputs: latent_scores(*inputs).softmax(-1),
            "That is already the softmax. Scores are asked for; the mask comes between the two.",
        ),
    ),
    hints=(
        "In the memory the latent and the positional key lie side by side. Lay the two parts of the query side by "
        "side in the same order.",
        "There is one memory for all heads, so s and the width are its only letters besides b.",
        "The scale is that of Eq. 10: one over the square root of N + R, whatever is multiplied here.",
    ),
    after="One memory, many heads: to the device this is multi-query attention with wide keys.",
)


# -- 5.3 --

_REBUILT = "right, but with the values of the past rebuilt"


def latent_output(shares, memory, kv_b, value_dim):
    heads, latent_dim = shares.shape[1], kv_b.shape[1]
    seen = torch.einsum("bhts,bsc->bthc", shares, memory[..., :latent_dim])  # first the sum of the latents ...
    w_uv = kv_b.unflatten(0, (heads, -1))[:, -value_dim:]  # [H, V, C]
    return torch.einsum("bthc,hvc->bthv", seen, w_uv).flatten(-2)  # ... then the matrix, once: [B, T, H * V]


def latent_output__rebuilt(shares, memory, kv_b, value_dim):
    heads, latent_dim = shares.shape[1], kv_b.shape[1]
    w_uv = kv_b.unflatten(0, (heads, -1))[:, -value_dim:]
    values = torch.einsum("bsc,hvc->bshv", memory[..., :latent_dim], w_uv)  # every token of the past, every head
    return torch.einsum("bhts,bshv->bthv", shares, values).flatten(-2)


def _output(rows, columns=lambda memory, latent_dim: memory[..., :latent_dim], order="bthv"):
    """The right order of steps with other rows of kv_b (those of W^UV), columns of the memory, or order of heads."""

    def output(shares, memory, kv_b, value_dim):
        heads = shares.shape[1]
        seen = torch.einsum("bhts,bsc->bthc", shares, columns(memory, kv_b.shape[1]))
        result = torch.einsum(f"bthc,hvc->{order}", seen, rows(kv_b, heads, value_dim))
        return result.flatten(-2)

    return output


def _value_rows(kv_b, heads, value_dim):
    return kv_b.unflatten(0, (heads, -1))[:, -value_dim:]


def _key_rows(kv_b, heads, value_dim):
    return kv_b.unflatten(0, (heads, -1))[:, :value_dim]


def _last_rows(kv_b, heads, value_dim):
    return kv_b[-heads * value_dim :].unflatten(0, (heads, value_dim))


def _output_cases(generator: torch.Generator) -> Sequence[Case]:
    B, T, H, V = _size(generator, 3, 4), 2, _size(generator, 5, 6), _size(generator, 11, 13)
    N, R, S, C = _size(generator, 14, 16), 8, _size(generator, 30, 40), _size(generator, 17, 23)
    shares = torch.randn(B, H, T, S, generator=generator).softmax(-1)
    memory = torch.randn(B, S, C + R, generator=generator)
    kv_b = torch.randn(H * (N + V), C, generator=generator)
    one = Case((torch.ones(B, H, 1, 1), memory[:, :1], kv_b, V), note="one token that sees itself")
    return Case((shares, memory, kv_b, V)), one


class _Products(TorchDispatchMode):
    """Counts the multiplications in matrix products. (torch's own counter takes seconds to start.)"""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            self.count += args[0].numel() * args[1].shape[-1]  # [.., a, b] @ [.., b, c]
        return func(*args, **(kwargs or {}))


def _output_and_its_price(answer: Any, case: Case) -> Any:
    """The answer's result; in its place a word when it is right but took far more products than it needs."""
    with _Products() as spent:
        result = answer(*case.args)
    with _Products() as needed:
        right = latent_output(*case.args)
    long_past = case.args[1].shape[1] > 1  # with a single token both orders cost the same
    if long_past and spent.count > 1.5 * needed.count and close(result, right):
        return _REBUILT
    return result


LATENT_OUTPUT = Exercise(
    id="5.3",
    idea="mla",
    title="from shares to the output of the heads",
    minutes=8,
    answer="latent_output",
    reference=latent_output,
    cases=_output_cases,
    use=_output_and_its_price,
    dims="B T H*V",
    mistakes=(
        Mistake(
            "rebuilt",
            latent_output__rebuilt,
            "The numbers are right, the order is not: the values of every token of the past were rebuilt before the "
            "sum (the products were counted). Which of the two steps can wait until after it?",
        ),
        Mistake(
            "key rows",
            _output(_key_rows),
            "You multiplied with rows of W^UK. Within a head the rows of the value come last.",
        ),
        Mistake(
            "cut once",
            _output(_last_rows),
            "You took the last rows of the whole matrix. The rows lie head by head, so each head has its own last "
            "rows.",
        ),
        Mistake(
            "last columns",
            _output(_value_rows, columns=lambda memory, latent_dim: memory[..., -latent_dim:]),
            "You summed the last columns of the memory, positional key included. The latent comes first.",
        ),
        Mistake(
            "heads inside",
            _output(_value_rows, order="btvh"),
            "The heads are interleaved in the result: o_proj expects all of head 0, then all of head 1. Check the "
            "order of the last two dimensions before you flatten them.",
        ),
        Mistake(
            "heads apart",
            lambda *inputs: latent_output(*inputs).unflatten(-1, (inputs[0].shape[1], -1)),
            "The numbers are right. The heads still have to be put side by side, [B, T, H * V], as o_proj wants them.",
        ),
    ),
    hints=(
        "The output is a sum of W^UV c_j, weighted with the shares. What does linearity allow you to do first?",
        "First the weighted sum of latents, for each head: [B, T, H, C]. Only the first C columns of the memory.",
        "Then each head's W^UV, [V, C], takes its sum to V numbers. It is the last V rows of the head in kv_b_proj.",
    ),
    after="That is the whole of it: with these three functions a model decodes in the latent.",
)


# -- 5.4 --


def absorbed_flops(cfg, context):
    N, R, V, C = cfg.qk_nope_head_dim, cfg.qk_rope_head_dim, cfg.v_head_dim, cfg.kv_lora_rank
    once = N * C + C * V  # the query absorbs W^UK, the sum goes through W^UV
    each = (C + R) + C  # a score and a share of the sum, for each token of the past
    return 2 * cfg.num_attention_heads * (once + context * each)


def _flops(once: Any, each: Any, factor: int = 2, heads: bool = True) -> Any:
    """A wrong count: operations once a step, and for each token of the past, of one head."""

    def count(cfg: ModelConfig, context: int) -> int:
        return factor * (cfg.num_attention_heads if heads else 1) * (once(cfg) + context * each(cfg))

    return count


def _up(cfg: ModelConfig) -> int:
    return cfg.kv_lora_rank * (cfg.qk_nope_head_dim + cfg.v_head_dim)


def _pair(cfg: ModelConfig) -> int:
    return 2 * cfg.kv_lora_rank + cfg.qk_rope_head_dim


def _flop_cases(generator: torch.Generator) -> Sequence[Case]:
    cfg = ModelConfig.preset(
        "nano",
        num_attention_heads=_size(generator, 3, 9),
        qk_nope_head_dim=_size(generator, 20, 40),
        qk_rope_head_dim=2 * _size(generator, 3, 9),
        v_head_dim=_size(generator, 41, 60),
        kv_lora_rank=_size(generator, 61, 90),
    )
    context = _size(generator, 100, 5000)
    return Case((cfg, context), note=f"{cfg.num_attention_heads} heads and {context} tokens"), Case((cfg, 1))


ABSORBED_FLOPS = Exercise(
    id="5.4",
    idea="mla",
    title="operations of the absorbed path",
    minutes=8,
    answer="absorbed_flops",
    reference=absorbed_flops,
    cases=_flop_cases,
    mistakes=(
        Mistake(
            "multiplications",
            _flops(_up, _pair, factor=1),
            "Those are the multiplications. Each comes with an addition: count both.",
        ),
        Mistake(
            "one head",
            _flops(_up, _pair, heads=False),
            "That is one head. All of them read the memory.",
        ),
        Mistake(
            "whole layer",
            lambda cfg, context: decode_cost(cfg, "absorbed", context).flops,
            "That is the whole layer, with the projections of the new token. Asked for is what lies between its query "
            "and the output of its heads.",
        ),
        Mistake(
            "all layers",
            lambda cfg, context: cfg.num_hidden_layers * absorbed_flops(cfg, context),
            "That is all layers; one is asked for.",
        ),
        Mistake(
            "pairs only",
            _flops(lambda cfg: 0, _pair),
            "What happens once for each new token is missing: the query absorbs W^UK, the sum goes through W^UV.",
        ),
        Mistake(
            "only the query absorbs",
            _flops(lambda cfg: cfg.kv_lora_rank * cfg.qk_nope_head_dim, _pair),
            "W^UV is missing: the summed latent still has to become a value.",
        ),
        Mistake(
            "scores only",
            _flops(_up, lambda cfg: cfg.kv_lora_rank + cfg.qk_rope_head_dim),
            "The weighted sum of the latents is missing: it also takes operations for each token of the past.",
        ),
        Mistake(
            "sum too wide",
            _flops(_up, lambda cfg: 2 * (cfg.kv_lora_rank + cfg.qk_rope_head_dim)),
            "The sum runs over latents only; the positional key takes part in the scores and nowhere else.",
        ),
        Mistake(
            "scores too narrow",
            _flops(_up, lambda cfg: 2 * cfg.kv_lora_rank),
            "The scores forget the positional part.",
        ),
        Mistake(
            "naive",
            _flops(_up, lambda cfg: cfg.qk_head_dim + cfg.v_head_dim),
            "Those are the widths of expanded keys and values. In the latent a score multiplies the whole memory, "
            "and the sum is one of latents.",
        ),
        Mistake(
            "rebuilt",
            _flops(lambda cfg: 0, lambda cfg: _up(cfg) + cfg.qk_head_dim + cfg.v_head_dim),
            "That is the path that rebuilds keys and values for each token of the past.",
        ),
        Mistake(
            "absorbed for each token",
            _flops(lambda cfg: 0, lambda cfg: _up(cfg) + _pair(cfg)),
            "W^UK and W^UV are used once for a new token, not once for each token of the past.",
        ),
    ),
    hints=(
        "There are four products for each head. Two of them happen once, two for each token of the past.",
        "Once: [N] times [N, C], and [C] times [C, V]. For each token: a product of width C + R, and C numbers "
        "times a share.",
        "A multiplication comes with an addition: 2 operations. Then all heads.",
    ),
    after="One more token of the past costs 2 H (2C + R) of them. For V3 that is more than a quarter of a million.",
)


# -- 5.5 --

_V3 = ModelConfig.preset("v3-671b")
_PAST = 131_072


def _break_even() -> int:
    """The fewest queries at once for which rebuilding the past takes fewer operations than absorbing."""
    queries = 1
    while (
        decode_cost(_V3, "expanded", _PAST, new=queries).flops >= decode_cost(_V3, "absorbed", _PAST, new=queries).flops
    ):
        queries += 1
    return queries


_BREAK_EVEN_CODE = """\
def expanding_wins(queries, past=131_072):
    expanded = decode_cost(v3, "expanded", past, new=queries).flops
    return expanded < decode_cost(v3, "absorbed", past, new=queries).flops


break_even = next(queries for queries in range(1, 131_072) if expanding_wins(queries))
"""


BREAK_EVEN = Exercise(
    id="5.5",
    idea="kv_cache",
    title="when expanding wins",
    minutes=8,
    answer="break_even",
    reference=_BREAK_EVEN_CODE,
    value=_break_even(),
    mistakes=(
        Mistake(
            "one too few",
            _break_even() - 1,
            "With that many queries expanding still takes a few more operations: one more.",
        ),
        Mistake(
            "ratio for one query",
            120,
            "That is how many times more operations expanding takes for a single query. With more queries the cost "
            "of rebuilding is shared, and each pair of a query and a token has its price in both ways.",
        ),
        Mistake(
            "ratio for one query, rounded up",
            121,
            "That is how many times more operations expanding takes for a single query. With more queries the cost "
            "of rebuilding is shared, and each pair of a query and a token has its price in both ways.",
        ),
        Mistake(
            "rebuilding against pairs",
            410,
            "That is where rebuilding the past costs as much as the scores and sums of the *expanded* path. Compare "
            "with the absorbed path, whose pairs cost more.",
        ),
        Mistake(
            "as many as there are tokens",
            _PAST,
            "That would be the whole prefill. Expanding is ahead long before: try smaller numbers.",
        ),
    ),
    hints=(
        "decode_cost takes the number of new tokens as new=..., and gives .flops. Compare the two ways for some "
        "numbers.",
        "For one new token absorbed is far ahead, for a thousand it is behind. Search in between.",
        "On paper: rebuilding costs S C (N + V) per head, and each of Q queries saves S (2C + R) - S (N + R + V) "
        "by it (what is absorbed once for each query hardly counts).",
    ),
    after="A prefill is far beyond it; a step that checks one or two drafted tokens (lesson 12) is far below.",
)

EXERCISES = (ABSORB_QUERY, LATENT_SCORES, LATENT_OUTPUT, ABSORBED_FLOPS, BREAK_EVEN)
