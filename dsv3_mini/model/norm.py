"""RMSNorm: divide by the root mean square, then scale each channel.

The report uses it in front of every sub-layer (Figure 2) and, in one sentence of §4.2, on the two compressed latents
inside MLA, which Eq. 1-11 leave out (D8).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The obvious version of `RMSNorm.forward`: x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""
    x32 = x.float()  # a sum of many bf16 squares loses its small terms
    normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)
    return (normed * weight.float()).to(x.dtype)


def unit(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(|x|^2 + dim * eps) over the last dimension: RMSNorm without its weight is sqrt(dim) times this.

    For decoding, where three small operations are quicker than torch's kernel, and sqrt(dim) goes into a matrix.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return (wide / length.hypot_(length.new_tensor((x.shape[-1] * eps) ** 0.5))).to(x.dtype)


class RMSNorm(nn.Module):
    """x [..., dim] -> [..., dim].

    In fp32 equal to `rms_norm_reference` and to the released code. In bf16 this rounds once, after the
    multiplication by the weight; the Hugging Face module rounds before it as well, so that about a quarter of
    elements differ in the last bit.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.float32 and torch.is_grad_enabled():
            return _RMSNorm.apply(x, self.weight.float(), self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class _RMSNorm(torch.autograd.Function):
    """For training on a CPU, where torch has no kernel for the gradient and runs, and keeps, every operation of it.

    With r = 1/rms(x), n = x * r and g = the gradient of y = n * w: dw = sum g * n, and dx = r * (g * w - n * mean(g * w
    * n)): what is left of the gradient when its part along n is taken out, because scaling x does not change n.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # [..., 1]
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        normed = x * inverse
        product = grads[0] * normed
        mean = (product @ weight).unsqueeze(-1).div_(x.shape[-1])
        grad = torch.addcmul(grads[0] * weight, normed, mean, value=-1).mul_(inverse)
        return grad, product.flatten(0, -2).sum(0), None
