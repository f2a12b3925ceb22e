"""Where one MoE layer sends each token: a picture of the routing record (§2.1.2, Eq. 12-16; load as in Figure 9).

Above, one row a token and one column an expert: the darker, the larger the gate weight; white is "not chosen". Lines
part the groups ("nodes"), so that the node limit can be seen; hatched columns are the shared experts. Below, how many
tokens each expert got, against an even share.

Shapes: T tokens, K experts a token, E routed experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator

from dsv3_mini.errors import InputError
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

MAX_ROWS = 48  # tokens that are drawn; the load counts all of them


def expert_load(ids: Any, n_experts: int) -> np.ndarray:
    """How often each expert was chosen. ids [..., K] -> counts [E], which sum to the number of choices."""
    ids = _as_array(ids)
    if ids.size and (ids.min() < 0 or ids.max() >= n_experts):
        raise InputError(
            f"ids lie between {ids.min()} and {ids.max()}; n_experts = {n_experts} needs 0..{n_experts - 1}"
        )
    return np.bincount(ids.reshape(-1).astype(np.int64), minlength=n_experts)


def gate_matrix(ids: Any, weights: Any, n_experts: int) -> np.ndarray:
    """The record as a table: ids, weights [T, K] -> gates [T, E] float, NaN where an expert was not chosen."""
    ids, weights = _as_array(ids), _as_array(weights)
    if ids.ndim != 2 or ids.shape != weights.shape:
        raise InputError(f"ids {ids.shape} and weights {weights.shape} must both be [tokens, experts per token]")
    expert_load(ids, n_experts)  # the range check
    gates = np.full((ids.shape[0], n_experts), np.nan)
    np.put_along_axis(gates, ids.astype(np.int64), weights.astype(np.float64), axis=1)
    return gates


def token_label(piece: bytes) -> str:
    """A token's bytes as a label that shows everything: spaces as ␣, line breaks as ⏎, lone bytes as \\xNN."""
    text = piece.decode("utf-8", errors="backslashreplace")
    shown = {" ": "␣", "\n": "⏎", "\t": "⇥"}
    return "".join(shown.get(char) or (char if _can_be_drawn(char) else _escape(char)) for char in text)


def draw_routing(
    tokens: Sequence[str],
    ids: Any,
    weights: Any,
    *,
    n_experts: int,
    n_group: int = 1,
    title: str = "",
    almost: Any = None,
    n_shared: int = 0,
) -> Picture:
    """Draw which experts each token went to in one layer, and the load that results.

    Args:
        tokens: T labels, shown as they are (`token_label` makes them from bytes).
        ids: [T, K] chosen experts.
        weights: [T, K] their gate weights.
        n_experts: E.
        n_group: groups the experts are divided into; a line is drawn between groups.
        title: above the picture.
        almost: [T, E] marks for experts that were not chosen: 2 a ring (the next one), 3 a cross (shut out by the
            group limit), 0 none; as in `routing_view`.
        n_shared: columns for shared experts, which take every token without a gate.

    Returns:
        A figure, which a notebook shows where a cell ends on it.

    Raises:
        InputError: when the parts do not fit together.
    """
    gates = gate_matrix(ids, weights, n_experts)
    if len(tokens) != len(gates):
        raise InputError(f"tokens has {len(tokens)} labels for {len(gates)} rows of ids")
    if not len(tokens):
        raise InputError("tokens is empty; there is nothing to draw")
    if n_group < 1 or n_experts % n_group:
        raise InputError(f"n_group = {n_group} must divide n_experts = {n_experts}")
    if almost is not None and np.shape(almost) != gates.shape:
        raise InputError(f"almost {np.shape(almost)} must be [tokens, experts] = {gates.shape}")
    rows = min(len(tokens), MAX_ROWS)
    head, bars = 0.75, 1.15  # inches: title and group names; the load below
    height = head + 0.21 * rows + bars + 0.85
    figure = Picture(8.6, height, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(0.21 * rows, bars))

    image = above.imshow(gates[:rows], aspect="auto", cmap=style.SEQUENTIAL + "_r", interpolation="none", vmin=0)
    above.set_yticks(range(rows), [_shorten(token) for token in tokens[:rows]], fontsize=8.5)
    for label in above.get_yticklabels():
        label.set_parse_math(False)  # a $ in a token is a dollar, not mathematics
    above.set_title(title + (f"  (first {rows} of {len(tokens)} tokens)" if rows < len(tokens) else ""), pad=26)
    above.set_yticks(np.arange(rows - 1) + 0.5, minor=True)
    above.set_xticks(np.arange(n_experts - 1) + 0.5, minor=True)
    above.grid(which="minor", color="0.9", linewidth=0.5)
    above.grid(which="major", visible=False)
    above.tick_params(which="both", length=0)
    figure.colorbar(image, ax=above, label="gate weight", pad=0.01, fraction=0.03)

    _draw_almost(above, np.zeros(gates.shape) if almost is None else np.asarray(almost)[:rows])
    _draw_shared(above, below, n_experts, n_shared)

    load = expert_load(ids, n_experts)
    even = load.sum() / n_experts
    below.bar(range(n_experts), load, color=style.BLUE, width=0.8)
    below.axhline(even, color=style.VERMILLION, linestyle="--", linewidth=1.4)
    below.set_title(f"dashed: an even share, {even:.3g} tokens", loc="left", fontsize=8.5, fontweight="normal", pad=3)
    below.set(xlabel="routed expert", ylabel="tokens", xlim=(-0.5, n_experts + n_shared - 0.5))
    below.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    below.tick_params(which="minor", length=0)
    step = max(1, -(-n_experts // 32))
    below.set_xticks(range(0, n_experts, step), [str(expert) for expert in range(0, n_experts, step)], fontsize=8.5)

    size = n_experts // n_group
    for group in range(n_group):
        if group:
            for axes in (above, below):
                axes.axvline(group * size - 0.5, color=style.INK, linewidth=1.6, gid=f"group-border:{group}")
        if n_group > 1:
            above.text(
                group * size + size / 2 - 0.5, 1.02, f"group {group}", transform=above.get_xaxis_transform(),
                ha="center", va="bottom", fontsize=8.5, color=style.INK,
            )  # fmt: skip
    return figure


def _draw_almost(axes: Axes, almost: np.ndarray) -> None:
    """A ring where an expert was the next in line, a cross where the group limit shut it out."""
    for kind, marker, words in ((2, "o", "ring: next in line"), (3, "x", "cross: shut out by the group limit")):
        token, expert = np.nonzero(almost == kind)
        if len(token):
            axes.plot(
                expert,
                token,
                marker,
                markersize=5,
                markerfacecolor="none",
                color=style.shade(style.VERMILLION),
                label=words,
            )
    if almost.any():
        axes.legend(loc="upper right", bbox_to_anchor=(1, -0.005), ncols=2, fontsize=8.5, borderaxespad=0)


def _draw_shared(above: Axes, below: Axes, n_experts: int, n_shared: int) -> None:
    """Hatched columns right of the routed experts: every token goes there, whatever the gate says."""
    for axes in (above, below) if n_shared else ():
        axes.axvspan(n_experts - 0.5, n_experts + n_shared - 0.5, facecolor="none", edgecolor=style.GREY, hatch="////")
    if n_shared:
        middle = n_experts + n_shared / 2 - 0.5
        above.text(
            middle, 1.02, "shared", transform=above.get_xaxis_transform(), ha="center", va="bottom", fontsize=8.5
        )


def _as_array(values: Any) -> np.ndarray:
    """numpy from a tensor on any device or from nested lists."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values  # numpy knows no bfloat16
    return np.asarray(values)


def _shorten(label: str, longest: int = 18) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"


@lru_cache(maxsize=4096)
def _can_be_drawn(char: str) -> bool:
    """Whether matplotlib's font has a glyph; a missing one would be a box and a warning."""
    return char.isprintable() and get_font(findfont("DejaVu Sans")).get_char_index(ord(char)) != 0


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
