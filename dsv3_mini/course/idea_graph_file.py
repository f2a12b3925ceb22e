"""Reading `data/idea_graph.json`, and saying which entry is wrong when one is.

The file has two faces (`report`: what the report says; `summary`: what a popular summary of it says) and two chains of
works to read before. What an entry may hold is checked here, once, so that everything that draws or tells the graph
can trust it. References to code need an import and are checked where they are followed (`idea_graph.code_places`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import networkx as nx

from dsv3_mini.course.lessons import LESSONS
from dsv3_mini.errors import InputError
from dsv3_mini.paths import data_dir

FACES = ("report", "summary")
VERDICTS = ("faithful", "simplified", "wrong", "outside")  # of what the summary says, against the report
IN_SUMMARY = ("simplified", "wrong", "missing")  # how the summary treats what the report says
EVIDENCE = ("label recovered", "section text")  # where a name on the summary's face comes from

_NODE = {"id": str, "label": str, "sentence": str, "explanation": str, "at": list}
_NODE_OF = {
    "report": {**_NODE, "where": str, "lessons": list},
    "summary": {**_NODE, "section": str, "evidence": str},
}
_EDGE = {"from": str, "to": str, "relation": str, "where": str}
_EDGE_OF = {"report": _EDGE, "summary": {**_EDGE, "verdict": str, "reason": str}}


def read_idea_graph(path: str | Path | None = None) -> tuple[dict[str, nx.DiGraph], dict[str, dict[str, Any]]]:
    """Both faces as graphs, and both chains of works, by name. Nodes and links keep the fields of their entry.

    Raises:
        InputError: naming the file and the entry that is wrong.
    """
    path = Path(path) if path is not None else data_dir() / "idea_graph.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); it should hold the idea graph") from None
    except ValueError:
        raise InputError(f"{path}: not an idea graph, since it is not JSON") from None
    faces: dict[str, nx.DiGraph] = {}
    for face in FACES:
        entry = _part(content, path, "faces", face)
        faces[face] = _graph(face, entry, path)
    _check_needs(faces["report"], path)
    for number, (name, fields) in enumerate(faces["summary"].nodes(data=True)):
        if "same_as" in fields and fields["same_as"] not in faces["report"]:
            here = f"{path}: faces.summary.nodes[{number}] ({name})"
            raise InputError(f"{here}: same_as = {fields['same_as']!r} is not a node of the report's face")
    chains = {face: _chain(face, content, path, faces["report"]) for face in FACES}
    return faces, chains


def _part(content: Any, path: Path, *names: str) -> dict[str, Any]:
    part = content
    for name in names:
        part = part.get(name) if isinstance(part, dict) else None
    if not isinstance(part, dict):
        raise InputError(f"{path}: not an idea graph: {'.'.join(names)} must be an object")
    return part


def _entries(part: dict[str, Any], name: str, here: str) -> list[Any]:
    if not isinstance(part.get(name), list):
        raise InputError(f"{here}: not an idea graph: {name} must be a list")
    return part[name]


def _graph(face: str, entry: dict[str, Any], path: Path) -> nx.DiGraph:
    words = {key: entry.get(key, "") for key in ("title", "source", "conjecture")}
    graph = nx.DiGraph(face=face, file=str(path), **words)
    place = f"{path}: faces.{face}"
    cells: dict[tuple[int, int], str] = {}
    for number, node in enumerate(_entries(entry, "nodes", place)):
        here = f"{place}.nodes[{number}]"
        require_fields(node, _NODE_OF[face], here)
        here = f"{here} ({node['id']})"
        at = node["at"]
        if len(at) != 2 or not all(isinstance(part, int) and part >= 0 for part in at):
            raise InputError(f"{here}: at = {at} must be [column, row], two whole numbers of at least 0")
        if node["id"] in graph:
            raise InputError(f"{here}: id {node['id']!r} is there twice")
        if tuple(at) in cells:
            raise InputError(f"{here}: the cell {at} is already taken by {cells[tuple(at)]}")
        cells[tuple(at)] = node["id"]
        if face == "report":
            _check_report_node(node, here)
        else:
            require_one_of(node["evidence"], EVIDENCE, f"{here}: evidence")
        graph.add_node(node["id"], **{key: value for key, value in node.items() if key != "id"})
        graph.nodes[node["id"]]["conjecture"] = node.get("evidence") == "section text"
    for number, edge in enumerate(_entries(entry, "edges", place)):
        here = f"{place}.edges[{number}]"
        require_fields(edge, _EDGE_OF[face], here)
        for end in ("from", "to"):
            if edge[end] not in graph:
                raise InputError(f"{here}: {end} = {edge[end]!r} is not the id of a node")
        here = f"{here} ({edge['from']} -> {edge['to']})"
        if graph.has_edge(edge["from"], edge["to"]):
            raise InputError(f"{here}: this link is there twice")
        if "verdict" in edge:
            require_one_of(edge["verdict"], VERDICTS, f"{here}: verdict")
        if "in_summary" in edge:
            require_fields(edge["in_summary"], {"verdict": str, "reason": str}, f"{here}: in_summary")
            require_one_of(edge["in_summary"]["verdict"], IN_SUMMARY, f"{here}: in_summary.verdict")
        graph.add_edge(edge["from"], edge["to"], **{k: v for k, v in edge.items() if k not in ("from", "to")})
    return graph


def _check_report_node(node: dict[str, Any], here: str) -> None:
    numbers = [entry.number for entry in LESSONS]
    for number in node["lessons"]:
        if number not in numbers:
            raise InputError(f"{here}: lessons names {number!r}; there are {numbers[0]} to {numbers[-1]}")
    for name in ("code", "needs"):
        if not isinstance(node.get(name), list):
            raise InputError(f"{here}: {name} = {node.get(name)!r} must be a list (it may be empty)")
    for reference in node["code"]:
        if not isinstance(reference, str) or reference.count(":") != 1:
            raise InputError(f"{here}: code names {reference!r}; it must be 'module:name'")
    if not node["code"] and not node.get("code_note"):
        raise InputError(f"{here}: code is empty; code_note must say why")


def _check_needs(graph: nx.DiGraph, path: Path) -> None:
    """Every need is an idea, none leads back to itself, and none begins after the lessons of its idea have ended."""
    needs = nx.DiGraph()
    for number, (name, fields) in enumerate(graph.nodes(data=True)):
        here = f"{path}: faces.report.nodes[{number}] ({name})"
        for need in fields["needs"]:
            if need not in graph:
                raise InputError(f"{here}: needs names {need!r}, which is not the id of a node")
            begins, ends = min(graph.nodes[need]["lessons"]), max(fields["lessons"])
            if begins > ends:
                raise InputError(f"{here}: needs {need!r}, which begins in lesson {begins}, after lesson {ends}")
            needs.add_edge(need, name)
    if not nx.is_directed_acyclic_graph(needs):
        circle = [start for start, _ in nx.find_cycle(needs)]
        number = list(graph).index(circle[0])
        way = " -> ".join([*circle, circle[0]])
        raise InputError(f"{path}: faces.report.nodes[{number}] ({circle[0]}): needs run in a circle: {way}")


def _chain(face: str, content: Any, path: Path, report: nx.DiGraph) -> dict[str, Any]:
    chain = _part(content, path, "prerequisites", face)
    place = f"{path}: prerequisites.{face}"
    written = _date(content.get("report_date"), f"{path}: report_date")
    works = []
    for number, work in enumerate(_entries(chain, "works", place)):
        here = f"{place}.works[{number}]"
        require_fields(work, {"topic": str, "reference": str, "where": str}, here)
        if face == "summary":
            require_fields(work, {"verdict": str, "reason": str}, here)
            require_one_of(work["verdict"], VERDICTS, f"{here} ({work['topic']}): verdict")
        for idea in work.get("ideas", []):
            if idea not in report:
                raise InputError(f"{here} ({work['topic']}): ideas names {idea!r}, which is not the id of a node")
        appeared = "published" in work and _date(work["published"], f"{here} ({work['topic']}): published")
        works.append({**work, "after_report": bool(appeared and appeared > written)})
    return {"title": chain.get("title", ""), "source": chain.get("source", ""), "works": works}


def _date(value: Any, here: str) -> date:
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise InputError(f"{here} = {value!r} must be a date such as 2024-12-26") from None


def require_fields(entry: Any, fields: Mapping[str, type], here: str) -> None:
    """Raise `InputError` unless `entry` is an object whose `fields` are of their kind and not empty."""
    if not isinstance(entry, dict):
        raise InputError(f"{here}: must be an object with {', '.join(fields)}")
    for name, kind in fields.items():
        if not isinstance(entry.get(name), kind) or not entry[name]:
            raise InputError(f"{here}: {name} = {entry.get(name)!r} must be a {kind.__name__} that is not empty")


def require_one_of(value: Any, known: tuple[str, ...], here: str) -> None:
    """Raise `InputError` unless `value` is one of `known`."""
    if value not in known:
        raise InputError(f"{here} = {value!r} must be one of {', '.join(known)}")
