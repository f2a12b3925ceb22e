"""One process takes the whole batch, micro-batch by micro-batch."""

from __future__ import annotations

import pytest
import torch

from dsv3_mini.train.micro_batches import OneProcess


@pytest.mark.parametrize("micro", [1, 2, 5, 9])
def test_every_sequence_is_read_once_and_weighs_the_same(micro):
    inputs = torch.arange(10).view(5, 2)
    parts = OneProcess().split(inputs, inputs + 100, micro)
    assert torch.equal(torch.cat([part.inputs for part in parts]), inputs)
    assert torch.equal(torch.cat([part.targets for part in parts]), inputs + 100)
    assert [part.weight for part in parts] == [pytest.approx(len(part.inputs) / 5) for part in parts]


def test_there_is_nobody_to_add_up_with():
    tensor = torch.ones(3)
    OneProcess().add_up(tensor)
    assert torch.equal(tensor, torch.ones(3))
