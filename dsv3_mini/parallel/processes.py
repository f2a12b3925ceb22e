"""The processes of a run: one, or as many as `torchrun` started; and what they have to agree on.

Every process runs the same program. Each step they meet in collective operations, which wait until everybody is
there: one process that turns back alone leaves the others waiting. So a decision that could differ between them (is
the input right? was Ctrl-C pressed? which checkpoint is the newest?) is exchanged first, and then all do the same.

`torchrun` says who is who in the environment: WORLD_SIZE processes, of which this is number RANK, and number
LOCAL_RANK of the LOCAL_WORLD_SIZE on its host. On GPUs they talk over NCCL, on CPUs over gloo.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from dsv3_mini.errors import InputError
from dsv3_mini.train.device import pick_device

T = TypeVar("T")

# How long somebody may keep the others waiting: the first process evaluates and writes checkpoints alone.
PATIENCE = timedelta(hours=1)


class SharedError(InputError):
    """Bad input that every process of the run knows of by now, so that one of them may speak for all."""


@dataclass(frozen=True)
class Processes:
    """`world` processes, of which this is number `rank`. Alone (`world` 1) every method is as good as nothing."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """The one that prints, and writes whatever is written once."""
        return self.rank == 0

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """What is bad input to one is bad input to all: each raises `SharedError` with the first message."""
        problem = None
        try:
            yield
        except InputError as error:
            if self.world == 1:
                raise
            problem = str(error)
        found = next(filter(None, self.gather(problem)), None)
        if found is not None:
            raise SharedError(found)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank. They travel pickled, from one process of the run to another."""
        if self.world == 1:
            return [value]
        values: list[T | None] = [None] * self.world
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, which alone calls it. If it raises `InputError`, all do."""
        made = []
        with self.agreed():
            if self.first:
                made.append(make())
        if self.world > 1:
            made = made or [None]  # type: ignore[list-item]
            dist.broadcast_object_list(made, src=0)
        return made[0]

    def first_then_others(self, make: Callable[[], T]) -> T:
        """`make()` in every process, in the first one before the others, who may find a cache filled by then.

        Raises `SharedError` everywhere if it raises `InputError` anywhere.
        """
        made: list[T] = []
        for my_turn in (self.first, not self.first):
            with self.agreed():
                if my_turn:
                    made.append(make())
        return made[0]

    def check_same(self, what: str, value: object) -> None:
        """Raise `SharedError` everywhere if `value` is not the same in every process."""
        values = self.gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise SharedError(f"process {rank} has other {what} than process 0: {other}, not {values[0]}")

    def largest(self, number: int) -> int:
        """The largest `number` of any process."""
        if self.world == 1:
            return number
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        return bool(self.largest(int(flag)))

    def wait(self) -> None:
        """Go on when everybody has come here."""
        if self.world > 1:
            self.gather(None)

    def device(self, name: str) -> torch.device:
        """The device of this process: the CPU, or the GPU of its host that bears its local number.

        Raises `InputError` for a device with a number, which cannot be everybody's, and for fewer GPUs than processes.
        """
        device = pick_device(name)
        if self.world == 1 or device.type != "cuda":
            return device
        if ":" in name:
            raise InputError(f"device = {name!r}: {self.world} processes need a device each; give cuda, cpu or auto")
        here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
        if here > gpus:
            raise InputError(f"{here} processes on a host where torch sees {gpus} GPUs; give --nproc-per-node {gpus}")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        return device


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Meet the other processes that `torchrun` started, if it did, and part from them at the end.

    Inside another `joined` block nothing is joined twice.
    """
    if dist.is_available() and dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes()
        return
    # Python objects and votes travel between CPUs, tensors of a GPU between GPUs.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    yield Processes(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()  # not after an error: the others may be waiting in a collective operation
