"""What does the second target change (§2.2, Table 4)? With the MTP loss, with its weight at 0, without the module.

Measured on held-out text: bits per byte of the main head, which is what predicting two tokens ahead is meant to help,
and how often the module's greedy guess is what the main head says a token later (greedy agreement, which is what
makes a draft useful in speculative decoding).

At equal steps the runs with a module work longer: it is one more block, and the head once more. So the model without
it also gets a run of equal time, with as many more steps as they are cheaper.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dsv3_mini.errors import InputError
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train.balance_lab import NANO_STEPS, lab_settings, run_one, summarise
from dsv3_mini.train.checkpoint import latest_checkpoint, write_json
from dsv3_mini.train.config import TrainConfig
from dsv3_mini.train.data import load_corpus
from dsv3_mini.train.documents import Document
from dsv3_mini.train.evaluate import select_documents
from dsv3_mini.train.token_data import IGNORE, held_out_windows
from dsv3_mini.train.tokenizer import Tokenizer

ARMS = {
    "mtp": "with the MTP loss",
    "weight 0": "MTP loss computed, weight 0",
    "no module": "no MTP module",
    "no module, equal time": "no MTP module, equal time",
}
_WINDOWS_AT_ONCE = 8


def run_mtp_effect(
    cache: str | Path,
    time_ratio: Callable[[], float],
    base: TrainConfig | None = None,
    *,
    steps: int = NANO_STEPS,
    seeds: Sequence[int] = (0, 1, 2),
    evaluations: int = 5,
    eval_bytes: int = 100_000,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train all `ARMS` with every seed; runs are kept below `cache`, as in `balance_lab`.

    time_ratio: measures how much longer a step takes with the module than without; asked once, and the answer kept.
    Returns {"runs": [one record a run, with "agreement" by domain], "summary": {arm: ..}, "time_ratio", ..}.
    """
    base = lab_settings(base, steps, evaluations, eval_bytes)
    ratio = _kept_ratio(Path(cache), time_ratio)
    documents = select_documents(load_corpus(base.text, base.dataset).heldout, eval_bytes)
    records = []
    for seed in seeds:
        for arm in ARMS:
            cfg = _settings(dataclasses.replace(base, seed=seed), arm, ratio)
            record = {"arm": arm, **run_one(cache, cfg, "mtp-effect-" + arm.replace(",", "").replace(" ", "-"), say)}
            if arm in ("mtp", "weight 0"):
                record["agreement"] = _agreement(Path(cache, record["folder"]), documents, cfg.resolved().seq_len)
            records.append(record)
    return {
        "steps": steps,
        "seeds": list(seeds),
        "time_ratio": ratio,
        "heldout_bytes": eval_bytes,
        "runs": records,
        "summary": summarise(records, "arm"),
    }


@torch.inference_mode()
def draft_agreement(
    model: DeepSeekV3, tokenizer: Tokenizer, documents: Sequence[Document], seq_len: int
) -> dict[str, float]:
    """Share of held-out tokens where the first MTP module's greedy guess is what the main head would say.

    By domain, and over all tokens under "all". The module at position i knows the text up to token i + 1 and guesses
    token i + 2; the main head at position i + 1 knows the same text. On text as it is, not on what the model would
    write. Raises `InputError` for a model without an MTP module.
    """
    if not model.mtp_modules:
        raise InputError("this model has no MTP module (num_nextn_predict_layers = 0), so it makes no drafts")
    training = model.training
    model.eval()
    agreed: dict[str, tuple[int, int]] = {}
    for domain in sorted({document.domain for document in documents}):
        ids = tokenizer.encode_batch([document.text for document in documents if document.domain == domain])
        same = asked = 0
        for part in held_out_windows(ids, tokenizer, seq_len, overlap=seq_len // 2).batches(_WINDOWS_AT_ONCE):
            out = model(part.inputs)
            # Two guesses at token i + 2, both [B, T - 1].
            drafts, says = out.mtp_logits[0].argmax(-1), out.logits[:, 1:].argmax(-1)
            counted = part.targets[:, 1:] != IGNORE
            same += int(((drafts == says) & counted).sum())
            asked += int(counted.sum())
        agreed[domain] = same, asked
    model.train(training)
    agreed["all"] = tuple(map(sum, zip(*agreed.values())))  # type: ignore[assignment]
    return {domain: same / max(asked, 1) for domain, (same, asked) in agreed.items()}


def _settings(base: TrainConfig, arm: str, ratio: float) -> TrainConfig:
    if arm == "mtp":
        return base
    if arm == "weight 0":
        return dataclasses.replace(base, mtp_scale=0.0)
    cfg = dataclasses.replace(base, model=base.model_config.replace(num_nextn_predict_layers=0))
    if arm == "no module":
        return cfg
    return dataclasses.replace(cfg, steps=round(cfg.resolved().steps * ratio))


def _agreement(folder: Path, documents: Sequence[Document], seq_len: int) -> dict[str, float]:
    checkpoint = latest_checkpoint(folder)
    model, tokenizer = load_pretrained(checkpoint, dtype=torch.float32), Tokenizer.load(checkpoint)
    return {domain: round(share, 4) for domain, share in draft_agreement(model, tokenizer, documents, seq_len).items()}


def _kept_ratio(cache: Path, measure: Callable[[], float]) -> float:
    """The ratio of this cache: measured once, or its second run would have other steps than its first."""
    path = cache / "mtp_time_ratio.json"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        write_json(path, {"seconds_with_module_over_without": round(measure(), 3)})
    return json.loads(path.read_text(encoding="utf-8"))["seconds_with_module_over_without"]
