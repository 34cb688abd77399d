"""Each line of model, integer operators and their fast evaluation that changes a shape says so:
`# (N,) -> (N, 1)`.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CALLS = {"concatenate", "einsum", "hstack", "matmul", "reshape", "stack", "swapaxes", "transpose", "vecdot"}
FILES = sorted(
    [file for folder in ("model", "fixedpoint/operators", "fixedpoint/fast") for file in (ROOT / folder).rglob("*.py")]
)


def changes_shape(node: ast.AST) -> bool:
    """Whether a node is a call that gives another shape, a matrix product, or inserts an axis."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) and node.func.attr in CALLS
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.MatMult)
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
        kinds = [index.value if isinstance(index, ast.Constant) else type(index) for index in node.slice.elts]
        return None in kinds and (ast.Slice in kinds or ... in kinds)
    return False


def without_comment(source: str) -> list[str]:
    """Return the lines that change a shape, with no shape beside them or above their statement."""
    lines = source.splitlines()
    found = []
    for statement in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)):
        if hasattr(statement, "body") or not any(map(changes_shape, ast.walk(statement))):
            continue
        first = statement.lineno - 1
        above = first
        while above and lines[above - 1].lstrip().startswith("#"):
            above -= 1
        comments = [line.partition("#")[2] for line in lines[above : statement.end_lineno]]
        if not any("->" in comment for comment in comments):
            found.append(lines[first].strip())
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_changes_a_shape_has_a_comment(file: Path) -> None:
    assert without_comment(file.read_text(encoding="utf-8")) == []


def test_the_layers_are_looked_at() -> None:
    model = {"model/attention.py", "model/linear.py", "model/normalization.py", "model/transformer.py"}
    operators = {f"fixedpoint/operators/{name}.py" for name in ("attention", "linear", "softmax")}
    assert model | operators | {"model/softmax.py"} <= {str(file.relative_to(ROOT)) for file in FILES}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("y = x.reshape(2, -1)", ["y = x.reshape(2, -1)"]),
        ("y = a @ b", ["y = a @ b"]),
        ("y = x[:, None]", ["y = x[:, None]"]),
        ("y = x.reshape(2, -1)  # (N,) -> (2, N/2)", []),
        ("# (N,) -> (2, N/2)\ny = x.reshape(\n    2, -1\n)", []),
        ("# a reason\ny = x[:, None]", ["y = x[:, None]"]),
        ("y = x[..., None]", ["y = x[..., None]"]),
        ("y = x[:, 1:]", []),
        ("f: Callable[[str], None]", []),
    ],
)
def test_the_check_sees_what_it_should(source: str, found: list[str]) -> None:
    assert without_comment(source) == found
