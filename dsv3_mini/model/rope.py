"""Rotary position embedding (RoPE), interleaved as in the released code, and its YaRN extension (§4.3).

A vector of R numbers is read as R/2 points in the plane: neighbours (x0, x1), (x2, x3), ... Point j of the token at
position p is turned by the angle p * f_j. The dot product of a turned query with a turned key then depends on the
*difference* of their positions only; lesson 03 shows why.

Shapes: B batch, T tokens, H heads, R RoPE dim (`qk_rope_head_dim`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dsv3_mini.config import ModelConfig, YarnConfig


def rope_frequencies(cfg: ModelConfig) -> Tensor:
    """Angle per position of each pair, [R/2], fp32, on the CPU; rescaled if the config has YaRN."""
    dim = cfg.qk_rope_head_dim
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    frequencies = 1.0 / cfg.rope_theta**exponent
    if cfg.rope_scaling is None:
        return frequencies
    return yarn_frequencies(frequencies, cfg.rope_scaling, cfg.rope_theta)


def yarn_frequencies(frequencies: Tensor, yarn: YarnConfig, theta: float) -> Tensor:
    """Slow down the pairs that have not made a full turn within the original context; leave the fast ones alone.

    frequencies [R/2] -> [R/2]. A fast pair has seen all its angles in pre-training, so it extrapolates by itself. A
    slow one would reach angles that it never saw: it is divided by `factor`. In between, a linear ramp over the pair
    index.
    """
    dim = 2 * frequencies.numel()

    def pair_that_turns(times: float) -> float:
        """Pair index (not whole) that makes `times` full turns within the original context."""
        return dim * math.log(yarn.original_max_position_embeddings / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), dim - 1)
    width = high - low if high != low else 0.001
    pair = torch.arange(dim // 2, dtype=torch.float32, device="cpu")
    slow = ((pair - low) / width).clamp(0, 1)  # 0: keep the frequency, 1: divide it by the factor
    return frequencies * (1 - slow) + frequencies / yarn.factor * slow


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def rope_attention_factor(cfg: ModelConfig) -> float:
    """What cos and sin are multiplied by. 1 in V3, whose mscale and mscale_all_dim are equal."""
    yarn = cfg.rope_scaling
    if yarn is None:
        return 1.0
    if yarn.mscale and yarn.mscale_all_dim:
        return _yarn_mscale(yarn.factor, yarn.mscale) / _yarn_mscale(yarn.factor, yarn.mscale_all_dim)
    return _yarn_mscale(yarn.factor, 1.0)


def softmax_scale(cfg: ModelConfig) -> float:
    """1/sqrt(d_h + d_h^R) of Eq. 10, times the square of YaRN's temperature when that is on (D11)."""
    scale = cfg.qk_head_dim**-0.5
    yarn = cfg.rope_scaling
    if yarn is not None and yarn.mscale_all_dim:
        scale *= _yarn_mscale(yarn.factor, yarn.mscale_all_dim) ** 2
    return scale


class RotaryEmbedding(nn.Module):
    """positions [..., T] int -> (cos, sin), each [..., T, R/2] fp32.

    The frequencies are a plain attribute on purpose: as a buffer they would be rounded by `model.to(bfloat16)` (angles
    of far positions then come out wrong) and would be lost when a model is built on the meta device.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.frequencies = rope_frequencies(cfg)
        self.attention_factor = rope_attention_factor(cfg)

    @torch.no_grad()
    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        if self.frequencies.device != positions.device:
            self.frequencies = self.frequencies.to(positions.device)
        angles = positions[..., None].float() * self.frequencies
        return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of neighbours of x [B, T, H, R] by the angles of its position; cos, sin [..., T, R/2].

    Computed in the precision of cos and sin (fp32), returned in that of x. A pair (a, b) read as the complex number
    a + ib is turned by one multiplication: (a + ib)(cos + i sin), one pass over the numbers instead of eight.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # a compiler fuses real numbers and no complex ones
        return apply_rope_reference(x, cos, sin)
    points = torch.view_as_complex(x.to(cos.dtype).unflatten(-1, (-1, 2)).contiguous())  # [B, T, H, R/2]
    turn = torch.complex(cos, sin).unsqueeze(-2)  # the same angle for every head
    return torch.view_as_real(points * turn).flatten(-2).to(x.dtype)


def apply_rope_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`apply_rope` as it is written down: (a, b) becomes (a cos - b sin, b cos + a sin)."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)  # [B, T, H, R/2] each
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def apply_rope_half_split(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The other layout in use (Llama and others): pair j is (x_j, x_{j + R/2}).

    The same rotation up to a permutation of channels. Weights trained for one layout give nonsense with the other;
    lesson 03 compares the two.
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
