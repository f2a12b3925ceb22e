"""Twins: equal conditions for all arms, honest differences, no run trained twice; and dense models in every tool."""

from __future__ import annotations

import dataclasses
import json

import pytest

from dsv3_mini.cli import build_parser
from dsv3_mini.commands.train import build_config
from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.model.count import attention_parameters
from dsv3_mini.train import loop
from dsv3_mini.train.checkpoint import latest_checkpoint
from dsv3_mini.train.loop import train
from dsv3_mini.train.metrics import read_metrics
from dsv3_mini.train.routing_log import ROUTING_FILE, read_routing_log
from dsv3_mini.train.run_folder import enter, read_run
from dsv3_mini.train.twins import plain_attention, run_attention, run_crossing, run_twins

SMALL = dict(steps=10, seeds=(0, 1), evaluations=2, eval_bytes=1500)


@pytest.fixture
def base(tiny_run):
    return tiny_run(micro_batch_tokens=64)


def quiet(text):
    pass


def test_all_arms_see_the_same_data_and_equal_time_means_more_steps(base, tmp_path):
    asked = []

    def time_ratio(one, other):
        asked.append((one, other))
        return 0.5 if one == base.model_config.dense_twin() else 2.0

    found = run_twins(tmp_path / "lab", time_ratio, base, **SMALL, say=quiet)
    json.dumps(found)
    moe = base.model_config
    assert asked == [(moe.dense_twin(), moe), (moe.dense_total(), moe)], "over the MoE, each once"
    arms = ["moe", "dense twin", "dense twin, equal time", "dense, equal total", "dense, equal total, equal time"]
    assert [(run["arm"], run["seed"]) for run in found["runs"]] == [(arm, seed) for seed in (0, 1) for arm in arms]
    assert [found["arms"][arm]["steps"] for arm in arms] == [10, 10, 20, 10, 5]
    folders = {run["arm"]: tmp_path / "lab" / run["folder"] for run in found["runs"] if run["seed"] == 0}
    runs = {arm: read_run(folder) for arm, folder in folders.items()}
    assert len({run["data_fingerprint"] for run in runs.values()}) == 1
    differs = {key for key in runs["moe"]["config"] if len({str(run["config"][key]) for run in runs.values()}) > 1}
    assert differs == {"out", "model", "steps", "eval_every"}
    for arm, model in (("moe", moe), ("dense twin", moe.dense_twin()), ("dense, equal total", moe.dense_total())):
        trained = load_pretrained(latest_checkpoint(folders[arm])).cfg
        assert trained.replace(eos_token_id=moe.eos_token_id) == model
    with pytest.raises(AssertionError):  # a second time nothing is trained or measured
        run_twins(tmp_path / "lab", time_ratio, base, **{**SMALL, "seeds": (2,)}, say=_fail)
    again = run_twins(tmp_path / "lab", time_ratio, base, **SMALL, say=_fail)
    assert again == found and len(asked) == 2


def _fail(text):
    raise AssertionError(text)


def test_differences_are_paired_by_seed(base, tmp_path):
    found = run_attention(tmp_path, base, **SMALL, say=quiet)
    bits = {(run["arm"], run["seed"]): run["bits_per_byte"]["all"] for run in found["runs"]}
    assert found["minus_first"]["gqa"] == pytest.approx([bits["gqa", s] - bits["mla", s] for s in (0, 1)], abs=1e-4)
    assert found["summary"]["gqa"]["bits_per_byte"]["all"]["low"] == min(bits["gqa", 0], bits["gqa", 1])
    assert bits["gqa", 0] != bits["mha", 0] != bits["mla", 0]


def test_the_crossing_shares_what_two_sizes_have_in_common(base, tmp_path):
    said = []
    sizes = {
        "as it is": {}, "more experts": dict(n_routed_experts=12), "wider": dict(hidden_size=40),
        "longer": dict(times_steps=2),
    }  # fmt: skip
    settings = dict(steps=4, seeds=(0,), evaluations=1, eval_bytes=1500, sizes=sizes, say=said.append)
    found = run_crossing(tmp_path, lambda one, other: 0.8, base, **settings)["sizes"]
    assert [text.removeprefix("training twins-") for text in said] == [
        "moe-steps4-seed0", "dense-twin-steps4-seed0", "dense-twin-steps5-seed0", "moe-n_routed_experts12-steps4-seed0",
        "moe-hidden_size40-steps4-seed0", "dense-twin-hidden_size40-steps4-seed0",
        "dense-twin-hidden_size40-steps5-seed0", "moe-steps8-seed0", "dense-twin-steps8-seed0",
        "dense-twin-steps10-seed0",
    ], "the dense twin does not know how many experts there are"  # fmt: skip
    more, less = (found[size]["arms"]["moe"] for size in ("more experts", "as it is"))
    assert more["parameters"] > less["parameters"]


@pytest.mark.parametrize("preset", ["nano", "mini"])
@pytest.mark.parametrize("share", [1, 2, 4])
def test_plain_attention_has_mlas_parameters_and_a_larger_cache(preset, share):
    mla = ModelConfig.preset(preset)
    plain = plain_attention(mla, mla.num_attention_heads // share)
    assert attention_parameters(plain) == pytest.approx(attention_parameters(mla), rel=0.04)
    assert plain.cache_width > mla.cache_width
    assert plain.num_attention_heads == mla.num_attention_heads


def test_a_dense_model_trains_continues_and_says_what_it_does_not_have(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "evaluate_model", lambda *args, **kwargs: {"bits_per_byte": {"all": 1.0}})
    model = tiny_run().model_config.dense_twin()
    settings = dict(model=model, routing_every=2)
    train(tiny_run(out=tmp_path / "whole", **settings), progress=False)
    monkeypatch.setattr(loop, "train_step", _until(7))
    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(out=tmp_path / "broken", **settings), progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(loop, "evaluate_model", lambda *args, **kwargs: {"bits_per_byte": {"all": 1.0}})
    train(tiny_run(out=tmp_path / "broken", resume=True, **settings), progress=False)
    whole, broken = (read_metrics(tmp_path / name) for name in ("whole", "broken"))
    assert [line["losses"] for line in whole] == [line["losses"] for line in broken] and len(whole) == 12
    assert all(line["maxvio"] == [] and set(line["losses"]) == {"main", "mtp", "total"} for line in whole)
    assert not (tmp_path / "whole" / ROUTING_FILE).exists()
    with pytest.raises(InputError, match=r"without routing snapshots.*Train a model with routed experts"):
        read_routing_log(tmp_path / "whole")


def test_the_command_trains_the_twin_and_continues_it(tmp_path):
    def settings(*words):
        return build_config(build_parser().parse_args(["train", "--out", str(tmp_path / "run"), *words]))

    assert settings("--preset", "mini", "--dense-twin").model == ModelConfig.preset("mini").dense_twin()
    assert settings("--dense-twin").model == ModelConfig.preset("nano").dense_twin()
    assert settings().model is None
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    twin = settings("--preset", "mini", "--dense-twin", "--steps", "7").resolved()
    (run_folder / "run.json").write_text(json.dumps({"config": twin.to_json(), "data_fingerprint": "x"}))
    for words in (["--resume"], ["--resume", "--dense-twin"]):
        assert enter(settings(*words)).model == twin.model
    moe = dataclasses.replace(settings("--resume"), model=ModelConfig.preset("mini"))
    with pytest.raises(InputError, match="first_k_dense_replace"):
        enter(moe)


def _until(steps):
    done, step_once = [], loop.train_step

    def step(*args, **kwargs):
        done.append(1)
        if len(done) > steps:
            raise KeyboardInterrupt
        return step_once(*args, **kwargs)

    return step
