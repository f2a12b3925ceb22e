"""Bug museum of lesson 04: a positional key for each head, and a cache that forgot the norm."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3_mini import ModelConfig
from dsv3_mini.course.exercises.lesson_04.latent_memory import (
    LatentMemory,
    LatentMemory__key_per_head,
    LatentMemory__raw_latent,
)
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.generate.cache import LatentCache
from dsv3_mini.model.mla import MLA
from dsv3_mini.model.rope import RotaryEmbedding
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

SMALL = ModelConfig.preset(
    "nano",
    hidden_size=256,
    num_attention_heads=8,
    num_hidden_layers=1,
    q_lora_rank=128,
    kv_lora_rank=64,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=24,
)

# -- 4.A --


@torch.no_grad()
def attend(mla: MLA, memory: LatentMemory__key_per_head, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The attention of `mla` with the keys of the exhibit. x [B, T, D] -> [B, T, D]."""
    q = torch.cat(mla.queries(x, cos, sin), dim=-1)  # [B, T, H, N + R]
    latent, k_r = memory(x, cos, sin).split([SMALL.kv_lora_rank, memory.H * memory.R], dim=-1)
    k_c, v = mla.kv_b_proj(latent).unflatten(-1, (memory.H, -1)).split([mla.nope_dim, mla.v_dim], dim=-1)
    k = torch.cat([k_c, k_r.unflatten(-1, (memory.H, memory.R))], dim=-1)  # [B, T, H, N + R]
    scores = torch.einsum("bthn,bshn->bhts", q, k) * mla.scale
    future = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    shares = scores.masked_fill(future, -torch.inf).softmax(-1)
    return mla.o_proj(torch.einsum("bhts,bshv->bthv", shares, v).flatten(-2))


def key_per_head() -> Picture:
    torch.manual_seed(0)
    mla, memory = MLA(SMALL), LatentMemory__key_per_head(SMALL)
    x, (cos, sin) = torch.randn(2, 12, SMALL.hidden_size), RotaryEmbedding(SMALL)(torch.arange(12))
    out = attend(mla, memory, x, cos, sin)
    other = torch.cat([x[:, :-1], torch.randn_like(x[:, -1:])], dim=1)
    causal = torch.allclose(out[:, :-1], attend(mla, memory, other, cos, sin)[:, :-1], atol=1e-6)
    unturned = attend(mla, memory, x, torch.ones_like(cos), torch.zeros_like(sin))
    print(f"finite: {bool(out.isfinite().all())}; no token sees a later one: {causal};", end=" ")
    print(f"the outputs depend on the positions: {not torch.allclose(out, unturned, atol=1e-4)}")

    v3 = ModelConfig.preset("v3-671b")
    per_head = v3.num_attention_heads * v3.qk_rope_head_dim
    plain = 2 * v3.num_attention_heads * v3.v_head_dim
    numbers = {"MLA": v3.cache_width, "exhibit": v3.kv_lora_rank + per_head, "plain attention": plain}
    print("The cache at the size of V3, two bytes a number:")
    for name, count in numbers.items():
        size = count * v3.num_hidden_layers * 2
        print(f"{name:16}{count:>8,} numbers per token and layer,{size:>11,} bytes per token,", end=" ")
        print(f"{count / v3.cache_width:5.1f} times MLA")
    figure = Picture(style.SIZE[0], 2.4, layout="constrained")
    ax = figure.subplots()
    ax.barh(list(numbers), list(numbers.values()), color=[style.BLUE, style.VERMILLION, style.GREY], height=0.6)
    for row, count in enumerate(numbers.values()):
        ax.text(count, row, f" {count:,}", va="center")
    ax.set(xlabel="numbers per token and layer", xlim=(0, 1.15 * plain), title="What has to be cached")
    ax.invert_yaxis()
    return figure


KEY_PER_HEAD = Exhibit(
    id="4.A",
    title="a positional key for every head, made from the latent",
    exercise="4.5",
    mistake="key per head",
    story="Somebody reads that all keys come out of the latent, and derives the positional keys from it as well, one "
    "for each head. It looks tidier: one source for everything.",
    question="A layer is built with this code and looked at from outside. What is wrong with it?",
    choices={
        "a": "a token sees later ones",
        "b": "the outputs do not depend on the position",
        "c": "the outputs are fine, the size of the cache is not",
    },
    seen="c",
    symptom=key_per_head,
    diagnosis=(
        "The layer is causal, knows positions, and would train. But what must be in its cache? If it is the turned "
        "keys, there is one for each head, and most of what the latent saved is gone.",
        "If it is the latent alone, each step has to rebuild and turn the positional keys of the whole past: a "
        "rotation stands between the query and a matrix again, exactly where absorption broke.",
        "Nothing in the outputs of a layer that was trained from scratch shows it. Two checks do: count the numbers in "
        "the cache, or load a checkpoint of the real layout. This mistake was found in public re-implementations.",
    ),
    caught_by="tests/model/test_mla.py::test_parameters_have_the_released_names_and_shapes",
)

# -- 4.B --

PROMPT, TOKENS = 8, 12


@torch.no_grad()
def off_by_token(mla: MLA, memory: LatentMemory | LatentMemory__raw_latent, x: Tensor) -> tuple[Tensor, float]:
    """Prefill and single steps with a cache that `memory` fills, against the whole text at once: largest difference of
    each token [T], and the largest output."""
    rope = RotaryEmbedding(SMALL)
    right = mla(x, *rope(torch.arange(TOKENS)))
    memory.load_state_dict({name: weight for name, weight in mla.state_dict().items() if name.startswith("kv_a_")})
    cache, outputs, done = LatentCache(SMALL, batch=1, max_len=TOKENS), [], 0
    for piece in (x[:, :PROMPT], *x[:, PROMPT:].split(1, dim=1)):
        cos, sin = rope(cache.begin(piece.shape[1]))
        outputs.append(mla(piece, cos, sin, cache=cache))
        cache.commit()
        end = done + piece.shape[1]
        cache.store[0, :, done:end] = memory(piece, cos, sin)  # what later steps will find
        done = end
    return (torch.cat(outputs, dim=1) - right).abs().amax(dim=(0, 2)), float(right.abs().max())


def raw_latent() -> Picture:
    torch.manual_seed(0)
    mla, x = MLA(SMALL), torch.randn(1, TOKENS, SMALL.hidden_size)
    for weight in mla.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    down = mla.kv_a_proj_with_mqa.weight.data[: SMALL.kv_lora_rank]  # W^DKV
    uneven = 1 + 0.2 * torch.randn(SMALL.kv_lora_rank)

    figure = Picture(*style.SIZE, layout="constrained")
    ax = figure.subplots()
    print(f"Largest difference from the whole text at once: {PROMPT} tokens of prefill | single steps")

    def show(name: str, memory: LatentMemory | LatentMemory__raw_latent, look: tuple[str, str, str]) -> None:
        off, largest = off_by_token(mla, memory, x)
        shown = [f"{value:.1f}" for value in off.tolist()]
        print(f"{name:32}", *shown[:PROMPT], "|", *shown[PROMPT:], f" of at most {largest:.1f}")
        ax.plot(off, color=look[0], linestyle=look[1], marker=look[2], label=name)

    show("normalised latents (right)", LatentMemory(SMALL), style.STYLES[0])
    exhibit = LatentMemory__raw_latent(SMALL)
    show("raw, fresh weights", exhibit, style.STYLES[1])
    mla.kv_a_layernorm.weight.data = uneven
    show("raw, uneven norm weights", exhibit, style.STYLES[2])
    down *= 3
    show("raw, latents 3 times as long", exhibit, style.STYLES[3])
    ax.axvline(PROMPT - 0.5, color=style.GREY, linewidth=1, linestyle=":")
    ax.set(xlabel="token (prefill on the left of the dotted line)", ylabel="largest difference")
    ax.set_title("Against the whole text at once")
    ax.legend(loc="upper left")
    return figure


RAW_LATENT = Exhibit(
    id="4.B",
    title="the cache holds the latent before its norm",
    exercise="4.5",
    mistake="raw latent",
    story="The raw latent goes into the cache, and the norm is left to whoever uses it. In the prefill somebody does "
    "that. In the step the past is taken from the cache as it is.",
    question="A prompt is read at once, then the text goes on one token at a time from this cache. What will you see?",
    choices={
        "a": "every output is off",
        "b": "the prefill is right, and every step after it is off",
        "c": "only the very first token is off",
    },
    seen="b",
    symptom=raw_latent,
    diagnosis=(
        "A test that looks at a whole text at once never sees it, and the first token that the model writes is right, "
        "because it comes from the prefill.",
        "With fresh weights latents happen to have about the length that the norm gives them, and the bug is at its "
        "smallest. With uneven norm weights it grows; with latents of another length it drowns the output. A norm of "
        "all ones hides bugs.",
        "Hence the test: prefill and single steps against the whole text, with uneven norm weights and a tight "
        "tolerance.",
    ),
    caught_by="tests/model/test_mla.py::test_cache_holds_the_normalised_latent_and_the_rotated_shared_key",
)

EXHIBITS = (KEY_PER_HEAD, RAW_LATENT)
