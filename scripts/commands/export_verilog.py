"""Write a core as plain Verilog, with its interface described and a test bench with golden vectors.

The core takes weights, tables and formats from a quantized run; without --run they are an
example's, of a layer 128 wide (attention: 64). The directory then holds MODULE.v, MODULE.md (ports,
packing, formats, timing), MODULE_testbench.v and the bench's vectors. All modules' names begin with
MODULE, so cores of different names stand in one design.

Example:
  positron export-verilog softmax
  positron export-verilog matrix-vector --run runs/demo --simulate
  positron export-verilog softmax --run runs/demo --layer 1 --prefix layer1_
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hdl.catalog.names import CORE_NAMES, MATRICES, NORMS
from model.errors import InputError
from scripts.runs import load_quantized, open_run

if TYPE_CHECKING:
    from amaranth.lib import wiring

    from hdl.catalog.registry import CoreEntry

DEFAULT_VECTORS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("core", metavar="CORE", help=f"one of {', '.join(CORE_NAMES)}")
    add_model_arguments(parser)
    parser.add_argument(
        "--part",
        help=f"the matrix ({', '.join(MATRICES)}) or the norm ({', '.join(NORMS)}) of a core that is made from one "
        "(default: the first)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the files go (default: verilog/CORE or verilog/MODULE)"
    )
    parser.add_argument("--name", help="the module's name (default: CORE with _ for -)")
    parser.add_argument("--prefix", default="", help="what all modules' names begin with, for instance layer0_")
    parser.add_argument(
        "--vectors",
        type=int,
        default=DEFAULT_VECTORS,
        metavar="N",
        help="rows, tokens or values for the test bench, as fits the core (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random ones (default: %(default)s)")
    parser.add_argument("--simulate", action="store_true", help="also run the test bench, with Verilator or Icarus")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--run` and `--layer`, which say what a core is made from."""
    parser.add_argument(
        "--run", dest="core_run", type=Path, metavar="RUN", help="a quantized run whose weights and tables are used"
    )
    parser.add_argument("--layer", type=int, default=0, help="the transformer block (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Write the files, and run the bench where that is asked for."""
    from hdl.catalog.registry import find_core
    from sim.verilog_export import export_core, module_name, run_testbench

    if arguments.vectors < 1:
        raise InputError(f"--vectors must be at least 1, not {arguments.vectors}")
    if arguments.seed < 0:
        raise InputError(f"--seed must not be negative, not {arguments.seed}")
    entry = find_core(arguments.core)
    core = make_core(entry, arguments, arguments.part)
    module = arguments.prefix + (module_name(entry) if arguments.name is None else arguments.name)
    directory = arguments.out or Path("verilog") / (entry.name if module == module_name(entry) else module)
    for name in export_core(entry, core, directory, arguments.vectors, arguments.seed, module):
        print(directory / name)
    if arguments.simulate:
        print(*run_testbench(directory, module, [f"{module}.v"]))
    return 0


def make_core(entry: CoreEntry, arguments: argparse.Namespace, part: str | None = None) -> wiring.Component:
    """Return the core that the arguments describe, of one of the entry's parts."""
    if arguments.core_run is None:
        if arguments.layer:
            raise InputError("--layer chooses a block of a run: it needs --run")
        return entry.example(entry.typical, part)
    return entry.for_model(load_quantized(open_run(arguments.core_run)), arguments.layer, part)
