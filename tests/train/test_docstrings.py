"""Code and docstrings are taken apart without losing either."""

import ast
import textwrap

import pytest

from dsv3_mini.train.docstrings import split_docstrings


def split(source: str) -> tuple[str, list[str]]:
    return split_docstrings(textwrap.dedent(source))


def test_docstrings_come_out_in_order_and_dedented():
    code, docstrings = split('''\
        """About the module.

        More.
        """
        import os

        class A:
            """About A."""

            def f(self):
                """About f.

                Returns:
                    indented
                """
                return "not a docstring"
        ''')
    assert docstrings == ["About the module.\n\nMore.", "About A.", "About f.\n\nReturns:\n    indented"]
    assert "About" not in code and "More" not in code
    assert 'return "not a docstring"' in code
    assert code.startswith("import os")


def test_without_docstrings_nothing_changes():
    source = "import os\n\n\ndef f(x):\n    'é' and x  # a comment\n    return x\n"
    assert split_docstrings(source) == (source, [])


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """alone"""\n',
        'def f(): "alone"\n',
        'def f(): "first"; return 1\n',
        'def f():\n    "é"; x = "ü"\n    return x\n',
        'class A:\n    """two\n    lines"""  # a comment after it\n    x = 1\n',
        'class A:\n    ("in brackets")\n    x = 1\n',
        'async def f():\n    r"""raw"""\n    await g()\n',
        'def f():\n    "joined " "strings"\n    return 1\n',
        'def f():\n    """page\x0cbreak"""\n    return 1\n',
        '"""windows"""\r\nx = 1\r\n',
        'if True:\n    def f():\n        """nested"""\n        class B: "b"\n        return B\n',
        'def f():\n    """line \\\n    continued"""\n    return 1',
    ],
)
def test_what_remains_is_the_same_program(source):
    """Same syntax tree, docstrings aside (a `pass` may stand in for one)."""
    code, docstrings = split_docstrings(source)
    assert docstrings

    def bare(tree: ast.Module) -> str:
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if ast.get_docstring(node, clean=False) is not None:
                    del node.body[0]
                node.body = [statement for statement in node.body if not isinstance(statement, ast.Pass)]
        return ast.dump(tree)

    left = ast.parse(code)
    assert not any(
        ast.get_docstring(node)
        for node in ast.walk(left)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert bare(left) == bare(ast.parse(source))


def test_generated_tables_are_refused():
    table = "codes = {\n" + "".join(f"    {n}: 'name {n}',\n" for n in range(200)) + "}\n"
    with pytest.raises(SyntaxError):
        split_docstrings(table)
    split_docstrings(table + "x = 1\n" * 300)  # most of this file is not the table


def test_what_does_not_parse_is_refused():
    with pytest.raises(SyntaxError):
        split_docstrings("print 'Python 2'\n")
