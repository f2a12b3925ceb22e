"""The loop's view of several processes, as far as one process can see it; `tests/parallel` runs several."""

from __future__ import annotations

import torch

from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.parallel.processes import Processes
from dsv3_mini.train.distributed import Sharing
from dsv3_mini.train.micro_batches import OneProcess


def test_the_first_process_reports_into_the_run_and_the_others_into_a_copy_that_goes_away(tiny_run):
    cfg = tiny_run().resolved()
    cfg.out.mkdir()
    (cfg.out / "metrics.jsonl").write_text('{"step": 1}\n')
    with Sharing(Processes(0, 2)).notes(cfg) as mine:
        assert mine is cfg
    with Sharing(Processes(1, 2)).notes(cfg) as other:
        assert other.out != cfg.out
        # The same history, so that all processes judge the next step (is it a spike?) alike.
        assert (other.out / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert not other.out.exists()


def test_alone_a_model_stays_as_it_is(tiny_model):
    model, sharing = DeepSeekV3(tiny_model), Sharing(Processes())
    weights = dict(model.named_parameters())
    assert type(sharing.place(model, torch.device("cpu"))) is OneProcess
    assert all(parameter is weights[name] for name, parameter in model.named_parameters())
    assert sharing.whole(model, torch.device("cpu")) is model
