"""Exhibit 11.C: every tensor clipped by its own norm."""

from __future__ import annotations

import torch

from dsv3_mini.course.exercises.lesson_11.clipped import clipped, clipped__each
from dsv3_mini.course.showcase import Exhibit
from dsv3_mini.interop.load import load_pretrained
from dsv3_mini.paths import data_dir
from dsv3_mini.train.corpus import embedded_corpus
from dsv3_mini.train.evaluate import select_documents
from dsv3_mini.train.tokenizer import Tokenizer
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

LENGTH, ROWS = 64, 4


def real_gradients() -> tuple[list[str], list[torch.Tensor]]:
    """Names and gradients of the shipped nano's tensors, on a little held-out text."""
    folder = data_dir() / "checkpoints" / "nano"
    model, tokenizer = load_pretrained(folder, dtype=torch.float32), Tokenizer.load(folder)
    model.requires_grad_(True)
    documents = select_documents(embedded_corpus().heldout, 4_000)
    ids = torch.tensor([token for document in documents for token in tokenizer.encode(document.text)])
    rows = ids[: ROWS * (LENGTH + 1)].view(ROWS, LENGTH + 1)
    with torch.enable_grad():
        model(rows[:, :-1], rows[:, 1:], keep_logits=False).losses["main"].backward()
    named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    return [name for name, _ in named], [gradient for _, gradient in named]


def long(gradients: list[torch.Tensor]) -> torch.Tensor:
    """All numbers in one row."""
    return torch.cat([gradient.flatten() for gradient in gradients])


def turned() -> Picture:
    _, gradients = real_gradients()
    # As in a bad batch: the same gradient, many times as long.
    gradients = [100 * gradient for gradient in gradients]
    whole = long(gradients)
    print(f"The gradient of the shipped nano, times 100: {len(gradients)} tensors, norm {whole.norm():.0f}.")
    figure = Picture(*style.SIZE, layout="constrained")
    axes = figure.subplots()
    looks = ((style.BLUE, "o"), (style.VERMILLION, "s"))
    for (name, clip), (colour, marker) in zip((("right", clipped), ("exhibit", clipped__each)), looks):
        after = clip(gradients, 1.0)
        cosine = torch.nn.functional.cosine_similarity(long(after), whole, dim=0).clamp(max=1.0)
        print(f"{name:8} norm afterwards {long(after).norm():5.2f}; ", end="")
        print(f"the gradient has turned by {torch.rad2deg(cosine.arccos()):.0f} degrees")
        before_norms = [gradient.norm().item() for gradient in gradients]
        axes.scatter(before_norms, [a.norm().item() for a in after], color=colour, marker=marker, s=14, label=name)
    axes.set(xscale="log", yscale="log", xlabel="norm of a tensor's gradient before", ylabel="after")
    axes.set_title("One point a tensor")
    axes.legend()
    return figure


EACH_TENSOR = Exhibit(
    id="11.C",
    title="every tensor by itself",
    exercise="11.1",
    mistake="each tensor alone",
    story="A model is a list of tensors, so the code walks through the list, takes the norm of each gradient and "
    "shortens the ones that are too long.",
    question="A bad batch makes all gradients of a model 100 times as large. What does this clipping leave?",
    choices={
        "a": "a gradient of norm 1 that points where it pointed",
        "b": "a gradient of norm 1 that points elsewhere",
        "c": "a gradient that is longer than 1 and points elsewhere",
    },
    seen="c",
    symptom=turned,
    diagnosis=(
        "Each tensor is cut to norm 1 by a factor of its own. What was small beside another is now as large, so the "
        "step points elsewhere; and with n tensors the whole is up to the root of n times too long.",
        "Batches without a spike pass unchanged, so it hides until clipping is needed.",
        "With Adam behind it the harm is smaller than it looks, because Adam scales each number anyway. But the "
        "moments remember the wrong proportions between this batch and the others.",
    ),
    caught_by="tests/train/test_optimizer.py::test_gradients_are_clipped_together_to_norm_one",
)
