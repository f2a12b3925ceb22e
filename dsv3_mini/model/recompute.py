"""Activations that are computed twice instead of kept (§3.2.3, "Recomputation of RMSNorm and MLA Up-Projection").

A backward pass needs many of the tensors that the forward pass made. Some are large and cheap to make again from small
ones that are kept anyway: the output of a norm from its input, every head's queries, keys and values from the latents.
Autograd lets us put something else in the place of a tensor that it wants to keep; here it is a note of how to make it.

Nothing random and nothing that is counted may be inside (a router's counts are handed back by its layer, once).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Make = Callable[..., tuple[Tensor, ...]]


class Note(NamedTuple):
    """In the place of a kept tensor: which output it is a view of, and which view."""

    output: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


def recomputed(make: Make, *inputs: Tensor) -> tuple[tuple[Tensor, ...], torch.autograd.graph.saved_tensors_hooks]:
    """`make(*inputs)`, and a context: within it no operation keeps these outputs, or views of them.

    The outputs must stay in the caller's hands until the context ends. The first gradient that asks for one computes
    all of them again, and they are forgotten when the last has asked.
    """
    outputs = make(*inputs)
    again = _Again(make, inputs, outputs)
    return outputs, torch.autograd.graph.saved_tensors_hooks(again.pack, again.unpack)


def norm_then(norm: Callable[[Tensor], Tensor], part: Callable[[Tensor], Any], x: Tensor, recompute: bool) -> Any:
    """part(norm(x)); with `recompute`, and gradients, the norm's output is made again instead of kept."""
    if not (recompute and torch.is_grad_enabled()):
        return part(norm(x))
    (normed,), not_kept = recomputed(lambda t: (norm(t),), x)
    with not_kept:
        return part(normed)


class _Again:
    def __init__(self, make: Make, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        self.make, self.inputs = make, tuple(t.detach() for t in inputs)
        self.places = {_storage(t): i for i, t in enumerate(outputs)}  # no tensors: these are what is to be freed
        device = outputs[0].device.type
        self.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        self.outputs: tuple[Tensor, ...] | None = None
        self.notes = self.read = 0

    def pack(self, tensor: Tensor) -> Tensor | Note:
        place = self.places.get(_storage(tensor))
        if place is None:
            return tensor
        self.notes += 1
        return Note(place, tensor.shape, tensor.stride(), tensor.storage_offset())

    def unpack(self, kept: Tensor | Note) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if self.outputs is None:
            device, dtype, enabled = self.autocast
            with torch.no_grad(), torch.autocast(device, dtype, enabled=enabled):
                self.outputs = self.make(*self.inputs)
        tensor = self.outputs[kept.output].as_strided(kept.size, kept.stride, kept.offset)
        self.read += 1
        if self.read % self.notes == 0:  # a graph that is kept may be gone through again
            self.outputs = None
        return tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # not its address, which tensors of a dry run have not
