"""Exercise 11.2: one optimizer step of the report on a whole list of parameters."""

from __future__ import annotations

import torch
from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_11.inputs import BETA1, BETA2, DECAY, EPSILON, between, parameters, whole


def optimizer_step(weights, gradients, ms, vs, step, lr):
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    share = min(1.0, 1.0 / norm.item())
    found = []
    for weight, gradient, m, v in zip(weights, gradients, ms, vs, strict=True):
        gradient = gradient * share
        m = 0.9 * m + 0.1 * gradient
        v = 0.95 * v + 0.05 * gradient**2
        update = (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
        decay = 0.1 if weight.dim() >= 2 else 0.0
        found.append(weight * (1 - lr * decay) - lr * update)
    return found


def optimizer_step__in_the_gradient(weights, gradients, ms, vs, step, lr):
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    share = min(1.0, 1.0 / norm.item())
    found = []
    for weight, gradient, m, v in zip(weights, gradients, ms, vs, strict=True):
        decay = 0.1 if weight.dim() >= 2 else 0.0
        gradient = gradient * share + decay * weight
        m = 0.9 * m + 0.1 * gradient
        v = 0.95 * v + 0.05 * gradient**2
        update = (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
        found.append(weight - lr * update)
    return found


def _step(
    decayed=lambda weight: weight.dim() >= 2, clip="gradient", beta1=BETA1, beta2=BETA2, corrected=(True, True),
    times_rate=True, sign=-1, offset=0, root=True, late=False,
):  # fmt: skip
    """The step above with one of its parts changed."""

    def wrong(weights, gradients, ms, vs, step, lr):
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        share, found = min(1.0, 1.0 / norm.item()), []
        for weight, gradient, m, v in zip(weights, gradients, ms, vs, strict=True):
            if clip == "gradient":
                gradient = gradient * share
            m = beta1 * m + (1 - beta1) * gradient
            v = beta2 * v + (1 - beta2) * gradient**2
            at = step + offset
            m_hat = m / (1 - beta1**at) if corrected[0] else m
            v_hat = v / (1 - beta2**at) if corrected[1] else v
            update = m_hat / ((v_hat.sqrt() if root else v_hat) + EPSILON)
            if clip == "update":
                update = update * min(1.0, 1.0 / update.norm().item())
            loss = (lr if times_rate else 1.0) * (DECAY if decayed(weight) else 0.0)
            moved = sign * lr * update
            found.append((weight + moved) * (1 - loss) if late else weight * (1 - loss) + moved)
        return found

    return wrong


def _cases(generator: Generator) -> list[Case]:
    cases = []
    for step, size, note in (
        (1, 0.01, "the first step"),
        (whole(generator, 2, 9), 0.01, "a later step"),
        (whole(generator, 2, 9), 30.0, "a later step, large gradients"),
    ):
        weights = [3 * weight for weight in parameters(generator)]
        gradients = [size * torch.randn(weight.shape, generator=generator) for weight in weights]
        ms = [torch.zeros_like(w) if step == 1 else torch.randn(w.shape, generator=generator) / 30 for w in weights]
        vs = [m**2 + (0.0 if step == 1 else 1e-3) for m in ms]
        cases.append(Case((weights, gradients, ms, vs, step, between(generator, 0.01, 0.05)), note=note))
    return cases


OPTIMIZER_STEP = Exercise(
    id="11.2",
    idea="pretraining",
    title="one whole step of the optimizer",
    minutes=15,
    answer="optimizer_step",
    reference=optimizer_step,
    cases=_cases,
    mistakes=(
        Mistake(
            "decay in the gradient",
            optimizer_step__in_the_gradient,
            "The decay is added to the gradient and then divided by the root of v like the rest. That is Adam with an "
            "L2 penalty; the W of AdamW is that the decay bypasses both moments.",
        ),
        Mistake(
            "everything decays",
            _step(decayed=lambda weight: True),
            "Norm weights shrink too. Only tensors with two or more dimensions decay.",
        ),
        Mistake("nothing decays", _step(decayed=lambda weight: False), "The weight decay is missing."),
        Mistake(
            "stacked experts do not decay",
            _step(decayed=lambda weight: weight.dim() == 2),
            "A tensor of three dimensions does not decay: experts are matrices too, stacked on top of each other.",
        ),
        Mistake(
            "decay without the rate",
            _step(times_rate=False),
            "The weights shrink by a tenth in every step. The decay is multiplied by the learning rate, too.",
        ),
        Mistake(
            "new weight decays",
            _step(late=True),
            "The weight decays after the step, so a part of the step itself is taken back. AdamW shrinks the weight "
            "from before the step.",
        ),
        Mistake(
            "not clipped",
            _step(clip="none"),
            "Large gradients are not clipped: their norm over all tensors may be 1 at most.",
        ),
        Mistake(
            "update clipped",
            _step(clip="update"),
            "The update is clipped, after the division by the root of v. The report clips the gradient, before the "
            "moments see it.",
        ),
        Mistake(
            "m not corrected",
            _step(corrected=(False, True)),
            "m starts at zero, so in the first steps it is too small; divide it by 1 - beta1 to the power of the step.",
        ),
        Mistake(
            "v not corrected",
            _step(corrected=(True, False)),
            "v starts at zero, so the first steps are too large; divide it by 1 - beta2 to the power of the step.",
        ),
        Mistake(
            "not corrected",
            _step(corrected=(False, False)),
            "The corrections for the start are missing: both moments begin at zero and are too small at first.",
        ),
        Mistake(
            "step off by one",
            _step(offset=1),
            "The corrections are those of the next step: steps count from 1 here, so use the step as it is given.",
        ),
        Mistake(
            "usual beta",
            _step(beta2=0.999),
            "beta2 is 0.999, the value that most programs start from. The report takes another.",
        ),
        Mistake(
            "betas swapped",
            _step(beta1=BETA2, beta2=BETA1),
            "The two betas are swapped: the first belongs to m, the mean of the gradients.",
        ),
        Mistake(
            "uphill",
            _step(sign=1),
            "The step goes uphill: the update is added where it should be subtracted.",
        ),
        Mistake(
            "no root",
            _step(root=False),
            "The step is divided by v itself. Divide by its square root, which has the unit of a gradient.",
        ),
        Mistake(
            "no momentum",
            _step(beta1=0.0),
            "The gradient of this step alone decides on the direction: m, its running mean, is not used.",
        ),
    ),
    hints=(
        "Three parts in this order: clip all gradients together; then for each tensor the two running means and the "
        "step; and the decay, which is none of the gradient's business.",
        "Use your function of exercise 11.1 for the first part, and adamw from the lesson for the second; it takes the "
        "decay as its last argument.",
        "weight.dim() tells a matrix (2) or a stack of them (3) from the weights of a norm (1).",
    ),
    after="This is all that happens between two batches, but for the routing bias.",
)
