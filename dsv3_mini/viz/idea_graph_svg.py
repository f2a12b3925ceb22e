"""The idea graph as SVG: for pages without a kernel, and the measures from which the widget draws.

The same grid as the picture of `viz.idea_graph`, in CSS pixels and with y downwards. The SVG brings its own background,
so it reads the same on a light and on a dark page, and it carries the graph in words for those who do not see it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from html import escape
from typing import Any

import networkx as nx

from dsv3_mini.course.idea_graph import describe_idea_graph, load_idea_graph, require_idea
from dsv3_mini.viz import style
from dsv3_mini.viz.idea_graph import BOX_HEIGHT, BOX_WIDTH, MARKS, foot_of, grid, link_ends, part_of, place_words

SCALE = 100  # pixels for an inch of the picture
LABEL_LINES = 3  # more do not fit into a box
LEGEND = 30


def layout(graph: nx.DiGraph) -> dict[str, Any]:
    """Where everything stands, in pixels: `width`, `height`, `nodes` (centre, lines of text) and `edges` by name."""
    width, height, inches = grid(graph)

    def pixels(point: tuple[float, float]) -> tuple[float, float]:
        return round(point[0] * SCALE, 1), round((height - point[1]) * SCALE, 1)

    nodes = {}
    for name, fields in graph.nodes(data=True):
        x, y = pixels(inches[name])
        label = textwrap.wrap(fields["label"], 20, max_lines=LABEL_LINES, placeholder=" …", break_on_hyphens=False)
        foot = [textwrap.shorten(line, 30, placeholder=" …") for line in foot_of(fields)]
        nodes[name] = {"x": x, "y": y, "label": label, "foot": foot}
    edges = {}
    for start, end, fields in graph.edges(data=True):
        a, b = link_ends(inches[start], inches[end])
        x, y, across, up, letters = place_words(a, b)
        words = f"{MARKS.get(fields.get('verdict', ''), '')} {fields['relation']}".strip()
        lines = textwrap.wrap(words, letters, max_lines=4, placeholder=" …", break_on_hyphens=False)
        (x1, y1), (x2, y2), (x, y) = pixels(a), pixels(b), pixels((x, y))
        # The first baseline: 13 px from line to line, of which about 10 stand above it.
        first = {"bottom": y - 13 * (len(lines) - 1), "center": y + 4 - 6.5 * (len(lines) - 1), "top": y + 10}[up]
        anchor = "middle" if across == "center" else "start"
        line = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
        edges[f"{start}->{end}"] = {**line, "x": x, "y": round(first, 1), "anchor": anchor, "lines": lines}
    size = {"width": round(width * SCALE), "height": round(height * SCALE)}
    return {**size, "box": [BOX_WIDTH * SCALE, BOX_HEIGHT * SCALE], "nodes": nodes, "edges": edges}


def idea_graph_svg(face: str | nx.DiGraph = "report", *, highlight: Iterable[str] = ()) -> str:
    """A face of the idea graph as one `<svg>` element, to write to a file or put into a page.

    Args:
        face: `report`, `summary`, or a graph from `load_idea_graph`.
        highlight: ids of nodes to fill.

    Raises:
        InputError: for a face or an id that does not exist.
    """
    graph = face if isinstance(face, nx.DiGraph) else load_idea_graph(face)
    marked = set(highlight)
    for name in sorted(marked):
        require_idea(name, graph)
    plan = layout(graph)
    width, height, (box_width, box_height) = plan["width"], plan["height"], plan["box"]
    name = f"idea-graph-{graph.graph['face']}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + LEGEND}" width="{width}" role="img" '
        f'aria-labelledby="{name}-title {name}-words" font-family="system-ui, sans-serif" fill="{style.INK}">',
        f'<title id="{name}-title">{escape(graph.graph["title"])}</title>',
        f'<desc id="{name}-words">{escape(describe_idea_graph(graph))}</desc>',
        f'<defs><marker id="{name}-head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="5" markerHeight="5" '
        'orient="auto"><path d="M0 0L10 5L0 10z" fill="context-stroke"/></marker></defs>',
        f'<rect width="{width}" height="{height + LEGEND}" fill="{style.PAPER}"/>',
    ]
    for start, end, fields in graph.edges(data=True):
        edge = plan["edges"][f"{start}->{end}"]
        colour = style.shade(style.VERMILLION) if fields.get("verdict") == "wrong" else style.GREY
        dashes = ' stroke-dasharray="6 4"' if fields.get("conjecture") else ""
        ends = " ".join(f'{key}="{edge[key]}"' for key in ("x1", "y1", "x2", "y2"))
        parts.append(f'<line {ends} stroke="{colour}" stroke-width="2"{dashes} marker-end="url(#{name}-head)"/>')
        ink = colour if fields.get("verdict") == "wrong" else style.INK
        look = f'font-size="11" font-style="italic" text-anchor="{edge["anchor"]}" fill="{ink}"'
        parts += _lines(edge["lines"], edge["x"], edge["y"], 13, look)
    for node, fields in graph.nodes(data=True):
        place, (_, colour) = plan["nodes"][node], part_of(fields)
        dashes = ' stroke-dasharray="6 4"' if fields["conjecture"] else ""
        fill = style.tint(colour) if node in marked else style.PAPER
        parts.append(
            f'<rect x="{place["x"] - box_width / 2:.1f}" y="{place["y"] - box_height / 2:.1f}" width="{box_width:.0f}" '
            f'height="{box_height:.0f}" rx="9" fill="{fill}" stroke="{colour}" stroke-width="2"{dashes}/>'
        )
        top = place["y"] - 8 * len(place["label"]) - 1
        parts += _lines(place["label"], place["x"], top, 16, 'font-size="13.5" text-anchor="middle"')
        top += 16 * len(place["label"])
        parts += _lines(place["foot"], place["x"], top, 13, 'font-size="11" text-anchor="middle"')
    parts += _lines([_legend(graph)], 12, height + 12, 14, 'font-size="12"')
    return "\n".join([*parts, "</svg>"])


def _legend(graph: nx.DiGraph) -> str:
    if graph.graph["face"] == "report":
        return "The sign § in a box names the section of the report."
    marks = ", ".join(f"{mark} {verdict}" for verdict, mark in MARKS.items())
    return f"Dashed: conjecture. What the report says of a link: {marks}."


def _lines(lines: Iterable[str], x: float, y: float, step: float, look: str) -> list[str]:
    """One `<text>` for each line; the first one's baseline is at `y`."""
    return [
        f'<text x="{x}" y="{y + number * step:.1f}" {look}>{escape(line)}</text>' for number, line in enumerate(lines)
    ]
