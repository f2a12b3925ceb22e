"""How the work is cut over processes: by data and by experts (§3.2; the report's pipeline is a matter of its own).

Every process reads other sequences, so for all that is not an expert the W processes are W data-parallel ones, and
FSDP2 shards parameters, gradients and AdamW's moments over all of them. With expert parallelism the same processes are
looked at as a grid as well:

                  expert-parallel 0     expert-parallel 1          W = 4, expert_parallel = 2, E = 16
    data 0        process 0             process 1
    data 1        process 2             process 3
                  experts 0 .. 7        experts 8 .. 15

A row holds every expert once: in it, tokens travel to the experts that they chose (`expert_parallel`). A column holds
the same experts: over it, FSDP2 shards them, and adds up their gradients. Nothing is computed twice.

Ranks that follow each other share a host, so keep `expert_parallel` at most the number of GPUs of one host if you can:
tokens then stay inside it, twice per layer and direction, and only gradients and weights cross the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dsv3_mini.checks import require
from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError


@dataclass(frozen=True)
class Mesh:
    """The two views on the processes."""

    everyone: DeviceMesh  # [W]: one dimension, who reads other sequences
    grid: DeviceMesh | None  # [W / expert_parallel, expert_parallel], dimensions "data" and "experts"; None without

    @property
    def world(self) -> int:
        return self.everyone.size()

    @property
    def rank(self) -> int:
        return self.everyone.get_rank()


def build_mesh(device: torch.device, world: int, expert_parallel: int) -> Mesh:
    """The meshes over all `world` processes, for sizes that `check_sizes` let pass."""
    everyone = init_device_mesh(device.type, (world,), mesh_dim_names=("everyone",))
    if expert_parallel == 1:
        return Mesh(everyone, None)
    shape = (world // expert_parallel, expert_parallel)
    return Mesh(everyone, init_device_mesh(device.type, shape, mesh_dim_names=("data", "experts")))


def check_sizes(cfg: ModelConfig, world: int, expert_parallel: int, batch_sequences: int) -> None:
    """Raise `InputError` that names the size at fault unless `world` processes can share this model and this batch.

    batch_sequences: sequences in an optimizer step, after the batch ramp.
    """
    name = "expert_parallel"
    if expert_parallel > 1:
        if world == 1:
            raise InputError(
                f"{name} = {expert_parallel} needs as many processes; start them with "
                f"torchrun --nproc-per-node {expert_parallel} -m dsv3_mini.cli train ..."
            )
        right = f"a divisor of the number of processes, {world}"
        require(world % expert_parallel == 0, name, expert_parallel, right)
        require(cfg.num_moe_layers > 0, name, expert_parallel, "1 for a dense model: it has no experts to share out")
        right = f"a divisor of n_routed_experts = {cfg.n_routed_experts}"
        require(cfg.n_routed_experts % expert_parallel == 0, name, expert_parallel, right)
        data = world // expert_parallel
        for field in ("hidden_size", "moe_intermediate_size"):
            width = getattr(cfg, field)
            right = f"a multiple of {data} = processes / expert_parallel, which share each expert"
            require(width % data == 0, field, width, right)
    if world > 1:
        right = f"a multiple of seq_len times the number of processes, {world}"
        require(batch_sequences % world == 0, "batch_tokens", f"{batch_sequences} * seq_len", right)
        right = f"0 with {world} processes: the batch-wise loss needs the whole batch in one place"
        require(cfg.batch_balance_loss_alpha == 0, "batch_balance_loss_alpha", cfg.batch_balance_loss_alpha, right)
