"""Who imports whom: scripts → sim → hdl → fixedpoint → model, one way."""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ("scripts", "sim", "hdl", "fixedpoint", "model")
# `fixedpoint` meets the float model only where one becomes the other; integer inference runs
# without it. Generated text needs the loop of `model/generation/loop.py`, and small products need
# `model/threads.py`; these know no model.
READS_MODEL = {
    "fixedpoint/quantization/quantize.py",
    "fixedpoint/quantization/analysis.py",
    "fixedpoint/quantization/calibration.py",
    "fixedpoint/export/onnx_export.py",
    "fixedpoint/generation.py",
    "fixedpoint/fast/transformer.py",
    "fixedpoint/quantization/quantization_aware.py",
    "fixedpoint/quantization/quantization_aware_worker.py",
    "fixedpoint/quantization/sequential.py",
    "fixedpoint/quantization/tensor_rounding.py",
}
MODEL_NEEDS = {"numpy", "matplotlib", "tqdm", "safetensors", "threadpoolctl"}
# Runs inside a simulator's process, where seconds of imports would be paid for every bench.
LIGHT = ("sim/__init__.py", "sim/bench/streams.py", "sim/bench/cocotb_bench.py")
LIGHT_NEEDS = {"cocotb", "sim"}

# The one file that may name what Amaranth keeps private.
AMARANTH_INTERNALS = "hdl/parts/amaranth_internals.py"


def modules():
    return [path.relative_to(ROOT) for package in ORDER for path in sorted((ROOT / package).rglob("*.py"))]


def imported_packages(path: Path, source: str) -> set[str]:
    """Return the top-level packages that a module imports anywhere, lazily too, itself by its own
    package's name.
    """
    packages = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                packages.add(node.module.split(".")[0])
            else:
                assert node.level < len(path.parts), f"{path} imports from outside its package"
                packages.add(path.parts[0])
    return packages


def forbidden(path: Path, source: str) -> set[str]:
    """Return the packages that a module imports and must not."""
    package, imported = path.parts[0], imported_packages(path, source)
    wrong = imported & set(ORDER[: ORDER.index(package)])
    if package == "hdl" or (package == "fixedpoint" and path.as_posix() not in READS_MODEL):
        wrong |= imported & {"model"}
    return wrong


def third_party(path: Path, source: str) -> set[str]:
    return imported_packages(path, source) - set(sys.stdlib_module_names) - {path.parts[0]}


def imported_files(path: Path, source: str) -> set[Path]:
    """Return the files of the project that a module imports anywhere, itself and packages'
    `__init__.py` left out.
    """
    files = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = path.parts[: len(path.parts) - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        files |= {Path(*name.split(".")).with_suffix(".py") for name in names}
    return {file for file in files - {path} if (ROOT / file).is_file()}


def folder_or_file(path: Path) -> str:
    """Return what a module belongs to: its folder within the package, or itself where it stands
    beside the folders.
    """
    return "/".join(path.parts[:2])


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return nodes each of which points to the next and the last to the first, or nothing."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def import_graph() -> dict[Path, set[Path]]:
    sources = {path: (ROOT / path).read_text(encoding="utf-8") for path in modules() if path.name != "__init__.py"}
    return {path: imported_files(path, source) for path, source in sources.items()}


def test_no_file_imports_itself_through_others():
    assert not circle({str(path): set(map(str, files)) for path, files in import_graph().items()})


def test_folders_import_one_another_one_way():
    graph: dict[str, set[str]] = {}
    for path, files in import_graph().items():
        node = folder_or_file(path)
        graph.setdefault(node, set()).update({folder_or_file(file) for file in files} - {node})
    assert not circle(graph)


def test_the_circles_that_are_looked_for_are_seen():
    lazy = "from .a import x\ndef f():\n    from ..b import y\n    import sim.netlist"
    assert imported_files(Path("sim/bench/streams.py"), "from . import bench\nfrom ..netlist import x") == {
        Path("sim/bench/bench.py"),
        Path("sim/netlist.py"),
    }
    assert imported_files(Path("sim/bench/bench.py"), lazy) == {Path("sim/netlist.py")}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert not circle({"a": {"b", "c"}, "b": {"c"}})


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports_go_one_way(path):
    assert not forbidden(path, (ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [path for path in modules() if path.parts[0] == "model"], ids=str)
def test_model_needs_little(path):
    assert third_party(path, (ROOT / path).read_text(encoding="utf-8")) <= MODEL_NEEDS


def private_to_amaranth(source: str) -> set[str]:
    """Return the private modules and names of Amaranth that a source imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name for name in names if re.match(r"amaranth\b.*\._(?!_)", name)}
    return found


def private_attributes(source: str) -> set[str]:
    """Return the private names that a source reads of other objects than its own."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }


def test_one_file_names_what_is_private_to_amaranth():
    """Its imports, and the attributes that this file reads, occur nowhere else."""
    internals = private_attributes((ROOT / AMARANTH_INTERNALS).read_text(encoding="utf-8"))
    assert internals
    tests = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py")]
    for path in {*modules(), *tests} - {Path(AMARANTH_INTERNALS)}:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert not private_to_amaranth(source), path
        assert not private_attributes(source) & internals, path


@pytest.mark.parametrize(
    "source, found",
    [
        ("from amaranth.hdl._ast import Assign", {"amaranth.hdl._ast.Assign"}),
        ("def f():\n    import amaranth.hdl._mem", {"amaranth.hdl._mem"}),
        ("from amaranth.hdl import _ast", {"amaranth.hdl._ast"}),
        ("from amaranth.hdl import Signal\nfrom numpy import _core", set()),
    ],
)
def test_private_imports_are_seen(source, found):
    assert private_to_amaranth(source) == found
    assert private_attributes("self._own; each._lhs_signals()") == {"_lhs_signals"}


@pytest.mark.parametrize("path", LIGHT)
def test_what_runs_inside_simulators_is_light(path):
    assert third_party(Path(path), (ROOT / path).read_text(encoding="utf-8")) <= LIGHT_NEEDS


@pytest.mark.parametrize(
    "path, source, wrong",
    [
        ("hdl/a.py", "import model", {"model"}),
        ("hdl/a.py", "def f():\n    from model.config import ModelConfig", {"model"}),
        ("fixedpoint/a.py", "import model.config as c", {"model"}),
        ("fixedpoint/quantization/quantize.py", "import model", set()),
        ("fixedpoint/a.py", "from hdl import CircuitError", {"hdl"}),
        ("model/a.py", "import numpy\nfrom scripts import cli", {"scripts"}),
        ("sim/a.py", "from hdl import CircuitError\nfrom . import bench", set()),
        ("sim/a.py", "import scripts.cli", {"scripts"}),
        ("scripts/a.py", "import sim, hdl, fixedpoint, model", set()),
    ],
)
def test_the_check_sees_what_it_should(path, source, wrong):
    assert forbidden(Path(path), source) == wrong


def test_integer_generation_needs_the_loop_alone():
    from_model = set()
    for name in ("fixedpoint/generation.py", "fixedpoint/fast/transformer.py", "model/generation/loop.py"):
        files = imported_files(Path(name), (ROOT / name).read_text(encoding="utf-8"))
        from_model |= {file.as_posix() for file in files if file.parts[0] == "model"}
    assert from_model == {
        f"model/{name}.py" for name in ("generation/loop", "tokenizers/tokenizer", "threads", "checks", "errors")
    }
