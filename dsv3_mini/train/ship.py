"""From a run to a model that is shipped: small files, how it was trained, and how good it is.

    python -m dsv3_mini.train.ship runs/mini data/checkpoints/mini --machine "two cores of ..." --cpu-minutes 60

The folder is a checkpoint in the Hugging Face layout with bf16 weights, in files that a Git host takes, and has

    run.json, metrics.jsonl, routing.jsonl   of the run; of the last two only some of the lines
    evaluation.json                          measured on the weights as they are shipped: bits per byte, both judges
    README.md                                the model card: what the files above say, for people

so `read_metrics`, `read_routing_log` and `dsv3-mini eval` work on it as on a run.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from dsv3_mini.commands.table import format_quality
from dsv3_mini.interop.atomic import atomic_folder
from dsv3_mini.interop.config_json import config_from_hf, read_json_object
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.interop.save import write_checkpoint
from dsv3_mini.model.count import count_parameters
from dsv3_mini.train.checkpoint import latest_checkpoint, write_json
from dsv3_mini.train.data import load_corpus
from dsv3_mini.train.evaluate import evaluate_folder
from dsv3_mini.train.judges import judge
from dsv3_mini.train.metrics import read_metrics
from dsv3_mini.train.routing_log import ROUTING_FILE
from dsv3_mini.train.run_folder import RUN_FILE, read_run
from dsv3_mini.train.tokenizer import Tokenizer

SHARD_BYTES = 15 * 2**20
LINES = {"metrics.jsonl": 400, ROUTING_FILE: 100}  # at most, of each
EVALUATION, CARD = "evaluation.json", "README.md"


def ship(run: Path, folder: Path, *, machine: str, cpu_minutes: float | None = None, overwrite: bool = False) -> None:
    """Write the newest checkpoint of `run` to `folder`, measure it there, and write its card.

    machine, cpu_minutes: what it was trained on and for how long, in the words and number of whoever trained it.
    Raises `InputError` as `load_pretrained` and `atomic_folder` do.
    """
    record, checkpoint = read_run(run), latest_checkpoint(run)
    model, tokenizer = load_pretrained(checkpoint, dtype=torch.bfloat16), Tokenizer.load(checkpoint)
    lines = read_metrics(run)
    with atomic_folder(folder, overwrite=overwrite) as draft:
        write_checkpoint(model, draft, tokenizer, max_shard_bytes=SHARD_BYTES, mtp_copies=False)
        write_json(draft / RUN_FILE, record)
        for name, most in LINES.items():
            if (run / name).is_file():
                (draft / name).write_text(thinned((run / name).read_text(encoding="utf-8"), most), encoding="utf-8")
        result = evaluate_folder(draft)
        del result["checkpoint"]
        training = {"machine": machine, "cpu_minutes": cpu_minutes, "tokens": lines[-1]["tokens"]}
        write_json(draft / EVALUATION, {"step": lines[-1]["step"], **result, "training": training})
        add_judges(draft)
        write_card(draft, Path(folder).name)


def add_judges(folder: Path) -> None:
    """Let both judges look at the model in `folder` and put what they find into its evaluation.json."""
    config = read_run(folder)["config"]
    corpus = load_corpus(config.get("text") and Path(config["text"]), config.get("dataset"))
    model = load_pretrained(folder, dtype=torch.float32)
    found = judge(model, Tokenizer.load(folder), corpus.heldout)
    evaluation = read_json_object(folder / EVALUATION)
    write_json(folder / EVALUATION, {**evaluation, "judges": found})


def write_card(folder: Path, name: str | None = None) -> None:
    """Write README.md from the other files of `folder`."""
    (folder / CARD).write_text(card(folder, name), encoding="utf-8")


def card(folder: Path, name: str | None = None) -> str:
    """The model card of `folder`, called `name` (None: like the folder): what config, run and evaluation there say."""
    cfg = config_from_hf(read_json_object(folder / "config.json"), str(folder / "config.json"))
    record, evaluation = read_run(folder), read_json_object(folder / EVALUATION)
    config, versions, training = record["config"], record["versions"], evaluation["training"]
    count = count_parameters(cfg)
    active = count.active_without_embedding
    sizes = f"{count.total / 1e6:.1f} M parameters, {active / 1e6:.1f} M of them at work for a token"
    kind = "a mixture of experts" if cfg.num_moe_layers else "dense: no layer has experts"
    if cfg.num_nextn_predict_layers:
        sizes += f"; an MTP module adds {count.mtp_total / 1e6:.1f} M"
    minutes = training.get("cpu_minutes")
    own_text = config.get("text") or config.get("dataset")
    return f"""# {name or folder.name}

A tiny DeepSeek-V3 ({kind}): {sizes}. Weights in bf16, Hugging Face layout.

* **Corpus**: {record["corpus"]}{"" if own_text else "; nothing downloaded"}.
* **Training**: `{shlex.join(record["command"])}`,
  {evaluation["step"]:,} steps, {training["tokens"]:,} tokens, windows of {config["seq_len"]} tokens.
* **Machine**: {training["machine"]}{f"; {minutes:.0f} CPU minutes" if minutes else ""}.
  Python {versions["python"]}, torch {versions["torch"]}, started {record["started"][:10]}.
* **Files**: `run.json` and, where they are, `metrics.jsonl` and `routing.jsonl` are of that run; `evaluation.json`
  holds the numbers below. How a run becomes such a folder: `dsv3_mini/train/ship.py`.

## How good it is

Held-out files of the same corpus, never trained on; lower is better:

```
{format_quality(evaluation)}
```

{_judged(evaluation.get("judges", {}))}
## What it is not

It has read this one corpus. It writes text that looks like it, and nothing that it says is knowledge.
Text longer than its windows of {config["seq_len"]} tokens it has never seen, and it gets worse there.
"""


def thinned(text: str, most: int) -> str:
    """At most `most` of the lines, evenly spread, the first and the last among them; half a line at the end is none."""
    lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
    if len(lines) <= most:
        return "".join(lines)
    return "".join(lines[round(i * (len(lines) - 1) / (most - 1))] for i in range(most))


def _judged(judges: dict[str, Any]) -> str:
    text = ""
    if "parse_rate" in judges:
        p = judges["parse_rate"]
        text += (
            f"* **Parse rate**: {p['rate']:.0%} of {p['functions']} held-out functions whose body it writes are valid "
            f"Python\n  ({p['max_new_tokens']} tokens, temperature {p['temperature']}; cut off in the same way, "
            f"{p['ceiling']:.0%} of the true bodies are).\n"
        )
    if "arithmetic" in judges:
        a = judges["arithmetic"]
        kinds = ", ".join(f"`{kind}` {share:.0%}" for kind, share in a["by_kind"].items())
        text += f"* **Arithmetic**: {a['accuracy']:.0%} of {a['problems']} held-out problems right ({kinds}).\n"
    return text


def main() -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--machine", required=True, help="what it was trained on, in words")
    parser.add_argument("--cpu-minutes", type=float, help="processor time of the training")
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint in the folder")
    args = parser.parse_args()
    ship(args.run, args.folder, machine=args.machine, cpu_minutes=args.cpu_minutes, overwrite=args.overwrite)
    print((args.folder / CARD).read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
