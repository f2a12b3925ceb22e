"""What the processes of a test do, and what one process does for comparison. Started by `worlds.run_world`."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import io
import os
import pickle
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dsv3_mini.cli import main
from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.model.experts import Experts
from dsv3_mini.model.router import Router
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.parallel import data_parallel, distributed_checkpoint, expert_parallel, mesh
from dsv3_mini.parallel.processes import Processes
from dsv3_mini.train import step
from dsv3_mini.train.config import TrainConfig
from dsv3_mini.train.loop import TrainingDiverged, train
from dsv3_mini.train.optimizer import build_optimizer
from dsv3_mini.train.schedule import StepSettings
from dsv3_mini.train.spikes import largest_weight

# Latents of 6 do not divide by four: some process then holds an empty shard of their norms. The balance loss is strong
# enough to be seen in the gradients.
TINY = ModelConfig(
    vocab_size=64, hidden_size=16, num_hidden_layers=2, first_k_dense_replace=1, intermediate_size=24,
    num_attention_heads=2, q_lora_rank=6, kv_lora_rank=6, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4,
    n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=8, n_group=4, topk_group=2,
    max_position_embeddings=32, routed_scaling_factor=2.5, balance_loss_alpha=0.05,
)  # fmt: skip
# Sequences in a step, and how many at a time: 5 do not divide, and 1 leaves the other processes nothing to do.
BATCHES = ((5, 1), (8, 2), (1, 1), (8, 2))


def tiny_model(only_experts: int | None = None) -> DeepSeekV3:
    """The same weights every time; with `only_experts` the routing biases send every token to the first so many."""
    torch.manual_seed(0)
    model = DeepSeekV3(TINY).train()
    for router in model.routers:
        router.e_score_correction_bias.uniform_(-0.1, 0.1)
        if only_experts is not None:
            router.e_score_correction_bias[only_experts:] -= 5.0
    return model


def run_steps(model: DeepSeekV3, parallel: Any, steps: int = len(BATCHES), optimizer: Any = None) -> dict[str, Any]:
    """Train `steps` steps with the real `train_step`; what each of them found."""
    optimizer = optimizer or build_optimizer(model, 1e-2)
    found: dict[str, Any] = {"losses": [], "norms": [], "counts": []}
    for number, (sequences, at_once) in enumerate(BATCHES[:steps]):
        tokens = torch.randint(0, 64, (sequences, 13), generator=torch.Generator().manual_seed(number))
        settings = StepSettings(
            progress=0.0, start=0, sequences=sequences, lr=1e-2, mtp_weight=0.3, bias_speed=0.01
        )  # fmt: skip
        result = step.train_step(
            model, optimizer, tokens[:, :-1], tokens[:, 1:], settings, micro_sequences=at_once, parallel=parallel
        )
        found["losses"].append(result.losses)
        found["norms"].append(result.grad_norm)
        found["counts"].append(result.expert_counts.tolist())
    found["biases"] = torch.stack([router.e_score_correction_bias for router in model.routers])
    return found


def alone(steps: int = len(BATCHES), only_experts: int | None = None) -> dict[str, Any]:
    """The truth: the same steps in one process."""
    model = tiny_model(only_experts)
    return run_steps(model, None, steps) | {"state": {k: v.detach() for k, v in model.state_dict().items()}}


def steps_together(
    processes: Processes, expert_parallel_size: int = 1, steps: int = len(BATCHES), only_experts: int | None = None
) -> dict[str, Any]:
    """The same steps in several processes."""
    model = tiny_model(only_experts)
    data_parallel.shard_model(model, mesh.build_mesh(torch.device("cpu"), processes.world, expert_parallel_size))
    found = run_steps(model, data_parallel.DataParallel(processes.rank, processes.world), steps)
    held = sum(parameter.to_local().numel() for parameter in model.parameters())
    found |= {"held": held, "largest": largest_weight(model)}
    whole = distributed_checkpoint.gather_model(model)
    return found | {"state": None if whole is None else dict(whole.state_dict())}


def steps_with_mistakes(processes: Processes, mistakes: dict[str, tuple[str, str, str]], **arguments: Any) -> Any:
    """`steps_together` for each of the mistakes: (module, correct text, broken text) by name."""
    found = {}
    for name, (module_name, right, wrong) in mistakes.items():
        module = importlib.import_module(module_name)
        source = inspect.getsource(module)
        assert right in source, f"{name}: {module_name} does not hold {right!r}"
        exec(compile(source.replace(right, wrong), module_name, "exec"), module.__dict__)
        try:
            found[name] = steps_together(processes, **arguments)
        finally:
            exec(compile(source, module_name, "exec"), module.__dict__)
    return found


def experts_together(processes: Processes, tokens: list[int], only: int | None = None, bf16: bool = False) -> Any:
    """Outputs and gradients of one layer's experts, for `tokens[rank]` tokens in each process."""
    torch.manual_seed(0)
    router, experts = Router(TINY), Experts(TINY)
    for parameter in (*router.parameters(), *experts.parameters()):
        torch.nn.init.normal_(parameter)
    if only is not None:
        router.e_score_correction_bias[only:] -= 5.0
    x_all = torch.randn(sum(tokens), TINY.hidden_size)
    mine = slice(sum(tokens[: processes.rank]), sum(tokens[: processes.rank + 1]))
    grid = mesh.build_mesh(torch.device("cpu"), processes.world, processes.world).grid
    assert grid is not None
    shared = expert_parallel.ShardedExperts(copy.deepcopy(experts), grid["experts"])

    def run(layer: Experts, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = layer(x, router(x))
        (out.float() * torch.arange(1.0, out.numel() + 1).view_as(out).cos()).sum().backward()
        return out.detach(), x.grad

    # The weights of the sum differ by place, so each process's reference is its own tokens run alone.
    out, x_grad = run(shared, x_all[mine])
    references = [run(experts, part) for part in x_all.split(tokens)]  # gradients of the weights add up over all
    return {
        "out": out, "x_grad": x_grad, "reference": references[processes.rank],
        "grads": {name: p.grad.full_tensor() for name, p in shared.named_parameters()},
        "reference_grads": {name: p.grad for name, p in experts.named_parameters()},
        "held": shared.gate_up_proj.to_local().shape[0], "global": tuple(shared.gate_up_proj.shape),
    }  # fmt: skip


def diverge(processes: Processes) -> str:
    """The message for a model that is no number any more in one process's shard only."""
    model = tiny_model()
    data_parallel.shard_model(model, mesh.build_mesh(torch.device("cpu"), processes.world, 2))
    if processes.rank == 1:
        with torch.no_grad():
            model.lm_head.weight.to_local()[0, 0] = float("nan")
    try:
        run_steps(model, data_parallel.DataParallel(processes.rank, processes.world), 1)
    except TrainingDiverged as error:
        return str(error)
    return "nothing noticed"


def meet(processes: Processes) -> dict[str, Any]:
    """What the methods of `Processes` give here."""
    rank = processes.rank
    found: dict[str, Any] = {
        "gather": processes.gather(rank * 10),
        "from_first": processes.from_first(lambda: f"made by {rank}"),
        "largest": processes.largest(rank),
        "any": (processes.any(False), processes.any(rank == 1)),
    }
    order: list[int] = []
    mark = Path(str(FOLDER)) / "mark"  # type: ignore[name-defined] # noqa: F821 (put there by `worlds`)

    def make() -> bool:
        found_mark = mark.exists()
        mark.touch()
        order.append(rank)
        return found_mark

    found["mark"] = processes.first_then_others(make)
    for name, action in {
        "bad in one": lambda: _bad_input(rank == 1),
        "bad in the first": lambda: processes.from_first(lambda: _bad_input(True)),
        "not the same": lambda: processes.check_same("luck", rank),
    }.items():
        try:
            with processes.agreed():
                action()
            found[name] = "nothing noticed"
        except InputError as error:
            found[name] = str(error)
    processes.wait()
    return found


def _bad_input(bad: bool) -> None:
    if bad:
        raise InputError("this is not right")


def train_run(processes: Processes, cache: Path, stop_after: int | None = None, **settings: Any) -> Any:
    """A run of the training loop: its result in each process, or the message of what is wrong."""
    os.environ["DSV3_MINI_CACHE"] = str(cache)
    seen: list[int] = []
    # One process is asked to stop; that must be enough.
    asked = None if stop_after is None else (lambda: processes.rank == 1 and len(seen) >= stop_after)
    try:
        result = train(
            TrainConfig(**settings), progress=False, on_step=lambda record: seen.append(record["step"]),
            should_stop=asked,
        )  # fmt: skip
    except InputError as error:
        return str(error)
    return result, seen


def command(processes: Processes, arguments: list[str]) -> tuple[int, str, str]:
    """The exit code of the command, and what it printed on its two streams."""
    os.environ["WORLD_SIZE"] = str(processes.world)
    streams = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        code = main(arguments)
    return code, streams[0].getvalue(), streams[1].getvalue()


if __name__ == "__job__":
    rank, world, folder = RANK, WORLD, FOLDER  # type: ignore[name-defined] # noqa: F821 (put there by `worlds`)
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world, timeout=timedelta(seconds=80)
        )
        given = globals()[JOB](Processes(rank, world), **ARGUMENTS)  # type: ignore[name-defined] # noqa: F821
        (folder / f"{rank}.result").write_bytes(pickle.dumps(given))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        raise
