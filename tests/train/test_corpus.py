"""The embedded corpus: three domains, each byte in one of them, nothing of the held-out side in training."""

import ast
import sys
import sysconfig
import types

import pytest

from dsv3_mini.errors import InputError
from dsv3_mini.train import corpus as corpus_module
from dsv3_mini.train.arithmetic import check
from dsv3_mini.train.corpus import MATH_SHARE, embedded_corpus
from dsv3_mini.train.documents import Corpus, Document, is_held_out


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return embedded_corpus()


def of_domain(documents: tuple[Document, ...], domain: str) -> list[Document]:
    return [document for document in documents if document.domain == domain]


def test_three_domains_in_proportion(corpus):
    sizes = corpus.bytes_by_domain()
    assert list(sizes) == ["code", "math", "prose"]
    total = sum(sum(row.values()) for row in sizes.values())
    assert total > 2_000_000, "even a small standard library has this much"
    assert sum(sizes["math"].values()) / total == pytest.approx(MATH_SHARE, rel=0.02)
    for row in sizes.values():
        assert 0.01 < row["heldout"] / sum(row.values()) < 0.12


def test_same_again(corpus):
    again = embedded_corpus()
    assert again == corpus and again.fingerprint == corpus.fingerprint


def test_seed_changes_the_problems_and_nothing_else(monkeypatch, tmp_path):
    for n in range(30):
        (tmp_path / f"module{n}.py").write_text("".join(f"value_{i} = {i * n}\n" for i in range(100)))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    first, other = embedded_corpus(), embedded_corpus(seed=1)
    assert other.fingerprint != first.fingerprint
    for domain in ("code", "prose"):
        assert of_domain(other.train, domain) == of_domain(first.train, domain)
        assert of_domain(other.heldout, domain) == of_domain(first.heldout, domain)
    assert of_domain(other.train, "math") != of_domain(first.train, "math")


def test_code_parses_and_has_no_docstrings(corpus):
    for document in of_domain(corpus.heldout + corpus.train[::4], "code"):
        for node in ast.walk(ast.parse(document.text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                assert ast.get_docstring(node, clean=False) is None, document.name


def test_docstrings_are_on_the_side_of_their_code(corpus):
    train = {document.name for document in corpus.train if document.domain in ("code", "prose")}
    heldout = {document.name for document in corpus.heldout if document.domain in ("code", "prose")}
    assert not train & heldout
    assert any(name in heldout for name in {d.name for d in of_domain(corpus.heldout, "prose")} if name.endswith(".py"))


def test_no_text_comes_twice(corpus):
    texts = [document.text for document in corpus.train + corpus.heldout]
    assert len(set(texts)) == len(texts)
    # Paragraph by paragraph, too: what a held-out docstring says at length, no training docstring says.
    held_out = {
        paragraph
        for document in of_domain(corpus.heldout, "prose")
        for paragraph in document.text.split("\n\n")
        if len(paragraph) > 400
    }
    shared = [d.name for d in of_domain(corpus.train, "prose") if any(p in d.text for p in held_out)]
    assert len(shared) <= 3, shared  # docstrings that differ elsewhere may share a paragraph


def test_math_is_right_and_no_problem_is_on_both_sides(corpus):
    keys: dict[bool, set[tuple]] = {}
    for held_out, documents in ((False, corpus.train), (True, corpus.heldout)):
        lines = [line for d in of_domain(documents, "math") for line in d.text.splitlines()]
        assert all(check(line) for line in lines)
        keys[held_out] = {question(line) for line in lines}
        if not held_out:  # a problem must not leak as a step of a chain that is worked out either
            steps = [step for line in lines if line.count(" = ") > 1 for step in line.split(" = ")[1:-1]]
            keys[held_out] |= {question(f"{step} = ") for step in steps}
    assert keys[True] and not keys[True] & keys[False]


def question(line: str) -> tuple:
    """What a line asks, read independently of the generator: the operation, and its numbers in any order if + or *."""
    words = {"plus": "+", "minus": "-", "times": "*", "divided": "/", "Add": "+", "Multiply": "*", "Divide": "/"}
    if line.startswith("Subtract"):
        _, b, _, a = line.split(":")[0].split()
        return ("-", int(a), int(b))
    prompt = line.split("?")[0].split(":")[0].split(" = ")[0].replace("(-", "-").replace("What is ", "")
    parts = prompt.replace(")", "" if "(" not in prompt else ")").split()
    numbers = [int(part) for part in parts if part.lstrip("-").isdigit()]
    ops = [words.get(part, part) for part in parts if words.get(part, part) in "+-*/"]
    if len(ops) == 1 and len(numbers) == 2:
        return (ops[0], *(sorted(numbers) if ops[0] in "+*" else numbers))
    return (line.split(" = ")[0],)


def test_split_is_by_name_alone(monkeypatch, tmp_path, corpus):
    """A library with other files, of other sizes, holds out the same modules."""
    names = sorted({d.name for d in of_domain(corpus.heldout, "code") if "/" not in d.name})[:2]
    others = sorted({d.name for d in of_domain(corpus.train, "code") if "/" not in d.name})[:5]
    for name in names + others:
        (tmp_path / name).write_text("".join(f"value_{n} = {n!r}  # of {name}\n" for n in range(40)))
    package = tmp_path / names[0].removesuffix(".py")
    package.mkdir()
    (package / "__init__.py").write_text("# the module as a package\n" + "x = 1  # and something to say\n" * 40)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    small = embedded_corpus()
    assert {d.name for d in of_domain(small.heldout, "code")} == {*names, f"{package.name}/__init__.py"}
    assert {d.name for d in of_domain(small.train, "code")} == set(others)


def test_of_a_text_on_both_sides_training_loses_its_copy(monkeypatch, tmp_path):
    held_out = next(name for name in (f"z{n}" for n in range(1000)) if is_held_out(name))
    trained_on = next(name for name in (f"a{n}" for n in range(1000)) if not is_held_out(name))
    story = "What both modules say about themselves, at length. " * 8
    for name in (held_out, trained_on):
        own = f"Only {name} says this, and it says it so that there is something to say. " * 4
        (tmp_path / f"{name}.py").write_text(f'"""{story}"""\n\n\ndef f():\n    """{own}"""\n    return "{own}"\n')
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(corpus_module, "_help_topics", lambda: [])
    corpus = embedded_corpus()
    kept, lost = (of_domain(side, "prose") for side in (corpus.heldout, corpus.train))
    assert [d.name for d in kept + lost] == [f"{held_out}.py", f"{trained_on}.py"]
    assert story.strip() in kept[0].text and story.strip() not in lost[0].text


def test_what_is_no_code_is_left_out(monkeypatch, tmp_path):
    lines = "".join(f"value_{n} = {n!r}\n" for n in range(40))
    for name in ("test/a.py", "pkg/tests/a.py", "site-packages/a.py", "encodings/cp1.py", "_sysconfigdata_x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(lines + f"# {name}\n")
    (tmp_path / "latin.py").write_bytes(lines.encode() + b"# \xe9\n")
    (tmp_path / "broken.py").write_text(lines + "def f(:\n")
    (tmp_path / "tiny.py").write_text("x = 1\n")
    (tmp_path / "notes.txt").write_text(lines)
    (tmp_path / "good.py").write_text(lines)
    (tmp_path / "copy_of_good.py").write_text(lines)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(corpus_module, "_help_topics", lambda: [])
    corpus = embedded_corpus()
    assert [d.name for d in of_domain(corpus.train + corpus.heldout, "code")] == ["copy_of_good.py"]


def test_a_library_without_sources_is_one_clear_message(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python311.zip"))
    with pytest.raises(InputError, match=r"standard library.*no .py files"):
        embedded_corpus()


@pytest.mark.parametrize("module", [None, types.ModuleType("pydoc_data.topics")], ids=["missing", "other format"])
def test_help_topics_may_be_missing(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", module)
    assert list(corpus_module._help_topics()) == []


def test_help_topics_are_prose_when_they_are_there(corpus):
    pytest.importorskip("pydoc_data.topics")
    assert any(d.name.startswith("help/") and d.domain == "prose" for d in corpus.train)


def test_fingerprint_tells_every_difference():
    a, b = Document("code", "a", "x"), Document("code", "b", "y")
    seen = {
        Corpus((a,), (b,)).fingerprint,
        Corpus((b,), (a,)).fingerprint,
        Corpus((a, b), ()).fingerprint,
        Corpus((Document("text", "a", "x"),), (b,)).fingerprint,
        Corpus((Document("code", "a", "x2"),), (b,)).fingerprint,
        Corpus((Document("code", "ax", ""),), (b,)).fingerprint,
    }
    assert len(seen) == 6
    assert Corpus((a,), (b,), "elsewhere").fingerprint in seen, "where it comes from is no content"


def test_describe_names_every_domain_and_its_bytes(corpus):
    text = corpus.describe()
    for domain, row in corpus.bytes_by_domain().items():
        assert f"{domain} " in text and f"{row['train']:,}" in text and f"{row['heldout']:,}" in text


def test_held_out_share_is_kept():
    share = sum(is_held_out(f"name {n}") for n in range(20_000)) / 20_000
    assert 0.045 < share < 0.055
