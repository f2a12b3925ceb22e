"""Data parallelism with FSDP2, so that a step equals the step that one process would take with the same batch.

FSDP2 keeps of each parameter one shard a process. A block's parameters are gathered just before it runs and let go
after; its gradients are summed over the processes as soon as they are there, and again only a shard is kept. What it
does not know is how much a process's part of the batch weighs, and what else is counted over the whole batch:

    losses          weighted by the part of all sequences that a micro-batch holds; FSDP then sums instead of averaging
    expert counts   summed over all processes before the routing biases move, which keeps the biases equal everywhere
    gradient norm   over all shards, each number of the model counted once

The sequence-wise balance loss (Eq. 17) is a mean over sequences, so the same weights are right for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from dsv3_mini.model.mtp import MTPModule
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.parallel.expert_parallel import shard_experts
from dsv3_mini.parallel.mesh import Mesh
from dsv3_mini.train.micro_batches import MicroBatch, OneProcess
from dsv3_mini.train.optimizer import CLIP_NORM


def shard_model(model: DeepSeekV3, mesh: Mesh) -> None:
    """Shard `model`, which is the same in all processes, in place. Its parameters become DTensors."""
    if mesh.grid is not None:
        for experts in shard_experts(model, mesh.grid["experts"]):
            # Their first dimension is cut already, by expert, so FSDP cuts the second.
            _fully_shard(experts, mesh.grid["data"], dim=1)
    for layer in model.model.layers:
        if isinstance(layer, MTPModule):
            # Its projection is used outside its `forward`, where FSDP would not know that it has to be gathered: it
            # stays with the embedding and the head, which are there all the time.
            _fully_shard(layer.self_attn, mesh.everyone)
            _fully_shard(layer.mlp, mesh.everyone)
        else:
            _fully_shard(layer, mesh.everyone)
    _fully_shard(model, mesh.everyone)  # the rest, last


def _fully_shard(module: nn.Module, mesh: dist.DeviceMesh, dim: int = 0) -> None:
    fully_shard(module, mesh=mesh, shard_placement_fn=lambda parameter: Shard(dim))
    assert isinstance(module, FSDPModule)  # which it is from now on
    # Sum, do not average: the losses are weighted already. An expert's gradient holds the tokens of a whole row of the
    # mesh before FSDP sees it, so an average would divide it by too little.
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum


@dataclass(frozen=True)
class DataParallel(OneProcess):
    """What `train_step` does differently in one of `world` processes."""

    rank: int
    world: int

    def split(self, inputs: Tensor, targets: Tensor, micro_sequences: int) -> list[MicroBatch]:
        """This process's micro-batches of a global batch [sequences, T]: as many as every other process has.

        Each forward and backward pass gathers and sums something over all processes, so all must do equally many.
        Where the sequences do not divide evenly, as while the batch is being ramped up, some pass a first sequence
        through that counts for nothing.
        """
        mine = zip(
            inputs.tensor_split(self.world)[self.rank].split(micro_sequences),
            targets.tensor_split(self.world)[self.rank].split(micro_sequences),
            strict=True,
        )
        parts = [MicroBatch(tokens, nexts, len(tokens) / len(inputs)) for tokens, nexts in mine if len(tokens)]
        largest = -(-len(inputs) // self.world)  # sequences of the process that has most, rounded up
        rounds = -(-largest // micro_sequences)
        return parts + [MicroBatch(inputs[:1], targets[:1], 0.0)] * (rounds - len(parts))

    def add_up(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            dist.all_reduce(tensor)

    def clip_gradients(self, model: nn.Module) -> Tensor:
        """`train.optimizer.clip_gradients` on shards: the norm over all of them, a scalar tensor, from before."""
        shards = [_local(p.grad) for p in model.parameters() if p.grad is not None]
        # Every number of the model lives in exactly one process, experts too, so squares can simply be summed.
        square = nn.utils.get_total_norm(shards).square()
        dist.all_reduce(square)
        norm = square.sqrt()
        scale = (CLIP_NORM / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(shards, scale)
        return norm


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
