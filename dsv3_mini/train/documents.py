"""Documents by domain, and their split into a training and a held-out side (§4.1 "Data Construction").

A document's side is decided by a hash of its name or content, never by its position: what is held out on one
machine is held out on all, whatever else the corpus has. Quality is reported on the held-out side, in bits per
byte, so that runs with different tokenizers compare.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

HELD_OUT_SHARE = 0.05


@dataclass(frozen=True)
class Document:
    """One text. `name` is where it comes from: a path within the library, a file, or a block of a file."""

    domain: str
    name: str
    text: str

    @cached_property
    def num_bytes(self) -> int:
        return len(self.text.encode())


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents never trained on; `skipped` says what was left out of a folder and why."""

    train: tuple[Document, ...]
    heldout: tuple[Document, ...]
    source: str = ""
    skipped: tuple[str, ...] = ()

    @property
    def domains(self) -> list[str]:
        return sorted({document.domain for document in self.train + self.heldout})

    def bytes_by_domain(self) -> dict[str, dict[str, int]]:
        """{domain: {"train": bytes, "heldout": bytes}}."""
        table = {domain: {"train": 0, "heldout": 0} for domain in self.domains}
        for side, documents in (("train", self.train), ("heldout", self.heldout)):
            for document in documents:
                table[document.domain][side] += document.num_bytes
        return table

    def describe(self) -> str:
        """A small table for people: documents and bytes by domain and side."""
        lines = [f"corpus: {self.source}", f"{'domain':<8} {'train':>12} {'held out':>12}   bytes"]
        for domain, row in self.bytes_by_domain().items():
            lines.append(f"{domain:<8} {row['train']:>12,} {row['heldout']:>12,}")
        lines.append(f"{len(self.train)} documents to train on, {len(self.heldout)} held out")
        if self.skipped:
            lines.append(f"{len(self.skipped)} files skipped, first: {self.skipped[0]}")
        return "\n".join(lines)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every document: equal exactly when the content and the split are."""
        digest = hashlib.sha256()
        for side, documents in ((b"train", self.train), (b"heldout", self.heldout)):
            for document in documents:
                for part in (
                    side,
                    document.domain.encode(),
                    document.name.encode("utf-8", "surrogateescape"),
                    document.text.encode(),
                ):
                    digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()


def is_held_out(key: str, share: float = HELD_OUT_SHARE) -> bool:
    """Whether what is called `key` belongs to the held-out side: always the same answer, everywhere."""
    return hash_fraction(key) < share


def hash_fraction(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone and is spread evenly."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
