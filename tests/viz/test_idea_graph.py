"""The idea graph: its data is whole, and its picture can be read (nothing overlaps, nothing is cut off)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import networkx as nx
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.transforms import Bbox

from dsv3_mini.errors import InputError
from dsv3_mini.paths import data_dir
from dsv3_mini.viz.idea_graph import FACES, describe_idea_graph, draw_idea_graph, load_idea_graph

LESSONS = {f"{number:02d}" for number in range(1, 19)}


@pytest.fixture(params=FACES)
def graph(request: pytest.FixtureRequest) -> nx.DiGraph:
    return load_idea_graph(request.param)


def test_both_faces_have_fifteen_ideas_and_fifteen_links_in_one_piece(graph: nx.DiGraph) -> None:
    assert graph.number_of_nodes() == 15
    assert graph.number_of_edges() == 15
    assert nx.is_weakly_connected(graph)


def test_every_idea_and_link_of_the_report_has_its_place_and_its_lessons() -> None:
    graph = load_idea_graph("report")
    entries = [*graph.nodes(data=True), *((f"{a}->{b}", fields) for a, b, fields in graph.edges(data=True))]
    for name, fields in entries:
        assert fields["where"].startswith(("§", "Table ")), name
    for name, fields in graph.nodes(data=True):
        assert fields["lessons"], name
        assert set(fields["lessons"]) <= LESSONS, name
        assert fields["sentence"].endswith("."), name


def test_the_summary_marks_conjecture_and_says_why_a_link_is_wrong() -> None:
    graph = load_idea_graph("summary")
    assert graph.graph["conjecture"]
    assert {fields["evidence"] for _, fields in graph.nodes(data=True)} == {"label recovered", "section text"}
    wrong = [(a, b) for a, b, fields in graph.edges(data=True) if fields.get("verdict") == "wrong"]
    assert wrong == [("deepseekmoe", "mla"), ("ablations", "mixture_of_experts"), ("ablations", "mla")]
    for a, b, fields in graph.edges(data=True):
        assert fields["conjecture"] is True
        assert ("verdict" in fields) == ("reason" in fields) == ("where" in fields), (a, b)


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


def test_the_picture_in_words_names_every_link_and_what_is_wrong() -> None:
    report, summary = describe_idea_graph("report"), describe_idea_graph("summary")
    assert len(report.splitlines()) == len(summary.splitlines()) == 16
    assert "DualPipe overlap -- lowers --> 2.788M H800 hours (§1, §3.2.1)" in report
    assert summary.count("WRONG:") == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda face: face["nodes"][3].pop("label"), r"nodes\[3\]: label = None"),
        (lambda face: face["nodes"][2].update(id="mla"), r"nodes\[2\]: id 'mla' is there twice"),
        (
            lambda face: face["nodes"][2].update(at=[1, 3]),
            r"nodes\[2\] \(specdec\): the cell \[1, 3\] is already taken",
        ),
        (lambda face: face["nodes"][2].update(at=[1.5, 3]), r"nodes\[2\] \(specdec\): at = "),
        (lambda face: face["edges"][7].update(to="gone"), r"edges\[7\]: to = 'gone' is not the id of a node"),
        (lambda face: face["edges"].insert(0, "mla"), r"edges\[0\]: must be an object"),
        (lambda face: face.pop("edges"), "not an idea graph"),
    ],
)
def test_a_malformed_file_is_refused_with_the_entry(tmp_path: Path, change, message: str) -> None:
    whole = json.loads((data_dir() / "idea_graph.json").read_text(encoding="utf-8"))
    change(whole["faces"]["report"])
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_idea_graph("report", path)


def test_a_missing_file_and_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json: cannot be read"):
        load_idea_graph("report", tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="no face 'popular'"):
        load_idea_graph("popular")
    with pytest.raises(InputError, match="'attention', which is not a node"):
        draw_idea_graph("report", highlight=["attention"])
