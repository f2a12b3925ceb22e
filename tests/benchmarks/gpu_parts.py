"""The parts of `gpu.py`: what each measures, how, and how long it may take.

A part is a function from `Settings` to plain JSON types. It runs at full size on a GPU and at toy size anywhere.
"""

from __future__ import annotations

import collections
import importlib.util
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3_mini import DeepSeekV3, ModelConfig
from dsv3_mini.train.device import autocast, matrix_dtype, pick_device
from dsv3_mini.train.metrics import peak_flops, training_flops_per_token
from dsv3_mini.train.optimizer import build_optimizer
from dsv3_mini.train.schedule import StepSettings
from dsv3_mini.train.step import train_step
from tests.benchmarks.run import alternate, timed

NOTE = "random tokens except in `twins`; MFU by the formula of dsv3_mini/train/metrics.py, peak from the data sheet"

TOY_MODEL = ModelConfig(
    vocab_size=320, hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=2, q_lora_rank=16,
    kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, n_routed_experts=8, num_experts_per_tok=2,
    moe_intermediate_size=16, n_group=2, topk_group=1, max_position_embeddings=128,
)  # fmt: skip


class Skipped(Exception):
    """This part cannot run here, and why."""


@dataclass(frozen=True)
class Settings:
    """Sizes of everything."""

    toy: bool
    device: torch.device
    precision: str
    model: ModelConfig = field(default_factory=lambda: ModelConfig.preset("small"))
    sequences: int = 32
    seq_len: int = 1024
    steps: int = 8  # measured, after a warm-up
    rounds: int = 5  # of alternate measurements
    experts: tuple[int, ...] = (16, 64, 256)
    experts_layers: int = 4
    twin_seconds: float = 30.0  # of training for each twin
    context: int = 1024
    new_tokens: int = 64
    report: Callable[[dict[str, Any]], None] = lambda found: None  # called with what a part has found so far

    @property
    def tokens(self) -> int:
        return self.sequences * self.seq_len

    @property
    def dtype(self) -> torch.dtype:
        return matrix_dtype(self.device, self.precision)

    @property
    def backend(self) -> str:
        """What `torch.compile` compiles with. At toy size it only captures, for compiling would take longest of all."""
        return "eager" if self.toy else "inductor"


def settings(toy: bool, report: Callable[[dict[str, Any]], None] = lambda found: None) -> Settings:
    """Those of a measurement, or toy ones. The device is chosen: a GPU if there is one."""
    device = pick_device("auto")
    if not toy:
        return Settings(toy, device, "bf16", report=report)
    return Settings(
        toy, device, "bf16", TOY_MODEL, sequences=2, seq_len=32, steps=2, rounds=1, experts=(4, 8), experts_layers=2,
        twin_seconds=0.3, context=16, new_tokens=4,
    )  # fmt: skip


# ---- the floor


def floor(s: Settings) -> dict[str, Any]:
    """What no step can beat: its products at the measured matrix rate, its optimizer at the measured bandwidth."""
    size, million = (256, 1) if s.toy else (8192, 256)
    a, b = (torch.randn(size, size, device=s.device).to(s.dtype) for _ in range(2))
    matrix_rate = 2 * size**3 / _best(lambda: a @ b, s)
    source = torch.ones(million * 2**20, device=s.device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _best(lambda: target.copy_(source), s)
    with torch.device("meta"):
        parameters = DeepSeekV3(s.model).num_parameters()
    flops = training_flops_per_token(s.model, s.seq_len) * s.tokens
    # AdamW reads weight, gradient and two moments and writes weight and moments: 7 numbers of 4 bytes.
    seconds = {"products": flops / matrix_rate, "optimizer": 28 * parameters / bandwidth}
    return {
        "matrix_flops_per_s": matrix_rate,
        "data_sheet_flops_per_s": peak_flops(s.device, s.dtype, size=256 if s.toy else 1024),
        "bandwidth_bytes_per_s": bandwidth,
        "experts_flops_per_s": _experts_rate(s),
        "parameters": parameters,
        "floor_seconds": seconds,
        "tokens_per_s_at_the_floor": s.tokens / sum(seconds.values()),
    }


def _experts_rate(s: Settings) -> float:
    """FLOP/s of the first grouped product of a MoE layer, loads balanced: smaller matrices, so a lower floor."""
    cfg, rows = s.model, s.tokens * s.model.num_experts_per_tok
    x = torch.randn(rows, cfg.hidden_size, device=s.device).to(s.dtype)
    width = 2 * cfg.moe_intermediate_size
    weights = torch.randn(cfg.n_routed_experts, cfg.hidden_size, width, device=s.device).to(s.dtype)
    ends = torch.arange(1, cfg.n_routed_experts + 1, device=s.device, dtype=torch.int32)
    ends = ends * (rows // cfg.n_routed_experts)
    return 2 * rows * cfg.hidden_size * width / _best(lambda: F.grouped_mm(x, weights, offs=ends), s)


def _best(work: Callable[[], Any], s: Settings, times: int = 20) -> float:
    """The shortest of some runs: other programs can only slow one down."""
    run = timed(work, s.device)
    run()
    return min(run() for _ in range(3 if s.toy else times))


# ---- the training step


def training(s: Settings) -> dict[str, Any]:
    """`train_step` on the model: tokens/s, MFU and memory, as it is and compiled, with recomputation and without."""
    found: dict[str, Any] = {"tokens_per_step": s.tokens, "seq_len": s.seq_len, "precision": s.precision}
    for compiled in (False, True):
        for recompute in (False, True):
            name = ("compiled" if compiled else "eager") + (", recomputed" if recompute else "")
            found[name] = _attempt(lambda c=compiled, r=recompute: _training(s, c, r))
            s.report(found)
    return found


def _training(s: Settings, compiled: bool, recompute: bool) -> dict[str, Any]:
    _forget(s.device)
    step = Step(s, s.model, recompute=recompute)
    if compiled:
        compile_layers(step.model.model.layers, s)
    started = time.perf_counter()
    step(), step()
    warm_up = time.perf_counter() - started
    times = [timed(step, s.device)() for _ in range(s.steps)]
    rate = s.tokens / statistics.median(times)
    flops = training_flops_per_token(s.model, s.seq_len)
    found = {
        "tokens_per_s": rate,
        "mfu": rate * flops / peak_flops(s.device, s.dtype, size=256 if s.toy else 1024),
        "seconds": [min(times), statistics.median(times), max(times)],
        "warm_up_seconds": warm_up,
    }
    if s.device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(s.device)
    if not compiled:  # a compiler decides anew what is kept
        del step
        found["predicted_peak_bytes"] = _predicted_peak(s, recompute)
        if "peak_bytes" in found:
            found["predicted_over_measured"] = found["predicted_peak_bytes"] / found["peak_bytes"]
    return found


def _predicted_peak(s: Settings, recompute: bool) -> int:
    from dsv3_mini.train.step_memory import predict_step_memory

    predicted = predict_step_memory(
        s.model, tokens=s.tokens, seq_len=s.seq_len, precision=s.precision, device=str(s.device), recompute=recompute
    )
    return predicted.peak


class Step:
    """A whole optimizer step on one batch of random tokens, which waits on the host as in a run."""

    def __init__(self, s: Settings, cfg: ModelConfig, *, recompute: bool = False) -> None:
        self.s = s
        torch.manual_seed(0)
        with s.device:
            self.model = DeepSeekV3(cfg)
        if recompute:
            self.model.set_recompute(True)
        self.optimizer = build_optimizer(self.model, 1e-4)
        tokens = torch.randint(0, cfg.vocab_size, (s.sequences, s.seq_len + 1))
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def __call__(self) -> None:
        train_step(
            self.model,
            self.optimizer,
            self.inputs,
            self.targets,
            StepSettings(0.0, 0, self.s.sequences, 1e-4, 0.3, 1e-3),
            micro_sequences=self.s.sequences,
            precision=self.s.precision,
        )


def compile_layers(layers: Any, s: Settings) -> None:
    """Each layer by itself: they are alike, so one is compiled for all of a kind, and the same is done for theirs."""
    for layer in layers:
        layer.compile(backend=s.backend)


# ---- against transformers


def transformers(s: Settings) -> dict[str, Any]:
    """Forward, backward and AdamW, ours against theirs: equal config and weights, same batch, both compiled or not."""
    if importlib.util.find_spec("transformers") is None:
        raise Skipped("transformers is not installed here")
    halved = s.sequences // 2  # theirs holds all logits, in fp32 too
    found: dict[str, Any] = {
        "compared": f"training step without MTP, weights in {s.dtype}, against transformers (sdpa attention, "
        "grouped_mm experts)",
        "batch": [halved, s.seq_len],
    }
    for name in ("eager", "compiled"):
        found[name] = _attempt(lambda n=name: _against_transformers(s, halved, compiled=n == "compiled"))
        s.report(found)
    return found


def _against_transformers(s: Settings, sequences: int, *, compiled: bool) -> dict[str, Any]:
    from tests.benchmarks.pair import build_pair
    from tests.benchmarks.train_step import step

    _forget(s.device)
    cfg = s.model.replace(num_nextn_predict_layers=0)
    # Weights of the type that is computed in, on both sides: under autocast theirs runs its experts in fp32.
    ours, theirs = (model.to(s.dtype) for model in build_pair(cfg, s.device))
    if compiled:
        compile_layers(ours.model.layers, s)
        compile_layers(theirs.model.layers, s)
    tokens = torch.randint(0, cfg.vocab_size, (sequences, s.seq_len + 1), device=s.device)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def our_loss() -> Tensor:
        losses = ours(inputs, targets, keep_logits=False).losses
        return losses["main"] + cfg.balance_loss_alpha * losses["balance"]

    def their_loss() -> Tensor:
        return F.cross_entropy(theirs(inputs, use_cache=False).logits.float().flatten(0, 1), targets.flatten())

    result = alternate(timed(step(ours, our_loss), s.device), timed(step(theirs, their_loss), s.device), s.rounds)
    return {**result, "our_tokens_per_s": sequences * s.seq_len / result["ours_seconds"]}


# ---- is the device kept busy?


def idle(s: Settings) -> dict[str, Any]:
    """Share of three steps in which no kernel runs on the device, and the kernels that take most of it."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = s.device.type == "cuda"
    step = Step(s, s.model)
    step(), step()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        for _ in range(3):
            step()
        _wait(s.device)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    kinds = ("kernel", "gpu_memcpy", "gpu_memset") if on_gpu else ("cpu_op",)
    kernels = [event for event in events if event.get("cat") in kinds and "dur" in event]
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in kernels]
    by_name: collections.Counter[str] = collections.Counter()
    for event in kernels:
        by_name[event["name"][:100]] += event["dur"]
    total = sum(by_name.values())
    return {
        "idle_share": idle_share(spans),
        "kernels_per_step": len(kernels) / 3,
        "largest": {name: round(duration / total, 4) for name, duration in by_name.most_common(12)},
        "counted": "GPU kernels, copies and fills" if on_gpu else "operations on the CPU: a check of the script",
    }


def idle_share(spans: list[tuple[float, float]]) -> float:
    """Spans (start, end), which may overlap -> the share of the time from first start to last end that none covers."""
    busy, reached = 0.0, min(start for start, _ in spans)
    first = reached
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1 - busy / (reached - first)


def host_waits(s: Settings) -> dict[str, Any]:
    """How often one step makes the host wait for the GPU. One is wanted: reading the losses and the gradient norm."""
    if s.device.type != "cuda":
        raise Skipped("only CUDA reports when the host waits")
    step = Step(s, s.model)
    step(), step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        where = waits_in(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"waits": len(where), "wanted": 1, "where": where}


def waits_in(work: Callable[[], Any]) -> list[str]:
    """The places in the code at which torch warned, while `work` ran, that it waits for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]


# ---- more experts at the same active parameters


def experts(s: Settings) -> dict[str, Any]:
    """Microseconds per token against the number of experts: forward and backward, and the whole step with AdamW.

    The optimizer moves every parameter in every step, so its share grows with the experts whatever the model does.
    """
    found: dict[str, Any] = {"layers": s.experts_layers, "experts_per_token": s.model.num_experts_per_tok}
    for count in s.experts:
        found[str(count)] = _attempt(lambda n=count: _experts(s, n))
        s.report(found)
    first, last = found[str(s.experts[0])], found[str(s.experts[-1])]
    if "error" not in {*first, *last}:
        for name in ("step_us_per_token", "forward_backward_us_per_token"):
            found[f"{name}, most over fewest"] = last[name] / first[name]
    return found


def _experts(s: Settings, count: int) -> dict[str, Any]:
    _forget(s.device)
    cfg = s.model.replace(
        n_routed_experts=count, num_hidden_layers=s.experts_layers, first_k_dense_replace=1, num_nextn_predict_layers=0
    )
    step = Step(s, cfg)
    inputs, targets = step.inputs.to(s.device), step.targets.to(s.device)

    def forward_backward() -> None:
        with autocast(s.device, s.precision):
            loss = step.model(inputs, targets, keep_logits=False).losses["main"]
        loss.backward()
        step.optimizer.zero_grad()

    step(), forward_backward()
    whole = statistics.median(timed(step, s.device)() for _ in range(s.steps))
    part = statistics.median(timed(forward_backward, s.device)() for _ in range(s.steps))
    return {
        "step_us_per_token": whole / s.tokens * 1e6,
        "forward_backward_us_per_token": part / s.tokens * 1e6,
        "parameters": step.model.num_parameters(),
    }


# ---- does it learn more in the same time?


def twins(s: Settings) -> dict[str, Any]:
    """Bits per byte of `mini` and of its dense twin on held-out text after equally long training. One seed."""
    moe = TOY_MODEL if s.toy else ModelConfig.preset("mini")
    found: dict[str, Any] = {"asked_seconds": s.twin_seconds, "seeds": 1}
    with tempfile.TemporaryDirectory() as folder:
        for name, cfg in (("moe", moe), ("dense_twin", moe.dense_twin())):
            found[name] = _attempt(lambda n=name, c=cfg: _learn(s, c, Path(folder) / n))
            s.report(found)
    return found


def _learn(s: Settings, cfg: ModelConfig, folder: Path) -> dict[str, Any]:
    """A first short run finds out how many steps fit; the second has a whole schedule of that length."""
    from dsv3_mini.train.config import TrainConfig
    from dsv3_mini.train.loop import train

    folder.mkdir(parents=True)
    sizes: dict[str, Any] = {"eval_bytes": 500_000}
    if s.toy:
        text = folder / "counting.txt"
        text.write_text("\n\n".join(f"{n} times {n + 3} is {n * (n + 3)}, says the table." for n in range(400)))
        sizes = {"text": text, "seq_len": 32, "batch_tokens": 128, "micro_batch_tokens": 128}
    whole = dict(
        preset="mini", model=cfg, device=str(s.device), precision=s.precision, baselines=False, routing_every=0, **sizes
    )
    rates: list[float] = []
    first = train(
        TrainConfig(out=folder / "first", steps=4 if s.toy else 40, **whole),
        progress=False,
        on_step=lambda record: rates.append(record["tokens_per_s"]),
        should_stop=lambda: len(rates) >= (4 if s.toy else 40),
    )
    tokens = statistics.median(rates[len(rates) // 2 :]) * s.twin_seconds
    steps = max(2, round(tokens / (first.tokens / first.steps)))
    result = train(TrainConfig(out=folder / "run", steps=steps, **whole), progress=False)
    return {
        "bits_per_byte": result.bits_per_byte,
        "seconds": result.seconds,
        "steps": result.steps,
        "tokens": result.tokens,
    }


# ---- decoding


def decode(s: Settings) -> dict[str, Any]:
    """Seconds per decoded token, batch 1, ours against transformers' `generate`."""
    if importlib.util.find_spec("transformers") is None:
        raise Skipped("transformers is not installed here")
    from tests.benchmarks.decode import compare_config

    cfg = s.model.replace(num_nextn_predict_layers=0)
    result = compare_config(cfg, s.rounds, device=s.device, dtype=s.dtype, context=s.context, new_tokens=s.new_tokens)
    return {**result, "context": s.context, "our_tokens_per_s": 1 / result["ours_seconds"]}


# ---- what all parts use


def _attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A variant that fails does not take the others with it."""
    try:
        return work()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget(device: torch.device) -> None:
    """Give back the memory of the variant before, and begin a new maximum."""
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


@dataclass(frozen=True)
class Part:
    """One part: what it is for, how to run it, and after how many seconds it is ended."""

    run: Callable[[Settings], dict[str, Any]]
    limit: float
    title: str


PARTS = {
    "floor": Part(floor, 40, "matrix rate and bandwidth of the device, and the fastest step they allow"),
    "training": Part(training, 150, "the training step of `small`: tokens/s, MFU (wanted: 35 %), memory"),
    "transformers": Part(transformers, 120, "the same config and batch in transformers (wanted: 2 times as fast)"),
    "idle": Part(idle, 40, "share of the step in which the GPU does nothing (wanted: under 3 %)"),
    "host_waits": Part(host_waits, 30, "how often a step makes the host wait (wanted: once)"),
    "experts": Part(experts, 60, "time per token with 16, 64 and 256 experts (wanted: within 1.3 times)"),
    "decode": Part(decode, 60, "decoded tokens per second at context 1024, against transformers"),
    "twins": Part(twins, 180, "`mini` against its dense twin after equally long training"),
}
