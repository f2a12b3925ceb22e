"""Cross-entropy of the output head, without ever holding all logits.

N tokens times V vocabulary entries is the largest tensor of a small model by far, and every pass over it goes
through memory. The fast version walks over a few hundred tokens at a time and computes loss *and* gradient of a
chunk while its logits are still in the processor's cache; what leaves the chunk is a scalar, [rows, D] and [V, D].

Shapes: N tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # a target that counts for nothing
CHUNK_ELEMENTS = 2**20  # logits held at a time: 4 MB in fp32, which a processor's cache holds
GPU_CHUNK_ELEMENTS = 2**26  # 256 MB: a GPU has no such cache, and wants few large products


def cross_entropy_reference(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """The obvious version: sum over tokens of -log softmax(head @ h)[target]; targets of -100 count for nothing."""
    return F.cross_entropy(F.linear(hidden, head).float(), targets, ignore_index=IGNORE, reduction="sum")


def chunked_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """hidden [N, D], head [V, D], targets [N] -> the summed loss, equal to `cross_entropy_reference` to rounding.

    Matrix products run in the autocast dtype if that is on; softmax, loss and the head's gradient in fp32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return _ChunkedCrossEntropy.apply(hidden, head, targets, dtype)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward pass, of the sum; the backward pass only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        need_grad = any(ctx.needs_input_grad[:2])
        rows = max(1, (GPU_CHUNK_ELEMENTS if hidden.is_cuda else CHUNK_ELEMENTS) // head.shape[0])
        weight = head.to(dtype)
        loss = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if need_grad else None
        grad_head = torch.zeros_like(head, dtype=torch.float32) if need_grad else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], rows):
                h, target = hidden[start : start + rows].to(dtype), targets[start : start + rows]
                counted = (target != IGNORE).unsqueeze(-1)
                index = target.clamp_min(0).unsqueeze(-1)
                logits = (h @ weight.t()).float()  # [rows, V]
                at_target = logits.gather(-1, index)
                largest = logits.amax(-1, keepdim=True)
                p = torch.softmax(logits, -1, out=logits)
                # log sum exp = l - log p for any logit l; the largest has p >= 1/V, so nothing is lost in the log.
                log_sum = largest - p.amax(-1, keepdim=True).log()
                loss += ((log_sum - at_target) * counted).sum()
                if grad_hidden is None or grad_head is None:
                    continue
                # d loss / d logits = softmax - one-hot. Ignored tokens are taken out where rows are D wide, not V.
                gradient = p.scatter_add_(-1, index, torch.full_like(index, -1, dtype=torch.float32))
                gradient = gradient.to(dtype)
                grad_hidden[start : start + rows] = (gradient @ weight) * counted
                h = h * counted
                if dtype == torch.float32:
                    grad_head.addmm_(gradient.t(), h)
                else:
                    grad_head += gradient.t() @ h
        if grad_hidden is not None and grad_head is not None:
            ctx.save_for_backward(grad_hidden, grad_head.to(head.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grads[0].to(grad_hidden.dtype), grad_head * grads[0].to(grad_head.dtype), None, None
