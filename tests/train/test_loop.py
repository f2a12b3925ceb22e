"""A run: what a step does, what it leaves, and that a broken run becomes the unbroken one."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train import distributed, loop, run_folder
from dsv3_mini.train.checkpoint import latest_checkpoint, list_checkpoints
from dsv3_mini.train.config import TRAIN_PRESETS
from dsv3_mini.train.loop import TrainingDiverged, train, train_step
from dsv3_mini.train.metrics import read_metrics
from dsv3_mini.train.optimizer import build_optimizer
from dsv3_mini.train.schedule import StepSettings

SETTINGS = StepSettings(progress=0.0, start=0, sequences=6, lr=1e-2, mtp_weight=0.3, bias_speed=0.01)


@pytest.fixture
def quiet(monkeypatch):
    """No evaluation at the end: most tests are about something else."""
    monkeypatch.setattr(loop, "evaluate_model", lambda *args, **kwargs: {"bits_per_byte": {"all": 1.0}})


@pytest.fixture
def fresh(tiny_model):
    """Makes the same model, optimizer and batch each time it is called."""

    def make(**changes):
        torch.manual_seed(0)
        model = DeepSeekV3(tiny_model.replace(**changes)).train()
        tokens = torch.randint(5, 320, (6, 17))
        return model, build_optimizer(model, 1e-2), tokens[:, :-1], tokens[:, 1:]

    return make


def losses(run: Path) -> list[dict[str, float]]:
    return [line["losses"] for line in read_metrics(run)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_pretrained(latest_checkpoint(run)).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# One step


@pytest.mark.parametrize("micro_sequences", [1, 4, 5])  # 4 and 5: micro-batches of different sizes
def test_micro_batches_add_up_to_the_whole_batch(fresh, micro_sequences):
    model, optimizer, inputs, targets = fresh()
    whole = train_step(model, optimizer, inputs, targets, SETTINGS, micro_sequences=6)
    parts_model, optimizer, inputs, targets = fresh()
    parts = train_step(parts_model, optimizer, inputs, targets, SETTINGS, micro_sequences=micro_sequences)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
    assert parts.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
    assert torch.equal(parts.expert_counts, whole.expert_counts)
    for (name, a), (_, b) in zip(model.named_buffers(), parts_model.named_buffers(), strict=True):
        assert torch.equal(a, b), name


def test_the_loss_is_main_plus_weighted_mtp_and_balance(fresh):
    model, optimizer, inputs, targets = fresh(balance_loss_alpha=0.5)
    with torch.no_grad():
        expected = {name: loss.item() for name, loss in model(inputs, targets).losses.items()}
    found = train_step(model, optimizer, inputs, targets, SETTINGS, micro_sequences=6).losses
    assert set(found) == {"main", "mtp", "balance", "total"}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    total = expected["main"] + 0.3 * expected["mtp"] + 0.5 * expected["balance"]
    assert found["total"] == pytest.approx(total, rel=1e-5)


def test_the_weights_of_the_losses_reach_the_gradient(fresh):
    def gradient(alpha, mtp_weight):
        model, optimizer, inputs, targets = fresh(balance_loss_alpha=alpha)
        settings = dataclasses.replace(SETTINGS, mtp_weight=mtp_weight)
        train_step(model, optimizer, inputs, targets, settings, micro_sequences=3)
        return model.model.layers[1].mlp.gate.weight.grad, model.model.layers[2].eh_proj.weight.grad

    plain, with_mtp, with_balance = gradient(1e-9, 0.0), gradient(1e-9, 0.3), gradient(1.0, 0.0)
    assert plain[1].abs().max() < 1e-9 < with_mtp[1].abs().max()  # the balance loss alone reaches it, at 1e-9
    assert not torch.allclose(plain[0], with_balance[0])


def test_the_biases_move_once_a_step_by_the_counts_of_all_micro_batches(fresh):
    model, optimizer, inputs, targets = fresh()
    with torch.no_grad():
        counts = model(inputs, targets).expert_counts
    result = train_step(model, optimizer, inputs, targets, SETTINGS, micro_sequences=1)
    # The same tokens were routed by the weights from before the step.
    assert torch.equal(result.expert_counts, counts)
    assert (counts.sum(-1) == torch.tensor([6 * 16 * 2, 6 * 15 * 2])).all(), "every token twice; MTP has one less"
    for router, load in zip(model.routers, counts.float(), strict=True):
        assert torch.equal(router.e_score_correction_bias, 0.01 * torch.sign(load.mean() - load))


def test_with_speed_zero_the_biases_rest(fresh):
    model, optimizer, inputs, targets = fresh()
    settings = dataclasses.replace(SETTINGS, bias_speed=0.0)
    train_step(model, optimizer, inputs, targets, settings, micro_sequences=6)
    assert not any(router.e_score_correction_bias.any() for router in model.routers)


@pytest.mark.parametrize("where", ["weight", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_says_where(fresh, where):
    model, optimizer, inputs, targets = fresh()
    if where == "weight":
        with torch.no_grad():
            model.model.norm.weight[3] = math.inf
    else:
        model.model.layers[0].self_attn.o_proj.weight.register_hook(lambda grad: grad * math.nan)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    message = r"before step 7 \(here\) changed anything.*gradient norm nan.*largest weight norm .*learning rate 0.01"
    with pytest.raises(TrainingDiverged, match=message) as caught:
        train_step(model, optimizer, inputs, targets, SETTINGS, micro_sequences=3, where="step 7 (here)")
    if where == "gradient":
        assert "not finite in" in str(caught.value)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert not optimizer.state


def test_products_in_bf16_leave_fp32_master_weights(fresh):
    model, optimizer, inputs, targets = fresh()
    exact = train_step(model, optimizer, inputs, targets, SETTINGS, micro_sequences=6, precision="fp32")
    model, optimizer, inputs, targets = fresh()
    rounded = train_step(model, optimizer, inputs, targets, SETTINGS, micro_sequences=6, precision="bf16")
    assert rounded.losses != exact.losses, "something was rounded"
    assert rounded.losses == pytest.approx(exact.losses, rel=0.02)  # bf16 has 8 bits
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert {value.dtype for state in optimizer.state.values() for value in state.values()} == {torch.float32}


# A whole run


def test_a_run_learns_and_leaves_what_it_promises(tiny_run, capsys):
    cfg = tiny_run(steps=60, checkpoint_every=25, eval_every=30, eval_bytes=2000, lr=1e-2)
    result = train(cfg)
    lines = read_metrics(cfg.out)
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert lines[-1]["losses"]["main"] < 0.8 * lines[0]["losses"]["main"]
    for line in lines:
        assert {"main", "mtp", "balance", "total"} == set(line["losses"])
        assert {"lr", "grad_norm", "maxvio", "tokens_per_s", "mfu", "seconds", "tokens"} <= set(line)
        assert len(line["maxvio"]) == 2 and line["tokens_per_s"] > 0 and 0 < line["mfu"] < 1
    assert [line["step"] for line in lines if "bits_per_byte" in line] == [30, 60]
    assert lines[0]["batch_sequences"] == 1 and lines[-1]["batch_sequences"] == 4
    assert lines[-1]["tokens"] == result.tokens == sum(line["batch_sequences"] for line in lines) * 16
    assert [path.name for path in list_checkpoints(cfg.out)] == ["step-000050", "step-000060"], "two are kept"
    assert result.checkpoint == latest_checkpoint(cfg.out) == cfg.out / "checkpoints" / "step-000060"
    files = {path.name for path in result.checkpoint.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training_state.safetensors"} <= files
    record = json.loads((cfg.out / "run.json").read_text())
    assert record["config"]["steps"] == 60 and record["versions"]["torch"] == torch.__version__
    assert record["command"][1:] == sys.argv[1:] and record["data_fingerprint"]
    assert result.bits_per_byte["all"] == json.loads((cfg.out / "evaluation.json").read_text())["bits_per_byte"]["all"]
    assert 0 < result.bits_per_byte["all"] < 8
    assert set(result.evaluation["ngram"]) == set(result.evaluation["xz"]) == set(result.bits_per_byte)
    shown = capsys.readouterr().err
    assert "step 60/60" in shown and "loss=" in shown and "tok/s" in shown


def test_the_model_that_is_saved_is_the_model_that_was_measured(tiny_run):
    result = train(tiny_run(steps=3), progress=False)
    assert train(tiny_run(steps=3, resume=True), progress=False).bits_per_byte == result.bits_per_byte


def test_the_seed_decides_everything(tiny_run, tmp_path, quiet):
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tiny_run(out=tmp_path / name, steps=3, seed=seed), progress=False)
        runs[name] = losses(tmp_path / name)
    assert runs["a"] == runs["b"] and runs["a"][0] != runs["c"][0]


@pytest.mark.parametrize("micro", [64, 16])
def test_a_continued_run_is_the_unbroken_run_bit_for_bit(tiny_run, tmp_path, monkeypatch, quiet, micro):
    whole = tiny_run(out=tmp_path / "whole", micro_batch_tokens=micro)
    train(whole, progress=False)
    broken = dataclasses.replace(whole, out=tmp_path / "broken", checkpoint_every=6)
    step_once, steps = loop.train_step, []

    def stop_after_eight(*args, **kwargs):
        if len(steps) == 8:
            raise KeyboardInterrupt
        steps.append(1)
        return step_once(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stop_after_eight)
        with pytest.raises(KeyboardInterrupt):
            train(broken, progress=False)
    assert len(losses(broken.out)) == 8 and latest_checkpoint(broken.out).name == "step-000006"
    torch.manual_seed(99)  # what another process would start with
    result = train(dataclasses.replace(broken, resume=True), progress=False)
    assert result.resumed_from == 6 and result.steps == 12
    assert [line["step"] for line in read_metrics(broken.out)] == list(range(1, 13)), "no step twice"
    assert losses(broken.out) == losses(whole.out)
    assert [line["lr"] for line in read_metrics(broken.out)] == [line["lr"] for line in read_metrics(whole.out)]
    assert same(weights(broken.out), weights(whole.out))
    assert any(value.any() for name, value in weights(whole.out).items() if name.endswith("correction_bias"))


def cut_short(checkpoint: Path) -> str:
    os.truncate(checkpoint / "model.safetensors", 100)
    return r"model.safetensors has 100 bytes where \d+ were written"


def flip_a_bit(checkpoint: Path) -> str:
    content = bytearray((checkpoint / "training_state.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / "training_state.safetensors").write_bytes(content)
    return r"training_state.safetensors is not what was written"


def remove_a_file(checkpoint: Path) -> str:
    (checkpoint / "config.json").unlink()
    return r"config.json is missing"


def empty_marker(checkpoint: Path) -> str:
    (checkpoint / "complete.json").write_text("")
    return r"complete.json cannot be read"


def marker_of_nothing(checkpoint: Path) -> str:
    (checkpoint / "complete.json").write_text('{"files": {}}')
    return r"complete.json does not name config.json"


def empty_folder(checkpoint: Path) -> str:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    return r"complete.json is missing"


HARMS = [cut_short, flip_a_bit, remove_a_file, empty_marker, marker_of_nothing, empty_folder]


@pytest.mark.parametrize("harm", HARMS)
def test_continuing_passes_over_a_broken_checkpoint_and_says_so(tiny_run, capsys, quiet, harm):
    cfg = tiny_run(steps=4, checkpoint_every=2)
    train(cfg, progress=False)
    expected = losses(cfg.out), weights(cfg.out)
    reason = harm(cfg.out / "checkpoints" / "step-000004")
    assert train(dataclasses.replace(cfg, resume=True)).resumed_from == 2
    assert re.search(rf"step-000004 is not whole \({reason}", capsys.readouterr().err)
    assert losses(cfg.out) == expected[0] and same(weights(cfg.out), expected[1])


def test_without_a_whole_checkpoint_continuing_says_what_is_wrong_with_each(tiny_run, quiet):
    cfg = tiny_run(steps=4, checkpoint_every=2)
    train(cfg, progress=False)
    reasons = [harm(path) for harm, path in zip((flip_a_bit, cut_short), list_checkpoints(cfg.out))]
    before = {path: path.stat().st_mtime_ns for path in cfg.out.rglob("*") if path.name != "lock"}
    message = rf"no whole checkpoint \(step-000004: {reasons[1]}; step-000002: {reasons[0]}.*\): put a copy of one back"
    with pytest.raises(InputError, match=message):
        train(dataclasses.replace(cfg, resume=True), progress=False)
    assert {path: path.stat().st_mtime_ns for path in cfg.out.rglob("*") if path.name != "lock"} == before


def test_a_broken_checkpoint_is_not_kept_in_place_of_a_whole_one(tiny_run, monkeypatch, capsys, quiet):
    cfg = tiny_run(steps=6, checkpoint_every=2)
    train(cfg, progress=False)
    os.truncate(cfg.out / "checkpoints" / "step-000006" / "config.json", 3)
    step_once = loop.train_step

    def stop_before_step_six(*args, where, **kwargs):
        if where.startswith("step 6 "):
            raise KeyboardInterrupt
        return step_once(*args, where=where, **kwargs)

    monkeypatch.setattr(loop, "train_step", stop_before_step_six)
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(cfg, resume=True, checkpoint_every=1, keep_checkpoints=1))
    assert "step-000006 is not whole (config.json has 3 bytes" in capsys.readouterr().err
    assert [path.name for path in list_checkpoints(cfg.out)] == ["step-000005"]


def test_continuing_needs_no_more_than_the_folder(tiny_run, tmp_path, quiet):
    cfg = tiny_run(steps=4)
    train(cfg, progress=False)
    again = train(loop.TrainConfig(out=cfg.out, resume=True), progress=False)
    assert again.steps == again.resumed_from == 4


def test_a_run_of_a_version_without_a_setting_is_continued_with_its_default(tiny_run, quiet):
    cfg = tiny_run(steps=4)
    train(cfg, progress=False)
    record = json.loads((cfg.out / "run.json").read_text())
    for name in ("mtp_scale", "baselines", "routing_every"):
        del record["config"][name]
    del record["config"]["model"]["batch_balance_loss_alpha"]
    (cfg.out / "run.json").write_text(json.dumps(record))
    assert train(dataclasses.replace(cfg, resume=True), progress=False).resumed_from == 4
    with pytest.raises(InputError, match=r"mtp_scale = 1.0, not 0.0"):
        train(dataclasses.replace(cfg, resume=True, mtp_scale=0.0), progress=False)


def test_the_scale_of_mtp_multiplies_the_reports_lambda(tiny_run, tmp_path, quiet):
    for scale in (1.0, 0.5, 0.0):
        cfg = tiny_run(out=tmp_path / str(scale), steps=6, mtp_scale=scale)
        train(cfg, progress=False)
        assert [line["mtp_weight"] for line in read_metrics(cfg.out)] == [scale * w for w in [0.3] * 5 + [0.1]]


def test_continuing_a_finished_run_says_so(tiny_run, capsys, quiet):
    cfg = tiny_run(steps=2)
    train(cfg, progress=False)
    before = (cfg.out / "metrics.jsonl").read_bytes()
    train(dataclasses.replace(cfg, resume=True))
    assert "has all of its 2 steps already" in capsys.readouterr().err
    assert (cfg.out / "metrics.jsonl").read_bytes() == before


def test_a_run_killed_before_its_first_checkpoint_begins_again(tiny_run, monkeypatch, quiet):
    cfg = tiny_run(steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "save_checkpoint", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            train(cfg, progress=False)
    assert len(losses(cfg.out)) == 3
    assert train(dataclasses.replace(cfg, resume=True), progress=False).resumed_from == 0
    assert [line["step"] for line in read_metrics(cfg.out)] == [1, 2, 3]


def test_divergence_leaves_the_last_checkpoint_and_no_line(tiny_run, monkeypatch, quiet):
    cfg = tiny_run(steps=6, checkpoint_every=2)
    original = DeepSeekV3.forward
    calls = []

    def poisoned(self, *args, **kwargs):
        out = original(self, *args, **kwargs)
        calls.append(1)
        if len(read_metrics(cfg.out)) == 3:
            out.losses["main"] = out.losses["main"] * math.nan
        return out

    with monkeypatch.context() as patch:
        patch.setattr(DeepSeekV3, "forward", poisoned)
        with pytest.raises(TrainingDiverged, match=r"step 4 \(sequences \d+ to \d+ of the run\)"):
            train(cfg, progress=False)
    assert len(losses(cfg.out)) == 3
    assert latest_checkpoint(cfg.out).name == "step-000002"
    assert train(dataclasses.replace(cfg, resume=True), progress=False).resumed_from == 2


# What a person can get wrong


def test_a_folder_that_holds_a_run_is_not_entered(tiny_run, quiet):
    cfg = tiny_run(steps=1)
    train(cfg, progress=False)
    before = {path: path.stat().st_mtime_ns for path in cfg.out.rglob("*")}
    with pytest.raises(InputError, match=r"already holds a run.*--resume"):
        train(cfg, progress=False)
    assert {path: path.stat().st_mtime_ns for path in cfg.out.rglob("*")} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 5}, r"steps = 4, not 5"),
        ({"seed": 7}, r"seed = 0, not 7"),
        ({"lr": 0.5}, r"lr = 0.005, not 0.5"),
        ({"fim_rate": 0.0}, r"fim_rate = 0.1, not 0.0"),
        ({"mtp_scale": 0.5}, r"mtp_scale = 1.0, not 0.5"),
        ({"model": "wider"}, r"the model's hidden_size = 32, not 48"),
        ({"text": "other"}, r"trained on other data: its data_fingerprint is \w+, .*other.txt has"),
    ],
)
def test_continuing_another_run_names_what_differs(tiny_run, tmp_path, tiny_model, tiny_text, quiet, changes, message):
    train(tiny_run(steps=4), progress=False)
    if "model" in changes:
        changes = {"model": tiny_model.replace(hidden_size=48)}
    if "text" in changes:
        other = tmp_path / "other.txt"
        other.write_text(tiny_text.read_text(encoding="utf-8").replace("counting", "accounting"), encoding="utf-8")
        changes = {"text": other}
    with pytest.raises(InputError, match=message):
        train(tiny_run(**{"steps": 4, **changes}, resume=True), progress=False)


def test_where_there_is_no_run_there_is_nothing_to_continue(tiny_run, tmp_path):
    with pytest.raises(InputError, match=r"no run to continue: run.json is missing"):
        train(tiny_run(resume=True), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"config": {}}', '{"config": {"model": {"x": 1}}, "data_fingerprint": "a"}']
)
def test_a_damaged_run_file_is_named(tiny_run, content):
    cfg = tiny_run(resume=True)
    cfg.out.mkdir()
    (cfg.out / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json"):
        train(dataclasses.replace(cfg, model=None), progress=False)


def test_out_may_not_be_a_file(tiny_run, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="is a file"):
        train(tiny_run(), progress=False)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"preset": "huge"}, "preset"),
        ({"preset": "v3-671b"}, "preset"),
        ({"out": ""}, "out"),
        ({"steps": 0}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"seed": -1}, "seed"),
        ({"lr": 0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"bias_update_speed": -1}, "bias_update_speed"),
        ({"fim_rate": 1.5}, "fim_rate"),
        ({"device": "tpu"}, "device"),
        ({"device": "cuda:x"}, "device"),
        ({"precision": "fp8"}, "precision"),
        ({"keep_checkpoints": 0}, "keep_checkpoints"),
        ({"eval_every": -1}, "eval_every"),
        ({"routing_every": -1}, "routing_every"),
        ({"mtp_scale": -0.1}, "mtp_scale"),
        ({"baselines": 1}, "baselines"),
        ({"batch_tokens": 65}, "batch_tokens"),
        ({"micro_batch_tokens": 8}, "micro_batch_tokens"),
        ({"seq_len": 1}, "seq_len"),
        ({"seq_len": 128, "batch_tokens": 128, "micro_batch_tokens": 128}, "seq_len"),
        ({"dataset": "some/set"}, "text and dataset"),
    ],
)
def test_a_setting_that_cannot_be_is_named(tiny_run, changes, field):
    with pytest.raises(InputError, match=rf"^{field} "):
        tiny_run(**changes)


def test_a_missing_gpu_is_said_before_anything_is_written(tiny_run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"device = 'cuda:1': torch sees 1 CUDA"):
        train(tiny_run(device="cuda:1"), progress=False)
    assert not tiny_run().out.exists()


def test_a_corpus_that_is_too_short_leaves_no_folder(tiny_run, tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(InputError, match=r"short.txt"):
        train(tiny_run(text=tmp_path / "short.txt"), progress=False)
    assert not tiny_run().out.exists()


def test_presets_fill_what_is_left_open():
    cfg = loop.TrainConfig(out=Path("x"), lr=0.5).resolved()
    assert (cfg.steps, cfg.lr) == (TRAIN_PRESETS["nano"]["steps"], 0.5) and cfg.model == ModelConfig.preset("nano")
    assert all(getattr(cfg, field.name) is not None for field in dataclasses.fields(run_folder.ResolvedConfig)
               if field.name not in ("text", "dataset", "init_from", "warmup_steps"))  # fmt: skip


def test_two_processes_cannot_train_into_one_folder(tiny_run, tmp_path):
    """The lock of another process, which a `kill -9` of it releases."""
    cfg = tiny_run()
    code = f"""
import time
from pathlib import Path
from dsv3_mini.train.run_folder import locked
with locked(Path({str(cfg.out)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="in use by another process"), run_folder.locked(cfg.out):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with run_folder.locked(cfg.out):
        pass
