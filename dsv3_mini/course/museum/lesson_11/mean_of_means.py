"""Exhibit 11.B: the mean of the means of micro-batches that are not equally long."""

from __future__ import annotations

import torch

from dsv3_mini.course.exercises.lesson_11.batch_loss import batch_loss, batch_loss__mean_of_means
from dsv3_mini.course.showcase import Exhibit

WORDS, STEPS = 5, 300
LONG, SHORT = 400, 8  # tokens in the two parts of each batch


def learned_shares() -> None:
    """A model that knows nothing but how often each token comes. What does it learn?"""
    generator = torch.Generator().manual_seed(0)
    long = torch.randint(0, WORDS - 1, (LONG,), generator=generator)  # the last token never comes in long texts
    short = torch.full((SHORT,), WORDS - 1)  # short ones consist of nothing else
    true = SHORT / (LONG + SHORT)
    print(f"Each batch has a part of {LONG} tokens and one of {SHORT}. Token {WORDS - 1} is only in the short one:")
    print(f"it makes {true:.1%} of all tokens.")
    for name, loss_of in (("right", batch_loss), ("exhibit", batch_loss__mean_of_means)):
        says = torch.zeros(WORDS, requires_grad=True)
        optimizer = torch.optim.Adam([says], lr=0.05)
        for _ in range(STEPS):
            loss = loss_of([says.expand(LONG, -1), says.expand(SHORT, -1)], [long, short])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        learned = says.detach().softmax(-1)[-1].item()
        with torch.no_grad():
            on_all = batch_loss([says.expand(LONG, -1), says.expand(SHORT, -1)], [long, short])
        print(f"{name:8} the model gives it {learned:5.1%}; loss over all tokens {on_all:.3f}, its own {loss:.3f}")


MEAN_OF_MEANS = Exhibit(
    id="11.B",
    title="the mean of means",
    exercise="11.5",
    mistake="mean of means",
    story="The batch does not fit into memory, so it goes through in parts. Cross entropy gives the mean of each "
    "part, and the parts are averaged.",
    question="A batch has a part of 400 tokens and one of 8; one token comes in the small part only. A model is "
    "trained this way until its loss stays. How often does it expect that token?",
    choices={
        "a": "as often as it comes: 2 %",
        "b": "in half of the cases",
        "c": "never: its part is too small to be learned",
    },
    seen="b",
    symptom=learned_shares,
    diagnosis=(
        "Each part gets the same weight, so a token of the small part weighs fifty times one of the large part. The "
        "model learns a text in which both parts are equally long.",
        "With parts of equal size nothing is wrong, and in pre-training on packed sequences all parts are equal. It "
        "breaks when lengths differ, as in fine-tuning on answers, and when places are left out of the loss.",
        "The remedy is one line: divide by the number of targets in the whole batch. The test: the gradient of a batch "
        "in parts is that of the batch in one piece.",
    ),
    caught_by="tests/train/test_loop.py::test_micro_batches_add_up_to_the_whole_batch",
)
