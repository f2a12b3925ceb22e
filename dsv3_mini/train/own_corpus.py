"""Corpora of the learner's own: a file, a folder, or a public data set.

Many small files are split by file, like the embedded corpus. One long file, or a handful of them, is first cut into
blocks at blank lines, so that there is something to hold out, and split by a hash of each block's content.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dsv3_mini.errors import InputError
from dsv3_mini.train.documents import Corpus, Document, hash_fraction, is_held_out

CODE = set(
    ".py .pyi .c .h .cc .cpp .hpp .cs .go .java .js .jsx .ts .tsx .rs .rb .php .swift .kt .scala .sh .sql".split()
)
PROSE = {".md", ".rst", ".txt"}
FEW_FILES = 20  # below this, one file in twenty cannot be held out: files are cut into blocks
SMALLEST_CORPUS = 2000  # bytes; less cannot be cut into blocks worth reading
BLOCK = 8192  # characters of a block, where there is enough text for many of them
COLUMNS = ("text", "content", "code", "document", "story")  # where data sets usually keep their text


def corpus_from_path(path: str | os.PathLike[str]) -> Corpus:
    """The corpus in a UTF-8 file or a folder (with its subfolders, without hidden files).

    Domains by suffix: "code", "prose" (.md, .rst, .txt) or "text". In a folder, files that are not text are left
    out and listed in `Corpus.skipped`. Raises `InputError` that names the file or folder when it is missing, empty,
    not text, or too small to hold anything out.
    """
    if not os.fspath(path):
        raise InputError("the path of the corpus is empty; give a text file or a folder of text files")
    path = Path(path)
    documents: list[Document] = []
    skipped: list[str] = []
    if path.is_dir():
        for file in _files(path):
            name = file.relative_to(path).as_posix()
            try:
                documents.append(Document(_domain(file), name, _read_text(file)))
            except InputError as error:
                skipped.append(str(error))
        documents = [document for document in documents if document.text.strip()]
        if not documents:
            reason = f"{len(skipped)} files were left out, first: {skipped[0]}" if skipped else "its files are empty"
            raise InputError(f"{path} has no text to train on ({reason})")
    elif path.is_file():
        documents = [Document(_domain(path), path.name, _read_text(path))]
    elif path.exists():
        raise InputError(f"{path} is neither a file nor a folder; give a text file or a folder of text files")
    else:
        raise InputError(f"{path} does not exist; give a text file or a folder of text files")
    return _split(documents, str(path), skipped)


def corpus_from_dataset(
    name: str, *, config: str | None = None, split: str = "train", column: str | None = None,
    max_bytes: int = 50_000_000,
) -> Corpus:  # fmt: skip
    """About `max_bytes` of a public data set, by its name on the Hugging Face hub, or a folder that `datasets` saved.

    `column` None takes the usual name for text. Needs the network, except for a folder, and the package `datasets`.
    Raises `InputError` with the reason when the package, the data set or the column is not to be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError('public data sets need the package `datasets`: pip install "dsv3-mini[data]"') from error
    try:
        if Path(name).is_dir() and any(Path(name).glob("dataset*.json")):
            rows = datasets.load_from_disk(name)
            rows = rows[split] if isinstance(rows, datasets.DatasetDict) else rows
        else:
            rows = datasets.load_dataset(name, config, split=split, streaming=True)
        documents = list(_rows_to_documents(rows, name, column, max_bytes))
    except InputError:
        raise
    except Exception as error:  # network, permissions, names: the library has an exception for each
        raise InputError(f"data set {name!r} cannot be read: {type(error).__name__}: {error}") from error
    return _split(documents, f"data set {name}", [])


def _rows_to_documents(
    rows: Iterable[dict[str, Any]], name: str, column: str | None, max_bytes: int
) -> Iterator[Document]:
    size = 0
    for number, row in enumerate(rows):
        texts = [key for key, value in row.items() if isinstance(value, str)]
        column = column or next((usual for usual in COLUMNS if usual in texts), None)
        if column not in texts:
            wanted = f"no text in a column {column!r}" if column else f"no column named {' or '.join(COLUMNS)}"
            raise InputError(f"data set {name!r} has {wanted}; its columns of text are {texts}")
        document = Document("text", f"{name}/{number}", row[column])
        yield document
        size += document.num_bytes
        if size >= max_bytes:
            return


def _files(root: Path) -> Iterator[Path]:
    """The regular files below a folder, in a fixed order, without hidden files and folders."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(folder, name).is_file():
                yield Path(folder, name)


def _read_text(file: Path) -> str:
    try:
        content = file.read_bytes()
        if b"\0" in content:
            raise InputError(f"{file} is not text: it has NUL bytes; give a UTF-8 text file")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start}); convert it to UTF-8") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error


def _domain(file: Path) -> str:
    suffix = file.suffix.lower()
    return "code" if suffix in CODE else "prose" if suffix in PROSE else "text"


def _split(documents: list[Document], source: str, skipped: list[str]) -> Corpus:
    """Drops repeated texts, cuts a few long ones into blocks, and gives every document its side."""
    size = sum(document.num_bytes for document in documents)
    if size < SMALLEST_CORPUS:
        raise InputError(
            f"{source} has {size} bytes of text, too few to hold some out: at least {SMALLEST_CORPUS} are needed, "
            "and a model learns little from less than 1,000,000"
        )
    if len(documents) < FEW_FILES:
        block = min(BLOCK, size // 20)
        documents = [part for document in documents for part in _blocks(document, block)]
    by_text = {document.text: document for document in reversed(documents)}  # of equal ones, the first
    unique = sorted(by_text.values(), key=lambda document: hash_fraction(document.text))
    if len(unique) < 2:
        raise InputError(f"{source} says one thing again and again; a corpus needs at least two different texts")
    # Chance may leave nothing on one side of a small corpus: each side gets at least one document.
    heldout = max(1, min(len(unique) - 1, sum(is_held_out(document.text) for document in unique)))
    sides = (sorted(side, key=lambda document: document.name) for side in (unique[heldout:], unique[:heldout]))
    train, held_out = map(tuple, sides)
    return Corpus(train, held_out, source, tuple(skipped))


def _blocks(document: Document, size: int) -> Iterator[Document]:
    """Cuts a text into blocks of `size` to twice that many characters, joined they are the text.

    At the first blank line that makes a block long enough, else at a line end, else at a space, else anywhere.
    """
    text, start, number = document.text, 0, 0
    while start < len(text):
        end = len(text)
        if end - start > 2 * size:
            for border in ("\n\n", "\n", " "):
                found = text.find(border, start + size, start + 2 * size)
                if found >= 0:
                    end = found + len(border)
                    break
            else:
                end = start + size
        yield Document(document.domain, f"{document.name}#{number:06}", text[start:end])
        start, number = end, number + 1
