"""The numbers that a lesson's prose *states*: all digits in its markdown cells, less those that state nothing.

A number is left out when it is

* code: a fenced block (also in a folded solution), a link's target, an HTML tag;
* a label: §2.1.1, Eq. 3, Table 6, Figure 9, App. B, lesson 05, exercise 1.2, exhibit 3.A, guess 1, an arXiv id, the
  version of a program, the number of a list item, the number at the head of a heading;
* a name: V3, BF16, H800, GPT-4o, LLaMA-3.1, D13; 1st, 2D, 1F1B;
* a date, or the year of a citation;
* the length of the lesson or of an exercise ("*About 40 minutes.", "(10 minutes)");
* an answer to choose from: behind (a), (b), ...: most of these are wrong on purpose;
* structure of a formula: an index or an exponent (the power of ten in $10^{-4}$ is none), an equation's tag, and inside
  $...$ the bare 0, 1 and 2, which stand for limits of sums, halves and pairs.

Everything else counts, digits in a heading and in inline code included. Numbers written as words do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dsv3_mini.course.numerals import Number, find_numbers


@dataclass(frozen=True)
class Stated:
    """A number of the prose: where it stands, and the text that says what it is about."""

    number: Number
    paragraph: str
    in_code: bool  # inside `inline code`

    def around(self, width: int = 40) -> str:
        """The text around the number, on one line."""
        start, end = max(0, self.number.start - width), self.number.end + width
        left, right = "..." if start else "", "..." if end < len(self.paragraph) else ""
        return left + " ".join(self.paragraph[start:end].split()) + right

    @property
    def sentence(self) -> str:
        """The sentence that the number stands in (a display formula belongs to the sentence before it)."""
        start, end = 0, len(self.paragraph)
        for border in _SENTENCE_END.finditer(self.paragraph):
            if border.end() <= self.number.start:
                start = border.end()
            elif border.start() >= self.number.end:
                end = border.start() + 1
                break
        return self.paragraph[start:end]

    def behind(self) -> list[str]:
        """Up to three words right behind the number, as far as they belong to it: "128 *attention heads* of ..."."""
        words = re.match(r"(?:[\s*`$-]+[A-Za-z]+){0,3}", self.paragraph[self.number.end :])
        found = re.findall(r"[A-Za-z]+", words.group() if words else "")
        borders = [place for place, word in enumerate(found) if word.lower() in _BORDERS]
        return [word.lower() for word in found[: borders[0] if borders else None]]


_SENTENCE_END = re.compile(r"[.?!][)*\"]*\s+(?=[A-Z*(\"`])")
_BORDERS = {"of", "in", "per", "for", "and", "or", "to", "at", "with", "on", "the", "a", "by", "from", "is", "are"}


def stated_numbers(markdown: str) -> Iterator[Stated]:
    """The numbers that a markdown cell states, in order."""
    for paragraph in paragraphs(_drop_blocks(markdown)):
        spans = [match.span() for match in re.finditer(r"(`+)(?!`).+?(?<!`)\1(?!`)", paragraph, re.DOTALL)]
        for number in find_numbers(_drop_labels(paragraph)):
            in_code = any(start <= number.start < end for start, end in spans)
            yield Stated(number, paragraph, in_code)


def paragraphs(markdown: str) -> Iterator[str]:
    """Paragraphs, list items, rows of tables and headings, each on its own.

    A display formula belongs to the paragraph before it, which says what it is about.
    """
    found: list[str] = []
    blank = True
    for line in markdown.splitlines():
        if not line.strip():
            blank = True
            continue
        # A line that opens with a number goes on with its paragraph, unless it is the first item of a list.
        item = r"\s*(?:[*+-]|1[.)])\s" if not (found and _ITEM.match(found[-1])) else r"\s*(?:[*+-]|\d+[.)])\s"
        starts = blank or re.match(rf"{item}|\s*\||#{{1,6}}\s", line) or found[-1].startswith("#")
        if starts and not (found and line.lstrip().startswith("$$")):
            found.append(line)
        else:
            found[-1] += "\n" + line
        blank = False
    return iter(found)


_ITEM = re.compile(r"\s*\d+[.)]\s")


def _blank(match: re.Match[str]) -> str:
    """Spaces instead of what is dropped, so that everything else keeps its place."""
    return re.sub(r"[^\n]", " ", match.group())


def _drop_blocks(markdown: str) -> str:
    return re.sub(r"^(```+|~~~+).*?^\1[ \t]*$", _blank, markdown, flags=re.DOTALL | re.MULTILINE)


# A further number behind a label is part of it only where no noun follows: "Eq. 3 and 4 say", but "Eq. 3 and 64 heads".
_NO_NOUN = (
    r"(?=\s*(?:[^\w\s]|$)|\s+(?:and|or|to|are|is|in|of|say|give|show|ask|build|need|use|with|for|on|by|as|from|at)\b)"
)


def _label(words: str, number: str) -> str:
    """A label with one or more numbers: "Eq. 6 to 8", "lessons 01 and 02"."""
    return rf"(?:{words})\s*{number}(?:\s*(?:,|and|or|to|-|–|&)\s*{number}{_NO_NOUN})*"


_YEAR = r"(?:19[5-9]\d|20[0-3]\d)"
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|June?|July?|Aug|Sept?|Oct|Nov|Dec)[a-z]*\.?"
_SMALL = r"\d{1,2}(?![\w%]|[.,]\d)"

_DROPPED: list[tuple[str, int]] = [
    # Markup
    (r"\[\d\d (?=[A-Z])", 0),  # the number of a lesson in a link: [03 Positions]
    (r"\]\([^)\s]*\)", 0),
    (r"</?[a-zA-Z!][^>\n]*>", 0),
    (r"https?://\S+", 0),
    (r"&#?\w+;", 0),
    (r"\A\s*\d+[.)](?=\s)", 0),
    (r"\A#{1,6}\s+\d+(?:\.\d+)*(?=[\s:.])", 0),
    # Labels
    (r"(?:§|\b[Ss]ections?)\s*\d{1,2}(?:\.\d+)*", 0),
    (_label(r"\b(?:Eq|Fig|Figure|Table|Equation)s?\b\.?", _SMALL), re.IGNORECASE),
    (_label(r"\bApp(?:endix|endices)?\.?", r"[A-Z](?:\.\d+)*"), 0),
    (_label(r"\b(?:lesson|exercise|guess|prediction)s?\b", r"\d{1,2}(?:\.\d)?(?![\w%]|[.,]\d)"), re.IGNORECASE),
    (_label(r"\bexhibits?\b", r"\d+\.[A-Z]\b"), re.IGNORECASE),
    (r"\barXiv[\s:]*\d{4}\.\d{4,5}(?:v\d+)?", re.IGNORECASE),
    (r"\b(?:Python|PyTorch|torch|JupyterLab|transformers|CUDA|version)\s+v?\d+(?:\.\d+)*", re.IGNORECASE),
    # Dates and citations
    (rf"\b\d{{1,2}}\s+{_MONTH}\s+{_YEAR}\b|\b{_MONTH}\s+{_YEAR}\b", 0),
    (rf"(?<=et al)\.?,?\s*\(?{_YEAR}\b|\b(?:ACL|AIME|CNMO|EMNLP|ICLR|ICML|NeurIPS),?\s+{_YEAR}\b", 0),
    (rf"\([A-Z][A-Za-z.&\s-]*,\s*{_YEAR}\)", 0),
    # How long it takes
    (r"^\*About \d+ (?:to \d+ )?minutes\b|\((?:about )?\d+ minutes?\)", 0),
    # Names: V3, BF16, Qwen2.5-72B; GPT-4o, LLaMA-3.1, ZeRO-1; Claude 3.5
    (r"\b[A-Za-z]+\d[\w.]*(?:-\w+)*(?<!\.)", 0),
    (r"\b(?:\w*[A-Z]\w*[A-Z]\w*|Claude)-\d[\w.]*(?<!\.)(?:-\w+)*|\bClaude \d\.\d|\bAlpacaEval 2\.0", 0),
    (r"\b\d+[A-Z]\d+[A-Z]\b", 0),
]
_PATTERNS = [(re.compile(pattern, flags | re.MULTILINE), _blank) for pattern, flags in _DROPPED]
_CHOICES = re.compile(r"\(a\)\s.*\([b-h]\)\s.*?(?:[.?!](?=\s|$)|\Z)|\A(?:[*+-]\s+)?\([a-h]\)\s.*", re.DOTALL)
_FORMULA = re.compile(r"(?<![\\$`])(?:\$\$.+?\$\$|\$(?![\s$])[^$]*?(?<![\s\\])\$)", re.DOTALL)


def _drop_labels(paragraph: str) -> str:
    rules: list[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]] = [
        (_CHOICES, _blank),
        *_PATTERNS,
        (_FORMULA, _drop_structure),  # last: a formula may hold labels, as in "(Eq. 1, 2, 5)"
    ]
    for pattern, replace in rules:
        paragraph = pattern.sub(replace, paragraph)
    return paragraph


_SCRIPT = r"(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\[a-zA-Z]+|[^\s{}\\])"


def _drop_structure(formula: re.Match[str]) -> str:
    text = re.sub(r"\\tag\{[^}]*\}", _blank, formula.group())
    text = re.sub(rf"_{_SCRIPT}", _blank, text)
    text = re.sub(rf"(?<!\b10)\^{_SCRIPT}", _blank, text)
    return re.sub(r"(?<![\d.,])[012](?![\d.,]\d|\d|\.\d)", _blank, text)
