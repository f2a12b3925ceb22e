"""The idea graph widget, Python's side: traits that refuse nonsense, faces that turn, progress that shows at once."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dsv3_mini import course
from dsv3_mini.course import progress
from dsv3_mini.course.idea_graph import load_idea_graph
from dsv3_mini.course.lessons import LESSONS
from dsv3_mini.errors import InputError
from dsv3_mini.paths import data_dir, repo_root
from dsv3_mini.viz.idea_graph_widget import MAX_SCALE, IdeaGraph

WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass
class Exercise:
    id: str
    idea: str
    lesson: str = "04"
    title: str = "Compress keys and values"


@pytest.fixture(autouse=True)
def _own_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setattr(
        course, "all_exercises", lambda: [Exercise("4.1", "mla"), Exercise("4.2", "mla")], raising=False
    )


@pytest.fixture
def graph() -> Iterator[IdeaGraph]:
    graph = IdeaGraph()
    yield graph
    graph.close()


def test_the_browser_is_sent_all_that_it_draws_and_says_of_both_faces(graph: IdeaGraph) -> None:
    faces = json.loads(json.dumps(graph.get_state()["_faces"]))
    for name in ("report", "summary"):
        face, data = faces[name], load_idea_graph(name)
        assert list(face["nodes"]) == list(data)
        assert list(face["edges"]) == [f"{a}->{b}" for a, b in data.edges]
        assert face["title"] == data.graph["title"]
        for idea, node in face["nodes"].items():
            assert node["title"] == data.nodes[idea]["label"]
            assert node["explanation"] == data.nodes[idea]["explanation"]
    mla = faces["report"]["nodes"]["mla"]
    assert mla["needed"] == ["transformer_block", "kv_cache", "rope_yarn"]
    assert re.fullmatch(r"dsv3_mini/model/mla\.py:\d+", mla["code"][0]["place"])
    link = faces["summary"]["edges"]["deepseekmoe->mla"]
    assert (link["verdict"], link["conjecture"]) == ("wrong", True) and link["reason"]
    assert faces["report"]["edges"]["lossfree->sigmoid_gate"]["verdict"] == "missing"
    assert [work["after_report"] for work in faces["summary"]["chain"]["works"]] == [False] * 3 + [True] * 2


@pytest.mark.parametrize(
    ("trait", "value"),
    [
        ("face", "back"),
        ("selected", "gone"),
        ("selected", "ablations"),  # an idea of the other face
        ("selected_link", "mla->gone"),
        ("needed_for", "gone"),
        ("view", {"x": 1, "y": 2}),
        ("view", {"x": 1, "y": 2, "scale": float("nan")}),
        ("view", {"x": 1, "y": "2", "scale": 1}),
    ],
)
def test_a_trait_refuses_what_does_not_exist_and_keeps_its_value(graph: IdeaGraph, trait: str, value: object) -> None:
    before = getattr(graph, trait)
    with pytest.raises(InputError):
        setattr(graph, trait, value)
    assert getattr(graph, trait) == before
    with pytest.raises(InputError):
        graph.set_state({trait: value})  # what a browser sends goes the same way
    assert getattr(graph, trait) == before
    with pytest.raises(InputError):
        IdeaGraph(**{trait: value})


def test_first_values_are_kept(graph: IdeaGraph) -> None:
    other = IdeaGraph("summary", selected="ablations", view={"x": 1, "y": 2, "scale": 2})
    assert (other.face, other.selected, other.view) == ("summary", "ablations", {"x": 1, "y": 2, "scale": 2})
    assert graph.view["scale"] == 1


def test_scale_stays_within_what_the_browser_can_show(graph: IdeaGraph) -> None:
    graph.view = {"x": 1, "y": 2, "scale": 100}
    assert graph.view["scale"] == MAX_SCALE
    graph.view = {"x": 1, "y": 2, "scale": 0}
    assert graph.view["scale"] == 1


def test_an_idea_and_a_link_are_not_open_at_the_same_time(graph: IdeaGraph) -> None:
    graph.selected = "mla"
    graph.selected_link = "mla->kv_cache"
    assert graph.selected == ""
    graph.selected = "mtp"
    assert graph.selected_link == ""


def test_turning_the_face_keeps_the_idea_where_the_other_has_it(graph: IdeaGraph) -> None:
    for report, summary, back in [
        ("cost", "training_cost", "cost"),
        ("deepseekmoe", "deepseekmoe", "deepseekmoe"),
        ("fp8", "", ""),
    ]:
        graph.face, graph.selected = "report", report
        graph.face = "summary"
        assert graph.selected == summary
        graph.face = "report"
        assert graph.selected == back


def test_turning_the_face_shows_the_whole_of_it_without_link_and_lit_ideas(graph: IdeaGraph) -> None:
    graph.selected_link, graph.needed_for = "mla->kv_cache", "mla"
    graph.view = {"x": 1, "y": 2, "scale": 2}
    graph.face = "summary"
    assert (graph.selected_link, graph.needed_for) == ("", "")
    size = graph._faces["summary"]
    assert graph.view == {"x": size["width"] / 2, "y": size["height"] / 2, "scale": 1}


def test_progress_made_in_this_process_shows_at_once(graph: IdeaGraph) -> None:
    assert graph.states["mla"]["state"] == "none"
    progress.record_exercise("4.1", right=False)
    assert graph.states["mla"]["state"] == "begun"
    assert graph.states["mla"]["exercises"][0]["state"] == "wrong so far"
    progress.record_exercise("4.1", right=True)
    progress.record_exercise("4.2", right=True)
    assert graph.states["mla"] | {"exercises": None} == {
        "state": "right", "words": "2 of 2 exercises right", "count": "2/2", "exercises": None
    }  # fmt: skip
    assert "kv_cache" not in graph.states


def test_a_closed_widget_follows_progress_no_longer(graph: IdeaGraph) -> None:
    before = list(progress._subscribers)
    other = IdeaGraph()
    assert len(progress._subscribers) == len(before) + 1
    other.close()
    assert progress._subscribers == before
    progress.record_exercise("4.1", right=True)
    assert other.states["mla"]["state"] == "none"


def test_a_lesson_link_leads_from_the_folder_of_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def files() -> dict[str, str]:
        nodes = IdeaGraph()._faces["report"]["nodes"].values()
        return {lesson["number"]: lesson["file"] for node in nodes for lesson in node["lessons"]}

    monkeypatch.chdir(repo_root() / "notebooks")
    inside = files()
    assert inside["04"] == "04_mla.ipynb"
    monkeypatch.chdir(repo_root())
    assert files()["04"] == "notebooks/04_mla.ipynb"
    (tmp_path / "04_mla.ipynb").write_text("{}")  # a copy beside the notebook comes before the original
    monkeypatch.chdir(tmp_path)
    assert files()["04"] == "04_mla.ipynb"
    for lesson in LESSONS[1:]:
        assert bool(inside[lesson.number]) == (lesson.notebook is not None), lesson.number


def test_a_notebook_without_a_kernel_gets_a_picture_and_words_beside_the_widget(graph: IdeaGraph) -> None:
    data, _ = graph._repr_mimebundle_()
    assert WIDGET in data
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == graph.summary()


def test_the_summary_says_what_is_shown(graph: IdeaGraph) -> None:
    words = graph.summary()
    assert words.startswith("What the report says: 15 ideas, 15 links.")
    assert "Exercises: none begun." in words
    graph.selected, graph.needed_for = "specdec", "specdec"
    progress.record_exercise("4.1", right=True)
    words = graph.summary()
    assert "Open: Speculative decoding (85-90 %). The module" in words
    before = "Pre-norm Transformer block, then KV cache (576 values/token/layer), then Multi-Token Prediction."
    assert f"Before Speculative decoding (85-90 %): {before}" in words
    assert "Exercises: Multi-head Latent Attention: 1 of 2 exercises right." in words
    graph.face = "summary"
    assert graph.summary().count("WRONG") == 3 and "conjecture" in graph.summary()


def test_a_malformed_file_names_the_entry(tmp_path: Path) -> None:
    whole = json.loads((data_dir() / "idea_graph.json").read_text(encoding="utf-8"))
    whole["faces"]["report"]["nodes"][1]["code"][0] = "dsv3_mini.model.mla:Gone"
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(InputError, match=r"graph\.json: faces\.report\.nodes\[1\] \(mla\): code: .*Gone"):
        IdeaGraph(path=path)


def test_nothing_is_loaded_from_outside() -> None:
    for source in (IdeaGraph._esm, IdeaGraph._css):
        text = str(source)
        assert not re.search(r"\bimport\b|@import|url\((?!#)|https?://(?!www\.w3\.org/|lab/)|innerHTML|eval\(", text), (
            source
        )
