"""Exercise 4.4: the up-projections W^UK and W^UV, as they lie in kv_b_proj.

Shapes: H heads, N content width of a key, V width of a value, C width of the latent.
"""

from __future__ import annotations

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_04.inputs import small_config


def split_kv_b(weight, heads, nope_dim):
    """kv_b_proj.weight [H * (N + V), C] -> W^UK [H, N, C] and W^UV [H, V, C]."""
    by_head = weight.unflatten(0, (heads, -1))  # [H, N + V, C]
    return by_head[:, :nope_dim], by_head[:, nope_dim:]


def split_kv_b__cut_once(weight, heads, nope_dim):
    """kv_b_proj.weight [H * (N + V), C] -> W^UK [H, N, C] and W^UV [H, V, C]."""
    keys, values = weight[: heads * nope_dim], weight[heads * nope_dim :]
    return keys.unflatten(0, (heads, -1)), values.unflatten(0, (heads, -1))


def split_kv_b__heads_inside(weight, heads, nope_dim):
    by_row = weight.unflatten(0, (-1, heads)).transpose(0, 1)  # row r belongs to head r % heads
    return by_row[:, :nope_dim], by_row[:, nope_dim:]


def split_kv_b__values_first(weight, heads, nope_dim):
    by_head = weight.unflatten(0, (heads, -1))
    value_dim = by_head.shape[1] - nope_dim
    return by_head[:, value_dim:], by_head[:, :value_dim]


def split_kv_b_cases(generator: Generator) -> list[Case]:
    c = small_config(generator)
    rows = c.qk_nope_head_dim + c.v_head_dim
    weight = torch.randn(c.num_attention_heads * rows, c.kv_lora_rank, generator=generator)
    return [
        Case((weight, c.num_attention_heads, c.qk_nope_head_dim)),
        Case((weight[:rows], 1, c.qk_nope_head_dim), note="a single head"),
    ]


SPLIT_KV_B = Exercise(
    id="4.4",
    idea="mla",
    title="Cut a fused matrix of the checkpoint",
    minutes=10,
    answer="split_kv_b",
    reference=split_kv_b,
    cases=split_kv_b_cases,
    dims=("H N C", "H V C"),
    mistakes=(
        Mistake(
            "cut once",
            split_kv_b__cut_once,
            "You cut the matrix once, as if all keys came first and all values after them. It is stacked head by "
            "head: the rows of one head lie together.",
        ),
        Mistake(
            "values first",
            split_kv_b__values_first,
            "Within a head you take the rows of the value first. In the checkpoint those of the key come first.",
        ),
        Mistake(
            "swapped",
            lambda weight, heads, nope_dim: split_kv_b(weight, heads, nope_dim)[::-1],
            "Each part is right, and the two are swapped: W^UK is asked for first.",
        ),
        Mistake(
            "heads dealt out",
            split_kv_b__heads_inside,
            "You give row 0 to the first head, row 1 to the second, and so on, like cards. The rows of one head lie "
            "together.",
        ),
        Mistake(
            "flat",
            lambda weight, heads, nope_dim: tuple(t.flatten(0, 1) for t in split_kv_b(weight, heads, nope_dim)),
            "The rows are the right ones; the heads are missing as a dimension of their own: [H, N, C], not "
            "[H * N, C].",
        ),
        Mistake(
            "cut once, flat",
            lambda weight, heads, nope_dim: (weight[: heads * nope_dim], weight[heads * nope_dim :]),
            "You cut the matrix once, as if all keys came first and all values after them. It is stacked head by head, "
            "and the heads should be a dimension of the result.",
        ),
        Mistake(
            "not split",
            lambda weight, heads, nope_dim: weight.unflatten(0, (heads, -1)),
            "Sorted by head, and not cut yet: within each head the rows of the key have to be told from those of the "
            "value. Give back two tensors.",
        ),
        Mistake(
            "cut in the middle",
            lambda weight, heads, nope_dim: weight.unflatten(0, (heads, -1)).chunk(2, dim=1),
            "You cut each head in the middle. Keys and values need not be equally wide: the cut is after the N rows of "
            "the key.",
        ),
        Mistake(
            "pieces of N",
            lambda weight, heads, nope_dim: weight.unflatten(0, (heads, -1)).split(nope_dim, dim=1),
            "split(N) cuts into pieces of N rows until nothing is left. Two pieces are asked for: N rows, and all the "
            "others.",
        ),
        Mistake(
            "keys only",
            lambda weight, heads, nope_dim: split_kv_b(weight, heads, nope_dim)[0],
            "That is W^UK, and it is right. W^UV is asked for as well: give back both.",
        ),
        Mistake(
            "transposed",
            lambda weight, heads, nope_dim: tuple(t.mT for t in split_kv_b(weight, heads, nope_dim)),
            "The rows are the right ones, but each matrix is transposed: C, the width of the latent, comes last.",
        ),
    ),
    hints=(
        "Draw the rows for two heads: N rows of the first head's key, V rows of its value, and then?",
        "Make the head a dimension of its own first: [H * (N + V), C] -> [H, N + V, C]. `unflatten` does that, or "
        "`view`.",
        "Now each head is a block of N + V rows, and one cut at N along dimension 1 does the rest.",
    ),
    after="Absorption in lesson 05 begins with this cut.",
)
