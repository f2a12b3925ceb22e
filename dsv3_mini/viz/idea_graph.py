"""The idea graph as a still picture: fifteen ideas, fifteen links, each with its place in the report.

`dsv3_mini.course.idea_graph` holds the two faces: `report` (what the report says) and `summary` (what a popular summary
says, with a verdict on every link). Here matplotlib draws one.

Nothing is laid out by a force model: each node carries its cell in a small grid, chosen by hand so that every link
joins neighbouring cells and no two links cross. One unit of the axes is one inch, so text never outgrows its box.
Dashed is conjecture; what a link's verdict is, its mark says, and colour only repeats it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from dsv3_mini.course.idea_graph import load_idea_graph
from dsv3_mini.errors import InputError
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

# Inches
BOX_WIDTH, BOX_HEIGHT = 1.72, 0.86
COLUMN, ROW = 2.72, 1.42  # from centre to centre
MARGIN, LEGEND = 0.12, 0.34

# The part of the report that an idea belongs to, by the first character behind its "§" ("T" is Table 1).
PARTS = {
    "2": ("the model (§2)", style.BLUE),
    "3": ("training it (§3, §4)", style.VERMILLION),
    "4": ("training it (§3, §4)", style.VERMILLION),
    "T": ("training it (§3, §4)", style.VERMILLION),
    "5": ("after training (§5)", style.GREEN),
}
MARKS = {"faithful": "✓", "simplified": "≈", "wrong": "✗", "outside": "∅"}
CONJECTURE = (0, (3, 2))  # dashes


def draw_idea_graph(face: str | nx.DiGraph = "report", *, highlight: Iterable[str] = ()) -> Picture:
    """Draw a face of the idea graph.

    Args:
        face: `report`, `summary`, or a graph from `load_idea_graph`.
        highlight: ids of nodes to fill, for instance those that a lesson builds.

    Returns:
        A figure, which a notebook shows where a cell ends on it.

    Raises:
        InputError: for a face or an id that does not exist.
    """
    graph = face if isinstance(face, nx.DiGraph) else load_idea_graph(face)
    marked = set(highlight)
    if unknown := sorted(marked - set(graph)):
        raise InputError(f"highlight names {unknown[0]!r}, which is not a node; there are {', '.join(graph)}")
    width, height, centre = grid(graph)
    height += LEGEND
    centre = {name: (x, y + LEGEND) for name, (x, y) in centre.items()}
    figure = Picture(width, height)
    figure.set_layout_engine("none")  # inches are inches, whatever style is in use
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    for name, fields in graph.nodes(data=True):
        _draw_node(ax, name, fields, centre[name], name in marked)
    for start, end, fields in graph.edges(data=True):
        _draw_edge(ax, f"{start}->{end}", fields, centre[start], centre[end])
    _draw_legend(ax, graph, marked)
    return figure


def grid(graph: nx.DiGraph) -> tuple[float, float, dict[str, tuple[float, float]]]:
    """Width and height of the drawing, and the centre of each box, in inches from the lower left corner."""
    columns = 1 + max((at[0] for _, at in graph.nodes(data="at")), default=0)
    rows = 1 + max((at[1] for _, at in graph.nodes(data="at")), default=0)
    centre = {
        name: (MARGIN + BOX_WIDTH / 2 + at[0] * COLUMN, MARGIN + BOX_HEIGHT / 2 + at[1] * ROW)
        for name, at in graph.nodes(data="at")
    }
    return (columns - 1) * COLUMN + BOX_WIDTH + 2 * MARGIN, (rows - 1) * ROW + BOX_HEIGHT + 2 * MARGIN, centre


def part_of(fields: dict[str, Any]) -> tuple[str, str]:
    """(name, colour) of the part of the report where an idea stands."""
    return PARTS.get(fields.get("where", "").lstrip("§")[:1], ("", style.INK))


def foot_of(fields: dict[str, Any]) -> list[str]:
    """The two small lines under a label: where the idea stands, and what builds it or where its name comes from."""
    if "where" in fields:
        lessons = fields["lessons"]
        return [fields["where"], f"lesson{'s' if len(lessons) > 1 else ''} {', '.join(lessons)}"]
    return [f"section {fields['section']}", fields["evidence"]]


def _draw_node(ax: Axes, name: str, fields: dict[str, Any], centre: tuple[float, float], marked: bool) -> None:
    _, colour = part_of(fields)
    line = CONJECTURE if fields["conjecture"] else "-"
    x, y = centre
    box = FancyBboxPatch(
        (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2), BOX_WIDTH, BOX_HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.09", facecolor=style.tint(colour) if marked else style.PAPER,
        edgecolor=colour, linewidth=2.4 if marked else 1.4, linestyle=line, gid=f"node:{name}", zorder=3,
    )  # fmt: skip
    ax.add_patch(box)
    label = _wrap(fields["label"], 20)
    # Label and foot are centred together: the foot's share of the height moves the seam between them.
    lines = label.count("\n") + 1
    seam = y + 0.125 - 0.075 * lines
    text: dict[str, Any] = dict(ha="center", zorder=4, color=style.INK, parse_math=False)
    ax.text(x, seam + 0.015, label, fontsize=9.5, va="bottom", linespacing=1.05, gid=f"label:{name}", **text)
    ax.text(
        x, seam - 0.025, "\n".join(foot_of(fields)), fontsize=7.4, va="top", linespacing=1.1, gid=f"foot:{name}", **text
    )


def _draw_edge(
    ax: Axes, name: str, fields: dict[str, Any], start: tuple[float, float], end: tuple[float, float]
) -> None:
    wrong = fields.get("verdict") == "wrong"
    colour = style.shade(style.VERMILLION) if wrong else style.GREY
    a, b = link_ends(start, end)
    arrow = FancyArrowPatch(
        a, b, arrowstyle="-|>", mutation_scale=11, linewidth=1.4, color=colour,
        linestyle=CONJECTURE if fields.get("conjecture") else "-", shrinkA=0, shrinkB=0, gid=f"edge:{name}", zorder=2,
    )  # fmt: skip
    ax.add_patch(arrow)
    relation = f"{MARKS.get(fields.get('verdict', ''), '')} {fields['relation']}".strip()
    x, y, ha, va, width = place_words(a, b)
    ax.text(
        x, y, _wrap(relation, width), fontsize=8, style="italic", linespacing=1.0, ha=ha, va=va,
        color=colour if wrong else style.INK, gid=f"relation:{name}", zorder=4, parse_math=False,
    )  # fmt: skip


def place_words(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float, str, str, int]:
    """Where the words of a link from `a` to `b` stand: x, y, alignment across and up, and letters in a line."""
    x, y = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2
    if a[1] == b[1]:  # along a row: the words stand on the line
        return x, y + 0.05, "center", "bottom", 13
    if a[0] == b[0]:  # up or down: beside it
        return x + 0.08, y, "left", "center", 15
    return x + 0.1, y - 0.04, "left", "top", 13  # aslant: in the free corner under it (all such lines rise)


def link_ends(start: tuple[float, float], end: tuple[float, float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the line between the centres of two boxes leaves the one and meets the other, a hair outside the frames."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    reach = min(
        (BOX_WIDTH / 2 + 0.03) / abs(dx) if dx else float("inf"),
        (BOX_HEIGHT / 2 + 0.03) / abs(dy) if dy else float("inf"),
    )
    return (start[0] + reach * dx, start[1] + reach * dy), (end[0] - reach * dx, end[1] - reach * dy)


def _wrap(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _draw_legend(ax: Axes, graph: nx.DiGraph, marked: set[str]) -> None:
    x, y = MARGIN, MARGIN + 0.06
    there = {part_of(fields) for _, fields in graph.nodes(data=True)}
    for words, colour in (part for part in dict.fromkeys(PARTS.values()) if part in there):
        ax.plot([x, x + 0.4], [y, y], color=colour, linewidth=2)
        ax.text(x + 0.48, y, words, fontsize=8, va="center", color=style.INK)
        x += 0.48 + 0.058 * len(words) + 0.35
    notes = ["filled: in this lesson"] if marked else []
    if any("verdict" in fields for *_, fields in graph.edges(data=True)):
        marks = "   ".join(f"{mark} {verdict}" for verdict, mark in MARKS.items())
        notes.append(f"dashed: conjecture    What the report says of a link:   {marks}")
    ax.text(x, y, "   ".join(notes), fontsize=8, va="center", color=style.INK)
