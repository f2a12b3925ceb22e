"""Experts that live in several processes give what they give in one, forward and backward."""

from __future__ import annotations

import pytest
import torch

from .worlds import run_world


@pytest.mark.parametrize(
    ("tokens", "only"),
    [
        ([7, 12], None),  # pieces of all sizes
        ([5, 5], 4),  # every token to the experts of process 0: process 1 sends all it has, and receives nothing
        ([0, 6], None),  # a process without a token still computes for the other
    ],
)
def test_outputs_and_gradients_equal_those_of_one_process(tmp_path, tokens, only):
    found = run_world(tmp_path, 2, "experts_together", tokens=tokens, only=only)
    for rank, part in enumerate(found):
        out, x_grad = part["reference"]
        assert part["out"].shape == (tokens[rank], 16)
        torch.testing.assert_close(part["out"], out, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(part["x_grad"], x_grad, rtol=1e-5, atol=1e-4)
        for name, gradient in part["reference_grads"].items():
            torch.testing.assert_close(part["grads"][name], gradient, rtol=1e-5, atol=1e-4)
        assert part["held"] == 4, "each process holds half of the eight experts"
        assert part["global"] == (8, 16, 16), "and everybody can see the shape of the whole"


def test_in_bf16_it_is_as_close_as_bf16_is(tmp_path):
    for part in run_world(tmp_path, 2, "experts_together", tokens=[30, 20], bf16=True):
        out, x_grad = part["reference"]
        assert part["out"].dtype == torch.bfloat16
        for mine, reference in ((part["out"], out), (part["x_grad"], x_grad)):
            error = (mine.float() - reference.float()).norm() / reference.float().norm()
            assert error < 0.02
