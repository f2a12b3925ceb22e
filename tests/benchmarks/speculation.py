"""Speculative decoding of the shipped models: what is accepted, what a round costs, and what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dsv3_mini.generate.cache import LatentCache
from dsv3_mini.generate.decode import generate
from dsv3_mini.generate.fast import fast
from dsv3_mini.generate.speculative import SpeculationStats
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.paths import data_dir
from dsv3_mini.train.data import load_corpus
from dsv3_mini.train.tokenizer import Tokenizer
from tests.benchmarks.run import alternate, clocked

MODELS = ("mini", "mini-dense", "nano")
PROMPT, NEW, PROMPTS = 64, 96, 6  # tokens, tokens, prompts of a domain
SETTINGS = {"1": (1, 0.0), "2": (2, 0.0), "4": (4, 0.0), "4, confident": (4, 0.5)}  # depth, confidence
DOMAINS = {"code": tuple(SETTINGS), "prose": ("2",), "math": ("2",)}
LOSSLESS = (100, 256)  # prompts, tokens


def run(rounds: int) -> dict[str, Any]:
    """The time of plain greedy decoding over that with drafts, by domain and depth; acceptance; what a step costs."""
    found = {}
    for name in MODELS:
        folder = data_dir() / "checkpoints" / name
        if folder.is_dir():
            found[name] = measure(folder, rounds)
    best = max(found["mini" if "mini" in found else "nano"]["code"].values(), key=lambda case: case["ratio"])
    return {
        "ratio": best["ratio"],
        "spread": best["spread"],
        "compared": "plain over speculative decoding, both ours: greedy, fp32, one row; with one thread, of processor "
        "time; prompts from held-out documents",
        "prompt_tokens": PROMPT,
        "new_tokens": NEW,
        "prompts": PROMPTS,
        **found,
    }


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """One model: the costs of its steps, code at each setting and the others at one; whether drafts change a text."""
    model, tokenizer = load_pretrained(folder).float(), Tokenizer.load(folder)
    found: dict[str, Any] = {"costs": costs(model)}
    for domain, names in DOMAINS.items():
        prompts = prompts_of(tokenizer, domain, PROMPTS)
        found[domain] = {name: speed_up(model, prompts, *SETTINGS[name], rounds) for name in names}
    found["lossless"] = lossless(model, tokenizer)
    return found


def speed_up(model: DeepSeekV3, prompts: list[list[int]], depth: int, confidence: float, rounds: int) -> dict[str, Any]:
    """All prompts, one after the other, with and without drafts. Prefill included: it is short."""
    stats = SpeculationStats()
    for prompt in prompts:
        generate(model, [prompt], NEW, speculative=depth, confidence=confidence, stats=stats)

    def plain() -> None:
        for prompt in prompts:
            generate(model, [prompt], NEW)

    def drafted() -> None:
        for prompt in prompts:
            generate(model, [prompt], NEW, speculative=depth, confidence=confidence)

    return {
        **alternate(clocked(drafted), clocked(plain), rounds),
        "acceptance": round(stats.acceptance, 3),
        "tokens_per_forward": round(stats.tokens_per_forward, 3),
        "by_depth": stats.by_depth,
    }


@torch.inference_mode()
def costs(model: DeepSeekV3, context: int = 200, times: int = 60) -> dict[str, Any]:
    """Seconds of a step of 1 to 5 tokens with the head, and of one draft; and the same over a step of one token."""
    engine, cfg = fast(model), model.cfg
    cache = LatentCache(cfg, 1, context + 8)
    layers = range(cfg.num_hidden_layers, cfg.num_hidden_layers + 1)
    drafts = LatentCache(cfg, 1, context + 8, layers=layers)
    states = model.hidden_states(torch.randint(0, cfg.vocab_size, (1, context)), cache)[:, -1:]
    drafts.begin(context, 1)
    drafts.commit()

    def verify(new: int) -> None:
        model.lm_head(engine.hidden_states(torch.randint(0, cfg.vocab_size, (1, new)), cache)).argmax(-1)
        cache.crop([context])

    def draft() -> None:
        model.lm_head(engine.draft_states(torch.randint(0, cfg.vocab_size, (1, 1)), states, drafts)[:, -1]).argmax(-1)
        drafts.crop([context])

    clocks = {str(new): clocked(lambda new=new: verify(new)) for new in range(1, 6)}
    clocks["draft"] = clocked(draft)
    seconds: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(times):  # in turn, so that whatever else the machine does meets all of them
        for name, clock in clocks.items():
            seconds[name].append(clock())
    medians = {name: sorted(values)[times // 2] for name, values in seconds.items()}
    return {
        "seconds": {name: round(value, 5) for name, value in medians.items()},
        "in_steps": {name: round(value / medians["1"], 3) for name, value in medians.items()},
    }


def lossless(model: DeepSeekV3, tokenizer: Tokenizer) -> dict[str, Any]:
    """How many of 100 texts of 256 tokens are the same token for token with two drafts, in fp32 and in fp64."""
    count, new = LOSSLESS
    prompts = heldout_prompts(tokenizer, count)
    same = {}
    for name, dtype in {"fp64": torch.float64, "fp32": torch.float32}.items():
        model.to(dtype)
        pairs = zip(generate(model, prompts, new), generate(model, prompts, new, speculative=2), strict=True)
        same[name] = sum(plain == drafted for plain, drafted in pairs)
    return {"texts": count, "new_tokens": new, "depth": 2, "same": same}


def heldout_prompts(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """Prompts of all domains."""
    return [prompt for domain in DOMAINS for prompt in prompts_of(tokenizer, domain, -(-count // 3))][:count]


def prompts_of(tokenizer: Tokenizer, domain: str, count: int) -> list[list[int]]:
    """Pieces of held-out documents of one domain, spread over them."""
    documents = [d for d in load_corpus().heldout if d.domain == domain]
    texts = [tokenizer.encode(d.text[:20_000]) for d in documents]
    texts = [ids for ids in texts if len(ids) > PROMPT] or texts
    prompts = []
    for i in range(count):
        ids = texts[i % len(texts)]
        start = (i // len(texts) + 1) * 97 % max(1, len(ids) - PROMPT)
        prompts.append(ids[start : start + PROMPT])
    return prompts
