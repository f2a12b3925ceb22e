"""Sizes that do not fit each other are refused, each by its name, before anything begins."""

from __future__ import annotations

import pytest

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.parallel.mesh import check_sizes

from .jobs import TINY

DENSE = TINY.replace(first_k_dense_replace=3)


@pytest.mark.parametrize(
    ("cfg", "world", "experts", "batch", "message"),
    [
        (TINY, 1, 2, 8, "expert_parallel = 2 needs as many processes; start them with torchrun"),
        (TINY, 4, 3, 8, "expert_parallel = 3 cannot be: it must be a divisor of the number of processes, 4"),
        (TINY, 3, 3, 9, "expert_parallel = 3 cannot be: it must be a divisor of n_routed_experts = 8"),
        (DENSE, 2, 2, 8, "expert_parallel = 2 cannot be: it must be 1 for a dense model"),
        (TINY, 3, 1, 8, "batch_tokens = '8 . seq_len' cannot be: it must be a multiple of seq_len times .* 3"),
        (TINY.replace(hidden_size=18), 8, 2, 8, "hidden_size = 18 cannot be: it must be a multiple of 4"),
        (TINY.replace(moe_intermediate_size=9), 4, 2, 8, "moe_intermediate_size = 9 cannot be: .* multiple of 2"),
        (TINY.replace(batch_balance_loss_alpha=0.1), 2, 1, 8, "batch_balance_loss_alpha = 0.1 cannot be: .* 0 with 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(cfg, world, experts, batch, message):
    with pytest.raises(InputError, match=message):
        check_sizes(cfg, world, experts, batch)


@pytest.mark.parametrize(
    ("cfg", "world", "experts", "batch"),
    [(TINY, 1, 1, 7), (TINY, 2, 1, 8), (TINY, 4, 2, 8), (DENSE, 4, 1, 8), (ModelConfig.preset("small"), 64, 8, 256)],
)
def test_sizes_that_fit_pass(cfg, world, experts, batch):
    check_sizes(cfg, world, experts, batch)
