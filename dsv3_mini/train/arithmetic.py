"""Arithmetic problems with answers: the mathematics domain of the embedded corpus.

Problems are generated rather than collected, so every answer is right, there are as many as a run wants, and a
model's own answers can be judged without a second model: `check` reads a line and says whether it is right.

Kinds: sums, differences, products, divisions with remainder, and chains of three or four numbers with
parentheses, some worked out step by step. Wordings vary. `Problem.key` names what is asked, whatever the wording,
so that a corpus can keep "What is 7 plus 12?" out of training when "12 + 7" is held out.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

# What stands before the answer. The checker reads the same table, but works the answer out from the text alone.
WORDINGS = {
    "+": ("{a} + {b} = ", "What is {a} plus {b}? ", "Add {a} and {b}: "),
    "-": ("{a} - {b} = ", "What is {a} minus {b}? ", "Subtract {b} from {a}: "),
    "*": ("{a} * {b} = ", "What is {a} times {b}? ", "Multiply {a} by {b}: "),
    "/": ("{a} / {b} = ", "What is {a} divided by {b}? ", "Divide {a} by {b}: "),
}

# A chain is a number, or (operator, left chain, right chain).
Chain = int | tuple[str, "Chain", "Chain"]


@dataclass(frozen=True)
class Problem:
    """One line of mathematics: `prompt` is what is asked, `answer` is what a model should write next."""

    prompt: str
    answer: str
    key: str  # what is asked, whatever the wording and the order of a sum or product
    shown: frozenset[str] = frozenset()  # keys of the other problems that the answer solves on its way

    @property
    def line(self) -> str:
        return self.prompt + self.answer


def problems(seed: int, n: int) -> list[Problem]:
    """The first `n` problems of the stream of this seed; no line comes twice."""
    return list(islice(stream(seed), n))


def stream(seed: int) -> Iterator[Problem]:
    """Problems without end, no line twice; the same seed gives the same problems on every machine."""
    rng = random.Random(f"dsv3-mini arithmetic {seed}")  # a string, so that neighbouring seeds are unrelated
    seen: set[str] = set()
    while True:
        kind = rng.choices(("+", "-", "*", "/", "chain"), weights=(25, 20, 20, 15, 20))[0]
        problem = _chain_problem(rng) if kind == "chain" else _plain_problem(kind, rng)
        if problem.line not in seen:
            seen.add(problem.line)
            yield problem


def check(line: str) -> bool:
    """Whether `line` asks a problem in one of the forms above and every answer on it is right.

    Never raises: text that is no problem, has no answer or goes on after the answer is simply not right.
    """
    if len(line) > 300:  # no problem is that long, and parsing a model's ramblings should stay cheap
        return False
    line = line.strip()
    for op, wordings in WORDINGS.items():
        for wording in wordings:
            found = _pattern(wording).fullmatch(line)
            if found:
                return _answer_is_right(op, int(found["a"]), int(found["b"]), found["answer"])
    first, *rest = (part.strip() for part in line.split("="))
    if not rest or not re.search(r"\d\s*[-+*]", first) or not re.fullmatch(r"-?\d+", rest[-1]):
        return False
    values = [_evaluate(part) for part in (first, *rest)]
    return values[0] is not None and all(value == values[0] for value in values)


def _pattern(wording: str) -> re.Pattern[str]:
    text = re.escape(wording.strip()).replace(r"\{a\}", r"(?P<a>-?\d+)").replace(r"\{b\}", r"(?P<b>-?\d+)")
    return re.compile(text + r"\s*(?P<answer>-?\d+( remainder \d+)?)", re.ASCII)


def _answer_is_right(op: str, a: int, b: int, answer: str) -> bool:
    quotient, _, remainder = answer.partition(" remainder ")
    if op == "/":
        return b > 0 and divmod(a, b) == (int(quotient), int(remainder or 0))
    return not remainder and int(quotient) == _apply(op, a, b)


def _apply(op: str, a: int, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def _evaluate(text: str) -> int | None:
    """The value of whole numbers joined by + - * and parentheses; None if `text` is anything else."""
    if not re.fullmatch(r"[-+*() \d]+", text, re.ASCII):
        return None
    try:
        return _value_of(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _value_of(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value_of(operand)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value_of(left) + _value_of(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _value_of(left) - _value_of(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value_of(left) * _value_of(right)
    raise ValueError("not arithmetic of this course")


def _plain_problem(op: str, rng: random.Random) -> Problem:
    if op in "+-":
        a, b = _number(rng, 5), _number(rng, 5)
    elif op == "*":
        a, b = _number(rng, 3), _number(rng, 2)
    else:
        a, b = _number(rng, 4), rng.randrange(2, 13)
    if op == "/":
        answer = f"{a // b} remainder {a % b}" if a % b else str(a // b)
    else:
        answer = str(_apply(op, a, b))
    return Problem(rng.choice(WORDINGS[op]).format(a=a, b=b), answer, _key(op, a, b))


def _number(rng: random.Random, most_digits: int) -> int:
    return rng.randrange(10 ** rng.randint(1, most_digits))


def _key(op: str, a: int, b: int) -> str:
    low, high = sorted((a, b)) if op in "+*" else (a, b)
    return f"{low}{op}{high}"


def _chain_problem(rng: random.Random) -> Problem:
    chain = _random_chain(rng, rng.choice((3, 3, 4)))
    steps = [chain]
    while isinstance(steps[-1], tuple):
        steps.append(_step(steps[-1]))
    worked_out = rng.random() < 0.5
    answer = " = ".join(_write(step) for step in (steps[1:] if worked_out else steps[-1:]))
    shown = frozenset(_chain_key(step) for step in steps[1:-1]) if worked_out else frozenset()
    return Problem(_write(chain) + " = ", answer, _chain_key(chain), shown)


def _random_chain(rng: random.Random, numbers: int) -> Chain:
    if numbers == 1:
        return rng.randrange(1, 10 if rng.random() < 0.5 else 100)
    left = rng.randint(1, numbers - 1)
    return (rng.choice("++--*"), _random_chain(rng, left), _random_chain(rng, numbers - left))


def _step(chain: Chain) -> Chain:
    """Works out the leftmost operation whose two sides are numbers already."""
    if isinstance(chain, int):
        return chain
    op, left, right = chain
    if isinstance(left, tuple):
        return (op, _step(left), right)
    if isinstance(right, tuple):
        return (op, left, _step(right))
    return _apply(op, left, right)


def _write(chain: Chain) -> str:
    if isinstance(chain, int):
        return str(chain)
    op, left, right = chain
    left_text, right_text = _write(left), _write(right)
    if op == "*" and isinstance(left, tuple) and left[0] != "*":
        left_text = f"({left_text})"
    # On the right, equal rank needs parentheses too: 9 - (3 - 2). A negative number gets them to read well.
    if (isinstance(right, tuple) and not (op in "+-" and right[0] == "*")) or (isinstance(right, int) and right < 0):
        right_text = f"({right_text})"
    return f"{left_text} {op} {right_text}"


def _chain_key(chain: Chain) -> str:
    if isinstance(chain, tuple) and isinstance(chain[1], int) and isinstance(chain[2], int):
        return _key(chain[0], chain[1], chain[2])
    return _write(chain).replace(" ", "")
