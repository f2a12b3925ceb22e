"""How much memory a training step will take, before any is taken (`dsv3-mini params MODEL --memory`).

The prediction is a dry run: `train_step` itself runs once on fake tensors, which have shapes, types and lifetimes but
no contents, and a `MemoryLedger` adds up what is alive at every moment. So the numbers stay true when the code
changes; there is no second description of the model to keep in step. P is the number of parameters, B the routing
biases (one number an expert), N the tokens in the model at once (`micro_batch_tokens`), K the experts per token, D the
model width, F the width of an expert. By part:

    weights                 4 P + 4 B                      fp32 master weights
    gradients               4 P                            fp32, all there when the backward pass ends
    AdamW moments           8 P + 4 a tensor               two per weight, and a step count per tensor
    copies in bf16          2 bytes a weight in a matrix product, experts' included; made in the forward pass and
                            kept for the backward pass; none in fp32
    activations             what autograd keeps, by layer and part: proportional to N at a given sequence length
      dispatch and combine  rows on their way to the experts and back: N K of D numbers, each time they are copied,
                            and 8 bytes for each place in the order of assignments
      inside the experts    N K rows of 2 F and F numbers
    head and loss           the gradients of the states (N D) and of the head (V D), made in the forward pass; and one
                            chunk of logits with its temporaries (`model.loss`): never N V
    peak                    the most that is alive at one moment, usually early in the backward pass: activations of
                            all layers, next to weights and moments; or at its end, when all gradients are there

Activations have no formula here on purpose: what autograd keeps is decided by the code of every operation, and any
formula would describe yesterday's.

A dry run has no numbers in its tensors. Where the step asks for one (is the loss finite? how many rows go to the
experts?) it is answered: 1 for a fraction, N K for a whole number, "none" for a search. So loads of experts are taken
as balanced, and rows that a bf16 step on a CPU fills up are left out. Not counted either: working memory inside a
kernel, Python and torch themselves, blocks that an allocator keeps for later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dsv3_mini.checks import is_count, require
from dsv3_mini.config import ModelConfig
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.device import matrix_dtype, pick_device
from dsv3_mini.train.memory_ledger import MOMENTS, PARTS, Entry, MemoryLedger
from dsv3_mini.train.optimizer import build_optimizer
from dsv3_mini.train.schedule import StepSettings
from dsv3_mini.train.step import train_step

# Parts that belong to no layer's activations.
_NOT_ACTIVATIONS = PARTS[:4]


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step."""

    device: str
    precision: str  # of matrix products
    tokens: int  # in the model at once
    seq_len: int
    recompute: bool
    peak: int
    by_part: dict[str, int]  # at the moment of the peak; they add up to it
    kept: dict[str, int]  # at the end of the forward pass, for the backward pass, by layer; without weights and moments


def predict_step_memory(
    cfg: ModelConfig,
    *,
    tokens: int,
    seq_len: int,
    precision: str = "auto",
    device: str = "auto",
    recompute: bool = False,
) -> StepMemory:
    """A dry run of one step with `tokens` tokens in sequences of `seq_len`, after earlier steps: the moments are there.

    `device` must be one that this machine has: which kernels run, and what they keep, depends on it. `recompute`:
    norms and MLA up-projections are computed again in the backward pass (`model.recompute`). Raises `InputError` that
    names what cannot be.
    """
    require(is_count(seq_len, 2), "seq_len", seq_len, "a whole number of at least 2")
    longest = cfg.max_position_embeddings
    require(seq_len <= longest, "seq_len", seq_len, f"at most max_position_embeddings = {longest}")
    depth = cfg.num_nextn_predict_layers
    require(seq_len > depth, "seq_len", seq_len, f"above num_nextn_predict_layers = {depth}")
    ok = is_count(tokens, 1) and tokens % seq_len == 0
    require(ok, "micro_batch_tokens", tokens, f"a multiple of seq_len = {seq_len}, and at least that")
    place = pick_device(device)
    sequences = tokens // seq_len
    with FakeTensorMode(), _Answers(tokens * cfg.num_experts_per_tok), torch.device(place):
        model = DeepSeekV3(cfg)
        if recompute:
            model.set_recompute(True)
        optimizer = build_optimizer(model, 1e-3)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()  # makes the moments
        optimizer.zero_grad()
        ledger = MemoryLedger(model)
        moments = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
        ledger.enter(moments, Entry(MOMENTS, None))
        batch = torch.zeros(sequences, seq_len, dtype=torch.long)
        settings = StepSettings(0.0, 0, sequences, 1e-3, 0.3, 1e-3)
        with ledger.watching(model):
            train_step(model, optimizer, batch, batch, settings, micro_sequences=sequences, precision=precision)
    by_part = {part: sum(size for entry, size in ledger.peak.items() if entry.part == part) for part in PARTS}
    dtype = "bf16" if matrix_dtype(place, precision) == torch.bfloat16 else "fp32"
    return StepMemory(place.type, dtype, tokens, seq_len, recompute, ledger.peak_total, by_part, _kept(cfg, ledger))


def _kept(cfg: ModelConfig, ledger: MemoryLedger) -> dict[str, int]:
    """What the forward pass leaves for the backward pass, by layer."""
    names: dict[int | None, str] = {}
    for layer in range(cfg.num_hidden_layers + cfg.num_nextn_predict_layers):
        kind = "dense layer" if layer < cfg.first_k_dense_replace else "MoE layer"
        names[layer] = "MTP module" if layer >= cfg.num_hidden_layers else kind
        names[layer] += f" {layer}"
    names[None] = "embedding, head and loss"
    return {
        name: sum(size for e, size in ledger.kept.items() if e.layer == layer and e.part not in _NOT_ACTIVATIONS)
        for layer, name in names.items()
    }


class _Answers(TorchDispatchMode):
    """Answers what fake tensors cannot: questions about values, and one operation."""

    def __init__(self, assignments: int) -> None:
        super().__init__()
        self.assignments = assignments

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func is aten._local_scalar_dense.default:  # what .item(), .tolist() and int() come down to
            return 1.0 if args[0].is_floating_point() else self.assignments
        if func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            return args[0].new_empty(0)
        if func is aten._grouped_mm.default:  # its shapes; torch's own fake refuses fp32
            a, b, offsets = args[:3]
            groups = () if 3 in (a.ndim, b.ndim) else (len(offsets),)
            return a.new_empty(*groups, a.shape[-2], b.shape[-1])
        return func(*args, **(kwargs or {}))
