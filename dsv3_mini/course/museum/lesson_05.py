"""Exhibits of lesson 05: a softmax scale from the wrong width, and value rows where key rows belong.

Both are shown in the shipped model as well, whose layers can be made to decode with the functions of the exercises.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dsv3_mini.config import ModelConfig
from dsv3_mini.course.exercises.lesson_05.output import latent_output
from dsv3_mini.course.exercises.lesson_05.query import absorb_query, absorb_query__value_rows
from dsv3_mini.course.exercises.lesson_05.scores import latent_scores, latent_scores__scale_of_the_memory
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.generate.cache import LatentCache
from dsv3_mini.generate.decode import generate
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.model.mla import MLA
from dsv3_mini.model.rope import RotaryEmbedding
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.paths import repo_root
from dsv3_mini.train.tokenizer import Tokenizer
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

PROMPT = "def read(self, path):\n    with open(path) as"
V3 = ModelConfig.preset("v3-671b")
CONTEXTS = (64, 256, 1024, 4096, 16_384)
ABOVE = 12.0  # score of the token that a head looks for; all others are noise of size 1


def shipped() -> tuple[DeepSeekV3, Tokenizer]:
    """The small trained model that comes with the course."""
    folder = repo_root() / "data" / "checkpoints" / "nano"
    return load_pretrained(folder, dtype=torch.float32), Tokenizer.load(folder)


def attend_by(mla: MLA, absorb: Callable[..., Tensor], score: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A way to attend for `mla.attend_absorbed` that is made of functions of the exercises."""

    def attend(q_nope: Tensor, q_pe: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        kv_b = mla.kv_b_proj.weight
        scores = score(absorb(q_nope, kv_b), q_pe, memory, mla.nope_dim)  # [B, H, T, S]
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(1), float("-inf"))
        out: Tensor = latent_output(scores.softmax(-1), memory, kv_b, mla.v_dim)
        return out.unflatten(-1, (mla.heads, mla.v_dim))

    return attend


def decode_with(model: DeepSeekV3, absorb: Callable[..., Tensor]) -> DeepSeekV3:
    """Make every layer absorb its queries this way. The prefill stays as it is, expanded."""
    for module in model.modules():
        if isinstance(module, MLA):
            module.attend_absorbed = attend_by(module, absorb, latent_scores)  # type: ignore[method-assign]
    return model


@torch.no_grad()
def continuation(model: DeepSeekV3, tokenizer: Tokenizer) -> str:
    """What the model writes behind `PROMPT`, greedily, on one line."""
    (new,) = generate(model, [tokenizer.encode(PROMPT)], max_new_tokens=28)
    return repr(tokenizer.decode(new))


def shares_of_one(score: Callable[..., Tensor]) -> list[float]:
    """At the widths of V3, by context: the share that one head gives to the one token that fits its query."""
    found, width = [], V3.cache_width
    for context in CONTEXTS:
        generator = torch.Generator().manual_seed(0)
        query = torch.randn(width, generator=generator)
        query *= math.sqrt(V3.qk_head_dim) / query.norm()  # scaled scores of random tokens then have size 1
        memory = torch.randn(1, context, width, generator=generator)
        place, aim = context // 3, ABOVE * math.sqrt(V3.qk_head_dim)
        memory[0, place] += (aim - memory[0, place] @ query) * query / query.square().sum()
        q_latent, q_r = query.view(1, 1, 1, width).split((V3.kv_lora_rank, V3.qk_rope_head_dim), dim=-1)
        shares = score(q_latent, q_r, memory, V3.qk_nope_head_dim).softmax(-1)  # [1, 1, 1, S]
        found.append(shares[..., place].item())
    return found


def too_flat() -> Picture:
    """How much of its attention a head gives to the token that it looks for, right and with the bug."""
    scores = {"right": latent_scores, "with the bug": latent_scores__scale_of_the_memory}
    shares = {name: shares_of_one(score) for name, score in scores.items()}
    print("one token fits the query; the share it gets, at the widths of V3")
    print(f"{'context':14}" + "".join(f"{context:>9,}" for context in CONTEXTS))
    for name, values in shares.items():
        print(f"{name:14}" + "".join(f"{value:9.3f}" for value in values))
    times = math.sqrt(V3.cache_width / V3.qk_head_dim)
    print(f"every score is {times:.2f} times too small, so their order is right, and so is the largest")

    figure = Picture(*style.SIZE, layout="constrained")
    ax = figure.subplots()
    for (name, values), (colour, line, marker) in zip(shares.items(), style.STYLES):
        ax.plot(CONTEXTS, values, color=colour, linestyle=line, marker=marker)
        style.label_line(ax, CONTEXTS[-1], values[-1], name, colour, offset=(8, 0))
    ax.set(xscale="log", xlabel="tokens in the memory", ylabel="share of the token that fits", ylim=(0, 1.05))
    ax.set_xlim(CONTEXTS[0] * 0.8, CONTEXTS[-1] * 4)
    ax.set_title("A head that looks for one token", loc="left", fontweight="bold")
    return figure


@torch.no_grad()
def wrong_rows() -> Picture:
    """Error of each position when a text is prefilled and then decoded, and what the shipped model writes."""
    cfg = ModelConfig.preset("nano", v_head_dim=32, qk_nope_head_dim=32)  # equally wide, as in V3: no shape objects
    tokens, prompt = 24, 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mla, x, rope = MLA(cfg), torch.randn(1, tokens, cfg.hidden_size), RotaryEmbedding(cfg)
        for weight in mla.parameters():
            if weight.dim() == 2:
                torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    right = mla(x, *rope(torch.arange(tokens)))
    errors = {}
    for name, absorb in (("right", absorb_query), ("with the bug", absorb_query__value_rows)):
        mla.attend_absorbed = attend_by(mla, absorb, latent_scores)  # type: ignore[method-assign]
        cache, pieces = LatentCache(cfg.replace(num_hidden_layers=1), 1, tokens), []
        for piece in (x[:, :prompt], *x[:, prompt:].split(1, dim=1)):
            pieces.append(mla(piece, *rope(cache.begin(piece.shape[1])), cache=cache))
            cache.commit()
        errors[name] = (torch.cat(pieces, dim=1) - right).abs().amax(dim=(0, 2))
    print(f"largest error against the whole text at once (outputs reach {right.abs().max():.1f})")
    print(f"{'':14}{'prefill':>10}{'decoded':>10}")
    for name, error in errors.items():
        print(f"{name:14}{error[:prompt].max():10.1e}{error[prompt:].max():10.1e}")
    print(f"the small shipped model writes, behind {PROMPT!r},")
    for name, absorb in (("right", absorb_query), ("with the bug", absorb_query__value_rows)):
        model, tokenizer = shipped()
        print(f"{name:14}{continuation(decode_with(model, absorb), tokenizer)}")

    figure = Picture(*style.SIZE, layout="constrained")
    ax = figure.subplots()
    for (name, error), (colour, line, marker) in zip(errors.items(), style.STYLES):
        ax.plot(error, color=colour, linestyle=line, marker=marker, label=name)
    ax.axvline(prompt - 0.5, color=style.GREY, linestyle=":", linewidth=1)
    middle = errors["with the bug"].max() / 4
    ax.text(prompt - 0.8, middle, "prefill", color=style.GREY, ha="right")
    ax.text(prompt - 0.2, middle, "decoded", color=style.GREY)
    ax.set(xlabel="position", ylabel="largest error of an output")
    ax.set_title("One layer, prefill and then steps", loc="left", fontweight="bold")
    ax.legend(loc="center left")
    return figure


EXHIBITS = (
    Exhibit(
        id="5.A",
        title="the scale of what is multiplied",
        exercise="5.2",
        mistake="scale of the memory",
        story=(
            "Attention divides by the square root of the width of its vectors. In the latent the vectors are as wide "
            "as the memory, so that is what somebody divides by."
        ),
        question=(
            "At the sizes of V3 this divides by the square root of 576 in place of 192. A model decodes with it. What "
            "will you see?"
        ),
        choices={
            "a": "nothing: softmax makes shares that sum to one whatever the scale",
            "b": "the largest share goes to another token",
            "c": "the right token still gets the largest share, but less and less of it as the text grows",
            "d": "NaN, because the scores overflow",
        },
        seen="c",
        symptom=too_flat,
        diagnosis=(
            "The square root of the width keeps scores of random keys at size one, and a key of the model is 192 wide: "
            "it was trained with that. The latent form computes the very same products by another route, so it needs "
            "the very same scale. With a smaller one softmax is too flat: every head listens a little more to "
            "everybody. Among few tokens that hardly shows; among many the crowd wins.",
            "How to recognise it: nothing in decoding alone looks wrong. But the same token, read in the prefill "
            "(expanded) and as a step (absorbed), gets different outputs. Compare the two, tightly.",
        ),
        caught_by="tests/model/test_mla.py::test_any_way_of_cutting_the_text_equals_one_pass",
    ),
    Exhibit(
        id="5.B",
        title="value rows where key rows belong",
        exercise="5.1",
        mistake="value rows",
        story=(
            "kv_b_proj holds the up-projections of keys and values, head by head. In V3 both are equally wide, so "
            "nothing objects when the wrong half is absorbed."
        ),
        question="A model reads a prompt and then decodes with this. Which outputs are wrong?",
        choices={
            "a": "none: the program stops with an error about shapes",
            "b": "all of them",
            "c": "those of the prompt are right, and so is the first new token; every decoded one is off",
            "d": "the first ones are right, and the error grows slowly with the length of the text",
        },
        seen="c",
        symptom=wrong_rows,
        diagnosis=(
            "The prefill is expanded and never absorbs anything, and the first new token is read off its last output. "
            "The first step that absorbs multiplies the query with W^UV: a matrix of the right shape that has nothing "
            "to do with keys. The content scores are noise; only the positional part still works.",
            "Look at what the small model writes: no worse than before. It has only a few layers, and gets along with "
            "the tokens right before it. Whoever tests by reading samples lets this pass; a larger model that looks "
            "things up in its text would lose them.",
            "How to recognise it: compare numbers, not texts, and do it at the first decoded position. And test at "
            "least once with values of another width than keys: then the shapes object.",
        ),
        caught_by="tests/model/test_mla.py::test_equals_the_equations",
    ),
)
