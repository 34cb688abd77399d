"""Simulate every core again after synthesis, as cells of ECP5 and of iCE40: each result must be the golden one.

The cores are small examples. Cell models are those that come with Yosys, and this project's for ECP5's block RAM and multiplier.
Needs Icarus Verilog.

Example:
  make netlist
  python -m scripts.netlist --only softmax --family ice40 --vectors 100
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from hdl.errors import CircuitError, ToolError
from hdl.registry import CORES, find_core
from scripts.output import add_json_argument, format_duration, format_table, write_json
from sim.netlist import FAMILIES, NetlistResult, check_netlist, find_family

DEFAULT_VECTORS = 30
LUT_CELLS = ("LUT4", "SB_LUT4")
HARD_CELLS = ("DP16KD", "MULT18X18D", "SB_RAM40_4K")


def main(words: Sequence[str] | None = None) -> int:
    """Check all netlists; a failure does not keep the others from running."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="CORE", help="only this core; may be given more than once")
    parser.add_argument("--family", action="append", help=f"one of {', '.join(FAMILIES)} (default: all)")
    parser.add_argument("--vectors", type=int, default=DEFAULT_VECTORS, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of the vectors (default: %(default)s)")
    add_json_argument(parser)
    arguments = parser.parse_args(words)
    try:
        work = [
            (find_core(core), find_family(family))
            for core in arguments.only or CORES
            for family in arguments.family or FAMILIES
        ]
        return check_all(work, arguments.vectors, arguments.seed, arguments.json)
    except CircuitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing was left half written", file=sys.stderr)
        return 130


def check_all(work: Sequence[tuple], vectors: int, seed: int, path: Path | None) -> int:
    """Check each (core, family), print what was shown, and return the exit status."""
    began = time.monotonic()
    results: list[NetlistResult] = []
    failures: list[str] = []
    with tqdm(work, unit="netlist", leave=False, disable=None) as progress:
        for entry, family in progress:
            progress.set_description(f"{entry.name}, {family.name}")
            try:
                results.append(check_netlist(entry, family, vectors, seed))
            except (CircuitError, ToolError) as error:
                failures.append(f"{entry.name}, {family.name}: {error}")
    rows = [
        (
            result.core,
            result.family,
            sum(result.cells.get(kind, 0) for kind in LUT_CELLS),
            ", ".join(f"{result.cells[kind]} {kind}" for kind in HARD_CELLS if kind in result.cells) or "–",
            result.results,
            f"{result.seconds:.1f}",
        )
        for result in results
    ]
    print(format_table(("core", "family", "LUTs", "hard cells", "equal results", "seconds"), rows))
    if path is not None:
        write_json(path, {"vectors": vectors, "seed": seed, "netlists": results, "failures": failures})
        print(f"figures: {path}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if not failures:
        compared = sum(result.results for result in results)
        duration = format_duration(time.monotonic() - began)
        print(
            f"{len(results)} netlists, {compared:,} results (seed {seed}), every one the golden model's, in {duration}"
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
