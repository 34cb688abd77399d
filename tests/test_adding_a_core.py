"""The page docs/hardware/adding_a_core.md is complete: its blocks, put into a copy of the project,
make a core that passes the tests of every core; with one wrong line it fails them.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest
from test_docs import FENCE, ROOT

PAGE = ROOT / "docs" / "hardware" / "adding_a_core.md"
NAME = "gated-product"
COPIED = ("model", "fixedpoint", "hdl", "sim", "scripts", "tests")
# Tests of all cores, by their files, and of lists that a core must be in.
OWN_TESTS = "tests/hdl/cores/test_hdl_gated_product.py"
FILES = ("tests/hdl/catalog", "tests/hdl/parts/test_hdl_payload.py", OWN_TESTS)
LISTS = ("tests/sim/proofs/test_sim_proof.py", "tests/scripts/test_scripts_base_install.py")
IN_LISTS = "gated or its_claims or names_are_those"
SLOW = "(verilator or made_from)"


def blocks() -> dict[str, str]:
    """Return the page's Python blocks by what stands behind the language: a path, and of the
    registry what is to be added.
    """
    found = [match.groupdict() for match in FENCE.finditer(PAGE.read_text(encoding="utf-8"))]
    return {
        block["language"].removeprefix("python ").strip(): block["body"]
        for block in found
        if block["language"].startswith("python ")
    }


def project(directory: Path) -> Path:
    """Copy the project and add the page's core to it."""
    for name in COPIED:
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "positron_start.py"):
        shutil.copy(ROOT / name, directory)
    added = blocks()
    registry = directory / "hdl" / "catalog" / "registry.py"
    text = registry.read_text(encoding="utf-8")
    imports, entry = (added.pop(f"hdl/catalog/registry.py {part}") for part in ("imports", "entry"))
    entry = f"{indent(entry, '    ').rstrip()},\n"
    for block, before in ((imports, "from ..cores."), (entry, ")\nCORES: ")):
        head, place, tail = text.partition(f"\n{before}")
        assert place, f"the registry has no line {before!r}"
        text = f"{head}\n{block}{before}{tail}"
    registry.write_text(text, encoding="utf-8")
    for name, block in added.items():
        path = directory / name
        assert not path.exists(), f"{name} exists already"
        path.write_text(block, encoding="utf-8")
    return directory


def run(directory: Path, *words: str) -> subprocess.CompletedProcess:
    """Run a Python module in a copy of the project."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=directory,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def run_tests(directory: Path, chosen: str, *files: str) -> subprocess.CompletedProcess:
    return run(directory, "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", chosen, *files)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return project(tmp_path_factory.mktemp("adding") / "project")


def test_the_core_of_the_page_passes_the_tests_of_every_core(copy):
    result = run_tests(copy, f"({IN_LISTS}) and not {SLOW}", *FILES, *LISTS)
    assert result.returncode == 0, result.stdout
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) >= 20, result.stdout


@pytest.mark.slow
def test_the_core_of_the_page_equals_its_operator_in_compiled_simulation_and_is_made_from_an_export(copy):
    result = run_tests(copy, f"gated and {SLOW}", *FILES)
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
def test_the_core_of_the_page_is_proven_by_what_is_proven_of_every_core(copy):
    result = run(copy, "scripts.cli", "prove", NAME, "--bugs", "--out", "build/proofs")
    assert result.returncode == 0, result.stderr
    assert "2 of 2 claims hold; 2 of 2 bugs were found" in result.stdout


CORE, OPERATOR = "hdl/cores/gated_product.py", "fixedpoint/operators/gated_product.py"
# The tests that find a wrong line: where they are, and a part of their names.
EQUAL = ("tests/hdl/catalog/test_hdl_registry.py", "gated-product-amaranth")
EQUATION = (OWN_TESTS, "is_its_equation")
# Offers a result only while it is taken, and moves only then or while there is none.
WAITING = """        waiting = m.submodules.valid.o
        m.d.comb += [self.o.valid.eq(waiting & self.o.ready), enable.eq(~waiting | self.o.ready)]
        return m
"""
# A line and what stands in its place, the test that fails, and what it says.
MISTAKES = {
    "rounds down": (
        CORE,
        "shift_right_half_up(product, ",
        "(lambda x, s: x >> s)(product, ",
        EQUAL,
        "expected {'data'",
    ),
    "does not saturate": (
        CORE,
        "cast.eq(saturate(rounded, self.parameters.output))",
        "cast.eq(rounded)",
        EQUAL,
        "expected {'data'",
    ),
    "does not stall while a result waits": (CORE, "with m.If(enable):", "with m.If(1):", EQUAL, "the payload became"),
    "is later than it says": (CORE, "Multiplier.latency + 1", "Multiplier.latency + 2", EQUAL, "expected {'data'"),
    "waits for ready": (CORE, "        return m\n", WAITING, EQUAL, "no transfer for"),
    "has another equation": (OPERATOR, "self.output.fraction", "self.output.fraction + 1", EQUATION, "assert "),
}


@pytest.mark.parametrize(
    "mistake", [name if name == "rounds down" else pytest.param(name, marks=pytest.mark.slow) for name in MISTAKES]
)
def test_a_wrong_line_is_found(copy, mistake):
    name, right, wrong, (file, chosen), message = MISTAKES[mistake]
    path = copy / name
    text = path.read_text(encoding="utf-8")
    assert text.count(right) == 1
    try:
        path.write_text(text.replace(right, wrong), encoding="utf-8")
        result = run_tests(copy, f"gated and {chosen}", file)
    finally:
        path.write_text(text, encoding="utf-8")
    assert result.returncode == 1
    assert "1 failed" in result.stdout and message in result.stdout


@pytest.mark.slow
def test_a_proof_finds_a_core_that_waits_for_ready(copy):
    name, right, wrong, _, _ = MISTAKES["waits for ready"]
    path = copy / name
    text = path.read_text(encoding="utf-8")
    try:
        path.write_text(text.replace(right, wrong), encoding="utf-8")
        result = run(copy, "scripts.cli", "prove", NAME, "--out", "build/proofs")
    finally:
        path.write_text(text, encoding="utf-8")
    assert result.returncode == 1
    assert "1 of 2 claims hold" in result.stdout
