"""The gate of one token, step by step (§2.1.2, Eq. 13, 15, 16): what `model.router.Router` does, with nothing hidden.

Six steps: the scores; plus the routing bias; a score for each group; the groups that are kept; the experts that are
chosen; their weights. `gate_steps(..., without=...)` leaves one step out or does it wrong, in a way that runs without
an error, and `changes` says what the token would get then.

Shapes: E experts, G groups, K experts of one token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError

WITHOUT = {
    "bias": "without the routing bias",
    "best_two": "group score by the best expert alone",
    "group_limit": "without the group limit",
    "minus_infinity": "mask with 0 instead of -inf",
    "unbiased": "weights from the biased scores",
}


@dataclass(frozen=True)
class GateSteps:
    """Every number between the scores of one token and its gate weights, in the order of the steps."""

    scores: Tensor  # [E] 1: how well each expert fits, sigmoid(u . e_i)
    biased: Tensor  # [E] 2: plus the routing bias; for the choice only
    group_scores: Tensor  # [G] 3: the two best biased scores of each group, summed
    kept: Tensor  # [G] bool, 4: groups that the token may use
    masked: Tensor  # [E] 4: `biased`, and -inf for experts of the other groups
    ids: Tensor  # [K] 5: the chosen experts, best first
    weights: Tensor  # [K] 6: normalised unbiased scores of `ids`, times the scaling factor


@dataclass(frozen=True)
class Change:
    """What one missing step would do to the token."""

    name: str  # a key of `WITHOUT`
    steps: GateSteps  # computed without it
    lost: tuple[int, ...]  # experts that are not chosen any more
    won: tuple[int, ...]  # experts that are chosen instead
    moved: float  # largest change of a gate weight, over all experts
    words: str


def gate_steps(scores: Tensor, bias: Tensor, cfg: ModelConfig, *, without: str = "") -> GateSteps:
    """The steps of the gate for one token; equal to `Router.choose` and `Router.gate_weights`.

    Args:
        scores: [E] sigmoid scores of the token, as a routing record holds them.
        bias: [E] the routing bias of the layer.
        cfg: for the groups, the number of experts a token, the normalisation and the scaling factor.
        without: leave a step out or do it wrong: a key of `WITHOUT`. "" does all of it right.

    Raises:
        InputError: for scores or a bias of another shape than [E], for numbers that are not finite, for an unknown
            `without`.
    """
    scores, bias = _as_row("scores", scores, cfg), _as_row("bias", bias, cfg)
    if without and without not in WITHOUT:
        raise InputError(f"without = {without!r} must be one of {', '.join(WITHOUT)}, or empty for none")

    biased = scores if without == "bias" else scores + bias
    by_group = biased.unflatten(0, (cfg.n_group, -1))  # [G, E/G]
    best = min(1 if without == "best_two" else 2, by_group.shape[1])
    group_scores = by_group.topk(best, dim=-1).values.sum(-1)  # [G]

    kept = torch.ones(cfg.n_group, dtype=torch.bool)
    if cfg.n_group > 1 and without != "group_limit":
        kept = torch.zeros_like(kept).scatter_(0, group_scores.topk(cfg.topk_group).indices, True)
    # -inf never wins. A 0 does, where the biased scores of allowed experts are negative.
    hidden = 0.0 if without == "minus_infinity" else float("-inf")
    masked = by_group.masked_fill(~kept.unsqueeze(-1), hidden).flatten()  # [E]

    ids = masked.topk(cfg.num_experts_per_tok).indices
    weights = (biased if without == "unbiased" else scores)[ids]
    if cfg.norm_topk_prob:
        weights = weights / (weights.sum() + 1e-20)
    return GateSteps(scores, biased, group_scores, kept, masked, ids, weights * cfg.routed_scaling_factor)


def changes(scores: Tensor, bias: Tensor, cfg: ModelConfig) -> list[Change]:
    """What each missing step would change for this token, one `Change` for each key of `WITHOUT`, computed for real.

    Arguments and errors as for `gate_steps`.
    """
    right = gate_steps(scores, bias, cfg)
    return [_compare(name, right, gate_steps(scores, bias, cfg, without=name)) for name in WITHOUT]


def describe(steps: GateSteps, cfg: ModelConfig, without: str = "") -> list[tuple[str, str]]:
    """The six steps in words: (title, sentence) for each, with the numbers of this token.

    `without` is what the steps were computed without.
    """
    best, shift = int(steps.scores.argmax()), steps.biased - steps.scores
    kept = [group for group in range(cfg.n_group) if steps.kept[group]]
    chosen = steps.ids.tolist()

    added = "Each expert's bias is added to its score. All of them are 0, so nothing moves."
    if without == "bias":
        added = "Left out: the scores stay as they are."
    elif shift.any():
        most = int(shift.abs().argmax())
        added = (
            f"Each expert's bias is added to its score. Expert {most} moves most, by {shift[most]:+.3f}. "
            "The sum serves the choice and nothing else."
        )
    counted = (
        f"A group counts as {'its best expert alone' if without == 'best_two' else 'its two best experts together'}"
    )
    per_group = ", ".join(f"group {g} {value:.3f}" for g, value in enumerate(steps.group_scores.tolist()))
    limit = "All groups stay: nothing limits this token."
    if len(kept) < cfg.n_group:
        hidden = "0" if without == "minus_infinity" else "-inf, which never wins"
        limit = (
            f"The best {cfg.topk_group} of {cfg.n_group} groups stay: {_list(kept, 'group')}. "
            f"The experts of the other groups become {hidden}."
        )
    source = "with the bias" if without == "unbiased" else "without the bias"
    scaled = f"times {cfg.routed_scaling_factor:g}"
    if cfg.norm_topk_prob:
        scaled = f"divided by their sum and {scaled}"
    gates = ", ".join(f"expert {i} {w:.3f}" for i, w in zip(chosen, steps.weights.tolist()))
    return [
        ("Scores", f"How well each expert fits the token, 0 to 1. Expert {best} fits best: {steps.scores[best]:.3f}."),
        ("Plus the routing bias", added),
        ("Group scores", f"{counted}: {per_group}."),
        ("Groups kept", limit),
        ("Experts chosen", f"The {len(chosen)} best that are left: {_list(chosen, 'expert')}."),
        ("Gate weights", f"From the scores {source}, {scaled}: {gates}."),
    ]


def _compare(name: str, right: GateSteps, wrong: GateSteps) -> Change:
    before, after = right.ids.tolist(), wrong.ids.tolist()
    lost = tuple(i for i in before if i not in after)
    won = tuple(i for i in after if i not in before)
    gates = torch.zeros(2, len(right.scores))
    for row, steps in enumerate((right, wrong)):
        gates[row, steps.ids] = steps.weights
    moved = float((gates[0] - gates[1]).abs().max())
    if won:
        verb = "are" if len(won) > 1 else "is"
        words = f"{_list(won, 'expert')} {verb} chosen instead of {_list(lost, 'expert')}; "
        words += f"a gate weight moves by up to {moved:.3f}"
    elif moved > 5e-7:
        words = f"the same experts, but a gate weight moves by up to {moved:.3g}"
    else:
        words = "nothing changes for this token"
    return Change(name, wrong, lost, won, moved, words)


def _list(numbers: list[int] | tuple[int, ...], noun: str) -> str:
    """'expert 3', 'experts 3 and 5', 'experts 3, 5 and 7'."""
    words = [str(number) for number in numbers]
    if len(words) == 1:
        return f"{noun} {words[0]}"
    return f"{noun}s {', '.join(words[:-1])} and {words[-1]}"


def _as_row(name: str, values: Tensor, cfg: ModelConfig) -> Tensor:
    values = torch.as_tensor(values).detach().float().cpu()
    if values.shape != (cfg.n_routed_experts,):
        raise InputError(
            f"{name} must hold one number for each of n_routed_experts = {cfg.n_routed_experts}; "
            f"it has the shape {list(values.shape)}"
        )
    if not values.isfinite().all():
        raise InputError(f"{name} must hold finite numbers")
    return values
