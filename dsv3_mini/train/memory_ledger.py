"""Who holds the memory of a training step: every block of memory, from the operation that makes it to its release.

A `MemoryLedger` stands between a model and torch (a dispatch mode) and sees the result of every operation. It writes
down each new block of memory under the part of the model that was running, and strikes it out when nothing refers to
it any more, which includes what autograd keeps for the backward pass. Views and in-place operations make no new
block. What an operation allocates and frees inside itself is not seen; such working memory is small.

It works on real tensors and on fake ones, which have sizes and no memory (`step_memory`).
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsv3_mini.model.experts import Experts
from dsv3_mini.model.moe import MLP, MoE
from dsv3_mini.model.router import Router
from dsv3_mini.model.transformer import DeepSeekV3

WEIGHTS, GRADIENTS, MOMENTS = "weights", "gradients", "AdamW moments"
CASTS = "copies of weights in bf16"
ATTENTION, ROUTER, FFN, RESIDUAL = "attention", "router", "dense FFN and shared experts", "norms and residual"
DISPATCH, EXPERTS = "dispatch and combine", "inside the experts"
ENDS = "embedding, head and loss"
PASSING = "gradients on their way, and other temporaries"

# In the order of a table.
PARTS = (
    WEIGHTS, GRADIENTS, MOMENTS, CASTS, RESIDUAL, ATTENTION, FFN, ROUTER, DISPATCH, EXPERTS, ENDS, PASSING,
)  # fmt: skip


class Entry(NamedTuple):
    """Under what a block of memory is written down."""

    part: str  # one of PARTS
    layer: int | None  # MTP modules come after the last layer; None: no layer


class MemoryLedger(TorchDispatchMode):
    """Bytes in use by entry: `now`, at the `peak` so far, and at the end of the forward pass (`kept`).

        with ledger.watching(model):
            train_step(model, ...)

    Memory that is there before has to be announced (`enter`). The model's own parameters and buffers are.
    """

    def __init__(self, model: DeepSeekV3) -> None:
        super().__init__()
        self.now: Counter[Entry] = Counter()
        self.peak: Counter[Entry] = Counter()
        self.kept: Counter[Entry] = Counter()
        self.total = self.peak_total = 0
        self._blocks: dict[int, tuple[weakref.ref[Any], int, Entry]] = {}
        self._running: list[Entry] = []  # the modules that are running, the innermost last
        self._width = model.cfg.hidden_size
        self.enter([*model.parameters(), *model.buffers()], Entry(WEIGHTS, None))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor, func, args)
        if self.total > self.peak_total:
            self.peak_total, self.peak = self.total, self.now.copy()
        return result

    def enter(self, tensors: Iterable[Tensor], entry: Entry) -> None:
        """Write the memory of `tensors` down under `entry`; what stands under another one is moved."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            known = self._blocks.get(storage._cdata)
            if known is None:
                self._add(storage, entry)
            elif known[2] != entry:
                self._blocks[storage._cdata] = (*known[:2], entry)
                self.now[known[2]] -= known[1]
                self.now[entry] += known[1]

    @contextlib.contextmanager
    def watching(self, model: DeepSeekV3) -> Iterator[MemoryLedger]:
        """Follow what runs inside, knowing which module of `model` is at work."""
        hooks = []
        for name, module in model.named_modules():
            entry = _entry(name, module)
            if entry is not None:
                hooks += [
                    module.register_forward_pre_hook(self._starts(entry)),
                    # Also when it leaves by an exception, as a recomputation does once it has all it needs.
                    module.register_forward_hook(self._ends(model), always_call=True),
                ]
        for parameter in model.parameters():
            hooks.append(parameter.register_post_accumulate_grad_hook(self._has_gradient))
        try:
            with self:
                yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _see(self, tensor: Tensor, func: Any, args: Any) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._blocks or not storage.nbytes():
            return
        entry = self._running[-1] if self._running else Entry(PASSING, None)
        if func is torch.ops.aten._to_copy.default and self._holds_weight(args[0]):
            entry = Entry(CASTS, entry.layer)
        elif entry.part == EXPERTS and (not tensor.is_floating_point() or tensor.shape[-1:] == (self._width,)):
            entry = Entry(DISPATCH, entry.layer)  # as wide as a token, or a place in the order of assignments
        self._add(storage, entry)

    def _add(self, storage: Any, entry: Entry) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._blocks[key] = (weakref.ref(storage, lambda _: self._strike(key)), size, entry)
        self.now[entry] += size
        self.total += size

    def _strike(self, key: int) -> None:
        _, size, entry = self._blocks.pop(key)
        self.now[entry] -= size
        self.total -= size

    def _holds_weight(self, tensor: Tensor) -> bool:
        known = self._blocks.get(tensor.untyped_storage()._cdata)
        return known is not None and known[2].part == WEIGHTS

    def _starts(self, entry: Entry) -> Callable[..., None]:
        return lambda *_: self._running.append(entry)

    def _ends(self, model: DeepSeekV3) -> Callable[..., None]:
        def ended(module: nn.Module, *_: Any) -> None:
            self._running.pop()
            if module is model:
                self.kept = self.now.copy()

        return ended

    def _has_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None  # which is when this is called
        self.enter([parameter.grad], Entry(GRADIENTS, None))


def _entry(name: str, module: nn.Module) -> Entry | None:
    """The entry that a module begins; None for one that goes on with its parent's."""
    words = name.split(".")
    if not name:
        return Entry(ENDS, None)
    if words[:2] != ["model", "layers"] or len(words) < 3:
        return None
    layer = int(words[2])
    if len(words) == 3:
        return Entry(RESIDUAL, layer)
    if words[3:] == ["self_attn"]:
        return Entry(ATTENTION, layer)
    kinds: tuple[tuple[type[nn.Module], str], ...] = (
        (MoE, RESIDUAL), (MLP, FFN), (Router, ROUTER), (Experts, EXPERTS),
    )  # fmt: skip
    return next((Entry(part, layer) for kind, part in kinds if isinstance(module, kind)), None)
