"""Takes a Python file apart into code and docstrings, so that each of its bytes is in one domain only.

Left in the code, docstrings would make "code" half prose, and the routing pictures of the course (which experts
serve code, which serve prose?) would mean little. What remains still parses.
"""

from __future__ import annotations

import ast
import inspect


def split_docstrings(source: str) -> tuple[str, list[str]]:
    """(code without docstrings, the docstrings in order of appearance, dedented).

    A docstring that was alone in its body leaves a `pass`. Raises SyntaxError when `source` does not parse, or is
    a generated table: a file that is mostly one list or dict only looks like code.
    """
    tree = ast.parse(source)
    # Bytes, because ast counts columns in UTF-8 bytes; line ends as ast counts them.
    lines = source.replace("\r\n", "\n").replace("\r", "\n").encode().split(b"\n")
    docstrings: list[tuple[ast.stmt, bool, str]] = []
    longest_display = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                docstrings.append((node.body[0], len(node.body) == 1, text))
        elif isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict):
            longest_display = max(longest_display, (node.end_lineno or 0) - node.lineno + 1)
    if longest_display > max(50, len(lines) / 2):
        raise SyntaxError("a table")
    docstrings.sort(key=lambda found: (found[0].lineno, found[0].col_offset))
    for statement, alone, _ in reversed(docstrings):  # from the end, so that earlier places stay true
        _cut(lines, statement, alone)
    return b"\n".join(lines).decode().lstrip("\n"), [inspect.cleandoc(text) for _, _, text in docstrings]


def _cut(lines: list[bytes], statement: ast.stmt, alone: bool) -> None:
    """Removes a docstring from `lines`, in place."""
    first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
    before, after = lines[first][: statement.col_offset], lines[last][statement.end_col_offset :]
    if alone or before.strip() or after.strip():
        # The body would be empty, or something stands on the same line: `pass` keeps both valid.
        lines[first : last + 1] = [before + b"pass" + after]
    else:
        del lines[first : last + 1]
