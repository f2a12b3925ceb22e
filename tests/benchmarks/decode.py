"""Greedy decoding out of the cache, ours against transformers' `generate` with its own cache, at equal output."""

from __future__ import annotations

from typing import Any

import torch

from dsv3_mini import ModelConfig
from dsv3_mini.generate.decode import generate
from tests.benchmarks.pair import build_pair
from tests.benchmarks.run import alternate, timed

CONTEXT, NEW = 1024, 64


def run(rounds: int) -> dict[str, Any]:
    """Seconds per decoded token in fp32, batch 1, after a prompt of 1024 tokens: mini, and nano beside it."""
    return {
        **compare("mini", rounds),
        "nano": compare("nano", rounds),
        "compared": "seconds per decoded token, greedy, fp32, equal weights, against transformers' generate",
        "context": CONTEXT,
        "new_tokens": NEW,
    }


def compare(preset: str, rounds: int) -> dict[str, Any]:
    """One preset, without MTP, with random weights."""
    cfg = ModelConfig.preset(preset, num_nextn_predict_layers=0)
    return {**compare_config(cfg, rounds), "preset": f"{preset} without MTP"}


def compare_config(
    cfg: ModelConfig,
    rounds: int,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    context: int = CONTEXT,
    new_tokens: int = NEW,
) -> dict[str, Any]:
    """A model of `cfg` with random weights: `new_tokens` tokens after a prompt of `context`."""
    ours, theirs = (model.to(dtype).eval() for model in build_pair(cfg, device))
    prompt = torch.randint(0, cfg.vocab_size, (1, context), device=device)

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
    our_prefill, their_prefill = timed(lambda: we(1)), timed(lambda: they(1))
    our_whole, their_whole = timed(lambda: we(new_tokens)), timed(lambda: they(new_tokens))
    result = alternate(
        lambda: (our_whole() - our_prefill()) / (new_tokens - 1),
        lambda: (their_whole() - their_prefill()) / (new_tokens - 1),
        rounds,
    )
    return {**result, "equal_tokens": agree}
