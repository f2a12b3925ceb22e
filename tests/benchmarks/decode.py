"""Greedy decoding out of the cache, ours against transformers' `generate` with its own cache, at equal output."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from dsv3_mini import ModelConfig
from dsv3_mini.generate.decode import generate
from tests.benchmarks.pair import build_pair
from tests.benchmarks.run import alternate

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

    def they(new: int, marks: Any = None) -> list[int]:
        exactly = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, use_cache=True)
        with torch.inference_mode():
            out = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), streamer=marks, **exactly)
        return out[0, context:].tolist()

    pairs = enumerate(zip(we(new_tokens), they(new_tokens), strict=True))
    agree = next((i for i, (a, b) in pairs if a != b), new_tokens)
    # Random weights make near-ties, which rounding may decide either way late in a text, and in bf16 anywhere.
    if agree < new_tokens // 2 and dtype == torch.float32:
        raise RuntimeError(f"the outputs part after {agree} tokens: there is nothing to compare")
    # From the first new token to the last: the prefill is over by then, and noise in it spoils nothing.
    result = alternate(
        lambda: seconds_per_token(lambda mark: generate(ours, prompt, new_tokens, on_token=lambda _: mark())),
        lambda: seconds_per_token(lambda mark: they(new_tokens, _Marks(mark))),
        rounds,
    )
    return {**result, "equal_tokens": agree}


def seconds_per_token(run: Callable[[Callable[[], None]], Any]) -> float:
    """Of a generation that calls its argument whenever a token is there. Processor time if there is one thread."""
    clock = time.perf_counter if torch.get_num_threads() > 1 or torch.cuda.is_available() else time.process_time
    marks: list[float] = []
    run(lambda: marks.append(clock()))
    return (marks[-1] - marks[0]) / (len(marks) - 1)


class _Marks:
    """What transformers calls a streamer. The first thing that it is given is the prompt."""

    def __init__(self, mark: Callable[[], None]) -> None:
        self.mark, self.prompt_seen = mark, False

    def put(self, tokens: torch.Tensor) -> None:
        if self.prompt_seen:
            self.mark()
        self.prompt_seen = True

    def end(self) -> None:
        pass
