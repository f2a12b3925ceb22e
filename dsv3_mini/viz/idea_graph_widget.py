"""The idea graph to walk in: `IdeaGraph()` at the end of a cell shows it.

The drawing and its keys live in `idea_graph.js`; Python holds what is shown, in traits that follow both ways: set
`graph.selected = "mla"` in a cell and the panel opens; click another idea and `graph.selected` has changed. All text
goes to the browser as data and is inserted there as text. A picture and the graph in words travel beside the widget,
for notebooks that are read without a kernel.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import traitlets

from dsv3_mini.course import progress
from dsv3_mini.course.idea_graph import (
    IdeaState,
    code_places,
    describe_idea_graph,
    idea_states,
    needed_before,
    require_idea,
)
from dsv3_mini.course.idea_graph_file import FACES, read_idea_graph
from dsv3_mini.course.lessons import lesson
from dsv3_mini.errors import InputError
from dsv3_mini.viz.idea_graph import MARKS, draw_idea_graph, part_of
from dsv3_mini.viz.idea_graph_svg import layout
from dsv3_mini.viz.picture import Picture
from dsv3_mini.viz.still_widget import StillWidget

HERE = Path(__file__).parent
MIN_SCALE, MAX_SCALE = 1.0, 4.0  # 1 shows the whole face; the browser knows the same two


class _RefusedError(InputError, traitlets.TraitError):
    """What we refuse reads like every `InputError`; traitlets takes a change back only for an error of its own."""


class IdeaGraph(StillWidget):
    """The idea graph: click, drag, zoom, or walk with the arrow keys, Enter and Escape.

    Args:
        face: `report` or `summary`.
        path: another file of the form of `data/idea_graph.json`.
        traits: first values of the traits below.

    Traits, all in both directions:
        face: `report` or `summary`.
        selected: id of the idea whose panel is open, or "".
        selected_link: "from->to" of the link whose panel is open, or "". At most one of the two is open.
        needed_for: id of the idea for which everything that is needed before is lit, or "".
        view: {"x", "y", "scale"}: the point of the drawing in the middle, and how far it is enlarged, 1 to 4.
        states: by idea, its exercises with their states. Follows the learner's progress.

    Raises:
        InputError: for values that do not exist, and naming the entry of a file that is wrong.
    """

    _esm = HERE / "idea_graph.js"
    _css = HERE / "idea_graph.css"
    _unsubscribe: Callable[[], None] | None = None  # until the widget is whole

    face = traitlets.Unicode("report").tag(sync=True)
    selected = traitlets.Unicode("").tag(sync=True)
    selected_link = traitlets.Unicode("").tag(sync=True)
    needed_for = traitlets.Unicode("").tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    states = traitlets.Dict().tag(sync=True)
    _faces = traitlets.Dict().tag(sync=True)  # everything to draw and to say, once
    _folders: traitlets.List[str] = traitlets.List().tag(sync=True)  # the notebook's, as Lab may spell it

    def __init__(self, face: str = "report", *, path: str | Path | None = None, **traits: Any) -> None:
        self._graphs, chains = read_idea_graph(path)
        faces = {name: _for_browser(self._graphs, name, chains[name]) for name in FACES}
        states = _states_for_browser(idea_states())
        if face in faces:
            traits.setdefault("view", _whole(faces[face]))
        super().__init__(face=face, states=states, _faces=faces, _folders=_folders(), **traits)
        self._unsubscribe = progress.subscribe(self.refresh)

    def close(self) -> None:
        """Take the graph off the page, and follow the learner's progress no longer."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        super().close()

    def refresh(self) -> None:
        """Read the learner's progress again. Happens by itself after each exercise checked in this notebook."""
        self.states = _states_for_browser(idea_states())

    def summary(self) -> str:
        """What is shown, in words."""
        graph = self._graphs[self.face]
        lines = [describe_idea_graph(graph)]
        if self.selected:
            fields = graph.nodes[self.selected]
            lines.append(f"Open: {fields['label']}. {fields['sentence']}")
        if self.selected_link:
            lines.append(f"Open: the link {self.selected_link}.")
        if self.needed_for:
            report = self._graphs["report"]
            needed = [report.nodes[name]["label"] for name in needed_before(self.needed_for, report)]
            lines.append(f"Before {report.nodes[self.needed_for]['label']}: {', then '.join(needed) or 'nothing'}.")
        if self.face == "report":
            done = [f"{graph.nodes[name]['label']}: {state['words']}" for name, state in self.states.items()
                    if name in graph and state["state"] != "none"]  # fmt: skip
            lines.append(f"Exercises: {'; '.join(done) or 'none begun'}.")
        return "\n".join(lines)

    def picture(self) -> Picture:
        """The face that is shown as a picture that stands still."""
        return draw_idea_graph(self._graphs[self.face])

    @traitlets.validate("face")
    def _valid_face(self, proposal: Any) -> str:
        if proposal.value not in FACES:
            raise _RefusedError(f"the idea graph has no face {proposal.value!r}; there are {' and '.join(FACES)}")
        return proposal.value

    @traitlets.validate("selected")
    def _valid_idea(self, proposal: Any) -> str:
        return self._known(proposal.value, self._graphs[self.face])

    @traitlets.validate("needed_for")
    def _valid_needed_for(self, proposal: Any) -> str:
        return self._known(proposal.value, self._graphs["report"])

    @traitlets.validate("selected_link")
    def _valid_link(self, proposal: Any) -> str:
        links = [f"{start}->{end}" for start, end in self._graphs[self.face].edges]
        if proposal.value and proposal.value not in links:
            raise _RefusedError(f"{proposal.value!r} is not a link of this face; there are {', '.join(links)}")
        return proposal.value

    @traitlets.validate("view")
    def _valid_view(self, proposal: Any) -> dict[str, float]:
        view = proposal.value
        numbers = [view.get(key) for key in ("x", "y", "scale")]
        if len(view) != 3 or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise _RefusedError(f"view = {view!r} must hold three numbers: x, y and scale")
        return {**view, "scale": min(MAX_SCALE, max(MIN_SCALE, view["scale"]))}

    @staticmethod
    def _known(idea: str, graph: nx.DiGraph) -> str:
        try:
            if idea:
                require_idea(idea, graph)
        except InputError as error:
            raise _RefusedError(str(error)) from None
        return idea

    @traitlets.observe("face")
    def _turn(self, change: Any) -> None:
        """On the other face: the whole of it, the same idea where there is one, and no link."""
        if change.old not in FACES:  # the widget is being made, with the values that it was given
            return
        graph = self._graphs[change.new]
        with self.hold_sync():
            if self.selected_link and tuple(self.selected_link.split("->")) not in graph.edges:
                self.selected_link = ""
            if self.selected not in graph:
                self.selected = self._faces[change.old]["same"].get(self.selected, "")
            if change.new == "summary":
                self.needed_for = ""
            self.view = _whole(self._faces[change.new])

    @traitlets.observe("selected", "selected_link")
    def _open_one(self, change: Any) -> None:
        if change.new:
            self.set_trait("selected_link" if change.name == "selected" else "selected", "")


def _whole(face: dict[str, Any]) -> dict[str, float]:
    return {"x": face["width"] / 2, "y": face["height"] / 2, "scale": 1.0}


def _for_browser(graphs: dict[str, nx.DiGraph], face: str, chain: dict[str, Any]) -> dict[str, Any]:
    """Everything that the browser draws and says of one face, as plain JSON."""
    graph = graphs[face]
    plan = layout(graph)
    nodes = {}
    for name, fields in graph.nodes(data=True):
        about: dict[str, Any] = {
            **plan["nodes"][name],
            **{key: fields[key] for key in ("sentence", "explanation", "conjecture")},
            "title": fields["label"],
            "part": part_of(fields)[0],
        }
        if face == "report":
            about |= {
                "place": fields["where"],
                "lessons": [_lesson(number) for number in fields["lessons"]],
                "code": [{"name": place.name, "place": str(place)} for place in code_places(name, graph)],
                "code_note": fields.get("code_note", ""),
                "needed": needed_before(name, graph),
            }
        else:
            about |= {"place": f"section {fields['section']} of the summary", "evidence": fields["evidence"]}
        nodes[name] = about
    edges = {}
    for start, end, fields in graph.edges(data=True):
        judged = (
            {**fields, "of": "summary"} if "verdict" in fields else {**fields.get("in_summary", {}), "of": "report"}
        )
        edges[f"{start}->{end}"] = {
            **plan["edges"][f"{start}->{end}"],
            **{key: judged.get(key, "") for key in ("verdict", "reason")},
            "from": start,
            "to": end,
            "relation": fields["relation"],
            "place": fields["where"],
            "conjecture": bool(fields.get("conjecture")),
            "claims": judged.get("claims", []),
        }
    same = {name: fields["same_as"] for name, fields in graphs["summary"].nodes(data=True) if "same_as" in fields}
    if face == "report":
        # Of several ideas of the summary that mean one of the report's, the one with its name comes first.
        same = {theirs: ours for ours, theirs in reversed(same.items())} | {id: id for id in same if same[id] == id}
    words = {key: graph.graph[key] for key in ("title", "source", "conjecture")}
    size = {key: plan[key] for key in ("width", "height", "box")}
    return {**words, **size, "nodes": nodes, "edges": edges, "same": same, "chain": chain, "marks": MARKS}


def _lesson(number: str) -> dict[str, str]:
    """A lesson, and its notebook seen from the folder of the notebook in which the kernel runs."""
    entry = lesson(number)
    beside = Path.cwd() / entry.file  # a learner may work in a copy of the lessons
    notebook = beside if beside.is_file() else entry.notebook
    file = "" if notebook is None else Path(os.path.relpath(notebook, Path.cwd())).as_posix()
    return {"number": number, "title": entry.title, "file": file}


def _folders() -> list[str]:
    """Where the kernel runs, which is the notebook's folder: in full, and with "~" for the home folder."""
    here, home = Path.cwd(), Path.home()
    return [here.as_posix(), *([f"~/{here.relative_to(home).as_posix()}"] if here.is_relative_to(home) else [])]


def _states_for_browser(states: dict[str, IdeaState]) -> dict[str, Any]:
    return {
        idea: {
            "state": state.state,
            "words": state.words,
            "count": f"{state.right}/{len(state.exercises)}",
            "exercises": [
                {"id": e.id, "title": e.title, "lesson": e.lesson, "state": e.state} for e in state.exercises
            ],
        }
        for idea, state in states.items()
    }
