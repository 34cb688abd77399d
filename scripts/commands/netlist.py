"""Simulate every core after synthesis, as ECP5 and iCE40 cells, against the golden model.

The cores are small examples. Cell models are those that come with Yosys, and this project's for
ECP5's block RAM and multiplier. Results are kept in build/netlists; a netlist whose circuit,
vectors and tools are unchanged is not checked again, and an interrupted run resumes. Verilator runs
them, and Icarus Verilog where Verilator cannot or --simulator says so.

Example:
  positron netlist
  positron netlist --only softmax --family ice40 --vectors 100
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from hdl.catalog.names import CORE_NAMES, NETLIST_FAMILIES
from hdl.errors import CircuitError, ToolError
from scripts.output import add_json_argument, format_duration, format_table, write_json
from sim.simulators.verilog_bench import NEEDED_TOOLS, choose_simulator

if TYPE_CHECKING:
    from hdl.catalog.registry import CoreEntry
    from sim.netlist import Family, NetlistResult

NETLISTS_DIRECTORY = Path("build") / "netlists"
DEFAULT_VECTORS = 30
LUT_CELLS, FLIP_FLOP_CELLS = ("LUT4", "SB_LUT4"), ("TRELLIS_FF", "SB_DFF")
HARD_CELLS = ("DP16KD", "MULT18X18D", "SB_RAM40_4K")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--only", action="append", metavar="CORE", help="only this core; may be given more than once")
    parser.add_argument("--family", action="append", help=f"one of {', '.join(NETLIST_FAMILIES)} (default: all)")
    parser.add_argument(
        "--vectors", type=int, default=DEFAULT_VECTORS, metavar="N", help="of each core (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the vectors (default: %(default)s)")
    parser.add_argument("--simulator", choices=NEEDED_TOOLS, help="default: the first of these that can run here")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="netlists at a time (default: %(default)s)")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check what was asked for; a failure does not keep the other netlists from running."""
    from hdl.catalog.registry import find_core
    from sim.netlist import find_family

    for name in ("vectors", "jobs"):
        if getattr(arguments, name) < 1:
            raise CircuitError(f"--{name} must be at least 1, not {getattr(arguments, name)}")
    if arguments.seed < 0:
        raise CircuitError(f"--seed must not be negative, not {arguments.seed}")
    work = [
        (find_core(core), find_family(family))
        for core in arguments.only or CORE_NAMES
        for family in arguments.family or NETLIST_FAMILIES
    ]
    simulator = arguments.simulator or choose_simulator()
    began = time.time()
    outcomes = check_all(work, arguments.vectors, arguments.seed, simulator, arguments.jobs)
    return report(work, outcomes, arguments, time.time() - began)


def how_to_resume(arguments: argparse.Namespace) -> str:
    """Return what to say after Ctrl-C."""
    return "what was checked is kept; the same command resumes"


def check_all(
    work: Sequence[tuple[CoreEntry, Family]], vectors: int, seed: int, simulator: str, jobs: int
) -> list[NetlistResult | CircuitError | ToolError]:
    """Check netlists in parallel; return results or errors in order. Ctrl-C ends all tools."""
    stopped = threading.Event()

    def tick() -> None:
        if stopped.is_set():
            raise KeyboardInterrupt

    with ThreadPoolExecutor(jobs) as executor, tqdm(total=len(work), unit="netlist", disable=None) as progress:
        try:
            futures = []
            for entry, family in work:
                future = _submit(executor, entry, family, vectors, seed, simulator, tick)
                future.add_done_callback(lambda _: progress.update())
                futures.append(future)
            return [_outcome(future) for future in futures]
        except BaseException:
            stopped.set()
            executor.shutdown(cancel_futures=True)
            raise


def _submit(
    executor: ThreadPoolExecutor,
    entry: CoreEntry,
    family: Family,
    vectors: int,
    seed: int,
    simulator: str,
    tick: Callable[[], None],
) -> Future[NetlistResult]:
    """Plan a netlist in this thread, which owns all circuits, and submit its check."""
    from sim.netlist import check_netlist, plan_netlist

    try:
        plan = plan_netlist(entry, entry.example(), family, vectors, seed, simulator)
    except CircuitError as error:
        failed: Future[NetlistResult] = Future()
        failed.set_exception(error)
        return failed
    return executor.submit(check_netlist, plan, NETLISTS_DIRECTORY, tick)


def _outcome(future: Future[NetlistResult]) -> NetlistResult | CircuitError | ToolError:
    try:
        return future.result()
    except (CircuitError, ToolError) as error:
        return error


def report(
    work: Sequence[tuple[CoreEntry, Family]],
    outcomes: Sequence[NetlistResult | CircuitError | ToolError],
    arguments: argparse.Namespace,
    seconds: float,
) -> int:
    """Print what passed and what failed, write the figures, and return the exit status."""
    results = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    failures = [
        f"{entry.name}, {family.name}: {outcome}"
        for (entry, family), outcome in zip(work, outcomes, strict=True)
        if isinstance(outcome, Exception)
    ]
    print(
        format_table(
            ("core", "family", "LUTs", "FFs", "hard cells", "equal results", "seconds"),
            [_row(result) for result in results],
        )
    )
    if arguments.json is not None:
        figures = {"vectors": arguments.vectors, "seed": arguments.seed, "netlists": results, "failures": failures}
        write_json(arguments.json, figures)
        print(f"figures: {arguments.json}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    compared = sum(result.results for result in results)
    equal = ", every one the golden model's" if results else ""
    print(
        f"{len(results)} of {len(work)} netlists, {compared:,} results (seed {arguments.seed}){equal}; "
        f"{format_duration(seconds)}, results in {NETLISTS_DIRECTORY}"
    )
    return 1 if failures else 0


def _row(result: NetlistResult) -> tuple[object, ...]:
    def count(kinds: Sequence[str]) -> int:
        return sum(number for kind, number in result.cells.items() if kind.startswith(tuple(kinds)))

    hard = ", ".join(f"{result.cells[kind]} {kind}" for kind in HARD_CELLS if kind in result.cells)
    return (
        result.core,
        result.family,
        count(LUT_CELLS),
        count(FLIP_FLOP_CELLS),
        hard or "–",
        result.results,
        f"{result.seconds:.1f}",
    )
