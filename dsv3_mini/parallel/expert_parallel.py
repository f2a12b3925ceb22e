"""Expert parallelism: every process holds some experts of each layer, and tokens travel to them (§3.2.2, §2.1.2).

    order      each token once per chosen expert, ordered by expert, so that what goes to one process is one piece
    dispatch   all-to-all: every process sends each other process the piece for its experts
    compute    the experts that live here, on tokens from everywhere, by any of the paths of `model.experts`
    combine    all-to-all back; each token's K results, times its gate weights, are summed where the token lives

Pieces are as large as the routing makes them, and may be empty: no token is dropped and none is padded. The price is
that the host must know the sizes before it can send: one wait for the device per layer, where the grouped path of a
single process has none. (The report's kernels avoid it by sending from the GPU itself.)

Autograd runs the same way back: the gradient of an all-to-all is the all-to-all in the other direction.

Shapes: N tokens of this process, K experts per token, E experts, P processes, D model width, F expert width, M = N * K
assignments sent from here, R rows received.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed import all_to_all_single
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from dsv3_mini.model.experts import Experts
from dsv3_mini.model.moe import MoE
from dsv3_mini.model.router import Routing


class ShardedExperts(Experts):
    """`Experts` of which this process holds E / P. Takes the tokens of this process, gives their results.

    Names are those of `Experts`, and so are the shapes to everybody who asks for the whole: the parameters are
    DTensors [E, 2F, D] and [E, D, F], of which E / P experts are here.
    """

    def __init__(self, experts: Experts, mesh: DeviceMesh) -> None:
        """Take this process's part of `experts`, which are the same in all processes of the one-dimensional `mesh`."""
        nn.Module.__init__(self)
        for name, whole in experts.named_parameters():
            # src_data_rank=None: everybody has the whole already, so nobody sends anything.
            part = distribute_tensor(whole.detach(), mesh, [Shard(0)], src_data_rank=None)
            setattr(self, name, nn.Parameter(part))
        self.path = experts.path
        self.mesh = mesh

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        top_k = routing.ids.shape[1]
        gate_up, down = (_local(weight) for weight in (self.gate_up_proj, self.down_proj))
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # half the bytes to send

        order = routing.ids.flatten().argsort(stable=True)  # [M], by expert and so by process
        sent, received = self._exchange_counts(routing.counts)  # both [P, E / P]
        # The one wait for the device.
        sizes_out, sizes_in = torch.stack((sent.sum(1), received.sum(1))).tolist()

        rows = all_to_all_single_autograd(x[order // top_k], sizes_in, sizes_out, self.mesh)  # [R, D]
        rows = self._compute(rows, received, gate_up, down)
        rows = all_to_all_single_autograd(rows, sizes_out, sizes_in, self.mesh)  # [M, D], in the order they were sent

        by_token = torch.empty_like(order)  # [M], where each assignment stands in `order`
        by_token[order] = torch.arange(len(order), device=order.device)
        results = rows[by_token].unflatten(0, (-1, top_k))  # [N, K, D]
        return (results * routing.weights.to(results.dtype).unsqueeze(-1)).sum(1)

    def _exchange_counts(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Rows for each expert [E] -> rows sent to [process, its expert] and received from [process, expert here]."""
        sent = counts.view(self.mesh.size(), -1)
        received = torch.empty_like(sent)
        all_to_all_single(received, sent.contiguous(), group=self.mesh.get_group())
        return sent, received

    def _compute(self, rows: Tensor, received: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        """rows [R, D], ordered by sender and then by expert -> their experts' outputs, in the same order."""
        if not len(rows):
            # Nobody chose these experts. They still get a gradient, of zeros: FSDP adds it to that of other processes,
            # which wait for it.
            return rows + 0.0 * (gate_up.sum() + down.sum()).to(rows.dtype)
        senders, experts = received.shape
        expert = torch.arange(experts, device=rows.device).repeat(senders)
        ids = expert.repeat_interleave(received.flatten(), output_size=len(rows)).unsqueeze(1)  # [R, 1]
        # Rows arrive as tokens with one choice each; the gate weights wait at home.
        ones = torch.ones_like(ids, dtype=torch.float32)
        return self.run(rows, Routing(ids, ones, ones, received.sum(0)), gate_up, down)


def shard_experts(model: nn.Module, mesh: DeviceMesh) -> list[ShardedExperts]:
    """Replace the experts of every MoE layer of `model` by their part in this process. Gives the parts."""
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    for layer in layers:
        layer.experts = ShardedExperts(layer.experts, mesh)
    return [layer.experts for layer in layers if isinstance(layer.experts, ShardedExperts)]


def _local(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight
