"""The routing explorer: `RoutingExplorer(model, tokenizer)` at the end of a cell shows where each token of a text goes.

Python runs the model and holds what is chosen, in traits that follow both ways: type in the widget and
`explorer.text` has changed; set `explorer.token = 3` in a cell and that token is followed. The drawing is in
`routing_explorer.js`; the numbers go there as bytes. Whatever cannot be shown is said in the widget: `message` speaks
of text and model, `run_message` of the training run.

Shapes: L MoE layers, T tokens, E experts, S snapshots of a training run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import traitlets

from dsv3_mini.errors import InputError
from dsv3_mini.viz.routing import draw_routing
from dsv3_mini.viz.routing_view import CHOSEN, NEXT, SHUT_OUT, RoutingView, open_model, view_text
from dsv3_mini.viz.still_widget import StillWidget
from dsv3_mini.viz.token_kinds import DOMAINS, GUESS, TYPES, guess_domains, token_type

TEXT = "def area(r):\n    return 3 * r * r\nThe area of a circle grows with its radius.\n12 + 30 = 42"
COLOURS = {"weight": "gate weight", "type": "token type", "domain": "domain"}


class _RefusedError(InputError, traitlets.TraitError):
    """What we refuse reads like every `InputError`; traitlets takes a change back only for an error of its own."""


class RoutingExplorer(StillWidget):
    """Tokens by experts, one layer at a time: type, move the sliders, lock a token with a click or the arrow keys.

    Args:
        model: a `DeepSeekV3`, or a folder with one (a checkpoint or a run); None for the shipped model.
        tokenizer: a `Tokenizer` or its folder; None for the one in the model's folder.
        text: a text, or texts by domain, {"code": "...", "prose": "..."}, of which each is a part. In a text that is
            one piece, the domain of each line is guessed.
        run: a training run whose routing snapshots can be scrubbed: its folder, or a `RoutingLog`.
        traits: first values of the traits below.

    Traits, all in both directions:
        text: the text.
        layer: which layer is shown, counted from 0.
        token: the locked token, counted from 0, or -1 for none. Kept within the text.
        colour: `weight`, `type` or `domain`.
        snapshot: which snapshot of the training run is shown, counted from 0. Kept within the run.

    `model`, `tokenizer` and `view` (a `RoutingView`, or None while nothing can be shown) are there for further looks.

    Raises:
        InputError: for a layer or colour that does not exist. A model, text or run that cannot be shown does not
            raise: the widget says what is missing.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")

    text = traitlets.Unicode("").tag(sync=True)
    layer = traitlets.Int(-1).tag(sync=True)
    token = traitlets.Int(-1).tag(sync=True)
    colour = traitlets.Unicode("weight").tag(sync=True)
    snapshot = traitlets.Int(0).tag(sync=True)
    message = traitlets.Unicode("").tag(sync=True)
    run_message = traitlets.Unicode("").tag(sync=True)

    _shown = traitlets.Dict().tag(sync=True)  # tokens, layers, sizes and names
    _cells = traitlets.Bytes(b"").tag(sync=True)  # [L, T, E] uint8, as in RoutingView
    _weights = traitlets.Bytes(b"").tag(sync=True)  # [L, T, E] fp32
    _scores = traitlets.Bytes(b"").tag(sync=True)  # [L, T, E] fp32
    _bias = traitlets.Bytes(b"").tag(sync=True)  # [L, E] fp32
    _kinds = traitlets.Bytes(b"").tag(sync=True)  # [2, T] uint8: number of the token's type and of its domain
    _run = traitlets.Dict().tag(sync=True)  # steps, layers and number of experts of the run
    _run_load = traitlets.Bytes(b"").tag(sync=True)  # [S, L, E] fp32, in shares: 1 is the mean
    _run_bias = traitlets.Bytes(b"").tag(sync=True)  # [S, L, E] fp32
    _run_violation = traitlets.Bytes(b"").tag(sync=True)  # [S, L] fp32

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        text: str | Mapping[str, str] = TEXT,
        run: Any = None,
        **traits: Any,
    ) -> None:
        self.model: Any = None
        self.tokenizer: Any = None
        self._unusable = ""  # why there is no model
        self._log: Any = None
        self.view: RoutingView | None = None
        self._parts = dict(text) if isinstance(text, Mapping) else {}
        whole = "\n".join(self._parts.values()) if isinstance(text, Mapping) else text
        super().__init__(text=whole)
        try:
            self.model, self.tokenizer = open_model(model, tokenizer)
        except InputError as error:
            self._unusable = str(error)
        if run is not None:
            self._read_run(run)
        self.refresh()
        self.observe(lambda _: self.refresh(), names="text")
        for name, value in traits.items():
            if name not in ("layer", "token", "colour", "snapshot"):
                raise InputError(
                    f"RoutingExplorer has no trait {name!r} to set; there are layer, token, colour, snapshot"
                )
            self.set_trait(name, value)

    def refresh(self) -> None:
        """Run the text through the model again: after the model was trained further."""
        try:
            if self._unusable:
                raise InputError(self._unusable)
            self.view = view_text(self.model, self.tokenizer, self.text)
            message = self.view.note
        except InputError as error:
            self.view, message = None, _sentence(str(error))
        with self.hold_sync():  # numbers and sizes belong together, and arrive together
            self.message = message
            self._send_view()
            if self.layers and self.layer not in self.layers:
                self.layer = self.layers[-1]
            self.token = self.token  # the text may be shorter now
            self._check_run()

    @property
    def layers(self) -> list[int]:
        """The layers that can be shown."""
        return self.view.layers if self.view is not None else []

    def summary(self) -> str:
        """What is shown, in words."""
        lines = [self.message] if self.message else []
        view = self.view
        if view is not None:
            load = view.load(self.layer)
            busiest, idlest = int(load.argmax()), int(load.argmin())
            lines.append(
                f"Layer {self.layer}, {_tokens(len(view.pieces))}, {len(load)} experts: expert {busiest} is the "
                f"busiest with {_tokens(load[busiest])}, expert {idlest} the idlest with {load[idlest]}; the mean is "
                f"{load.mean():.4g}. MaxVio {view.max_violation(self.layer):.2f}."
            )
            if self.token >= 0:
                lines.append(f"Token {self.token + 1} of {len(view.pieces)}, {view.labels[self.token]}:")
                lines += [self._token_in(layer) for layer in view.layers]
        if self.run_message:
            lines.append(self.run_message)
        elif self._run:
            lines.append(self._snapshot_in_words())
        return "\n".join(lines)

    def picture(self) -> Any:
        """The layer that is shown as a picture that stands still; None when there is nothing to show."""
        if self.view is None:
            return None
        row, shown = self.layers.index(self.layer), self._shown
        chosen = self.view.cells[row] & 3 == CHOSEN
        ids = np.stack([np.flatnonzero(token) for token in chosen])
        weights = np.take_along_axis(self.view.weights[row], ids, axis=1)
        return draw_routing(
            self.view.labels, ids, weights, n_experts=shown["experts"], n_group=shown["groups"],
            title=f"Layer {self.layer}: which experts each token goes to",
            almost=np.where(chosen, 0, self.view.cells[row] & 3), n_shared=shown["shared"],
        )  # fmt: skip

    @traitlets.validate("layer")
    def _valid_layer(self, proposal: Any) -> int:
        if self.layers and proposal.value not in self.layers:  # without a text, the next one decides
            there = ", ".join(map(str, self.layers))
            raise _RefusedError(f"layer = {proposal.value} has no experts to show; layers with experts: {there}")
        return proposal.value

    @traitlets.validate("token")
    def _valid_token(self, proposal: Any) -> int:
        tokens = len(self.view.pieces) if self.view is not None else 0
        return min(max(proposal.value, -1), tokens - 1)

    @traitlets.validate("snapshot")
    def _valid_snapshot(self, proposal: Any) -> int:
        return min(max(proposal.value, 0), max(len(self._run.get("steps", [])) - 1, 0))

    @traitlets.validate("colour")
    def _valid_colour(self, proposal: Any) -> str:
        if proposal.value not in COLOURS:
            raise _RefusedError(f"colour = {proposal.value!r} must be one of {', '.join(COLOURS)}")
        return proposal.value

    def _send_view(self) -> None:
        view = self.view
        if view is None:
            self._shown = {"tokens": [], "layers": []}
            self._cells = self._weights = self._scores = self._bias = self._kinds = b""
            return
        types = [TYPES.index(token_type(piece)) for piece in view.pieces]
        domains, names, note = self._domains(view.pieces)
        cfg = self.model.cfg
        self._shown = {
            "tokens": view.labels, "layers": view.layers,
            "experts": cfg.n_routed_experts, "groups": cfg.n_group, "shared": cfg.n_shared_experts,
            "top_k": cfg.num_experts_per_tok, "kept_groups": cfg.topk_group,
            "kinds": {"type": list(TYPES), "domain": names}, "domain_note": note,
        }  # fmt: skip
        self._cells, self._bias = view.cells.tobytes(), view.bias.tobytes()
        self._weights, self._scores = view.weights.tobytes(), view.scores.tobytes()
        self._kinds = np.array([types, domains], dtype=np.uint8).tobytes()

    def _domains(self, pieces: list[bytes]) -> tuple[list[int], list[str], str]:
        """The number of each token's domain, the names, and where they come from."""
        if self._parts and self.text == "\n".join(self._parts.values()):
            ends = np.cumsum([len(part.encode()) + 1 for part in self._parts.values()])
            places = np.cumsum([0, *map(len, pieces[:-1])])
            found = np.searchsorted(ends, places, side="right").clip(max=len(ends) - 1)
            return found.tolist(), list(self._parts), "as the parts of the text were named"
        return [DOMAINS.index(name) for name in guess_domains(pieces)], list(DOMAINS), GUESS

    def _read_run(self, run: Any) -> None:
        try:
            if isinstance(run, str | os.PathLike):
                from dsv3_mini.train.routing_log import read_routing_log

                run = read_routing_log(Path(run))
            if not len(run.steps):
                raise InputError("the training run has no routing snapshot yet: none of its steps was recorded")
        except InputError as error:
            self.run_message = _sentence(str(error))
            return
        self._log = run
        load = _fp32(run.load)
        mean = load.mean(-1, keepdims=True)
        self._run = {
            "steps": [int(step) for step in run.steps],
            "layers": [int(layer) for layer in run.layers],
            "experts": load.shape[-1],
        }
        self._run_load = np.where(mean > 0, load / np.maximum(mean, 1e-20), 0).astype(np.float32).tobytes()
        self._run_bias = _fp32(run.bias).tobytes()
        self._run_violation = _fp32(run.max_violation).tobytes()

    def _check_run(self) -> None:
        """Say so when the run is one of another model: its experts would not stand below those of the text."""
        if self._log is None or self.view is None:
            return
        mine, its = self._shown["experts"], self._run["experts"]
        missing = [layer for layer in self.layers if layer not in self._run["layers"]]
        if mine != its:
            self.run_message = (
                f"The training run has {its} experts and this model {mine}: it is a run of another model."
            )
        elif missing:
            self.run_message = f"The training run recorded layers {self._run['layers']}; this model also has {missing}."
        else:
            self.run_message = ""

    def _token_in(self, layer: int) -> str:
        assert self.view is not None
        weights = self.view.weights[self.view.layers.index(layer), self.token]
        chosen = ", ".join(f"{i} ({weights[i]:.2f})" for i in self.view.experts(layer, self.token))
        line = f"  layer {layer}: experts {chosen}"
        for kind, words in ((NEXT, "next would be"), (SHUT_OUT, "shut out by the group limit")):
            found = self.view.experts(layer, self.token, kind)
            line += f"; {words} {', '.join(map(str, found))}" if found else ""
        return line

    def _snapshot_in_words(self) -> str:
        step, steps = self._run["steps"][self.snapshot], self._run["steps"]
        words = f"Training run, step {step} (snapshot {self.snapshot + 1} of {len(steps)})"
        if self.layer not in self._run["layers"]:
            return f"{words}."
        row = self._run["layers"].index(self.layer)
        bias, violation = _fp32(self._log.bias)[self.snapshot, row], _fp32(self._log.max_violation)[self.snapshot, row]
        return (
            f"{words}, layer {self.layer}: MaxVio {violation:.2f}, routing bias {bias.min():.3f} to {bias.max():.3f}."
        )


def _fp32(values: Any) -> np.ndarray:
    """numpy from a tensor, an array or nested lists."""
    return np.ascontiguousarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float32)


def _tokens(count: int) -> str:
    return f"{count} token" if count == 1 else f"{count} tokens"


def _sentence(message: str) -> str:
    message = message[:1].upper() + message[1:]
    return message if message.endswith(".") else message + "."
