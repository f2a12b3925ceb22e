"""How the batch of a step is cut, and what is then put together: here, for one process.

`parallel.data_parallel.DataParallel` does the same for one of several.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from dsv3_mini.train.optimizer import clip_gradients


@dataclass(frozen=True)
class MicroBatch:
    """Sequences that go through the model at once."""

    inputs: Tensor  # [sequences, T]
    targets: Tensor
    # Its part of all sequences of the step. All are equally long, so that is what its losses weigh. With 0 it is only
    # there to keep other processes company.
    weight: float


class OneProcess:
    """What `train_step` needs to know of how the work is shared out: not at all."""

    def split(self, inputs: Tensor, targets: Tensor, micro_sequences: int) -> list[MicroBatch]:
        """inputs and targets [sequences, T] of the whole step -> the micro-batches of this process."""
        pairs = zip(inputs.split(micro_sequences), targets.split(micro_sequences), strict=True)
        return [MicroBatch(tokens, nexts, len(tokens) / len(inputs)) for tokens, nexts in pairs]

    def add_up(self, *tensors: Tensor) -> None:
        """Sum each tensor over all processes, in place."""

    def clip_gradients(self, model: nn.Module) -> Tensor:
        """Clip by the norm over the whole model, and give that norm from before, a scalar tensor."""
        return clip_gradients(model)
