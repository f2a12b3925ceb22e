"""Bug museum of lesson 09: a module that is given its own target, and a matrix whose halves are swapped."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3_mini.config import ModelConfig
from dsv3_mini.course.exercises.lesson_09.joining import join, join__as_printed
from dsv3_mini.course.exercises.lesson_09.rows import mtp_rows, mtp_rows__own_target
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.paths import data_dir
from dsv3_mini.train.data import load_corpus
from dsv3_mini.train.evaluate import select_documents
from dsv3_mini.train.token_data import held_out_windows
from dsv3_mini.train.tokenizer import Tokenizer
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

# -- 9.A --

TOKENS, FOLLOWERS, LENGTH, STEPS = 32, 4, 20, 80
TINY = ModelConfig.preset(
    "nano", vocab_size=TOKENS, hidden_size=32, num_hidden_layers=1, intermediate_size=64, num_attention_heads=2,
    q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, n_routed_experts=4,
    num_experts_per_tok=2, moe_intermediate_size=32, n_group=1, topk_group=1,
)  # fmt: skip


def dice_text(texts: int, generator: torch.Generator) -> Tensor:
    """Texts [B, LENGTH] in which every token has four followers, all equally likely: nobody can say which comes."""
    followers = torch.rand(TOKENS, TOKENS, generator=torch.Generator().manual_seed(1)).topk(FOLLOWERS).indices
    columns = [torch.randint(TOKENS, (texts,), generator=generator)]
    for _ in range(LENGTH - 1):
        thrown = torch.randint(FOLLOWERS, (texts,), generator=generator)
        columns.append(followers[columns[-1], thrown])
    return torch.stack(columns, dim=1)


def module_logits(model: DeepSeekV3, text: Tensor, given: Tensor) -> Tensor:
    """What the first module says at each position [B, T - 1, V], when its tokens are `given`."""
    positions = given.shape[1]
    state = model.hidden_states(text[:, :-1])[:, :positions]
    embedded = model.model.embed_tokens(given)
    cos, sin = model.model.rotary(torch.arange(positions))
    return model.lm_head(model.mtp_modules[0].predict(embedded, state, cos, sin)[0])


def trained_with(rows: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> tuple[DeepSeekV3, list[float]]:
    """A small model whose module was trained on these rows, and the module's loss by step."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DeepSeekV3(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    generator, losses = torch.Generator().manual_seed(2), []
    for _ in range(STEPS):
        text = dice_text(16, generator)
        given, targets = rows(text, 1)
        main = F.cross_entropy(model(text[:, :-1], mtp=False).logits.flatten(0, 1), text[:, 1:].flatten())
        module = F.cross_entropy(module_logits(model, text, given).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        (main + 0.3 * module).backward()
        optimizer.step()
        losses.append(module.item())
    return model, losses


def own_target() -> Picture:
    figure = Picture(*style.SIZE, layout="constrained")
    ax = figure.subplots()
    text = dice_text(64, torch.Generator().manual_seed(3))
    given, targets = mtp_rows(text, 1)  # at work there is nothing else: the target is not written yet
    floor = math.log(FOLLOWERS)
    print(f"Each token has {FOLLOWERS} equally likely followers: no model can get below ln {FOLLOWERS} = {floor:.2f}.")
    for name, rows, (colour, line, _) in zip(("right", "exhibit"), (mtp_rows, mtp_rows__own_target), style.STYLES):
        model, losses = trained_with(rows)
        with torch.no_grad():
            logits = module_logits(model, text, given)
        at_work = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        repeats = (logits.argmax(-1) == given).float().mean()
        print(f"{name:8} loss of the module in training {losses[-1]:.2f}; at work {at_work:.2f};", end=" ")
        print(f"it repeats the token that it is given at {repeats:.0%} of the positions")
        ax.plot(losses, color=colour, linestyle=line, label=name)
    ax.axhline(floor, color=style.GREY, linewidth=1, linestyle=":")
    ax.text(STEPS, floor - 0.08, "nobody can do better", color=style.GREY, ha="right", va="top")
    ax.set(xlabel="training step", ylabel="loss of the module", ylim=(0, None))
    ax.set_title("A loss that is too good")
    ax.legend()
    return figure


OWN_TARGET = Exhibit(
    id="9.A",
    title="the module is given its own target",
    exercise="9.1",
    mistake="own target",
    story="The token after position i is `targets[i]`. So the code takes the embeddings from the row of targets, and "
    "shifts that row by the depth, like everything else that belongs to the module.",
    question="The text is made with dice: every token has four followers, all equally likely. A module is trained on "
    "these rows. What will its loss do?",
    choices={
        "a": "fall to ln 4, like that of the right module",
        "b": "fall to nearly nothing, far below ln 4",
        "c": "hardly fall, since state and token do not belong together",
    },
    seen="b",
    symptom=own_target,
    diagnosis=(
        "`targets` is shifted by one already. Shifted by the depth again, it holds the token to be predicted. The "
        "module learns the one thing that helps: to say what it is given.",
        "In training nothing looks wrong; the curve is better than anybody's. It shows when the module has to work. "
        "Then its target is not written yet, it is given the token before, and it repeats that.",
        "Two ways to notice: a loss below what the text allows (for depth 1, below that of the main model is "
        "suspicious enough), and the test by hand: change one token, and look which predictions move.",
    ),
    caught_by="tests/model/test_mtp.py::test_worked_example_of_seven_tokens_who_sees_whom",
)

# -- 9.B --

Join = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def nano_module(model: DeepSeekV3, tokens: Tensor, joined: Join, eh_proj: Tensor) -> Tensor:
    """Logits of the module [B, T - 1, V] when the two halves are joined by `joined`."""
    module = model.mtp_modules[0]
    embedded, state = model.model.embed_tokens(tokens[:, 1:]), model.hidden_states(tokens)[:, :-1]
    x = joined(embedded, state, module.enorm.weight, module.hnorm.weight, eh_proj)
    cos, sin = model.model.rotary(torch.arange(x.shape[1]))
    return model.lm_head(module.shared_head.norm(module(x, cos, sin)[0]))


@torch.no_grad()
def swapped_halves() -> None:
    folder = data_dir() / "checkpoints" / "nano"
    model, tokenizer = load_pretrained(folder, dtype=torch.float32), Tokenizer.load(folder)
    documents = select_documents(load_corpus().heldout, 12_000)
    text = held_out_windows(tokenizer.encode_batch([d.text for d in documents]), tokenizer, 256)
    counted = text.targets[:, 1:] != -100
    targets, says = text.targets[:, 1:][counted], model(text.inputs, mtp=False).logits[:, 1:].argmax(-1)[counted]
    weight = model.mtp_modules[0].eh_proj.weight
    right = nano_module(model, text.inputs, join, weight)
    wrong = nano_module(model, text.inputs, join__as_printed, weight)
    print(f"The shipped nano on {len(targets):,} held-out tokens: loss of the module, and how often it says what the")
    print("main model says one token later")
    for name, logits in (("right", right), ("exhibit", wrong)):
        loss, agrees = F.cross_entropy(logits[counted], targets), (logits[counted].argmax(-1) == says).float().mean()
        print(f"{name:8} loss {loss:5.2f}   agrees {agrees:6.1%}")
    print(f"A guess among all {model.cfg.vocab_size:,} tokens costs ln {model.cfg.vocab_size:,} =", end=" ")
    print(f"{math.log(model.cfg.vocab_size):.2f}.")
    first, second = weight.chunk(2, dim=1)
    mended = nano_module(model, text.inputs, join__as_printed, torch.cat((second, first), dim=1))
    print(
        f"The exhibit with the halves of the matrix swapped, too: logits differ by {(mended - right).abs().max():.0e}."
    )


SWAPPED_HALVES = Exhibit(
    id="9.B",
    title="the halves of eh_proj swapped",
    exercise="9.2",
    mistake="order of the report",
    story="Somebody writes the module from Eq. 21, letter by letter, and loads weights that were trained elsewhere. "
    "All names and all shapes fit.",
    question="The shipped nano, which was trained with the order of the released weights, gets this code. What will "
    "the module do?",
    choices={
        "a": "work as before: the matrix has a column for everything",
        "b": "work a little worse: half of what it reads is right",
        "c": "be of no use at all, while the main model works as before",
    },
    seen="c",
    symptom=swapped_halves,
    diagnosis=(
        "Each column of `eh_proj` belongs to one channel of one half. In the other order every column meets a channel "
        "that it was not trained with.",
        "In training from scratch the order does not matter, and no test of our own weights would ever show it: swap "
        "the halves of the matrix, and the numbers are back. It is a matter of whose weights you load (D13).",
        "In use it hides well. The main model checks every draft, so the text that comes out stays right. Only the "
        "share of accepted drafts falls to almost nothing, and with it the speed.",
    ),
    caught_by="tests/model/test_mtp.py::test_chain_step_by_step",
)

EXHIBITS = (OWN_TARGET, SWAPPED_HALVES)
