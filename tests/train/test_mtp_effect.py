"""The MTP experiment: what the arms differ in, equal time, and the agreement of draft and main head."""

from __future__ import annotations

import pytest
import torch

from dsv3_mini.errors import InputError
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.documents import Document
from dsv3_mini.train.metrics import read_metrics
from dsv3_mini.train.mtp_effect import ARMS, draft_agreement, run_mtp_effect
from dsv3_mini.train.run_folder import read_run
from dsv3_mini.train.tokenizer import Tokenizer


def test_the_arms_differ_in_the_second_target_only_and_equal_time_means_more_steps(tiny_run, tmp_path):
    asked = []

    def ratio():
        asked.append(1)
        return 1.5

    settings = dict(steps=6, seeds=(0,), evaluations=1, eval_bytes=1500, say=lambda text: None)
    found = run_mtp_effect(tmp_path, ratio, tiny_run(), **settings)
    runs = {run["arm"]: run for run in found["runs"]}
    assert list(runs) == list(ARMS)
    lines = {arm: read_metrics(tmp_path / run["folder"]) for arm, run in runs.items()}
    assert [len(lines[arm]) for arm in ARMS] == [6, 6, 6, 9]
    assert [lines[arm][0]["mtp_weight"] for arm in ARMS][:2] == [0.3, 0.0]
    assert ["mtp" in lines[arm][0]["losses"] for arm in ARMS] == [True, True, False, False]
    models = [read_run(tmp_path / runs[arm]["folder"])["config"]["model"] for arm in ARMS]
    assert [model.pop("num_nextn_predict_layers") for model in models] == [1, 1, 0, 0]
    assert models[0] == models[1] == models[2] == models[3]
    assert "agreement" in runs["mtp"] and "agreement" in runs["weight 0"] and "agreement" not in runs["no module"]
    # Asked once: another answer would make a run of other length out of the one that is there.
    assert run_mtp_effect(tmp_path, ratio, tiny_run(), **settings) == found and asked == [1]


@pytest.fixture
def model_and_text(tiny_model, tiny_text):
    tokenizer = Tokenizer.train([tiny_text.read_text(encoding="utf-8")], 300)
    torch.manual_seed(0)
    documents = [
        Document("prose", "a", "counting to seven takes seven steps, " * 4),
        Document("math", "b", "3 is 12\n"),
    ]
    return DeepSeekV3(tiny_model.replace(max_position_embeddings=256)), tokenizer, documents


def test_agreement_compares_two_guesses_at_the_same_token(model_and_text):
    model, tokenizer, documents = model_and_text
    same = asked = 0
    for document in documents:  # one window each
        ids = [tokenizer.eos_id, *tokenizer.encode(document.text)]
        with torch.no_grad():
            out = model(torch.tensor([ids[:-1]]))
        for i in range(len(ids) - 2):
            # The module at i is given token i + 1 and guesses token i + 2, as the main head at i + 1 does.
            same += int(out.mtp_logits[0][0, i].argmax() == out.logits[0, i + 1].argmax())
            asked += 1
    found = draft_agreement(model, tokenizer, documents, seq_len=200)
    assert 0 < found["all"] < 1 and found["all"] == pytest.approx(same / asked)
    assert set(found) == {"prose", "math", "all"}


def test_a_module_that_says_what_the_main_head_says_agrees_always(model_and_text, monkeypatch):
    model, tokenizer, documents = model_and_text
    forward = DeepSeekV3.forward

    def perfect(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.mtp_logits = [out.logits[:, 1:]]
        return out

    monkeypatch.setattr(DeepSeekV3, "forward", perfect)
    assert draft_agreement(model, tokenizer, documents, seq_len=16)["all"] == 1.0


def test_a_model_without_a_module_makes_no_drafts(model_and_text, tiny_model):
    _, tokenizer, documents = model_and_text
    with pytest.raises(InputError, match="num_nextn_predict_layers = 0"):
        draft_agreement(DeepSeekV3(tiny_model.replace(num_nextn_predict_layers=0)), tokenizer, documents, 16)
