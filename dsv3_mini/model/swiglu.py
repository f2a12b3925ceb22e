"""SwiGLU, the nonlinearity of every feed-forward network here: silu(gate) * up, with as little kept as possible.

Left to autograd it would keep silu(gate) and the product as well as its inputs. Here a forward pass keeps the inputs
only and the backward pass computes the rest again, as the report does (§3.2.3: "we cache the inputs of the SwiGLU
operator and recompute its output in the backward pass"). The gate weight of an expert is multiplied in on the way.

Shapes: N rows, F expert width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu_reference(gate: Tensor, up: Tensor, scale: Tensor | None = None) -> Tensor:
    """The obvious version: silu(gate) * up, times `scale` where there is one."""
    hidden = F.silu(gate) * up
    return hidden if scale is None else hidden * scale


def swiglu(gate: Tensor, up: Tensor, scale: Tensor | None = None) -> Tensor:
    """gate and up [..., F], scale None or [..., 1] -> [..., F], equal to `swiglu_reference` to rounding."""
    # Halves of one matrix are laid side by side first: silu is three times as slow on rows with gaps between them.
    return _SwiGLU.apply(gate.contiguous(), up.contiguous(), scale)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, scale: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate, up, scale)
        hidden = F.silu(gate).mul_(up)
        return hidden if scale is None else hidden.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, scale = ctx.saved_tensors
        activated, grad, grad_scale = F.silu(gate), grads[0], None
        if scale is not None:
            grad_scale = (grad * activated).mul_(up).sum(-1, keepdim=True)
            grad = grad * scale
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, activated.mul_(grad), grad_scale
