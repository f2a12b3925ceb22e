"""The exercises of lesson 01, attention.

Shapes: B rows, T tokens, D width of a token, H heads, K width of a head.
"""

# Solutions carry no types: they are shown to learners, whose stubs have none.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dsv3_mini.course.checking import Case, Exercise, Mistake


def _whole(generator: Generator, low: int, high: int) -> int:
    """A random whole number from low to high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _randn(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


# -- 1.1: a causal mask for packed documents --


def document_mask(document):
    position = torch.arange(len(document))
    causal = position[None, :] <= position[:, None]  # [T, T]
    same = document[None, :] == document[:, None]  # [T, T]
    return causal & same


def document_mask__counts_from_the_target(document):
    position = torch.arange(len(document))
    target = position + 1  # token t is there to predict token t + 1
    causal = position[None, :] <= target[:, None]  # [T, T]
    same = document[None, :] == document[:, None]  # [T, T]
    return causal & same


def _documents(generator: Generator) -> list[Case]:
    first, second, third = (torch.randperm(9, generator=generator)[:3]).tolist()
    sizes = [_whole(generator, 2, 4) for _ in range(3)]
    two = torch.tensor([first] * sizes[0] + [second] * sizes[1])
    back = torch.tensor([second] * sizes[0] + [third] * sizes[1] + [second] * sizes[2])
    return [
        Case((two,), note="two documents"),
        Case((back,), note="a document that comes back after another one"),
        Case((torch.tensor([third]),), note="a single token"),
    ]


DOCUMENT_MASK = Exercise(
    id="1.1",
    idea="transformer_block",
    title="a causal mask for several documents in one row",
    minutes=5,
    answer="document_mask",
    reference=document_mask,
    cases=_documents,
    dims="asking asked",
    mistakes=(
        Mistake(
            "counts from the target",
            document_mask__counts_from_the_target,
            "The mask is off by one: each token also sees the one right after itself, which is the token that it has "
            "to predict.",
        ),
        Mistake(
            "no causal mask",
            lambda document: document[None, :] == document[:, None],
            "Some token sees its future: above the diagonal everything should be False. The documents are right.",
        ),
        Mistake(
            "no documents",
            lambda document: torch.ones(len(document), len(document), dtype=torch.bool).tril(),
            "This is the causal mask of one long text: a token of the second document looks at the first one.",
        ),
        Mistake(
            "upper triangle",
            lambda document: (document[None, :] == document[:, None]).triu(),
            "Every token sees its future, not its past. The row is the token that asks, the column the one that is "
            "asked.",
        ),
        Mistake(
            "not itself",
            lambda document: (document[None, :] == document[:, None]).tril(-1),
            "No token sees itself: the diagonal should be True, or the first token of a document sees nothing at all.",
        ),
        Mistake(
            "either is enough",
            lambda document: (
                (document[None, :] == document[:, None])
                | torch.ones(len(document), len(document), dtype=torch.bool).tril()
            ),
            "A token may look where one of the two conditions holds; it should need both of them.",
        ),
        Mistake(
            "neighbours only",
            lambda document: document_mask((document.diff(prepend=document[:1]) != 0).cumsum(0)),
            "A document that goes on after another one is taken for a new one. Equal numbers mean the same document, "
            "wherever they stand.",
        ),
        Mistake(
            "order of the numbers",
            lambda document: (document[None, :] <= document[:, None]).tril(),
            "A token sees another document whenever that has a lower number. The numbers are names: only equal or "
            "not equal means something.",
        ),
    ),
    hints=(
        "Two conditions must hold at once: the other token is not later, and it is of the same document.",
        "Each condition is a table [T, T] that comes from comparing a column with a row: a[:, None] is a column "
        "[T, 1], b[None, :] is a row [1, T], and a comparison of both has the shape [T, T].",
        "The causal half stands above: position[None, :] <= position[:, None]. The other half looks the same, with "
        "the documents and ==. Join the two with &.",
    ),
    after="With it, many short texts fill one long row and none of them knows about the others.",
)


# -- 1.2: put the heads back --


def merge_heads(x):
    B, H, T, K = x.shape
    return x.transpose(1, 2).reshape(B, T, H * K)  # [B, T, H, K] -> [B, T, H * K]


def merge_heads__reshape_alone(x):
    B, H, T, K = x.shape
    return x.reshape(B, T, H * K)  # the shape is right


def _heads(generator: Generator) -> list[Case]:
    H, K = _whole(generator, 2, 4), _whole(generator, 5, 7)
    return [
        Case((_randn(generator, _whole(generator, 2, 3), H, 8, K),)),
        Case((_randn(generator, 1, H, _whole(generator, 9, 11), K),), note="one row"),
        Case((_randn(generator, 2, H, 1, K),), note="one token"),
    ]


MERGE_HEADS = Exercise(
    id="1.2",
    idea="transformer_block",
    title="put the heads back into the rows",
    minutes=5,
    answer="merge_heads",
    reference=merge_heads,
    cases=_heads,
    dims=("B", "T", "H * K"),
    mistakes=(
        Mistake(
            "reshape alone",
            merge_heads__reshape_alone,
            "The shape is right and the numbers are in the wrong places: reshape alone goes on counting in memory, "
            "where head 0 of all tokens comes first, so that one row gets several tokens.",
        ),
        Mistake(
            "channels first",
            lambda x: x.permute(0, 2, 3, 1).flatten(-2),
            "Each row holds the right token, with the heads dealt out like cards: channel 0 of every head, then "
            "channel 1 of every head. Head 0 should come first as a whole.",
        ),
        Mistake(
            "view after transpose",
            lambda x: x.transpose(1, 2).view(x.shape[0], x.shape[2], -1),
            "The order of the axes is right, but view raises RuntimeError: a transpose moves no number in memory, and "
            "view cannot join axes that do not lie next to each other there.",
        ),
        Mistake(
            "sum of the heads",
            lambda x: x.sum(1),
            "The heads are added up, and a row has K channels. They should stand side by side: H * K channels.",
        ),
        Mistake(
            "mean of the heads",
            lambda x: x.mean(1),
            "The heads are averaged, and a row has K channels. They should stand side by side: H * K channels.",
        ),
    ),
    hints=(
        "In the result a row belongs to one token. In what order must the axes stand before the last two are joined?",
        "Undo the two steps of the lesson from the back: first the transpose, then the view.",
        "After x.transpose(1, 2) the shape is [B, T, H, K]. Now the last two axes can become one; where view "
        "refuses, reshape copies.",
    ),
    after="The bug museum shows what the same function does when one of the two steps is forgotten.",
)


# -- 1.3: the last token alone --


def attend_last(q_last, k, v):
    scores = (k @ q_last[:, :, None]).squeeze(-1) / math.sqrt(q_last.shape[-1])  # [H, T]
    shares = scores.softmax(-1)  # [H, T]; no mask: the last token may see everything
    return (shares[:, None, :] @ v).squeeze(1)  # [H, 1, T] @ [H, T, K] -> [H, K]


def _scores(q_last: Tensor, k: Tensor) -> Tensor:
    return (k @ q_last[:, :, None]).squeeze(-1)  # [H, T]


def _mean_of(shares: Tensor, v: Tensor) -> Tensor:
    return (shares[:, :, None] * v).sum(1)


def _last_tokens(generator: Generator) -> list[Case]:
    H, T, K = _whole(generator, 2, 3), _whole(generator, 5, 7), _whole(generator, 9, 12)
    return [
        Case(tuple(_randn(generator, *shape) for shape in ((H, K), (H, T, K), (H, T, K)))),
        Case(tuple(_randn(generator, *shape) for shape in ((4, 8), (4, 1, 8), (4, 1, 8))), note="one token"),
    ]


ATTEND_LAST = Exercise(
    id="1.3",
    idea="transformer_block",
    title="what the last token receives",
    minutes=10,
    answer="attend_last",
    reference=attend_last,
    cases=_last_tokens,
    dims="H K",
    mistakes=(
        Mistake(
            "no scale",
            lambda q_last, k, v: _mean_of(_scores(q_last, k).softmax(-1), v),
            "The scores are not divided by the square root of K.",
        ),
        Mistake(
            "divided by K",
            lambda q_last, k, v: _mean_of((_scores(q_last, k) / k.shape[-1]).softmax(-1), v),
            "The scores are divided by K itself; it should be its square root.",
        ),
        Mistake(
            "square root of T",
            lambda q_last, k, v: _mean_of((_scores(q_last, k) / math.sqrt(k.shape[-2])).softmax(-1), v),
            "The scores are divided by the square root of T, the number of tokens. What makes dot products grow is the "
            "width of a head.",
        ),
        Mistake(
            "times the root",
            lambda q_last, k, v: _mean_of((_scores(q_last, k) * math.sqrt(k.shape[-1])).softmax(-1), v),
            "The scores are multiplied by the square root of K; they should be divided by it.",
        ),
        Mistake(
            "divided behind the softmax",
            lambda q_last, k, v: _mean_of(_scores(q_last, k).softmax(-1), v) / math.sqrt(k.shape[-1]),
            "You divide by the square root of K behind the softmax, so that the shares do not sum to one. The scores "
            "must be divided before it.",
        ),
        Mistake(
            "average of the keys",
            lambda q_last, k, v: attend_last(q_last, k, k),
            "The shares are right, but you average the keys with them. Keys are to be found by; what is handed over "
            "are the values.",
        ),
        Mistake(
            "not itself",
            lambda q_last, k, v: attend_last(q_last, k[:, :-1], v[:, :-1]),
            "The last token leaves itself out. It may see everything up to itself, and itself.",
        ),
        Mistake(
            "softmax over the heads",
            lambda q_last, k, v: _mean_of((_scores(q_last, k) / math.sqrt(k.shape[-1])).softmax(0), v),
            "The softmax runs over the heads. Within each head the shares of the tokens should sum to one.",
        ),
        Mistake(
            "no softmax",
            lambda q_last, k, v: _mean_of(_scores(q_last, k) / math.sqrt(k.shape[-1]), v),
            "The scores themselves are the weights: a softmax is missing between the scores and the average.",
        ),
        Mistake(
            "softmax over one number",
            lambda q_last, k, v: v.sum(1),
            "Your output is the plain sum of all values, so every share is 1: the softmax runs over a dimension of "
            "size 1. Look at the shape of your scores.",
        ),
        Mistake(
            "even shares",
            lambda q_last, k, v: v.mean(1),
            "Your output is the even average of all values: query and keys have no say in it.",
        ),
        Mistake(
            "a mask for one token",
            lambda q_last, k, v: v[:, 0],
            "Your output is the value of the first token alone: a causal mask (or is_causal=True) for one query counts "
            "that query as position 0. It stands at the end, and may see everything.",
        ),
    ),
    hints=(
        "Which mask does the last token need?",
        "Scores first: a dot product of q_last with each key, [H, T]. With q_last[:, :, None], of shape [H, K, 1], the "
        "product k @ ... gives [H, T, 1].",
        "Divide by the square root of K, take the softmax over the tokens, and average the values with these shares: "
        "[H, 1, T] @ [H, T, K].",
    ),
    after="Look at what you did not need: the queries of the earlier tokens. Lesson 02 lives on that.",
)


# -- 1.4: who reaches whom --


def reach(attention, x):
    T = x.shape[1]
    before = attention(x)
    table = torch.zeros(T, T, dtype=torch.bool)
    for token in range(T):
        other = x.clone()
        other[:, token] = torch.randn(x.shape[-1])
        table[:, token] = (attention(other) - before).abs().amax(dim=(0, 2)) > 1e-6
    return table


def _accumulates(attention, x):
    table, other = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool), x.clone()
    for token in range(x.shape[1]):
        other[:, token] = torch.randn(x.shape[-1])
        table[:, token] = (attention(other) - attention(x)).abs().amax(dim=(0, 2)) > 1e-6
    return table


def _mixing(shares_of):
    """A layer that averages its inputs by shares_of(scores [T, T], distance from asking to asked token)."""

    def attention(x):
        position = torch.arange(x.shape[1])
        scores = x @ x.transpose(1, 2) / x.shape[-1]  # small, so that no share is lost in rounding
        return shares_of(scores, position[:, None] - position[None, :]) @ x

    return attention


_LAYERS = (
    (_mixing(lambda s, ago: s.masked_fill(ago < 0, -math.inf).softmax(-1)), "causal attention"),
    (_mixing(lambda s, ago: s.softmax(-1)), "attention without a mask"),
    (_mixing(lambda s, ago: s.softmax(-1) * (ago >= 0)), "a mask behind the softmax"),
    (_mixing(lambda s, ago: s.masked_fill(ago < -1, -math.inf).softmax(-1)), "a mask that is off by one"),
    (
        _mixing(lambda s, ago: s.masked_fill((ago < 0) | (ago > 2), -math.inf).softmax(-1)),
        "attention to three tokens at most",
    ),
)


def _layers(generator: Generator) -> list[Case]:
    return [Case((layer, _randn(generator, 1, _whole(generator, 4, 7), 9)), note=note) for layer, note in _LAYERS]


REACH = Exercise(
    id="1.4",
    idea="transformer_block",
    title="find out who sees whom in any attention",
    minutes=10,
    answer="reach",
    reference=reach,
    cases=_layers,
    dims="output token",
    mistakes=(
        Mistake(
            "axes swapped",
            lambda attention, x: reach(attention, x).T,
            "The table is mirrored: the row should be the output that moves, the column the token that was replaced.",
        ),
        Mistake(
            "replaced tokens stay replaced",
            _accumulates,
            "The tokens are replaced one after the other in the same copy, so that a column also shows what the "
            "earlier ones moved. Start each time from the untouched x.",
        ),
        Mistake(
            "what stays",
            lambda attention, x: ~reach(attention, x),
            "The table is the wrong way round: True where an output stays as it was.",
        ),
        Mistake(
            "only the tokens themselves",
            lambda attention, x: torch.eye(x.shape[1], dtype=torch.bool),
            "The table says that a token moves its own output only. Compare the outputs of the layer, not its inputs.",
        ),
        Mistake(
            "not measured",
            lambda attention, x: torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(),
            "This is the causal mask, whatever the layer does. Run the layer and look.",
        ),
    ),
    hints=(
        "outputs_that_change, in the section Reveal, does it for one token. You need it for all of them.",
        "For each token: copy x, replace that token by random numbers, run the layer, and note which of the T outputs "
        "differ from those of x. That is one column of the table.",
        "An output has moved when one of its channels has: (a - b).abs() has the shape [1, T, D], and "
        ".amax(dim=(0, 2)) > 1e-6 makes [T] of it.",
    ),
    after="Run it on every attention that you ever write: a True above the diagonal is a leak from the future.",
)


# -- 1.5: all of it, as a module --


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

EXERCISES = (DOCUMENT_MASK, MERGE_HEADS, ATTEND_LAST, REACH, PACKED_ATTENTION)
