"""The models in data/checkpoints: small enough, what they claim to be, and the same to stock transformers as to us."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dsv3_mini.config import ModelConfig
from dsv3_mini.generate.decode import generate
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.paths import data_dir
from dsv3_mini.train.metrics import read_metrics
from dsv3_mini.train.routing_log import ROUTING_FILE, read_routing_log
from dsv3_mini.train.ship import card
from dsv3_mini.train.tokenizer import Tokenizer

FOLDERS = sorted(path.parent for path in (data_dir() / "checkpoints").glob("*/config.json"))
MIB = 2**20
PROMPT = "def read(path):\n    with open(path"


def test_files_are_small_and_all_together_too() -> None:
    files = [path for path in (data_dir() / "checkpoints").rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) <= 16 * MIB
    assert sum(path.stat().st_size for path in files) <= 80 * MIB


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_transformers_generates_the_same_tokens(folder: Path) -> None:
    ours, tokenizer = load_pretrained(folder, dtype=torch.float32), Tokenizer.load(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.encode(PROMPT)
    assert prompt == AutoTokenizer.from_pretrained(folder)(PROMPT)["input_ids"]
    with torch.inference_mode():
        out = theirs.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
    assert out[0, len(prompt) :].tolist() == generate(ours, [prompt], 24, eos_token_id=tokenizer.eos_id)[0]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_model_is_what_its_files_say(folder: Path) -> None:
    cfg = load_pretrained(folder).cfg
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    preset = ModelConfig.preset(run["config"]["preset"])
    expected = preset.dense_twin() if folder.name.endswith("-dense") else preset
    assert cfg == expected and cfg.num_nextn_predict_layers == 1
    assert (folder / "README.md").read_text(encoding="utf-8") == card(folder), "python -m dsv3_mini.train.ship"
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    for beaten in ("ngram", "xz"):
        assert set(evaluation["bits_per_byte"]) == set(evaluation[beaten]) == {"code", "math", "prose", "all"}
    assert {"parse_rate", "arithmetic"} <= set(evaluation["judges"])
    if (folder / "metrics.jsonl").exists():
        assert read_metrics(folder)[-1]["step"] == evaluation["step"] == run["config"]["steps"]
    if cfg.num_moe_layers and (folder / ROUTING_FILE).exists():
        assert read_routing_log(folder).load.shape[1:] == (cfg.num_moe_layers, cfg.n_routed_experts)
