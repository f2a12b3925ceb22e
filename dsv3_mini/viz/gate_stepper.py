"""The gate of one token, to step through: `GateStepper(scores, bias, cfg)` at the end of a cell shows it.

Buttons or arrow keys walk through the six steps of `gate_steps`; below them stands what would change for this token if
one of the steps were missing, computed for real, and a choice runs the steps that way. A picture of all six steps and
the same in words travel beside the widget, for notebooks that are read without a kernel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import traitlets
from torch import Tensor

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.viz import style
from dsv3_mini.viz.gate_steps import WITHOUT, GateSteps, changes, describe, gate_steps
from dsv3_mini.viz.picture import Picture
from dsv3_mini.viz.routing_view import view_text
from dsv3_mini.viz.still_widget import StillWidget

__all__ = ["GateStepper", "draw_gate_steps", "gate_steps"]

STEPS = 6


class _RefusedError(InputError, traitlets.TraitError):
    """What we refuse reads like every `InputError`; traitlets takes a change back only for an error of its own."""


class GateStepper(StillWidget):
    """The six steps of the gate for one token.

    Args:
        scores: [E] sigmoid scores of the token.
        bias: [E] the routing bias.
        cfg: the groups, the number of experts a token, the scaling factor.
        title: whose gate this is, above the steps.
        traits: first values of the traits below.

    Traits, all in both directions:
        step: 1 to 6. Kept within them.
        without: the step that is missing, a key of `gate_steps.WITHOUT`, or "" for none.

    Raises:
        InputError: for scores or a bias that do not fit `cfg`, and for an unknown `without`.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")

    step = traitlets.Int(1).tag(sync=True)
    without = traitlets.Unicode("").tag(sync=True)
    _title = traitlets.Unicode("").tag(sync=True)
    _groups = traitlets.Int(1).tag(sync=True)
    _ways: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)  # by `without`: all numbers and words
    _changes: traitlets.List[Any] = traitlets.List().tag(sync=True)  # what each missing step changes

    def __init__(self, scores: Tensor, bias: Tensor, cfg: ModelConfig, *, title: str = "", **traits: Any) -> None:
        self.cfg = cfg
        self.right = gate_steps(scores, bias, cfg)
        self.changes = changes(scores, bias, cfg)
        ways = {"": self.right, **{change.name: change.steps for change in self.changes}}
        super().__init__(
            _title=title,
            _groups=cfg.n_group,
            _ways={name: _for_browser(steps, cfg, name) for name, steps in ways.items()},
            _changes=[{"name": c.name, "title": WITHOUT[c.name], "words": c.words} for c in self.changes],
            **traits,
        )

    @classmethod
    def of_token(cls, model: Any, tokenizer: Any, text: str, *, layer: int, token: int, **traits: Any) -> GateStepper:
        """The gate of one token of `text`, counted from 0, in a layer of `model`. `InputError` where there is none."""
        view = view_text(model, tokenizer, text)
        if layer not in view.layers:
            raise InputError(f"layer = {layer} has no experts; layers with experts: {', '.join(map(str, view.layers))}")
        if not 0 <= token < len(view.pieces):
            raise InputError(f"token = {token} is not in the text: it has {len(view.pieces)} tokens, counted from 0")
        row = view.layers.index(layer)
        title = f"Token {token + 1} of {len(view.pieces)}, {view.labels[token]}, in layer {layer}"
        return cls(view.scores[row, token], view.bias[row], model.cfg, title=title, **traits)

    @property
    def steps(self) -> GateSteps:
        """The steps that are shown, with `without` taken into account."""
        return next((change.steps for change in self.changes if change.name == self.without), self.right)

    def summary(self) -> str:
        """All six steps, and what each missing step would change, in words."""
        lines = [self._title + (f" ({WITHOUT[self.without]})" if self.without else "")] if self._title else []
        steps = describe(self.steps, self.cfg, self.without)
        lines += [f"{number}. {title}. {words}" for number, (title, words) in enumerate(steps, start=1)]
        lines.append("If a step were missing:")
        lines += [f"  {WITHOUT[change.name]}: {change.words}." for change in self.changes]
        return "\n".join(lines)

    def picture(self) -> Picture:
        """All steps of the gate as a picture that stands still."""
        return draw_gate_steps(self.steps, self.cfg)

    @traitlets.validate("step")
    def _valid_step(self, proposal: Any) -> int:
        return min(max(proposal.value, 1), STEPS)

    @traitlets.validate("without")
    def _valid_without(self, proposal: Any) -> str:
        if proposal.value and proposal.value not in WITHOUT:
            raise _RefusedError(f"without = {proposal.value!r} must be one of {', '.join(WITHOUT)}, or empty for none")
        return proposal.value


def draw_gate_steps(steps: GateSteps, cfg: ModelConfig) -> Picture:
    """The six steps below each other, one column an expert."""
    experts, size = cfg.n_routed_experts, cfg.n_routed_experts // cfg.n_group
    scores, biased, masked = (part.numpy() for part in (steps.scores, steps.biased, steps.masked))
    allowed = np.repeat(steps.kept.numpy(), size)
    chosen = np.isin(np.arange(experts), steps.ids.numpy())
    gates = np.zeros(experts)
    gates[steps.ids.numpy()] = steps.weights.numpy()

    figure = Picture(7.2, 8.6, layout="constrained")
    panels = figure.subplots(STEPS, 1, sharex=True)
    heights = (scores, biased, np.repeat(steps.group_scores.numpy(), size), masked, masked, gates)
    for number, (axes, height) in enumerate(zip(panels, heights), start=1):
        marked = {4: allowed, 5: chosen, 6: chosen}.get(number, np.ones(experts, dtype=bool))
        shown = np.where(np.isfinite(height), height, 0)
        colours = [style.BLUE if mark else style.tint(style.BLUE, 0.25) for mark in marked]
        axes.bar(range(experts), shown, color=colours, width=1.0 if number == 3 else 0.8)
        axes.axhline(0, color=style.INK, linewidth=0.8)
        axes.set_title(f"{number}. {describe(steps, cfg)[number - 1][0]}", fontsize=9.5, pad=3)
        axes.tick_params(labelsize=8)
        for expert in np.flatnonzero(~np.isfinite(height)):
            axes.text(expert, 0, "-∞", ha="center", va="bottom", fontsize=7, color=style.GREY)
        for group in range(1, cfg.n_group):
            axes.axvline(group * size - 0.5, color=style.INK, linewidth=1.2)
    panels[-1].set_xlabel("routed expert")
    every = -(-experts // 32)
    panels[-1].set_xticks(range(0, experts, every))
    return figure


def _for_browser(steps: GateSteps, cfg: ModelConfig, without: str) -> dict[str, Any]:
    """The numbers and words of one way through the steps; what is -inf becomes None, which JSON has a word for."""
    return {
        "scores": steps.scores.tolist(),
        "biased": steps.biased.tolist(),
        "group_scores": steps.group_scores.tolist(),
        "kept": steps.kept.tolist(),
        "masked": [value if value > float("-inf") else None for value in steps.masked.tolist()],
        "ids": steps.ids.tolist(),
        "weights": steps.weights.tolist(),
        "words": describe(steps, cfg, without),
    }
