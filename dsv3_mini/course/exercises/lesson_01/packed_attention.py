"""Exercise 1.5: a whole attention layer for packed rows, as a module.

Shapes: B rows, T tokens, D width of a token, H heads, K width of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, nn

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_01.inputs import _randn, _whole


class PackedAttention(nn.Module):
    def __init__(self, width, heads, head_width):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, heads * head_width, bias=False)
        self.k_proj = nn.Linear(width, heads * head_width, bias=False)
        self.v_proj = nn.Linear(width, heads * head_width, bias=False)
        self.o_proj = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, x, document):
        B, T, _ = x.shape
        q, k, v = (
            project(x).view(B, T, self.heads, -1).transpose(1, 2)  # [B, H, T, K]
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        causal = torch.ones(T, T, dtype=torch.bool).tril()
        same = document[:, None, :] == document[:, :, None]  # [B, T, T]
        may_see = (causal & same)[:, None]  # [B, 1, T, T]: the same for all heads
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=may_see)  # [B, H, T, K]
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))


_attend = F.scaled_dot_product_attention


def _wrong_layer(causal=True, same=True, first_row=False, split="transpose", merge="transpose", attend=None):
    """The layer above with one of its parts changed."""

    class Wrong(PackedAttention):
        def forward(self, x, document):
            B, T, _ = x.shape
            q, k, v = (project(x) for project in (self.q_proj, self.k_proj, self.v_proj))
            if split == "transpose":
                q, k, v = (t.view(B, T, self.heads, -1).transpose(1, 2) for t in (q, k, v))
            else:
                q, k, v = (t.view(B, self.heads, T, -1) for t in (q, k, v))
            if first_row:
                document = document[:1]
            may_see = torch.ones(T, T, dtype=torch.bool).tril() if causal else torch.ones(T, T, dtype=torch.bool)
            if same:
                may_see = may_see & (document[:, None, :] == document[:, :, None])[:, None]
            out = attend(self, q, k, v, may_see) if attend else _attend(q, k, v, attn_mask=may_see)
            if merge == "transpose":
                out = out.transpose(1, 2)
            return self.o_proj(out.reshape(B, T, -1))

    return Wrong


def _in_steps(scale=None, hidden=-math.inf, behind=False):
    """Attention of the layer above written out, with one step changed."""

    def attend(layer, q, k, v, may_see):
        scores = q @ k.transpose(-2, -1) / (math.sqrt(q.shape[-1]) if scale is None else scale(layer))
        shares = scores.softmax(-1) * may_see if behind else scores.masked_fill(~may_see, hidden).softmax(-1)
        return shares @ v

    return attend


def _packed_rows(generator: Generator) -> list[Case]:
    cases = []
    for B, T in ((3, _whole(generator, 6, 8)), (1, 5), (2, 1)):
        sizes = {"width": _whole(generator, 9, 12), "heads": _whole(generator, 4, 5), "head_width": 14}
        wide = sizes["heads"] * sizes["head_width"]
        weights = {f"{name}_proj": _randn(generator, wide, sizes["width"]) / 3 for name in "qkv"}
        weights["o_proj"] = _randn(generator, sizes["width"], wide) / 5
        document = torch.randint(2, (B, T), generator=generator).cumsum(-1)  # another number at every start
        document[:, -1] = document[:, 0]  # and the first document comes back
        cases.append(
            Case((sizes, weights, _randn(generator, B, T, sizes["width"]), document), note=f"B = {B}, T = {T}")
        )
    return cases


def _run_layer(answer, case):
    sizes, weights, x, document = case.args
    if not isinstance(answer, type):
        raise TypeError("the class itself is asked for, not one of its layers and not a function")
    layer = answer(**sizes)
    with torch.no_grad():
        for name, weight in weights.items():
            getattr(layer, name).weight.copy_(weight)
        return layer(x, document)


PACKED_ATTENTION = Exercise(
    id="1.5",
    idea="transformer_block",
    title="a whole attention layer for packed rows, as a module",
    minutes=15,
    answer="PackedAttention",
    reference=PackedAttention,
    cases=_packed_rows,
    use=_run_layer,
    dims="B T D",
    mistakes=(
        Mistake(
            "no documents",
            _wrong_layer(same=False),
            "The layer is causal, but tokens see the other documents of their row: `document` is not used.",
        ),
        Mistake(
            "no causal mask",
            _wrong_layer(causal=False),
            "Each document is by itself, but tokens see their future inside it.",
        ),
        Mistake(
            "no mask",
            _wrong_layer(causal=False, same=False),
            "Every token sees the whole row: a mask is missing.",
        ),
        Mistake(
            "documents of the first row",
            _wrong_layer(first_row=True),
            "All rows are masked like the first one. Each row has documents of its own: the mask needs a dimension B.",
        ),
        Mistake(
            "no scale",
            _wrong_layer(attend=_in_steps(scale=lambda layer: 1.0)),
            "The scores are not divided by the square root of K.",
        ),
        Mistake(
            "scale of the token",
            _wrong_layer(attend=_in_steps(scale=lambda layer: math.sqrt(layer.q_proj.in_features))),
            "The scores are divided by the square root of D, the width of a token. They are dot products of K numbers.",
        ),
        Mistake(
            "scale of all heads",
            _wrong_layer(attend=_in_steps(scale=lambda layer: math.sqrt(layer.q_proj.out_features))),
            "The scores are divided by the square root of H * K. Each head has dot products of K numbers.",
        ),
        Mistake(
            "masked with zero",
            _wrong_layer(attend=_in_steps(hidden=0.0)),
            "What must not be seen gets the score 0, and a score of 0 still gets a share.",
        ),
        Mistake(
            "mask behind the softmax",
            _wrong_layer(attend=_in_steps(behind=True)),
            "The mask comes behind the softmax, so the shares of a row do not sum to one, and hidden tokens have a say "
            "in how large they are.",
        ),
        Mistake(
            "mask of numbers",
            _wrong_layer(attend=lambda layer, q, k, v, may_see: _attend(q, k, v, attn_mask=may_see.float())),
            "A mask of ones and zeros is added to the scores: it hides nothing. F.scaled_dot_product_attention wants a "
            "mask of torch.bool, or -inf in place of what is hidden.",
        ),
        Mistake(
            "split by view",
            _wrong_layer(split="view"),
            "Queries, keys and values were cut into heads by view alone: each head got some of the tokens, where it "
            "should get all tokens and some of the channels.",
        ),
        Mistake(
            "merged by reshape",
            _wrong_layer(merge="reshape"),
            "The heads were merged by reshape alone, without swapping the axes back: what exercise 1.2 is about.",
        ),
    ),
    hints=(
        "You have all the parts: attention_by_hand, document_mask and merge_heads. What differs is that each row has "
        "its own mask.",
        "document[:, :, None] == document[:, None, :] has the shape [B, T, T]. Join it with the causal table [T, T].",
        "The scores are [B, H, T, T], so the mask needs an axis of size 1 for the heads: mask[:, None], [B, 1, T, T].",
        "F.scaled_dot_product_attention(q, k, v, attn_mask=...) takes such a mask (True means: may look) and does the "
        "scale and the softmax. Then merge the heads and apply o_proj.",
    ),
    after="This is one half of a transformer block; the other half, a network for each token by itself, needs no mask.",
)
