"""Exhibit 7.D: groups that are ranked by their best expert."""

from __future__ import annotations

import torch

from dsv3_mini.course.exercises.lesson_07.node_limited_gates import (
    node_limited_gates,
    node_limited_gates__best_expert_of_a_group,
)
from dsv3_mini.course.museum.lesson_07.router import EXPERTS, GROUPS, KEPT, tokens_and_popularity
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture


def one_star_and_three_others() -> Picture:
    """The mistake for several numbers of experts a token; gives what the chosen scores add up to."""
    generator = torch.Generator().manual_seed(0)
    logits, popularity = tokens_and_popularity(generator)
    scores, no_bias = (logits + popularity).sigmoid(), torch.zeros(EXPERTS)
    best = scores.argmax(-1, keepdim=True)
    numbers, gained = list(range(2, 9)), []
    for top_k in numbers:
        chosen = [
            gates(scores, no_bias, GROUPS, KEPT, top_k) > 0
            for gates in (node_limited_gates, node_limited_gates__best_expert_of_a_group)
        ]
        right, wrong = ((scores * mask).sum(-1) for mask in chosen)
        gained.append(float((wrong - right).mean()))
        keep = [float(mask.gather(-1, best).float().mean()) for mask in chosen]
        print(f"{top_k} experts a token: {keep[0]:4.0%} keep their best expert with the two best, ", end="")
        print(f"{keep[1]:4.0%} with the mistake; its chosen scores add up to {gained[-1]:+.3f}")
    figure = Picture(*style.SIZE, layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=style.INK, linewidth=0.8)
    axes.plot(numbers, gained, color=style.VERMILLION, marker="o")
    axes.set(xlabel="experts a token", ylabel="chosen scores, wrong minus right")
    axes.set_title("Two of four groups open: what the mistake gains or loses")
    return figure


BEST_OF_A_GROUP = Exhibit(
    id="7.D",
    title="a group with one star",
    exercise="7.3",
    mistake="group score by the maximum",
    story="A token wants its best expert. So a group is worth what its best expert is worth.",
    question="Two of four groups are open, and a token uses four experts. What will you see?",
    choices={
        "a": "nothing: the group of the best expert is the best group",
        "b": "every token keeps its best expert, but its four together fit less well",
        "c": "tokens visit three groups or four",
        "d": "the best expert of many tokens is shut out",
    },
    seen="b",
    symptom=one_star_and_three_others,
    diagnosis=(
        "A token takes more than one expert out of a group, so one star does not make a good group. The report adds up "
        "as many of the best as a token takes from each group on average. With that rule some tokens lose their very "
        "best expert, and win more with the others. For one expert a group the maximum *is* the rule: look at "
        "the left end of the picture.",
        "How to recognise it: a test with one group of a star among poor experts, and one group of two good ones. "
        "With random scores most tokens go to the same groups either way, and all sums look right.",
    ),
    caught_by="tests/model/test_router.py::test_group_is_chosen_by_the_sum_of_its_two_best",
)
