"""Two judges of what a model writes that need no second model: does the code parse, is the arithmetic right?

Bits per byte say how well a model foresees text that exists. These two look at text that it makes itself:

* **Parse rate.** The model reads a file of held-out code up to the first line of a function's body and goes on. Header
  and body, up to the line where the function ends, are given to `ast.parse`. A body that is cut off because the tokens
  ran out is judged without its last, unfinished line. The *true* bodies, cut off in the same way, do not always parse
  either: `ceiling` is their rate. Grammar is all that this judge sees: a body of `pass` is as good as any.
* **Arithmetic.** The model is asked problems that are on the held-out side of the corpus, and answers greedily. Right
  is what `arithmetic.check` calls right: the whole line, so also every step of a chain that is worked out.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from dsv3_mini.errors import InputError
from dsv3_mini.generate.decode import generate
from dsv3_mini.model.transformer import DeepSeekV3
from dsv3_mini.train import arithmetic
from dsv3_mini.train.documents import Document, hash_fraction, is_held_out
from dsv3_mini.train.tokenizer import Tokenizer

_AT_ONCE = 32  # prompts in a batch


@dataclass(frozen=True)
class OpenFunction:
    """A function of held-out code, cut before its body."""

    before: str  # the file up to the header
    header: str  # "def ..." with its line break, several lines if it is written so
    after: str  # the body and the rest of the file


def judge(
    model: DeepSeekV3, tokenizer: Tokenizer, heldout: Sequence[Document], *, functions: int = 100, problems: int = 300
) -> dict[str, Any]:
    """Both judges: {"parse_rate": .., "arithmetic": ..}; the first only if there is held-out code."""
    found: dict[str, Any] = {}
    opened = open_functions(heldout, functions)
    if opened:
        found["parse_rate"] = parse_rate(model, tokenizer, opened)
    found["arithmetic"] = arithmetic_accuracy(model, tokenizer, held_out_problems(problems))
    return found


def open_functions(documents: Sequence[Document], count: int) -> list[OpenFunction]:
    """At most `count` functions of the code among `documents`, the same choice every time, spread over the files."""
    found = []
    for document in documents:
        if document.domain == "code":
            for function, line in _functions_of(document.text):
                found.append((hash_fraction(f"{document.name}:{line}"), function))
    return [function for _, function in sorted(found, key=lambda pair: pair[0])[:count]]


def parse_rate(
    model: DeepSeekV3,
    tokenizer: Tokenizer,
    functions: Sequence[OpenFunction],
    *,
    context: int = 192,
    max_new_tokens: int = 64,
    temperature: float = 0.7,
    seed: int = 0,
) -> dict[str, Any]:
    """Share of `functions` whose bodies, as `model` writes them, parse; with the ceiling of the true ones.

    The model reads the last `context` tokens before the body. Sampled with `temperature`, repeatable by `seed`. Raises
    `InputError` without a function.
    """
    if not functions:
        raise InputError("there is no function to judge by: the corpus has no held-out code with functions")
    prompts = [[tokenizer.eos_id, *tokenizer.encode(f.before + f.header)][-context:] for f in functions]
    written, true = [], []
    for start in range(0, len(prompts), _AT_ONCE):
        part = prompts[start : start + _AT_ONCE]
        written += generate(
            model, part, max_new_tokens, temperature=temperature, seed=seed + start, eos_token_id=tokenizer.eos_id
        )
    for function in functions:  # the length of a text is known only in tokens
        true.append(tokenizer.encode(function.after[: 8 * max_new_tokens])[:max_new_tokens])

    def share(bodies: Sequence[list[int]]) -> float:
        right = 0
        for function, ids in zip(functions, bodies, strict=True):
            ended = tokenizer.eos_id in ids
            text = tokenizer.decode(token for token in ids if token != tokenizer.eos_id)
            right += parses(function.header, text, ended=ended)
        return right / len(functions)

    return {
        "rate": share(written),
        "ceiling": share(true),
        "functions": len(functions),
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
    }


def parses(header: str, continuation: str, *, ended: bool = False) -> bool:
    """Whether `header` and the body that `continuation` begins with are valid Python.

    The body ends before the first line that is indented no deeper than the header. `ended`: the text ends by itself;
    otherwise a last line that nothing follows may be unfinished and is left out.
    """
    depth = _indentation(header)
    lines = continuation.splitlines(keepends=True)
    body = []
    for line in lines:
        if line.strip() and _indentation(line) <= depth:
            break
        body.append(line)
    if len(body) == len(lines) and not ended:
        body = body[:-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd but valid code makes Python warn
        try:
            ast.parse(textwrap.dedent(header + "".join(body)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def held_out_problems(count: int) -> list[arithmetic.Problem]:
    """The first `count` problems of the corpus's stream that are held out."""
    return list(islice((p for p in arithmetic.stream(0) if is_held_out(p.key)), count))


def arithmetic_accuracy(
    model: DeepSeekV3, tokenizer: Tokenizer, problems: Sequence[arithmetic.Problem], *, max_new_tokens: int = 48
) -> dict[str, Any]:
    """Share of `problems` that `model` answers right, greedily; in all and by kind."""
    asked: dict[str, int] = {}
    right: dict[str, int] = {}
    for start in range(0, len(problems), _AT_ONCE):
        part = problems[start : start + _AT_ONCE]
        # The space before an answer belongs to the answer's first token, so the prompt ends before it.
        prompts = [[tokenizer.eos_id, *tokenizer.encode(problem.prompt.rstrip())] for problem in part]
        answers = generate(model, prompts, max_new_tokens, eos_token_id=tokenizer.eos_id)
        for problem, ids in zip(part, answers, strict=True):
            text = tokenizer.decode(token for token in ids if token != tokenizer.eos_id)
            line = problem.prompt.rstrip() + text.split("\n")[0]
            kind = _kind(problem)
            asked[kind] = asked.get(kind, 0) + 1
            right[kind] = right.get(kind, 0) + arithmetic.check(line)
    return {
        "accuracy": sum(right.values()) / max(len(problems), 1),
        "by_kind": {kind: right[kind] / asked[kind] for kind in sorted(asked)},
        "problems": len(problems),
    }


def _functions_of(code: str) -> list[tuple[OpenFunction, int]]:
    """The functions of a file whose body begins on a line of its own, with the line of the header."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return []
    lines = code.splitlines(keepends=True)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.body[0].lineno > node.lineno:
            first, body = node.lineno - 1, node.body[0].lineno - 1
            # A decorator of the body's first statement would stand before it.
            body = min([body, *(d.lineno - 1 for d in getattr(node.body[0], "decorator_list", []))])
            header = "".join(lines[first:body])
            found.append((OpenFunction("".join(lines[:first]), header, "".join(lines[body:])), node.lineno))
    return found


def _indentation(text: str) -> int:
    return len(text.expandtabs()) - len(text.expandtabs().lstrip(" "))


def _kind(problem: arithmetic.Problem) -> str:
    """The operation that is asked, or "chain"."""
    plain = re.fullmatch(r"\d+([-+*/])\d+", problem.key)
    return plain.group(1) if plain else "chain"
