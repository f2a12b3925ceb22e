"""The corpus that everybody already has, in three domains, and (from `own_corpus`) corpora of the learner's own.

`embedded_corpus` needs no download: the standard library of this very Python is the code, its docstrings and help
topics are the prose, generated problems are the mathematics. Three domains, like the Wikipedia / GitHub /
mathematics split of the report's expert-specialisation figure (App. C).

The split is by module name: a module that is held out on one machine is held out on all, also where it belongs to
another Python version. The docstrings of a file are on the side of its code.
"""

from __future__ import annotations

import importlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from dsv3_mini.errors import InputError
from dsv3_mini.train import arithmetic
from dsv3_mini.train.docstrings import split_docstrings
from dsv3_mini.train.documents import Corpus, Document, is_held_out
from dsv3_mini.train.own_corpus import corpus_from_dataset, corpus_from_path

__all__ = ["Corpus", "Document", "corpus_from_dataset", "corpus_from_path", "embedded_corpus"]

MATH_SHARE = 0.05  # of the bytes of the embedded corpus
MATH_LINES = 50  # problems in one document
SMALLEST = 200  # bytes: files and docstring collections below this are mostly boilerplate

# Folders of the standard library that hold other people's packages, tests, or data that only looks like code.
SKIPPED_FOLDERS = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "lib-dynload",
    "__pycache__",
}  # fmt: skip


def embedded_corpus(seed: int = 0) -> Corpus:
    """The default corpus: code, prose and mathematics from this Python, the same split on every machine.

    `seed` chooses the arithmetic problems; the library and the split do not depend on it. Takes a few seconds.
    Raises `InputError` when this Python carries its standard library in a form without source files.
    """
    root = Path(sysconfig.get_path("stdlib"))
    sources = list(_library_files(root))
    if not sources:
        raise InputError(
            f"the standard library of this Python has no .py files in {root} (it is zipped or frozen), so there is no "
            "embedded corpus; use a regular Python installation, or give a file or folder of your own text"
        )
    sides: dict[bool, list[Document]] = {True: [], False: []}
    seen: set[str] = set()
    # Held out first: of a text that occurs twice (_pydecimal documents what decimal documents), the training side
    # must be the one to lose its copy.
    for held_out in (True, False):
        for name, source in sources:
            if is_held_out(_module_key(name)) == held_out:
                sides[held_out] += _library_documents(name, source, seen)
        for name, text in _help_topics():
            if is_held_out(name) == held_out and text not in seen:
                seen.add(text)
                sides[held_out].append(Document("prose", name, text))
    library_bytes = sum(document.num_bytes for documents in sides.values() for document in documents)
    for held_out, documents in _math_documents(seed, int(library_bytes * MATH_SHARE / (1 - MATH_SHARE))).items():
        sides[held_out] += documents
    version = sysconfig.get_python_version()
    return Corpus(tuple(sides[False]), tuple(sides[True]), f"the standard library of Python {version}, and arithmetic")


def _library_files(root: Path) -> Iterator[tuple[str, str]]:
    """(path within the library, source) of every file that is somebody's code."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS)
        for file in sorted(files):
            path = Path(folder, file)
            if path.suffix != ".py" or file.startswith("_sysconfigdata"):  # those describe one machine
                continue
            try:
                source = path.read_bytes().decode("utf-8-sig")
            except (OSError, UnicodeDecodeError):
                continue
            if len(source) >= SMALLEST:
                yield path.relative_to(root).as_posix(), source


def _module_key(name: str) -> str:
    """`zipfile.py` became `zipfile/__init__.py` in Python 3.12: one module, one side."""
    return name.removesuffix(".py").removesuffix("/__init__")


def _library_documents(name: str, source: str, seen: set[str]) -> Iterator[Document]:
    try:
        code, docstrings = split_docstrings(source)
    except (SyntaxError, ValueError):  # templates, data, or written for another Python
        return
    if len(code) >= SMALLEST and code not in seen:
        seen.add(code)
        yield Document("code", name, code)
    new = [text for text in dict.fromkeys(docstrings) if text not in seen and _is_text(text)]
    seen.update(text for text in new if len(text) >= SMALLEST)  # "Return self." may be said again elsewhere
    prose = "\n\n".join(new) + "\n"
    if len(prose) >= SMALLEST:
        yield Document("prose", name, prose)


def _help_topics() -> Iterator[tuple[str, str]]:
    """The chapters behind `help("...")`. Some distributions leave them out; then there is a little less prose."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError):
        return
    for topic, text in sorted(topics.items()):
        if isinstance(text, str) and len(text) >= SMALLEST and _is_text(text):
            yield f"help/{topic}", text.strip("\n") + "\n"


def _is_text(text: str) -> bool:
    """Docstrings may contain half a surrogate pair as an escape: nothing that UTF-8 can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _math_documents(seed: int, num_bytes: int) -> dict[bool, list[Document]]:
    """About `num_bytes` of problems, by side. No problem is on both, whatever its wording.

    A held-out chain may be worked out over steps that training has seen; the reverse is excluded.
    """
    lines: dict[bool, list[str]] = {True: [], False: []}
    written = 0
    for problem in arithmetic.stream(seed):
        if written >= num_bytes:
            break
        held_out = is_held_out(problem.key)
        if held_out or not any(map(is_held_out, problem.shown)):
            lines[held_out].append(problem.line)
            written += len(problem.line) + 1
    return {
        side: [
            Document("math", f"arithmetic/{start}", "\n".join(of_side[start : start + MATH_LINES]) + "\n")
            for start in range(0, len(of_side), MATH_LINES)
        ]
        for side, of_side in lines.items()
    }
