"""Exhibits of lesson 01: heads merged by reshape alone, and a causal mask that is off by one."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv3_mini.course.exercises.lesson_01.document_mask import document_mask, document_mask__counts_from_the_target
from dsv3_mini.course.exercises.lesson_01.merge_heads import merge_heads, merge_heads__reshape_alone
from dsv3_mini.course.exercises.lesson_01.reach import reach
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

T, D, H, K = 8, 32, 4, 16


def mixed_tokens() -> Picture:
    """Which outputs move when the last token is replaced, and what is in the merged rows."""
    generator = torch.Generator().manual_seed(1)
    q_k_v = torch.randn(3, D, H * K, generator=generator) / math.sqrt(D)
    text = torch.randn(1, T, D, generator=generator)

    def attention(merge: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def layer(x: Tensor) -> Tensor:
            q, k, v = ((x @ w).view(1, T, H, K).transpose(1, 2) for w in q_k_v)
            out: Tensor = merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))
            return out

        return layer

    moves = {
        "right": reach(attention(merge_heads), text),
        "with the bug": reach(attention(merge_heads__reshape_alone), text),
    }
    print(f"{T} tokens, {H} heads: outputs that move when the last token (position {T - 1}) is replaced")
    for name, table in moves.items():
        print(f"  {name:13} {table[:, -1].nonzero().flatten().tolist()}")
    small = torch.tensor([[10 * t + c for c in range(4)] for t in range(4)]).view(1, 4, 2, 2)  # B T H K
    by_head = small.transpose(1, 2)
    print("Four tokens, two heads of width 2; tens digit = token. The merged rows are")
    for name, merge in (("right", merge_heads), ("with the bug", merge_heads__reshape_alone)):
        print(f"  {name:13} {' '.join(str(row) for row in merge(by_head)[0].tolist())}")
    return _two_tables(moves)


def _two_tables(tables: dict[str, Tensor]) -> Picture:
    figure = Picture(*style.SIZE, layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        ax.imshow(table.tolist(), cmap="cividis", vmin=0, vmax=1)
        for row, column in table.nonzero().tolist():
            ax.text(column, row, "x", ha="center", va="center", color=style.INK, fontsize=9)
        ax.set(title=name, xlabel="replaced token", xticks=range(T), yticks=range(T))
        ax.spines[:].set_visible(False)
    axes[0].set_ylabel("output (x: it moves)")
    return figure


LETTERS, HALF = 16, 8  # the copy task: random letters, then the same again
STEPS, WIDTH, BATCH = 200, 48, 64


class Copyist(nn.Module):
    """Letters, learned positions and one attention layer of one head, with any mask."""

    def __init__(self, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mask = mask
        self.embed, self.places = nn.Embedding(LETTERS, WIDTH), nn.Embedding(2 * HALF, WIDTH)
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, LETTERS)

    def forward(self, text: Tensor) -> Tensor:
        """text [B, T] -> scores of the next letter [B, T, letters]."""
        h = self.embed(text) + self.places(torch.arange(text.shape[1]))
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        one_document = torch.zeros(text.shape[1], dtype=torch.long)
        h = h + F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(one_document))
        scores: Tensor = self.head(h)
        return scores


def train(mask: Callable[[Tensor], Tensor]) -> tuple[Copyist, list[float]]:
    """A trained model and its loss at every step."""
    torch.manual_seed(0)
    model, history = Copyist(mask), []
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        text = torch.randint(LETTERS, (BATCH, HALF)).repeat(1, 2)
        loss = F.cross_entropy(model(text[:, :-1]).transpose(1, 2), text[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return model, history


@torch.no_grad()
def loss_when_writing(model: Copyist) -> float:
    """Loss on new texts with the right mask: when a model writes, there is nothing behind its last token."""
    text = torch.randint(LETTERS, (500, HALF), generator=torch.Generator().manual_seed(1)).repeat(1, 2)
    model.mask = document_mask
    return F.cross_entropy(model(text[:, :-1]).transpose(1, 2), text[:, 1:]).item()


def too_good() -> Picture:
    """The loss of two training runs, and that of the two models when there is no future to look at."""
    lowest = (HALF - 1) * math.log(LETTERS) / (2 * HALF - 1)
    masks = {"right": document_mask, "with the bug": document_mask__counts_from_the_target}
    curves = {}
    print(f"the task: {HALF} random letters out of {LETTERS}, then the same again; predict each next letter")
    print(f"{'':14}{'loss in training':>17}{'loss when it writes':>22}")
    with torch.random.fork_rng(devices=[]):
        for name, mask in masks.items():
            model, curves[name] = train(mask)
            end = sum(curves[name][-20:]) / 20
            print(f"{name:14}{end:17.2f}{loss_when_writing(model):22.2f}")
    print(
        f"A guess among {LETTERS} letters costs ln {LETTERS} = {math.log(LETTERS):.2f}, and {HALF - 1} of the ", end=""
    )
    print(f"{2 * HALF - 1} letters are random: lowest possible loss {lowest:.2f}")

    figure = Picture(*style.SIZE, layout="constrained")
    ax = figure.subplots()
    for (name, history), (colour, line, _) in zip(curves.items(), style.STYLES):
        ax.plot(history, color=colour, linestyle=line)
        style.label_line(ax, STEPS - 1, history[-1], name, colour, offset=(5, 8))
    ax.axhline(lowest, color=style.GREY, linewidth=1, linestyle=":")
    ax.text(60, lowest - 0.18, "no honest model gets below this line", color=style.GREY)
    ax.set(xlabel="step", ylabel="training loss", xlim=(0, STEPS * 1.25), ylim=(0, 3.2))
    ax.set_title("The loss of the copy task, with the right mask and with the bug")
    return figure


EXHIBITS = (
    Exhibit(
        id="1.A",
        title="reshape without transpose",
        exercise="1.2",
        mistake="reshape alone",
        story=(
            "Attention gives [B, H, T, K], the output matrix wants [B, T, H * K]. Both have equally many elements, so "
            "one reshape will do."
        ),
        question=(
            "A causal attention with four heads and eight tokens merges its heads like this. The last token is "
            "replaced. Which outputs move?"
        ),
        choices={
            "a": "none: the program stops with an error about shapes",
            "b": "the last one only, as it should be; its channels stand in another order",
            "c": "several, also outputs before the last token",
        },
        seen="c",
        symptom=mixed_tokens,
        diagnosis=(
            "reshape never moves a number; it counts off the same memory in other portions. In [B, H, T, K] all tokens "
            "of head 0 come first in memory, so a row of H * K numbers holds several tokens of one head, where it "
            "should hold all heads of one token. The last token stands at the end of each head's portion, and so it "
            "lands in rows all over the text: the future leaks, behind a mask that is right.",
            "How to recognise it: name the axes before you merge two of them. Only neighbours in the right order may "
            "be joined. And replace a token, and see what moves: the shapes say nothing here.",
        ),
        caught_by="tests/model/test_attention.py::test_no_token_sees_a_later_one",
    ),
    Exhibit(
        id="1.B",
        title="a mask that is off by one",
        exercise="1.1",
        mistake="counts from the target",
        story="Token t is trained to predict token t + 1. Somebody counts positions from there when writing the mask.",
        question=(
            f"A small model learns to copy: {HALF} random letters, then the same again. It is trained once with the "
            "right mask and once with this one. What will the loss curves look like?"
        ),
        choices={
            "a": "the same: one token more or less makes no difference",
            "b": "with the bug the loss is higher: the mask is wrong, so the model learns less",
            "c": "with the bug the loss is lower, lower than any honest model can get",
        },
        seen="c",
        symptom=too_good,
        diagnosis=(
            "Each token sees the one right after itself, which is the answer. The loss falls through the line that no "
            "honest model can cross, since random letters cannot be known. It would look as good on validation texts: "
            "the answer leaks there, too.",
            "It shows when the model has to write. Then there is no next token to look at, and the model, which never "
            "learned to do without, is sure of wrong letters: its loss is higher than that of a plain guess.",
            "How to recognise it: ask before training what loss is possible at all, and distrust a run that is better. "
            "Or let the model write.",
        ),
        caught_by="tests/model/test_attention.py::test_no_token_sees_a_later_one",
    ),
)
