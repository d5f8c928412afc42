"""Sphinx reads docstrings, and takes arguments with the wrong indentation for text."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def misplaced(source: str) -> Iterator[str]:
    """Parameters in docstrings that are wrongly indented or outside a section."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        names = {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}
        names |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
        text = ast.get_docstring(node) or ""
        for found in re.finditer(r"^(?: {8})?([\w, ]+): |^ +(Args|Returns|Raises):$", text, re.MULTILINE):
            if found[2] or set(found[1].split(", ")) <= names:
                yield f"{node.name}: {found[0].strip()}"


def test_parameters_stand_in_their_sections():
    paths = [path for path in ROOT.glob("*/**/*.py") if "RATE_model" in path.parts or path.match("*_src/*.py")]
    assert len(paths) > 100
    found = {str(path): list(misplaced(path.read_text(encoding="utf-8"))) for path in paths}
    assert not {path: wrong for path, wrong in found.items() if wrong}


@pytest.mark.parametrize("line", ["    b: the other.", "Returns:", "\n    b: the other."])
def test_a_misplaced_parameter_is_found(line):
    source = f'def f(a, b):\n    """It.\n\n    Args:\n        a: one.\n        {line}\n    """\n'
    assert list(misplaced(source))
