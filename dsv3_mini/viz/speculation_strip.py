"""Speculative decoding to watch: `SpeculationStrip(model, tokenizer, prompt)` at the end of a cell shows it.

Each round appears as a group of boxes: accepted drafts with a check, rejected ones with a cross, the bonus token with a
plus. Play, pause, and step by buttons or keys; type another prompt, and choose how many drafts a round makes. A picture
of the rounds and the same in words travel beside the widget, for notebooks that are read without a kernel.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import traitlets

from dsv3_mini.errors import InputError
from dsv3_mini.viz.picture import Picture
from dsv3_mini.viz.speculation_view import KINDS, Speculation, draw_rounds, speculate
from dsv3_mini.viz.still_widget import StillWidget

PROMPT = "import os\n\n\ndef read(path):\n"
DEPTHS = (1, 2, 3, 4)


class _RefusedError(InputError, traitlets.TraitError):
    """What we refuse reads like every `InputError`; traitlets takes a change back only for an error of its own."""


class SpeculationStrip(StillWidget):
    """Rounds of drafts, accepted and rejected.

    Args:
        model: a `DeepSeekV3` with an MTP module.
        tokenizer: its `Tokenizer`.
        prompt: what is continued.
        depth: drafts in a round, 1 to 4.
        new_tokens: how many tokens are made.

    Traits, all in both directions:
        prompt, depth: as above; a change decodes anew.
        step: how many forward passes are shown, from 0 (the prompt alone) to all of them. Kept within them.

    `result` is the `Speculation` that is shown, or None when there is none: `message` then says why.

    Raises:
        InputError: for a depth that is not offered.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")

    prompt = traitlets.Unicode("").tag(sync=True)
    depth = traitlets.Int(1).tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    message = traitlets.Unicode("").tag(sync=True)
    _kinds: traitlets.Dict[str, Any] = traitlets.Dict(KINDS).tag(sync=True)
    _depths: traitlets.List[Any] = traitlets.List(list(DEPTHS)).tag(sync=True)
    _steps: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _words = traitlets.Unicode("").tag(sync=True)  # of the whole, said at its end

    def __init__(
        self, model: Any, tokenizer: Any, prompt: str = PROMPT, *, depth: int = 2, new_tokens: int = 40
    ) -> None:
        self.model, self.tokenizer, self.new_tokens = model, tokenizer, new_tokens
        self.result: Speculation | None = None
        super().__init__(prompt=prompt, depth=depth)
        self.refresh()
        self.observe(lambda _: self.refresh(), names=["prompt", "depth"])

    def refresh(self) -> None:
        """Decode again: after the model has changed."""
        message = ""
        try:
            self.result = speculate(
                self.model, self.tokenizer, self.prompt, depth=self.depth, new_tokens=self.new_tokens
            )
        except InputError as error:
            self.result, said = None, str(error)
            message = said[0].upper() + said[1:] + "."
        with self.hold_sync():  # they belong together, and arrive together
            self.message = message
            self._steps = [dataclasses.asdict(step) for step in self.result.steps] if self.result else []
            self._words = self.result.words() if self.result else ""
            self.step = 0

    def summary(self) -> str:
        """All rounds, in words."""
        if self.result is None:
            return self.message
        lines = [f"{self.depth} drafts a round at most, prompt {self.prompt!r}"]
        for number, step in enumerate(self.result.steps):
            said = " | ".join(f"{KINDS[kind][0]} {label}" for label, kind in step.tokens)
            lines.append(f"{'prefill' if number == 0 else f'round {number}':9} {said}")
        lines.append("; ".join(f"{sign} {words}" for sign, words in KINDS.values()))
        return "\n".join([*lines, self.result.words()])

    def picture(self) -> Picture | None:
        """The rounds as a picture that stands still."""
        return None if self.result is None else draw_rounds(self.result.steps)

    @traitlets.validate("depth")
    def _valid_depth(self, proposal: Any) -> int:
        if proposal.value not in DEPTHS:
            raise _RefusedError(f"depth = {proposal.value} must be one of {', '.join(map(str, DEPTHS))}")
        return proposal.value

    @traitlets.validate("step")
    def _valid_step(self, proposal: Any) -> int:
        return min(max(proposal.value, 0), len(self._steps))
