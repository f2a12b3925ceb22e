"""The predicted memory of a step against what torch's own allocator hands out while the step runs for real."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._C._profiler import _EventType

from dsv3_mini import cli
from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.model.count import count_parameters
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.device import autocast
from dsv3_mini.train.memory_ledger import CASTS, GRADIENTS, MOMENTS, WEIGHTS, MemoryLedger
from dsv3_mini.train.optimizer import build_optimizer
from dsv3_mini.train.schedule import StepSettings
from dsv3_mini.train.step import train_step
from dsv3_mini.train.step_memory import StepMemory, predict_step_memory

WIDE = ModelConfig.preset(  # few experts, wide FFNs, no query compression, a large vocabulary
    "nano", vocab_size=12288, hidden_size=256, num_hidden_layers=2, intermediate_size=1024, q_lora_rank=None,
    n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=384, n_group=1, topk_group=1,
)  # fmt: skip
MANY = ModelConfig.preset(  # many small experts, no dense layer, no MTP
    "nano", num_hidden_layers=4, first_k_dense_replace=0, num_nextn_predict_layers=0, n_routed_experts=64,
    num_experts_per_tok=8, moe_intermediate_size=32, n_group=8, topk_group=4,
)  # fmt: skip
CASES = {
    "nano": (ModelConfig.preset("nano"), 512, 256, "fp32"),
    "nano in bf16, recomputing": (ModelConfig.preset("nano"), 512, 128, "bf16"),
    "mini": (ModelConfig.preset("mini"), 512, 256, "fp32"),
    "wide": (WIDE, 256, 128, "fp32"),
    "many experts": (MANY, 512, 64, "fp32"),
}


def settings(sequences: int) -> StepSettings:
    return StepSettings(0.0, 0, sequences, 1e-3, 0.3, 1e-3)


def allocated(work: Callable[[], Any]) -> list[int]:
    """Bytes that torch's allocator has handed out since the start, after each of its operations during `work`."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True, acc_events=True) as profile:
        work()

    def events(node: Any) -> Iterator[Any]:
        if node.tag == _EventType.Allocation:
            yield node
        for child in node.children:
            yield from events(child)

    assert profile.profiler is not None
    roots = profile.profiler.kineto_results.experimental_event_tree()
    in_order = sorted((event for root in roots for event in events(root)), key=lambda event: event.start_time_ns)
    now, line = 0, []
    for event in in_order:
        now += event.extra_fields.alloc_size
        line.append(now)
    return line


def model_and_optimizer(cfg: ModelConfig, recompute: bool) -> tuple[DeepSeekV3, torch.optim.AdamW]:
    """As after a first step: with moments and without gradients."""
    torch.manual_seed(0)
    model = DeepSeekV3(cfg)
    if recompute:
        model.set_recompute(True)
    optimizer = build_optimizer(model, 1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[ModelConfig, Tensor, str, StepMemory]:
    cfg, tokens, seq_len, precision = CASES[request.param]
    torch.manual_seed(0)
    batch = torch.randint(1, cfg.vocab_size, (tokens // seq_len, seq_len + 1))
    predicted = predict_step_memory(
        cfg, tokens=tokens, seq_len=seq_len, precision=precision, device="cpu", recompute="recomputing" in request.param
    )
    return cfg, batch, precision, predicted


def test_peak_is_within_a_tenth_of_what_the_allocator_gave(case) -> None:
    cfg, batch, precision, predicted = case
    model, optimizer = model_and_optimizer(cfg, predicted.recompute)
    inputs, targets = batch[:, :-1].clone(), batch[:, 1:].clone()

    def step() -> None:
        train_step(
            model, optimizer, inputs, targets, settings(len(batch)), micro_sequences=len(batch), precision=precision
        )

    there = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    there += sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    measured = there + max(allocated(step))
    assert predicted.peak == pytest.approx(measured, rel=0.1)
    assert sum(predicted.by_part.values()) == predicted.peak


def test_what_is_kept_for_the_backward_pass_is_what_autograd_saves(case) -> None:
    cfg, batch, precision, predicted = case
    if predicted.recompute:  # it works by hooks of its own, which hide what it keeps from ours
        tokens, seq_len = batch[:, 1:].numel(), batch.shape[1] - 1
        plain = predict_step_memory(cfg, tokens=tokens, seq_len=seq_len, precision=precision, device="cpu")
        layers = [name for name in plain.kept if name != "embedding, head and loss"]
        assert all(predicted.kept[name] < plain.kept[name] for name in layers)
        return
    model, _ = model_and_optimizer(cfg, predicted.recompute)
    given = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers(), batch]}
    shapes = {p.shape for p in model.parameters()} | {p.shape[::-1] for p in model.parameters()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        cast = tensor.dtype == torch.bfloat16 and (tensor.shape in shapes or tensor.transpose(-1, -2).shape in shapes)
        if not cast:
            saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, autocast(torch.device("cpu"), precision):
        out = model(batch[:, :-1], batch[:, 1:], keep_logits=False)
    measured = sum(t.untyped_storage().nbytes() for key, t in saved.items() if key not in given)
    del out
    assert sum(predicted.kept.values()) == pytest.approx(measured, rel=0.1)
    layers = [name for name in predicted.kept if "layer" in name or "MTP" in name]
    assert len(layers) == cfg.num_hidden_layers + cfg.num_nextn_predict_layers


def test_parts_with_a_formula_follow_it(tiny_model: ModelConfig) -> None:
    count = count_parameters(tiny_model)
    numbers = count.total + count.mtp_total  # routing biases included
    biases = tiny_model.num_moe_layers * tiny_model.n_routed_experts
    tensors = len(list(DeepSeekV3(tiny_model).parameters()))
    predicted = predict_step_memory(tiny_model, tokens=16, seq_len=16, precision="fp32", device="cpu")
    assert predicted.by_part[WEIGHTS] == 4 * numbers
    assert predicted.by_part[MOMENTS] == 8 * (numbers - biases) + 4 * tensors
    assert predicted.by_part[CASTS] == 0
    # So few tokens that the peak comes late, when most gradients are there.
    assert 0.5 * 4 * numbers < predicted.by_part[GRADIENTS] <= 4 * (numbers - biases)


def test_activations_grow_with_the_tokens_and_weights_do_not(tiny_model: ModelConfig) -> None:
    small, large = (
        predict_step_memory(tiny_model, tokens=n, seq_len=32, precision="fp32", device="cpu") for n in (320, 640)
    )
    assert large.by_part[WEIGHTS] == small.by_part[WEIGHTS]
    for layer in small.kept:
        if layer != "embedding, head and loss":  # which holds the gradient of the head, whatever the tokens
            assert large.kept[layer] == pytest.approx(2 * small.kept[layer], rel=0.01)


def test_the_prediction_takes_no_memory() -> None:
    """3.4 GB of weights and moments at the peak would not go unnoticed."""
    cfg = ModelConfig.preset("small", num_hidden_layers=4, n_routed_experts=128)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    predicted = predict_step_memory(cfg, tokens=128, seq_len=128, precision="bf16", device="cpu")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB on Linux, bytes on macOS
    assert predicted.peak > 3e9 and grown < 500_000 * (1024 if sys.platform == "darwin" else 1)


def test_a_block_of_memory_is_struck_out_when_nothing_refers_to_it(tiny_model: ModelConfig) -> None:
    model = DeepSeekV3(tiny_model)
    ledger = MemoryLedger(model)
    weights = ledger.total
    with ledger.watching(model):
        one = torch.zeros(1000)
        view = one[10:]
        two = one + 1
        assert ledger.total == weights + 8000
        del one
        assert ledger.total == weights + 8000  # the view holds on to it
        del view
        assert ledger.total == weights + 4000
        two.add_(1)
        assert ledger.total == weights + 4000
    del two
    assert ledger.total == weights and ledger.peak_total == weights + 8000
    assert not model._forward_hooks and not model.lm_head.weight._post_accumulate_grad_hooks


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokens": 24}, "micro_batch_tokens = 24"),
        ({"tokens": 0}, "micro_batch_tokens = 0"),
        ({"seq_len": 1}, "seq_len = 1"),
        ({"seq_len": 65, "tokens": 65}, "max_position_embeddings = 64"),
        ({"device": "cuda:99"}, "cuda:99"),
    ],
)
def test_what_cannot_be_is_named(tiny_model: ModelConfig, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        predict_step_memory(tiny_model, **{"tokens": 32, "seq_len": 16, "device": "cpu", **changes})


def test_the_command_shows_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--memory", "--micro-batch-tokens", "64", "--seq-len", "32", "--precision", "fp32", "--device", "cpu"]
    assert cli.main(["params", "nano", *sizes]) == 0
    printed = capsys.readouterr().out
    for row in (WEIGHTS, MOMENTS, "peak", "dense layer 0", "MoE layers 1 to 2, each", "MTP module 3"):
        assert row in printed
    assert cli.main(["params", *sizes]) == 2
    assert "--memory needs a MODEL" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", [False, True])
def test_peak_on_a_gpu(recompute: bool) -> None:
    predicted = predict_step_memory(
        ModelConfig.preset("mini"), tokens=8192, seq_len=512, precision="bf16", device="cuda", recompute=recompute
    )
    with torch.device("cuda"):
        model, optimizer = model_and_optimizer(ModelConfig.preset("mini"), recompute)
    batch = torch.randint(1, 4096, (16, 512))
    train_step(model, optimizer, batch, batch, settings(16), micro_sequences=16, precision="bf16")
    torch.cuda.reset_peak_memory_stats()
    train_step(model, optimizer, batch, batch, settings(16), micro_sequences=16, precision="bf16")
    assert predicted.peak == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.1)
