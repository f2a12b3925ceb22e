"""The routed experts, and ways to run them that are equal to rounding (the last sum of Eq. 12).

* `loop`: expert by expert, pick its tokens, run it, add the result. What lesson 06 writes; the test of the others.
* `sorted`: copy each token once per chosen expert, ordered by expert, so that every expert reads one contiguous
  slice. No padding and no dropped token, however uneven the load (§2.1.2, "No Token-Dropping").
* `grouped`: the same order, all experts in one grouped matrix product. The only one that needs no word from the device
  about how many tokens each expert got.
* `tokenwise`: token by token, no sorting. For a handful of tokens, as in decoding, it is over before an order is made.

Expert weights are stacked, gate rows above up rows, as the Hugging Face model holds them in memory.

Shapes: N tokens, K experts per token, E experts, D model width, F expert width, M = N * K assignments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.model.router import Routing
from dsv3_mini.model.swiglu import swiglu

ExpertsPath = Literal["auto", "loop", "sorted", "grouped", "tokenwise"]
HAS_GROUPED_MM = hasattr(F, "grouped_mm")


class Experts(nn.Module):
    """x [N, D] and its `Routing` -> weighted sum of the chosen experts' outputs, [N, D]."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        experts, width = cfg.n_routed_experts, cfg.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, cfg.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(experts, cfg.hidden_size, width))
        self.path: ExpertsPath = "auto"

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        return self.run(x, routing, self.gate_up_proj, self.down_proj)

    def run(self, x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor) -> Tensor:
        """`forward` with the weights given: those of some experts, where several processes share them."""
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        # Cast by hand: grouped_mm does not take part in autocast.
        x, gate_up, down = x.to(dtype), gate_up.to(dtype), down.to(dtype)
        if x.shape[0] == 0:  # an MTP module at the end of a short text has nothing to do
            return x
        run = _PATHS[self.choose_path(x, routing.ids.numel())]
        return run(x, routing.ids, routing.weights.to(dtype), routing.counts, gate_up, down)

    def choose_path(self, x: Tensor, assignments: int) -> str:
        """The fastest path that this machine and these shapes allow, unless one was forced."""
        # A grouped product reads the rows of each matrix in steps of 16 bytes.
        widths = (self.gate_up_proj.shape[-1], self.down_proj.shape[-1])
        aligned = all(width * x.element_size() % 16 == 0 for width in widths)
        supported = HAS_GROUPED_MM and x.dtype != torch.float64
        if self.path == "grouped" and not aligned:
            raise InputError(
                f"experts path 'grouped' cannot be: hidden_size and moe_intermediate_size = {widths} must be multiples "
                f"of {16 // x.element_size()} in {x.dtype}"
            )
        if self.path != "auto":
            return self.path
        if not torch.is_grad_enabled() and not x.is_cuda and assignments <= self.gate_up_proj.shape[0]:
            return "tokenwise"
        return "grouped" if supported and aligned else "sorted"

    def force_path(self, path: ExpertsPath) -> None:
        """Use one path from now on (`"auto"`: choose again at each call)."""
        if path != "auto" and path not in _PATHS:
            raise InputError(f"experts path {path!r} cannot be: it must be auto, {', '.join(_PATHS)}")
        if path == "grouped" and not HAS_GROUPED_MM:
            raise InputError(
                f"experts path 'grouped' needs torch.nn.functional.grouped_mm; torch {torch.__version__} has none"
            )
        self.path = path


def experts_loop(x: Tensor, ids: Tensor, weights: Tensor, counts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The obvious version: one expert after the other."""
    out = torch.zeros_like(x)
    # unbind once: `gate_up[e]` in the loop would allocate a gradient of the whole stack for every expert
    for expert, (w_gate_up, w_down) in enumerate(zip(gate_up.unbind(0), down.unbind(0), strict=True)):
        token, slot = torch.where(ids == expert)
        y = F.linear(swiglu(*F.linear(x[token], w_gate_up).chunk(2, dim=-1)), w_down)
        out = out.index_add(0, token, y * weights[token, slot, None])
    return out


def experts_sorted(x: Tensor, ids: Tensor, weights: Tensor, counts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """One contiguous slice of assignments per expert; experts without tokens are skipped."""
    if not ids.numel():
        return torch.zeros_like(x)
    layout = expert_layout(ids, counts)
    rows, row_weights = dispatch(x, weights, layout)
    pieces, start = [], 0
    for count, w_gate_up, w_down in zip(counts.tolist(), gate_up.unbind(0), down.unbind(0), strict=True):
        if count:
            span = slice(start, start + count)
            gate, up = F.linear(rows[span], w_gate_up).chunk(2, dim=-1)
            hidden = swiglu(gate, up, row_weights[span])
            pieces.append(F.linear(hidden, w_down))
            start += count
    return combine(torch.cat(pieces), layout, ids.shape[1])


def experts_grouped(x: Tensor, ids: Tensor, weights: Tensor, counts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The slices of all experts in two grouped matrix products."""
    # In bf16 the CPU's library compiles a kernel for every size that it meets. Loads never repeat, so without rounding
    # them up it would compile in every step, which costs as much again as the products.
    multiple = 16 if x.dtype == torch.bfloat16 and not x.is_cuda else 1
    layout = expert_layout(ids, counts, multiple)
    rows, row_weights = dispatch(x, weights, layout)
    gate, up = F.grouped_mm(rows, gate_up.transpose(1, 2), offs=layout.ends).chunk(2, dim=-1)
    hidden = swiglu(gate, up, row_weights)
    out = F.grouped_mm(hidden, down.transpose(1, 2), offs=layout.ends)
    return combine(out, layout, ids.shape[1])


def experts_tokenwise(x: Tensor, ids: Tensor, weights: Tensor, counts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Token by token, its K experts one after the other. Meant for use without gradients.

    With so little work it is the number of operations that costs time: the nonlinearity is taken of all K at once.
    """
    gate_ups, downs = gate_up.transpose(1, 2).unbind(0), down.transpose(1, 2).unbind(0)
    return add_tokenwise(torch.zeros_like(x), x, ids, weights, gate_ups, downs)


def add_tokenwise(
    out: Tensor, x: Tensor, ids: Tensor, weights: Tensor, gate_ups: Sequence[Tensor], downs: Sequence[Tensor]
) -> Tensor:
    """`experts_tokenwise` added to out [N, D] in place, with the matrices of each expert apart, [D, 2F] and [F, D].

    Taking one expert out of a stack costs as much as a small product, so whoever runs many steps does it once.
    """
    for i, (token, experts, gates) in enumerate(zip(x.split(1), ids.tolist(), weights.unsqueeze(-1), strict=True)):
        left, right = torch.cat([torch.mm(token, gate_ups[e]) for e in experts]).chunk(2, dim=-1)  # [K, F] each
        hidden = F.silu(left).mul_(right).mul_(gates)
        row = out[i : i + 1]
        for part, expert in zip(hidden.split(1), experts, strict=True):
            row.addmm_(part, downs[expert])
    return out


_PATHS = {
    "loop": experts_loop,
    "sorted": experts_sorted,
    "grouped": experts_grouped,
    "tokenwise": experts_tokenwise,
}


class Layout(NamedTuple):
    """Assignments ordered by expert. Assignment m, one of M = N * K, belongs to token m // K."""

    assignment: Tensor  # [R] which assignment stands in a row; R = M unless slices are filled up
    row: Tensor  # [M] in which row an assignment stands: the inverse
    ends: Tensor  # [E] int32, where the slice of each expert ends
    filling: Tensor | None  # [R, 1] True for rows that only fill up a slice


def expert_layout(ids: Tensor, counts: Tensor, multiple: int = 1) -> Layout:
    """Order the assignments ids [N, K] by expert, each slice filled up to a multiple of `multiple` rows.

    The sort is stable, so the result does not depend on the machine. Rows that fill up hold assignment 0 with weight 0:
    nothing flows through them, forward or backward.
    """
    order = ids.flatten().argsort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    if multiple == 1:
        return Layout(order, inverse, counts.cumsum(0, dtype=torch.int32), None)
    sizes = (counts + multiple - 1) // multiple * multiple
    ends = sizes.cumsum(0)
    shift = (ends - sizes) - (counts.cumsum(0) - counts)  # how far filling has moved the slice of each expert
    row = inverse + shift[ids.flatten()]
    assignment = torch.zeros(int(ends[-1]), dtype=order.dtype, device=order.device)
    assignment[row] = torch.arange(order.numel(), device=order.device)
    filling = torch.ones(len(assignment), 1, dtype=torch.bool, device=order.device)
    filling[row] = False
    return Layout(assignment, row, ends.to(torch.int32), filling)


def dispatch(x: Tensor, weights: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """x [N, D], gate weights [N, K] -> one row per assignment in expert order: [R, D] and [R, 1].

    The weights are applied to the F-wide hidden state and not to the D-wide output: the down-projection is linear, so
    the result is the same, and F < D.
    """
    rows = _Dispatch.apply(x, layout.assignment, layout.row, weights.shape[1])
    row_weights = _Permute.apply(weights.reshape(-1, 1), layout.assignment, layout.row)
    return rows, row_weights if layout.filling is None else row_weights.masked_fill(layout.filling, 0.0)


def combine(rows: Tensor, layout: Layout, top_k: int) -> Tensor:
    """Back to token order, and the K results of each token summed: [R, D] -> [N, D]."""
    return _Combine.apply(rows, layout.assignment, layout.row, top_k)


def sum_by_token(rows: Tensor, row: Tensor, top_k: int) -> Tensor:
    """rows [R, D] -> [N, D]: for each token the sum of its K rows, which are looked up in row [N * K].

    Gathered and summed in one pass, in a fixed order: an "embedding bag" is exactly this.
    """
    return F.embedding_bag(row.view(-1, top_k), rows.contiguous(), mode="sum")


class _Permute(torch.autograd.Function):
    """rows[order]. Its gradient is the inverse permutation: a gather, where autograd would scatter-add."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse), None, None


class _Dispatch(torch.autograd.Function):
    """x[assignment // K]: every token once per chosen expert. Its gradient sums a token's K rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.top_k = top_k
        return x.index_select(0, order // top_k)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return sum_by_token(grads[0], inverse, ctx.top_k), None, None, None


class _Combine(torch.autograd.Function):
    """The other way round: a token's K rows summed. Its gradient copies a token's gradient to its K rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.top_k = top_k
        return sum_by_token(rows, inverse, top_k)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        return grads[0].index_select(0, order // ctx.top_k), None, None, None
