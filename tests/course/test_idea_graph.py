"""The idea graph: its data is whole and says what the report says, and questions about it are answered in order."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from dsv3_mini.course.idea_graph import (
    CodePlace,
    code_places,
    count_exercises,
    describe_idea_graph,
    find_code,
    load_idea_graph,
    needed_before,
    path_between,
    prerequisite_chain,
)
from dsv3_mini.course.idea_graph_file import FACES, IN_SUMMARY, VERDICTS
from dsv3_mini.course.lessons import LESSONS
from dsv3_mini.errors import InputError
from dsv3_mini.paths import data_dir, repo_root

NUMBERS = {lesson.number for lesson in LESSONS}
# The summary's face, as reconstructed from the page: id, label, sections, where the name comes from.
SUMMARY_NODES = {
    "high_compute_costs": ("High Compute Costs", "01-02", "label recovered"),
    "barrier_to_entry": ("Barrier to Entry", "01", "section text"),
    "narrow_innovation": ("Narrowed Field of Innovation", "02", "section text"),
    "architectural_innovation": ("Architectural Innovation", "03", "label recovered"),
    "deepseekmoe": ("DeepSeekMoE Architecture", "04", "label recovered"),
    "mixture_of_experts": ("Mixture-of-Experts", "04, 05, 09", "label recovered"),
    "sparse_activation": ("Selective Activation (37B of 671B)", "04-05", "section text"),
    "mla": ("Multi-head Latent Attention", "04, 06, 09", "label recovered"),
    "mtp": ("Multi-Token Prediction", "07", "label recovered"),
    "training_data": ("Diverse Training Data", "07", "section text"),
    "evaluations": ("Comprehensive Evaluations (GPT-4o, Claude)", "08", "label recovered"),
    "training_cost": ("$6M Training Cost", "03, 08", "section text"),
    "ablations": ("Ablation Studies", "09", "section text"),
    "democratisation": ("Accessible / Democratised AI", "03, 10, 12", "section text"),
    "scalability": ("Scalability and Limits", "11", "section text"),
}
SUMMARY_LINKS = {
    ("high_compute_costs", "barrier_to_entry"): ("creates", "outside"),
    ("high_compute_costs", "narrow_innovation"): ("causes", "outside"),
    ("high_compute_costs", "architectural_innovation"): ("motivates", "simplified"),
    ("architectural_innovation", "deepseekmoe"): ("takes the form of", "simplified"),
    ("deepseekmoe", "mixture_of_experts"): ("integrates", "simplified"),
    ("deepseekmoe", "mla"): ("integrates", "wrong"),
    ("mixture_of_experts", "sparse_activation"): ("enables", "faithful"),
    ("sparse_activation", "training_cost"): ("lowers", "simplified"),
    ("architectural_innovation", "mtp"): ("includes as objective", "faithful"),
    ("training_data", "mtp"): ("feeds", "simplified"),
    ("mtp", "evaluations"): ("improves", "simplified"),
    ("ablations", "mixture_of_experts"): ("tests", "wrong"),
    ("ablations", "mla"): ("tests", "wrong"),
    ("training_cost", "democratisation"): ("opens the way to", "outside"),
    ("architectural_innovation", "scalability"): ("raises question of", "outside"),
}


@pytest.fixture(params=FACES)
def graph(request: pytest.FixtureRequest) -> nx.DiGraph:
    return load_idea_graph(request.param)


@pytest.fixture
def report() -> nx.DiGraph:
    return load_idea_graph("report")


def test_both_faces_have_fifteen_ideas_and_fifteen_links_in_one_piece(graph: nx.DiGraph) -> None:
    assert graph.number_of_nodes() == 15
    assert graph.number_of_edges() == 15
    assert nx.is_weakly_connected(graph)


def _sentences(text: str) -> list[str]:
    whole = re.sub(r"(Eq|Fig|App)\. ", "\\1.\u00a0", text)  # an abbreviation ends no sentence
    return [sentence.replace("\u00a0", " ") for sentence in re.split(r"(?<=[.?!]) ", whole)]


def test_every_idea_says_what_it_is_in_three_to_five_sentences_or_fewer_where_the_page_says_little(
    graph: nx.DiGraph,
) -> None:
    fewest = {"report": 3, "summary": 2}[graph.graph["face"]]
    for name, fields in graph.nodes(data=True):
        assert fields["sentence"].endswith("."), name
        sentences = _sentences(fields["explanation"])
        assert fewest <= len(sentences) <= 5, (name, sentences)


def test_every_idea_and_link_of_the_report_has_its_place_and_its_lessons(report: nx.DiGraph) -> None:
    entries = [*report.nodes(data=True), *((f"{a}->{b}", fields) for a, b, fields in report.edges(data=True))]
    for name, fields in entries:
        assert fields["where"].startswith(("§", "Table ")), name
    for name, fields in report.nodes(data=True):
        assert fields["lessons"] == sorted(set(fields["lessons"])), name
        assert set(fields["lessons"]) <= NUMBERS - {"00"}, name


def test_every_number_in_an_explanation_of_the_report_stands_in_a_sentence_with_its_place(report: nx.DiGraph) -> None:
    place = re.compile(r"§\d|Eq\. \d|Fig\. \d|Table \d|App\. [A-Z]|our count|our arithmetic|released configuration")
    own_numbers = re.compile(
        r"(?:§|Eq\. |Fig\. |Table |App\. )[\d., B-]*\d|V3|DeepSeek-V2(?:\.5)?|R1|FP8|E4M3|BF16|H800|MATH-500"
    )
    for name, fields in report.nodes(data=True):
        for sentence in _sentences(fields["explanation"]):
            if re.search(r"\d", own_numbers.sub("", sentence)):
                assert place.search(sentence), f"{name}: {sentence}"


def test_all_lessons_of_the_course_but_the_tour_build_an_idea(report: nx.DiGraph) -> None:
    assert {number for _, lessons in report.nodes(data="lessons") for number in lessons} == NUMBERS - {"00"}


def test_the_summary_is_the_one_that_was_reconstructed() -> None:
    summary = load_idea_graph("summary")
    assert {n: (f["label"], f["section"], f["evidence"]) for n, f in summary.nodes(data=True)} == SUMMARY_NODES
    assert {(a, b): (f["relation"], f["verdict"]) for a, b, f in summary.edges(data=True)} == SUMMARY_LINKS


def test_conjecture_is_marked_on_every_link_and_on_the_names_that_are_our_reading() -> None:
    summary = load_idea_graph("summary")
    assert "every link is conjecture" in summary.graph["conjecture"]
    assert all(fields["conjecture"] is True for *_, fields in summary.edges(data=True))
    ours = {name for name, fields in summary.nodes(data=True) if fields["conjecture"]}
    assert ours == {name for name, (_, _, evidence) in SUMMARY_NODES.items() if evidence == "section text"}
    assert not any(fields["conjecture"] for _, fields in load_idea_graph("report").nodes(data=True))


def test_every_link_of_the_summary_has_a_verdict_with_a_reason_and_a_place() -> None:
    for start, end, fields in load_idea_graph("summary").edges(data=True):
        assert fields["verdict"] in VERDICTS, (start, end)
        assert fields["reason"].endswith("."), (start, end)
        assert fields["where"] == "not in the report" or re.match(r"§|abstract", fields["where"]), (start, end)


def test_where_the_summary_lacks_or_contradicts_a_link_of_the_report_the_link_says_so(report: nx.DiGraph) -> None:
    notes = {(a, b): note for a, b, note in report.edges(data="in_summary") if note}
    assert all(note["verdict"] in IN_SUMMARY and note["reason"].endswith(".") for note in notes.values())
    assert notes["transformer_block", "mla"]["verdict"] == "wrong"
    assert notes["lossfree", "sigmoid_gate"]["verdict"] == "missing"


def test_claims_named_by_a_link_are_claims_of_the_summary(graph: nx.DiGraph) -> None:
    known = set(re.findall(r'"id": *"([A-Z]+\d+[a-z]?)"', (data_dir() / "claims.json").read_text(encoding="utf-8")))
    for start, end, fields in graph.edges(data=True):
        for claim in [*fields.get("claims", []), *fields.get("in_summary", {}).get("claims", [])]:
            assert claim in known, f"{start}->{end}: {claim}"


def test_every_code_reference_leads_to_the_line_that_defines_it(report: nx.DiGraph) -> None:
    for name in report:
        for reference, place in zip(report.nodes[name]["code"], code_places(name, report), strict=True):
            assert isinstance(place, CodePlace)
            line = (repo_root() / place.file).read_text(encoding="utf-8").splitlines()[place.line - 1]
            assert re.match(rf"\s*(@|(class|def) {place.name.split('.')[-1]}\b)", line), (reference, line)


def test_code_that_moves_is_found_where_it_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = find_code("dsv3_mini.errors:InputError").line
    find_code.cache_clear()
    monkeypatch.setattr(inspect, "getsourcelines", lambda found: ([], before + 7))
    assert find_code("dsv3_mini.errors:InputError").line == before + 7
    find_code.cache_clear()


def test_an_idea_without_code_says_which_lesson_will_build_it(report: nx.DiGraph) -> None:
    for name, fields in report.nodes(data=True):
        if not fields["code"]:
            assert f"lesson {fields['lessons'][0]}" in fields["code_note"], name


def test_needs_are_acyclic_and_none_begins_after_the_idea_is_finished(report: nx.DiGraph) -> None:
    needs = nx.DiGraph([(need, name) for name, many in report.nodes(data="needs") for need in many])
    assert nx.is_directed_acyclic_graph(needs)
    assert set(needs) == set(report)  # every idea has its place in the order
    for need, name in needs.edges:
        assert report.nodes[need]["lessons"][0] <= report.nodes[name]["lessons"][-1], (need, name)


def test_what_is_needed_before_comes_in_an_order_that_can_be_learned(report: nx.DiGraph) -> None:
    assert needed_before("specdec") == ["transformer_block", "kv_cache", "mtp"]
    assert needed_before("transformer_block") == []
    for name in report:
        order = needed_before(name, report)
        for position, idea in enumerate(order):
            assert set(report.nodes[idea]["needs"]) <= set(order[:position]), (name, idea)
        assert set(report.nodes[name]["needs"]) <= set(order)


def test_a_path_walks_along_links_in_either_direction() -> None:
    steps = path_between("kv_cache", "rope_yarn")
    assert [(step.start, step.relation, step.end, step.forward) for step in steps] == [
        ("kv_cache", "shrinks", "mla", False),
        ("mla", "adds position to", "rope_yarn", False),
    ]
    assert path_between("mla", "mla") == []
    assert [step.forward for step in path_between("lossfree", "deepseekmoe")] == [True, True]


def test_an_idea_that_does_not_exist_is_named() -> None:
    for question in (needed_before, code_places, lambda idea: path_between("mla", idea)):
        with pytest.raises(InputError, match="'gone' is not an idea of this face"):
            question("gone")
    for question in (load_idea_graph, prerequisite_chain):
        with pytest.raises(InputError, match=r"'back'.*report and summary"):
            question("back")


def test_the_chain_of_the_summary_has_its_five_works_and_marks_two_that_came_after_the_report() -> None:
    works = prerequisite_chain("summary")["works"]
    assert [(work["claims"], work["verdict"]) for work in works] == [
        (["Q1"], "faithful"), (["Q2"], "wrong"), (["Q3"], "simplified"), (["Q4"], "wrong"), (["Q5"], "wrong")
    ]  # fmt: skip
    after = {work["topic"]: work["published"] for work in works if work["after_report"]}
    assert after == {"DAPO": "2025-03-18", "DeepSeek-R1": "2025-01-22"}


def test_the_chain_of_the_report_has_fourteen_topics_and_none_came_after_it(report: nx.DiGraph) -> None:
    works = prerequisite_chain("report")["works"]
    assert len(works) == 14
    for work in works:
        assert work["where"].startswith("§") and not work["after_report"]
        assert set(work["ideas"]) <= set(report) and work["ideas"]
    assert "verdict" not in works[0]


@dataclass
class Exercise:
    id: str
    idea: str
    lesson: str = "04"
    title: str = "A title"


def test_an_idea_is_begun_with_its_first_try_and_right_when_all_of_its_exercises_are() -> None:
    exercises = [Exercise("1", "mla"), Exercise("2", "mla"), Exercise("3", "cost")]
    states = count_exercises(exercises, {})
    assert (states["mla"].state, states["mla"].words) == ("none", "2 exercises, not begun")
    states = count_exercises(exercises, {"1": {"state": "wrong"}})
    assert (states["mla"].state, states["mla"].words) == ("begun", "0 of 2 exercises right")
    assert [exercise.state for exercise in states["mla"].exercises] == ["wrong so far", "not attempted"]
    assert count_exercises(exercises, {"1": {"state": "begun"}})["mla"].state == "begun"  # a hint is a beginning
    states = count_exercises(exercises, {"1": {"state": "right"}, "2": {"state": "right"}, "old": {"state": "right"}})
    assert (states["mla"].state, states["mla"].words) == ("right", "2 of 2 exercises right")
    assert states["cost"].state == "none" and set(states) == {"mla", "cost"}


def test_all_exercises_belong_to_an_idea_of_the_report(report: nx.DiGraph) -> None:
    course = importlib.import_module("dsv3_mini.course")
    for exercise in course.all_exercises():
        assert exercise.idea in report, f"exercise {exercise.id}: {exercise.idea!r} is not an idea"


def test_the_graph_in_words_names_every_link_and_what_is_wrong() -> None:
    report, summary = describe_idea_graph("report"), describe_idea_graph("summary")
    assert len(report.splitlines()) == len(summary.splitlines()) == 16
    assert "DualPipe overlap -- lowers --> 2.788M H800 hours (§1, §3.2.1)" in report
    assert summary.count("WRONG:") == 3
    assert "every link is conjecture" in summary


def _face(whole: dict[str, Any], name: str = "report") -> dict[str, Any]:
    return whole["faces"][name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: _face(w)["nodes"][3].pop("label"), r"faces\.report\.nodes\[3\]: label = None"),
        (lambda w: _face(w)["nodes"][3].update(explanation=""), r"nodes\[3\]: explanation = ''"),
        (lambda w: _face(w)["nodes"][3].update(lessons="12"), r"nodes\[3\]: lessons = '12' must be a list"),
        (lambda w: _face(w)["nodes"][2].update(id="mla"), r"nodes\[2\] \(mla\): id 'mla' is there twice"),
        (lambda w: _face(w)["nodes"][2].update(at=[1, 3]), r"nodes\[2\] \(specdec\): the cell \[1, 3\] is already"),
        (lambda w: _face(w)["nodes"][2].update(at=[1.5, 3]), r"nodes\[2\] \(specdec\): at = "),
        (lambda w: _face(w)["nodes"][2].update(lessons=["19"]), r"nodes\[2\] \(specdec\): lessons names '19'"),
        (lambda w: _face(w)["nodes"][2].pop("needs"), r"nodes\[2\] \(specdec\): needs = None must be a list"),
        (lambda w: _face(w)["nodes"][2].update(needs=["gone"]), r"nodes\[2\] \(specdec\): needs names 'gone'"),
        (lambda w: _face(w)["nodes"][4].update(needs=["cost"]), r"\(kv_cache\): needs 'cost', which begins in"),
        (
            lambda w: _face(w)["nodes"][8].update(needs=["lossfree"]),
            r"nodes\[\d+\] \(\w+\): needs run in a circle: .*sigmoid_gate",
        ),
        (lambda w: _face(w)["nodes"][1].update(code=["dsv3_mini.model.mla"]), r"\(mla\): code names 'dsv3_mini.model"),
        (lambda w: _face(w)["nodes"][1].update(code=[]), r"\(mla\): code is empty; code_note must say why"),
        (lambda w: _face(w)["edges"][7].update(to="gone"), r"edges\[7\]: to = 'gone' is not the id of a node"),
        (lambda w: _face(w)["edges"].insert(0, "mla"), r"edges\[0\]: must be an object"),
        (lambda w: _face(w)["edges"].append(_face(w)["edges"][0]), r"edges\[15\] .*: this link is there twice"),
        (lambda w: _face(w)["edges"][0]["in_summary"].update(verdict="bad"), r"in_summary.verdict = 'bad' must be one"),
        (lambda w: _face(w)["edges"][0]["in_summary"].pop("reason"), r"edges\[0\] .*: in_summary: reason = None"),
        (lambda w: _face(w).pop("edges"), r"faces\.report: not an idea graph: edges must be a list"),
        (lambda w: _face(w, "summary")["edges"][0].update(verdict="no"), r"summary\.edges\[0\] .*verdict = 'no' must"),
        (lambda w: _face(w, "summary")["edges"][0].pop("reason"), r"summary\.edges\[0\]: reason = None"),
        (lambda w: _face(w, "summary")["nodes"][0].update(evidence="?"), r"\(democratisation\): evidence = '\?'"),
        (lambda w: _face(w, "summary")["nodes"][1].update(same_as="gone"), r"\(training_cost\): same_as = 'gone'"),
        (lambda w: w["faces"].pop("summary"), r"faces\.summary must be an object"),
        (lambda w: w.pop("prerequisites"), r"prerequisites\.report must be an object"),
        (lambda w: w["prerequisites"]["report"]["works"][3].pop("where"), r"prerequisites\.report\.works\[3\]: where"),
        (
            lambda w: w["prerequisites"]["report"]["works"][3].update(ideas=["gone"]),
            r"works\[3\] \(long context\): ideas names 'gone'",
        ),
        (
            lambda w: w["prerequisites"]["summary"]["works"][3].update(published="March"),
            r"works\[3\] \(DAPO\): published = 'March' must be a date",
        ),
        (lambda w: w.pop("report_date"), r"report_date = None must be a date"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused_with_file_and_entry(tmp_path: Path, change: Any, message: str) -> None:
    whole = json.loads((data_dir() / "idea_graph.json").read_text(encoding="utf-8"))
    change(whole)
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(InputError, match=message) as refused:
        load_idea_graph("report", path)
    assert str(refused.value).startswith(str(path))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"faces": 3}', '{"faces": {"report": []}}', "\x00"])
def test_a_file_that_is_no_idea_graph_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "graph.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"graph\.json: not an idea graph"):
        load_idea_graph("report", path)
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        load_idea_graph("report", tmp_path / "none.json")


@pytest.mark.parametrize("reference", ["dsv3_mini.model.gone:MLA", "dsv3_mini.model.mla:Gone", "json:loads", "a:b"])
def test_a_code_reference_that_leads_nowhere_names_file_and_entry(tmp_path: Path, reference: str) -> None:
    whole = json.loads((data_dir() / "idea_graph.json").read_text(encoding="utf-8"))
    whole["faces"]["report"]["nodes"][1]["code"][1] = reference
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(whole), encoding="utf-8")
    graph = load_idea_graph("report", path)
    with pytest.raises(InputError, match=rf"graph\.json: faces\.report\.nodes\[1\] \(mla\): code: '{reference}'"):
        code_places("mla", graph)
