"""Lines of prose end before column 100: documentation, docstrings, comments.

Code, formulas and tables may be wider.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100
FOLDERS = ("model", "fixedpoint", "hdl", "sim", "scripts", "tests")
PYTHON = [ROOT / "positron_start.py", *(file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py")))]
MARKDOWN = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Not broken: code, formulas, links.
ATOM = re.compile(r"`[^`]+`|\$[^$]+\$|!?\[[^\]]*\]\([^)]*\)")
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def is_too_long(line: str) -> bool:
    """Whether a line ends beyond the width although it has a place to break it."""
    return len(line) > WIDTH and " " in ATOM.sub("atom", line.strip().lstrip("-*#1234567890. "))


def markdown_prose(text: str) -> Iterator[str]:
    """Yield the lines of a document that are not code, formulas or tables."""
    in_code = in_formula = False
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("```"):
            in_code = not in_code
        elif not in_code and (in_formula or stripped.startswith("$$")):
            in_formula = stripped.count("$$") == (0 if in_formula else 1)
        elif not in_code and not stripped.startswith(("|", "<")):
            yield line


def python_prose(text: str) -> Iterator[str]:
    """Yield the lines of docstrings but for tables, and lines that have a comment."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DEFINITIONS) and ast.get_docstring(node, clean=False) is not None:
            docstring = lines[node.body[0].lineno - 1 : node.body[0].end_lineno]
            yield from (line for line in docstring if not line.strip().startswith("|"))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(noqa|type:|fmt:)", token.string):
            yield token.line.rstrip("\n").splitlines()[-1]


@pytest.mark.parametrize("file", MARKDOWN, ids=lambda file: file.name)
def test_prose_of_documents_is_narrow(file):
    assert [line for line in markdown_prose(file.read_text(encoding="utf-8")) if is_too_long(line)] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_prose_in_code_is_narrow(folder):
    files = [file for file in PYTHON if file.relative_to(ROOT).parts[0] in (folder, "positron_start.py")]
    wide = [
        f"{file.relative_to(ROOT)}: {line}"
        for file in files
        for line in python_prose(file.read_text(encoding="utf-8"))
        if is_too_long(line)
    ]
    assert wide == []


def test_what_counts_as_prose():
    word = "word " * 21
    assert is_too_long(word)
    assert not is_too_long("- [" + word + "](" + "x" * 90 + ")")
    assert list(markdown_prose(f"a\n```\n{word}\n```\n$${word}\n{word}$$\n| {word}\nb")) == ["a", "b"]
    source = f'"""{word}"""\nx = 1  # {word}\n# {word}\ny = 2\n'
    assert len([line for line in python_prose(source) if is_too_long(line)]) == 3
