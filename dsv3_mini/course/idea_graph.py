"""The idea graph: fifteen ideas of the report, what links them, what each needs, and where each is built.

`data/idea_graph.json` holds two faces of the same size: `report` (what the report says) and `summary` (what a popular
summary of it says, partly reconstructed, each link with a verdict). networkx holds a face. Here a face is loaded and
asked; `dsv3_mini.viz.idea_graph` draws it, `dsv3_mini.viz.idea_graph_widget` lets a learner walk in it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx

from dsv3_mini.course.idea_graph_file import FACES, read_idea_graph
from dsv3_mini.errors import InputError


@dataclass(frozen=True)
class CodePlace:
    """Where something is defined: its name, its file relative to the checkout, and the line."""

    name: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Step:
    """One link of a path. `forward` says whether the path follows the arrow or walks against it."""

    start: str
    relation: str
    end: str
    forward: bool


@dataclass(frozen=True)
class ExerciseState:
    """One exercise of an idea. `state` is in words: not attempted, begun, wrong so far, or right."""

    id: str
    title: str
    lesson: str
    state: str


@dataclass(frozen=True)
class IdeaState:
    """The exercises of one idea, and how far the learner is: `none`, `begun` or `right` (all of them)."""

    exercises: tuple[ExerciseState, ...]

    @property
    def right(self) -> int:
        return sum(exercise.state == "right" for exercise in self.exercises)

    @property
    def state(self) -> str:
        if self.right == len(self.exercises):
            return "right"
        return "none" if all(exercise.state == "not attempted" for exercise in self.exercises) else "begun"

    @property
    def words(self) -> str:
        many = len(self.exercises)
        if self.state == "none":
            return f"{many} exercise{'s' if many > 1 else ''}, not begun"
        return f"{self.right} of {many} exercise{'s' if many > 1 else ''} right"


def load_idea_graph(face: str = "report", path: str | Path | None = None) -> nx.DiGraph:
    """One face of the idea graph; nodes and links keep the fields of their entry (`label`, `where`, `lessons`, ...).

    Args:
        face: `report` or `summary`.
        path: another file of the same form; by default the one of the project.

    Raises:
        InputError: naming the file and the entry that is wrong.
    """
    if face not in FACES:
        raise InputError(f"the idea graph has no face {face!r}; there are {' and '.join(FACES)}")
    return read_idea_graph(path)[0][face]


def prerequisite_chain(face: str = "report", path: str | Path | None = None) -> dict[str, Any]:
    """The works to read before: `title`, `source`, and `works` in order.

    A work of the report's chain has `topic`, `reference`, `where` and `ideas`; one of the summary's chain a `verdict`
    with its `reason`. `after_report` marks those that were published only after the report was.

    Raises:
        InputError: for an unknown face, or naming the entry of the file that is wrong.
    """
    if face not in FACES:
        raise InputError(f"there is no chain of works {face!r}; there are {' and '.join(FACES)}")
    return read_idea_graph(path)[1][face]


def needed_before(idea: str, graph: nx.DiGraph | None = None) -> list[str]:
    """What do I need before `idea`? The ideas to understand first, in an order in which they can be learned.

    Args:
        idea: id of a node of the report's face, for instance "specdec".
        graph: a report face from `load_idea_graph`; by default the one of the project.

    Raises:
        InputError: when the face has no such idea.
    """
    graph = load_idea_graph("report") if graph is None else graph
    require_idea(idea, graph)
    needs = nx.DiGraph()
    needs.add_nodes_from(graph)
    needs.add_edges_from((need, name) for name, fields in graph.nodes(data=True) for need in fields.get("needs", ()))
    wanted = needs.subgraph(nx.ancestors(needs, idea))

    def lesson_order(name: str) -> list[str]:
        return list(graph.nodes[name]["lessons"])

    return list(nx.lexicographical_topological_sort(wanted, key=lesson_order))


def path_between(start: str, end: str, graph: nx.DiGraph | None = None) -> list[Step]:
    """The shortest way from one idea to another along the links, in either direction of the arrows.

    Raises:
        InputError: when the face lacks one of the ideas, or no way leads from one to the other.
    """
    graph = load_idea_graph("report") if graph is None else graph
    for idea in (start, end):
        require_idea(idea, graph)
    try:
        ideas = nx.shortest_path(graph.to_undirected(as_view=True), start, end)
    except nx.NetworkXNoPath:
        raise InputError(f"no links lead from {start!r} to {end!r}") from None
    steps = []
    for here, there in itertools.pairwise(ideas):
        forward = graph.has_edge(here, there)
        link = graph.edges[(here, there) if forward else (there, here)]
        steps.append(Step(here, link["relation"], there, forward))
    return steps


def code_places(idea: str, graph: nx.DiGraph | None = None) -> list[CodePlace]:
    """Where the package builds an idea. Found by importing it, so a place cannot go stale.

    Raises:
        InputError: when the face has no such idea, or naming the file and the entry whose code does not exist.
    """
    graph = load_idea_graph("report") if graph is None else graph
    require_idea(idea, graph)
    places = []
    for reference in graph.nodes[idea].get("code", ()):
        try:
            places.append(find_code(reference))
        except InputError as error:
            number = list(graph).index(idea)
            here = f"{graph.graph['file']}: faces.{graph.graph['face']}.nodes[{number}] ({idea})"
            raise InputError(f"{here}: code: {error}") from None
    return places


@functools.cache
def find_code(reference: str) -> CodePlace:
    """File and line of "module:name", for instance "dsv3_mini.model.mla:MLA.compress". `InputError` if nowhere."""
    module_name, _, name = reference.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
        found = inspect.unwrap(found)
        file, line = inspect.getsourcefile(found), inspect.getsourcelines(found)[1]
    except (ImportError, AttributeError, TypeError, OSError, ValueError):
        raise InputError(f"{reference!r} leads nowhere; it must be 'module:name' of something in the package") from None
    root = Path(__file__).resolve().parents[2]
    path = Path(file or "").resolve()
    if not path.is_relative_to(root):
        raise InputError(f"{reference!r} is not in the package")
    return CodePlace(name, path.relative_to(root).as_posix(), line)


def idea_states() -> dict[str, IdeaState]:
    """By id of an idea: its exercises, and how far the learner is with them. Ideas without exercises are not in it."""
    from dsv3_mini.course import all_exercises, progress  # loads the exercises, and torch with them

    return count_exercises(all_exercises(), progress.read().exercises)


def count_exercises(exercises: Iterable[Any], records: Mapping[str, Mapping[str, Any]]) -> dict[str, IdeaState]:
    """The same from given exercises (`id`, `title`, `lesson`, `idea`) and records as `progress.read()` has them."""
    words = {"right": "right", "wrong": "wrong so far", "begun": "begun"}
    by_idea: dict[str, list[ExerciseState]] = {}
    for exercise in exercises:
        state = words.get(records.get(exercise.id, {}).get("state", ""), "not attempted")
        entry = ExerciseState(exercise.id, exercise.title, exercise.lesson, state)
        by_idea.setdefault(exercise.idea, []).append(entry)
    return {idea: IdeaState(tuple(entries)) for idea, entries in by_idea.items()}


def describe_idea_graph(face: str | nx.DiGraph = "report") -> str:
    """The graph in words: a heading, then one line for each link with its place and what the summary makes of it."""
    graph = face if isinstance(face, nx.DiGraph) else load_idea_graph(face)
    heading = f"{graph.graph['title']}: {graph.number_of_nodes()} ideas, {graph.number_of_edges()} links."
    lines = [f"{heading} {graph.graph['conjecture']}".strip()]
    for start, end, fields in graph.edges(data=True):
        line = f"{graph.nodes[start]['label']} -- {fields['relation']} --> {graph.nodes[end]['label']}"
        lines.append(f"{line} ({fields['where']}){judgement(fields)}")
    return "\n".join(lines)


def judgement(link: Mapping[str, Any]) -> str:
    """What is to say about a link where the two faces meet: the verdict and its reason, or nothing."""
    if "verdict" in link:
        return f" {link['verdict'].upper()}: {link['reason']}"
    if "in_summary" in link:
        return f" In the summary {link['in_summary']['verdict'].upper()}: {link['in_summary']['reason']}"
    return ""


def require_idea(idea: str, graph: nx.DiGraph) -> None:
    """Raise `InputError` unless the face has this idea."""
    if idea not in graph:
        raise InputError(f"{idea!r} is not an idea of this face; there are {', '.join(graph)}")
