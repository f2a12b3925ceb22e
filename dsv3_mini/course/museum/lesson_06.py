"""Exhibits of lesson 06: the factor on the shared expert, and tokens of other machines sent to expert 0."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3_mini.config import ModelConfig
from dsv3_mini.course.exercises.lesson_06.machines import local_part, local_part__foreign_to_zero
from dsv3_mini.course.exercises.lesson_06.whole_layer import moe, moe__factor_on_the_sum
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.model.moe import MLP
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

TOKENS, WIDTH, EXPERTS, TOP_K = 512, 64, 16, 4


def _networks(count: int) -> list[MLP]:
    networks = [MLP(WIDTH, 32) for _ in range(count)]
    for network in networks:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return networks


def _routed_tokens() -> tuple[Tensor, Tensor]:
    """Random tokens [N, D] and their scores [N, E] with random centroids."""
    x = torch.randn(TOKENS, WIDTH)
    return x, (x @ torch.randn(WIDTH, EXPERTS) / WIDTH**0.5).sigmoid()


@torch.no_grad()
def factor_on_the_shared_expert() -> None:
    """The mistake beside the right code, for the report's factor (none) and the released one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, scores = _routed_tokens()
        experts, (shared,) = _networks(EXPERTS), _networks(1)
        released = ModelConfig.preset("v3-671b").routed_scaling_factor
        only_shared = shared(x)
        for factor, where in ((1.0, "as in Eq. 13"), (released, "as in the released config")):
            right = moe(x, scores, TOP_K, factor, experts, shared)
            wrong = moe__factor_on_the_sum(x, scores, TOP_K, factor, experts, shared)
            share = ((wrong - right) * only_shared).sum() / only_shared.pow(2).sum()
            print(f"factor {factor}, {where}:")
            print(f"  finite: {bool(wrong.isfinite().all())}, shape {list(wrong.shape)} as it should be")
            print(f"  largest difference from the right output: {(wrong - right).abs().max():.1e}")
            print(f"  what is too much is {share:.1f} times what the shared expert says")


@torch.no_grad()
def tokens_of_other_machines() -> Picture:
    """The mistake on one, two and four machines; gives the tokens per expert on four."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, scores = _routed_tokens()
        experts = _networks(EXPERTS)
        chosen, ids = scores.topk(TOP_K, dim=-1)
        weights = chosen / chosen.sum(-1, keepdim=True)
        for machines in (1, 2, 4):
            here = EXPERTS // machines
            spread = [(first, experts[first : first + here]) for first in range(0, EXPERTS, here)]
            right = sum(local_part(x, ids, weights, *part) for part in spread)
            wrong = sum(local_part__foreign_to_zero(x, ids, weights, *part) for part in spread)
            off = (wrong - right).norm() / right.norm()
            print(f"{machines} machine{'s' * (machines > 1)}: error {off:.0%} of the output", end="")
            rows = machines * TOKENS * TOP_K
            print(f"; {rows:,} rows computed, {TOKENS * TOP_K:,} are right")
    load = torch.bincount(ids.flatten(), minlength=EXPERTS)
    flooded = load.clone()
    flooded[::here] += TOKENS * TOP_K - load.view(machines, here).sum(1)
    figure = Picture(*style.SIZE, layout="constrained")
    ax = figure.subplots()
    ax.bar(range(EXPERTS), flooded, color=style.tint(style.VERMILLION), edgecolor=style.VERMILLION, hatch="//")
    ax.bar(range(EXPERTS), load, color=style.BLUE)
    ax.set(xlabel="expert", ylabel="rows computed", xticks=range(EXPERTS))
    ax.set_title("Four machines: solid what was sent, hatched what the bug adds")
    return figure


EXHIBITS = (
    Exhibit(
        id="6.A",
        title="the factor on the shared expert",
        exercise="6.5",
        mistake="factor_on_the_sum",
        story=(
            "Somebody moves the factor out of the gate weights to the end of the layer: one multiplication instead of "
            "one for every choice. The routed part is linear in its weights, so that is the same."
        ),
        question="The layer runs with factor 1 and with the released one. What will you see?",
        choices={
            "a": "both outputs are right: the factor may stand anywhere",
            "b": "right with factor 1; with the released one the shared expert is too loud",
            "c": "wrong with both",
            "d": "right with factor 1; with the released one the numbers overflow",
        },
        seen="b",
        symptom=factor_on_the_shared_expert,
        diagnosis=(
            "The factor may move out of the sum over the routed experts, and not beyond it: the shared expert is added "
            "after it. All tests on a config with the report's equations alone (factor 1) pass, training works, and a "
            "checkpoint that was trained with this bug is used to it. Only weights that somebody else has trained show "
            "it.",
            "How to recognise it: test with a factor other than 1, and with the shared expert set to zero and not. A "
            "test in which a number is 1 cannot see where that number is multiplied.",
        ),
        caught_by=("tests/model/test_experts.py::test_moe_is_routed_plus_shared_and_only_the_routed_part_is_scaled"),
    ),
    Exhibit(
        id="6.B",
        title="every other token to expert 0",
        exercise="6.6",
        mistake="foreign_to_zero",
        story=(
            "The experts are spread over machines. Expert numbers of other machines would point outside the local "
            "list, so they are replaced by a number that is inside: 0. (The expert-parallel path of a public "
            "re-implementation sent every token to expert 0.)"
        ),
        question="The parts of all machines are added up. What will you see?",
        choices={
            "a": "an error on every machine but the first",
            "b": "right on one machine; wrong on two, and worse on four",
            "c": "right on any number of machines: the wrong rows cancel",
            "d": "wrong on any number of machines, one included",
        },
        seen="b",
        symptom=tokens_of_other_machines,
        diagnosis=(
            "A safe index is not a row that counts nothing. Whoever replaces a foreign number by 0 must also set its "
            "weight to 0, or leave the row out. Here local expert 0 of every machine answers for all tokens of all "
            "others. With one machine there is no foreign number, so the unit test on a laptop is green.",
            "How to recognise it: the parts of the machines must add up to the undivided layer, for every way to "
            "divide it; and the rows computed on all machines together must be tokens times choices.",
        ),
        caught_by="tests/model/test_experts.py::test_equals_token_by_token_forward_and_backward",
    ),
)
