"""Greedy decoding out of the cache, ours against transformers' `generate` with its own cache, at equal output."""

from __future__ import annotations

from typing import Any

import torch

from dsv3_mini import ModelConfig
from dsv3_mini.generate.decode import generate
from tests.benchmarks.pair import build_pair
from tests.benchmarks.run import alternate, clocked

NEW = 24
CASES = {"1024": (1, 1024), "3072": (1, 3072), "8 rows, 1024": (8, 1024)}  # batch, tokens of the prompt


def run(rounds: int) -> dict[str, Any]:
    """Seconds per decoded token in fp32, after 1024 and 3072 tokens, and for 8 rows: mini, and nano beside it."""
    cases = {"mini": {name: compare("mini", rounds, *case) for name, case in CASES.items()}}
    cases["nano"] = {"1024": compare("nano", rounds, *CASES["1024"])}
    first = cases["mini"]["1024"]
    return {
        "ratio": first["ratio"],
        "spread": first["spread"],
        **cases,
        "compared": "seconds per decoded token, greedy, fp32, equal weights, against transformers' generate; with one "
        "thread, of processor time",
        "new_tokens": NEW,
    }


def compare(preset: str, rounds: int, batch: int, context: int) -> dict[str, Any]:
    """One preset, without MTP, with random weights."""
    cfg = ModelConfig.preset(preset, num_nextn_predict_layers=0)
    result = compare_config(cfg, rounds, batch=batch, context=context)
    return {**result, "batch": batch, "context": context}


def compare_config(
    cfg: ModelConfig,
    rounds: int,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    batch: int = 1,
    context: int = 1024,
    new_tokens: int = NEW,
) -> dict[str, Any]:
    """A model of `cfg` with random weights: `new_tokens` tokens in each of `batch` rows after a prompt of `context`."""
    ours, theirs = (model.to(dtype).eval() for model in build_pair(cfg, device))
    prompt = torch.randint(0, cfg.vocab_size, (batch, context), device=device)

    def we(new: int) -> list[int]:
        return generate(ours, prompt, new)[0]

    def they(new: int) -> list[int]:
        with torch.inference_mode():
            out = theirs.generate(prompt, max_new_tokens=new, min_new_tokens=new, do_sample=False, use_cache=True)
        return out[0, context:].tolist()

    pairs = enumerate(zip(we(new_tokens), they(new_tokens), strict=True))
    agree = next((i for i, (a, b) in pairs if a != b), new_tokens)
    # Random weights make near-ties, which rounding may decide either way late in a text, and in bf16 anywhere.
    if agree < new_tokens // 2 and dtype == torch.float32:
        raise RuntimeError(f"the outputs part after {agree} tokens: there is nothing to compare")
    # Prefill costs the same once, however many tokens follow: it is taken off by timing a generation of one token too.
    our_prefill, their_prefill = clocked(lambda: we(1)), clocked(lambda: they(1))
    our_whole, their_whole = clocked(lambda: we(new_tokens)), clocked(lambda: they(new_tokens))
    result = alternate(
        lambda: (our_whole() - our_prefill()) / (new_tokens - 1),
        lambda: (their_whole() - their_prefill()) / (new_tokens - 1),
        rounds,
    )
    return {**result, "equal_tokens": agree}
