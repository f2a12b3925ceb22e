"""The idea graph as a picture and as SVG: nothing overlaps, nothing is cut off, conjecture and verdicts are seen."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from xml.etree import ElementTree

import networkx as nx
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.transforms import Bbox

from dsv3_mini.course.idea_graph import describe_idea_graph, load_idea_graph
from dsv3_mini.course.idea_graph_file import FACES
from dsv3_mini.errors import InputError
from dsv3_mini.paths import data_dir
from dsv3_mini.viz.idea_graph import MARKS, draw_idea_graph
from dsv3_mini.viz.idea_graph_svg import LABEL_LINES, idea_graph_svg, layout

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = """<script>alert(1)</script> "quoted" & <img src=x onerror='alert(1)'> \u202eright to left\u202c"""


@pytest.fixture(params=FACES)
def graph(request: pytest.FixtureRequest) -> nx.DiGraph:
    return load_idea_graph(request.param)


def _boxes(figure: Figure, kind: str) -> dict[str, Bbox]:
    """Extent in pixels of every drawn thing whose gid begins with `kind`."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.canvas.draw()
    artists = [artist for artist in figure.findobj() if str(artist.get_gid() or "").startswith(f"{kind}:")]
    return {artist.get_gid(): artist.get_window_extent(renderer) for artist in artists}


def test_nothing_in_the_picture_overlaps_or_is_cut_off(graph: nx.DiGraph) -> None:
    figure = draw_idea_graph(graph)
    nodes, words = _boxes(figure, "node"), _boxes(figure, "relation")
    assert len(nodes) == len(words) == 15
    for (one, a), (other, b) in itertools.combinations({**nodes, **words}.items(), 2):
        assert not a.overlaps(b), f"{one} overlaps {other}"
    page = figure.bbox
    for name, box in {**nodes, **words}.items():
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, f"{name} is cut off"


def test_text_stays_inside_its_node(graph: nx.DiGraph) -> None:
    figure = draw_idea_graph(graph, highlight=["mla"])
    nodes, labels, feet = _boxes(figure, "node"), _boxes(figure, "label"), _boxes(figure, "foot")
    for name in graph:
        node, label, foot = nodes[f"node:{name}"], labels[f"label:{name}"], feet[f"foot:{name}"]
        for text in (label, foot):
            assert node.x0 < text.x0 and text.x1 < node.x1, f"{name}: text is wider than its box"
            assert node.y0 < text.y0 and text.y1 < node.y1, f"{name}: text is taller than its box"
        assert not label.overlaps(foot), f"{name}: label and foot overlap"


def test_no_link_runs_through_an_idea_or_across_another_link(graph: nx.DiGraph) -> None:
    figure = draw_idea_graph(graph)
    nodes = {patch.get_gid(): patch for patch in figure.findobj(FancyBboxPatch) if patch.get_gid()}
    arrows = {patch.get_gid(): patch._posA_posB for patch in figure.findobj(FancyArrowPatch) if patch.get_gid()}
    assert len(arrows) == 15
    for name, (start, end) in arrows.items():
        for node, patch in nodes.items():
            box = Bbox.from_bounds(patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height())
            steps = [
                (start[0] + (end[0] - start[0]) * k / 100, start[1] + (end[1] - start[1]) * k / 100) for k in range(101)
            ]
            assert not any(box.contains(*step) for step in steps), f"{name} runs through {node}"
    for (one, (a, b)), (other, (c, d)) in itertools.combinations(arrows.items(), 2):
        assert not _cross(a, b, c, d), f"{one} crosses {other}"


def _cross(a: tuple, b: tuple, c: tuple, d: tuple) -> bool:
    def side(p: tuple, q: tuple, r: tuple) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def test_an_arrow_points_from_the_idea_that_acts_to_the_other() -> None:
    figure = draw_idea_graph("report")
    arrows = {patch.get_gid(): patch._posA_posB for patch in figure.findobj(FancyArrowPatch) if patch.get_gid()}
    tail, head = arrows["edge:dualpipe->cost"]
    assert tail[0] < head[0]  # DualPipe stands left of the cost that it lowers


def test_highlighted_ideas_are_filled_and_only_they() -> None:
    figure = draw_idea_graph("report", highlight=["mla", "kv_cache"])
    filled = {p.get_gid() for p in figure.findobj(FancyBboxPatch) if p.get_gid() and p.get_facecolor() != (1, 1, 1, 1)}
    assert filled == {"node:mla", "node:kv_cache"}


def test_every_link_of_the_summary_is_dashed_and_carries_the_mark_of_its_verdict() -> None:
    graph = load_idea_graph("summary")
    figure = draw_idea_graph(graph)
    arrows = {patch.get_gid(): patch for patch in figure.findobj(FancyArrowPatch) if patch.get_gid()}
    words = {text.get_gid(): text.get_text() for text in figure.findobj() if str(text.get_gid()).startswith("relation")}
    for start, end, fields in graph.edges(data=True):
        assert arrows[f"edge:{start}->{end}"].get_linestyle() != "-"
        assert words[f"relation:{start}->{end}"].startswith(MARKS[fields["verdict"]])
    report = draw_idea_graph("report")
    assert {patch.get_linestyle() for patch in report.findobj(FancyArrowPatch) if patch.get_gid()} == {"-"}


def test_names_that_are_conjecture_are_dashed() -> None:
    graph = load_idea_graph("summary")
    boxes = {p.get_gid(): p for p in draw_idea_graph(graph).findobj(FancyBboxPatch) if p.get_gid()}
    for name, fields in graph.nodes(data=True):
        assert (boxes[f"node:{name}"].get_linestyle() != "-") == fields["conjecture"], name


def test_an_idea_to_highlight_must_exist() -> None:
    for draw in (draw_idea_graph, idea_graph_svg):
        with pytest.raises(InputError, match="'gone'"):
            draw("report", highlight=["mla", "gone"])


def test_the_svg_is_one_accessible_picture_with_a_background_of_its_own(graph: nx.DiGraph) -> None:
    svg = ElementTree.fromstring(idea_graph_svg(graph))
    title, words = svg.find(f"{SVG}title"), svg.find(f"{SVG}desc")
    assert svg.get("role") == "img"
    assert svg.get("aria-labelledby") == f"{title.get('id')} {words.get('id')}"
    assert title.text == graph.graph["title"]
    assert words.text == describe_idea_graph(graph)
    background = svg.find(f"{SVG}rect")
    assert background.get("fill") == "#FFFFFF"
    assert svg.get("viewBox") == f"0 0 {background.get('width')} {background.get('height')}"
    assert len(svg.findall(f"{SVG}rect")) == 16
    lines = svg.findall(f"{SVG}line")
    assert len(lines) == 15
    assert all(bool(line.get("stroke-dasharray")) == (graph.graph["face"] == "summary") for line in lines)


def test_the_svg_fills_what_is_highlighted() -> None:
    svg = ElementTree.fromstring(idea_graph_svg("report", highlight=["mla"]))
    assert len([box for box in svg.findall(f"{SVG}rect") if box.get("fill") != "#FFFFFF"]) == 1


def test_every_box_of_the_layout_stands_inside_the_drawing_and_the_first_row_below_the_last(graph: nx.DiGraph) -> None:
    plan = layout(graph)
    width, height = plan["box"]
    for node in plan["nodes"].values():
        assert width / 2 <= node["x"] <= plan["width"] - width / 2
        assert height / 2 <= node["y"] <= plan["height"] - height / 2
    rows = dict(graph.nodes(data="at"))
    lowest, highest = min(rows, key=lambda name: rows[name][1]), max(rows, key=lambda name: rows[name][1])
    assert plan["nodes"][lowest]["y"] > plan["nodes"][highest]["y"]


def test_markup_in_the_data_is_text_in_the_svg_and_long_labels_are_cut(tmp_path: Path) -> None:
    whole = json.loads((data_dir() / "idea_graph.json").read_text(encoding="utf-8"))
    whole["faces"]["report"]["title"] = HOSTILE
    whole["faces"]["report"]["nodes"][0]["label"] = HOSTILE * 3
    whole["faces"]["report"]["edges"][0]["relation"] = HOSTILE
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(whole), encoding="utf-8")
    graph = load_idea_graph("report", path)
    svg = ElementTree.fromstring(idea_graph_svg(graph))
    assert {element.tag.removeprefix(SVG) for element in svg.iter()} == {
        "svg", "title", "desc", "defs", "marker", "path", "rect", "line", "text"
    }  # fmt: skip
    assert svg.find(f"{SVG}title").text == HOSTILE
    label = layout(graph)["nodes"]["rope_yarn"]["label"]
    assert len(label) == LABEL_LINES and label[-1].endswith("…")
    assert draw_idea_graph(graph)._repr_png_()  # matplotlib does not take it for mathematics or markup either
