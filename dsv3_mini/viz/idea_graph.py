"""The idea graph as a still picture: fifteen ideas, fifteen links, each with its place in the report.

`data/idea_graph.json` holds two faces of the same size: `report` (what the report says) and `summary` (what a popular
summary says, partly reconstructed, with the links that are wrong marked). networkx holds a face, matplotlib draws it.

Nothing is laid out by a force model: each node carries its cell in a small grid, chosen by hand so that every link
joins neighbouring cells and no two links cross. One unit of the axes is one inch, so text never outgrows its box.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from dsv3_mini.errors import InputError
from dsv3_mini.paths import data_dir
from dsv3_mini.viz import style
from dsv3_mini.viz.picture import Picture

FACES = ("report", "summary")

# Inches
BOX_WIDTH, BOX_HEIGHT = 1.72, 0.86
COLUMN, ROW = 2.72, 1.42  # from centre to centre
MARGIN, LEGEND = 0.12, 0.34

# The part of the report that an idea belongs to, by the first character behind its "§" ("T" is Table 1).
PARTS = {
    "2": ("the model (§2)", style.BLUE, "-"),
    "3": ("training it (§3, §4)", style.VERMILLION, "--"),
    "4": ("training it (§3, §4)", style.VERMILLION, "--"),
    "T": ("training it (§3, §4)", style.VERMILLION, "--"),
    "5": ("after training (§5)", style.GREEN, "-."),
}


def load_idea_graph(face: str = "report", path: str | Path | None = None) -> nx.DiGraph:
    """One face of the idea graph; nodes and links keep the fields of their entry (`label`, `where`, `lessons`, ...).

    Args:
        face: `report` or `summary`.
        path: another file of the same form; by default the one of the project.

    Raises:
        InputError: naming the file and the entry that is wrong.
    """
    path = Path(path) if path is not None else data_dir() / "idea_graph.json"
    if face not in FACES:
        raise InputError(f"the idea graph has no face {face!r}; there are {' and '.join(FACES)}")
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))["faces"][face]
        nodes, edges = list(entry["nodes"]), list(entry["edges"])
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); it should hold the idea graph") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f'{path}: not an idea graph; it must be JSON with "faces", "{face}", "nodes", "edges"'
        ) from None
    graph = nx.DiGraph(face=face, **{key: entry.get(key, "") for key in ("title", "source", "conjecture")})
    cells: dict[tuple[int, int], str] = {}
    for number, node in enumerate(nodes):
        here = f"{path}: faces.{face}.nodes[{number}]"
        _require_fields(node, {"id": str, "label": str, "at": list}, here)
        at = node["at"]
        if len(at) != 2 or not all(isinstance(part, int) and part >= 0 for part in at):
            raise InputError(f"{here} ({node['id']}): at = {at} must be [column, row], two whole numbers of at least 0")
        if node["id"] in graph:
            raise InputError(f"{here}: id {node['id']!r} is there twice")
        if tuple(at) in cells:
            raise InputError(f"{here} ({node['id']}): the cell {at} is already taken by {cells[tuple(at)]}")
        cells[tuple(at)] = node["id"]
        graph.add_node(node["id"], **{key: value for key, value in node.items() if key != "id"})
    for number, edge in enumerate(edges):
        here = f"{path}: faces.{face}.edges[{number}]"
        _require_fields(edge, {"from": str, "to": str, "relation": str}, here)
        for end in ("from", "to"):
            if edge[end] not in graph:
                raise InputError(f"{here}: {end} = {edge[end]!r} is not the id of a node")
        graph.add_edge(edge["from"], edge["to"], **{k: v for k, v in edge.items() if k not in ("from", "to")})
    return graph


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
    columns = 1 + max(at[0] for _, at in graph.nodes(data="at"))
    rows = 1 + max(at[1] for _, at in graph.nodes(data="at"))
    width = (columns - 1) * COLUMN + BOX_WIDTH + 2 * MARGIN
    height = (rows - 1) * ROW + BOX_HEIGHT + 2 * MARGIN + LEGEND
    figure = Picture(width, height)
    figure.set_layout_engine("none")  # inches are inches, whatever style is in use
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    centre = {
        name: (MARGIN + BOX_WIDTH / 2 + at[0] * COLUMN, MARGIN + LEGEND + BOX_HEIGHT / 2 + at[1] * ROW)
        for name, at in graph.nodes(data="at")
    }
    for name, fields in graph.nodes(data=True):
        _draw_node(ax, name, fields, centre[name], name in marked)
    for start, end, fields in graph.edges(data=True):
        _draw_edge(ax, f"{start}->{end}", fields, centre[start], centre[end])
    _draw_legend(ax, graph, marked)
    return figure


def describe_idea_graph(face: str | nx.DiGraph = "report") -> str:
    """The picture in words, for readers who do not see it: one line for each link."""
    graph = face if isinstance(face, nx.DiGraph) else load_idea_graph(face)
    lines = [f"{graph.graph['title']}: {graph.number_of_nodes()} ideas, {graph.number_of_edges()} links."]
    for start, end, fields in graph.edges(data=True):
        place = fields.get("where", "conjecture")
        line = f"{graph.nodes[start]['label']} -- {fields['relation']} --> {graph.nodes[end]['label']} ({place})"
        lines.append(line + (f" {fields['verdict'].upper()}: {fields['reason']}" if "verdict" in fields else ""))
    return "\n".join(lines)


def _require_fields(entry: Any, fields: dict[str, type], here: str) -> None:
    if not isinstance(entry, dict):
        raise InputError(f"{here}: must be an object with {', '.join(fields)}")
    for name, kind in fields.items():
        if not isinstance(entry.get(name), kind) or not entry[name]:
            raise InputError(f"{here}: {name} = {entry.get(name)!r} must be a {kind.__name__} that is not empty")


def _part(fields: dict[str, Any]) -> tuple[str, str, str]:
    """(name, colour, line style) of the part of the report where an idea stands."""
    return PARTS.get(fields.get("where", "").lstrip("§")[:1], ("", style.INK, "-"))


def _draw_node(ax: Axes, name: str, fields: dict[str, Any], centre: tuple[float, float], marked: bool) -> None:
    _, colour, line = _part(fields)
    x, y = centre
    box = FancyBboxPatch(
        (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2), BOX_WIDTH, BOX_HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.09", facecolor=style.tint(colour) if marked else style.PAPER,
        edgecolor=colour, linewidth=2.4 if marked else 1.4, linestyle=line, gid=f"node:{name}", zorder=3,
    )  # fmt: skip
    ax.add_patch(box)
    label = _wrap(fields["label"], 20)
    lessons = fields.get("lessons", ())
    if "where" in fields:
        foot = [fields["where"], f"lesson{'s' if len(lessons) > 1 else ''} {', '.join(lessons)}" if lessons else ""]
    else:
        foot = [f"section {fields['section']}", fields["evidence"]]
    # Label and foot are centred together: the foot's share of the height moves the seam between them.
    lines = label.count("\n") + 1
    seam = y + 0.125 - 0.075 * lines
    text: dict[str, Any] = dict(ha="center", zorder=4, color=style.INK, parse_math=False)
    ax.text(x, seam + 0.015, label, fontsize=9.5, va="bottom", linespacing=1.05, gid=f"label:{name}", **text)
    ax.text(x, seam - 0.025, "\n".join(foot), fontsize=7.4, va="top", linespacing=1.1, gid=f"foot:{name}", **text)


def _draw_edge(
    ax: Axes, name: str, fields: dict[str, Any], start: tuple[float, float], end: tuple[float, float]
) -> None:
    wrong = fields.get("verdict") == "wrong"
    colour = style.shade(style.VERMILLION) if wrong else style.GREY
    dx, dy = end[0] - start[0], end[1] - start[1]
    a, b = _border(start, dx, dy), _border(end, -dx, -dy)
    arrow = FancyArrowPatch(
        a, b, arrowstyle="-|>", mutation_scale=11, linewidth=1.4, color=colour,
        linestyle=(0, (3, 2)) if wrong else "-", shrinkA=0, shrinkB=0, gid=f"edge:{name}", zorder=2,
    )  # fmt: skip
    ax.add_patch(arrow)
    middle = ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2)
    relation = ("✗ " if wrong else "") + fields["relation"]
    place: dict[str, Any]
    if dy == 0:  # along a row: the words stand on the line
        x, y, place = middle[0], middle[1] + 0.05, dict(ha="center", va="bottom")
        words = _wrap(relation, 13)
    elif dx == 0:  # up or down: beside it
        x, y, place = middle[0] + 0.08, middle[1], dict(ha="left", va="center")
        words = _wrap(relation, 15)
    else:  # aslant: in the free corner under it (all such lines rise to the right)
        x, y, place = middle[0] + 0.1, middle[1] - 0.04, dict(ha="left", va="top")
        words = _wrap(relation, 13)
    ax.text(
        x, y, words, fontsize=8, style="italic", linespacing=1.0, color=colour if wrong else style.INK,
        gid=f"relation:{name}", zorder=4, parse_math=False, **place,
    )  # fmt: skip


def _border(centre: tuple[float, float], dx: float, dy: float) -> tuple[float, float]:
    """Where a ray from the centre of a box leaves it, a hair outside the frame."""
    reach = min(
        (BOX_WIDTH / 2 + 0.03) / abs(dx) if dx else float("inf"),
        (BOX_HEIGHT / 2 + 0.03) / abs(dy) if dy else float("inf"),
    )
    return centre[0] + reach * dx, centre[1] + reach * dy


def _wrap(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _draw_legend(ax: Axes, graph: nx.DiGraph, marked: set[str]) -> None:
    x, y = MARGIN, MARGIN + 0.06
    there = {_part(fields) for _, fields in graph.nodes(data=True)}
    for words, colour, line in (part for part in dict.fromkeys(PARTS.values()) if part in there):
        ax.plot([x, x + 0.4], [y, y], color=colour, linestyle=line, linewidth=2)
        ax.text(x + 0.48, y, words, fontsize=8, va="center", color=style.INK)
        x += 0.48 + 0.058 * len(words) + 0.35
    notes = ["filled: in this lesson"] if marked else []
    if any("verdict" in fields for *_, fields in graph.edges(data=True)):
        notes.append("✗ dashed: wrong. Every link is conjecture.")
    ax.text(x, y, "   ".join(notes), fontsize=8, va="center", color=style.INK)
