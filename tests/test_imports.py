"""Who imports whom: scripts → sim → hdl → fixedpoint → model, one way."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ("scripts", "sim", "hdl", "fixedpoint", "model")
# `fixedpoint` meets the float model only where one becomes the other; integer inference runs without it.
READS_MODEL = {
    "fixedpoint/quantize.py",
    "fixedpoint/analysis.py",
    "fixedpoint/calibration.py",
    "fixedpoint/onnx_export.py",
    "fixedpoint/quantization_aware.py",
    "fixedpoint/quantization_aware_worker.py",
}
MODEL_NEEDS = {"numpy", "matplotlib", "tqdm", "safetensors"}
# Runs inside a simulator's process, where seconds of imports would be paid for every bench.
LIGHT = ("sim/__init__.py", "sim/streams.py", "sim/cocotb_bench.py")
LIGHT_NEEDS = {"cocotb", "sim"}


def modules():
    return [path.relative_to(ROOT) for package in ORDER for path in sorted((ROOT / package).rglob("*.py"))]


def imported_packages(path: Path, source: str) -> set[str]:
    """Return the top-level packages that a module imports anywhere, lazily too, itself by its own package's name."""
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


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports_go_one_way(path):
    assert not forbidden(path, (ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [path for path in modules() if path.parts[0] == "model"], ids=str)
def test_model_needs_little(path):
    assert third_party(path, (ROOT / path).read_text(encoding="utf-8")) <= MODEL_NEEDS


@pytest.mark.parametrize("path", LIGHT)
def test_what_runs_inside_simulators_is_light(path):
    assert third_party(Path(path), (ROOT / path).read_text(encoding="utf-8")) <= LIGHT_NEEDS


@pytest.mark.parametrize(
    "path, source, wrong",
    [
        ("hdl/a.py", "import model", {"model"}),
        ("hdl/a.py", "def f():\n    from model.config import ModelConfig", {"model"}),
        ("fixedpoint/a.py", "import model.config as c", {"model"}),
        ("fixedpoint/quantize.py", "import model", set()),
        ("fixedpoint/a.py", "from hdl import CircuitError", {"hdl"}),
        ("model/a.py", "import numpy\nfrom scripts import cli", {"scripts"}),
        ("sim/a.py", "from hdl import CircuitError\nfrom . import bench", set()),
        ("sim/a.py", "import scripts.cli", {"scripts"}),
        ("scripts/a.py", "import sim, hdl, fixedpoint, model", set()),
    ],
)
def test_the_check_sees_what_it_should(path, source, wrong):
    assert forbidden(Path(path), source) == wrong
