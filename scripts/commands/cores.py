"""Measure every core alone; write the table of docs/hardware/cores.md and the figures as JSON.

Each core is placed and routed without pins for an ECP5-85F of speed grade 6. Results are kept in
build/cores; a core whose circuit and tools are unchanged is not built again, and an interrupted run
resumes.

Example:
  positron cores
  positron cores --only softmax --only layer-norm
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

from fixedpoint import InUseError
from hdl.catalog.names import CORE_NAMES
from hdl.errors import CircuitError, ToolError
from model.errors import InputError
from model.files import atomic_write
from scripts.commands.synthesize import CORE_FREQUENCY, CORES_DIRECTORY
from scripts.output import to_json, write_json
from scripts.stages import PROJECT

if TYPE_CHECKING:
    from hdl.catalog.registry import CoreEntry
    from hdl.tools.synthesis_report import SynthesisReport

PAGE = PROJECT / "docs" / "hardware" / "cores.md"
FIGURES = PAGE.with_suffix(".json")
BEGIN, END = "<!-- table: make cores -->", "<!-- end of table -->"
HEADINGS = ("core", "LUT4", "FF", "block RAM", "multipliers", "Fmax (MHz)", "latency (cycles)", "throughput")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--only", action="append", metavar="CORE", help="only this core; may be given more than once")


def run(arguments: argparse.Namespace) -> int:
    """Measure what was asked for, and write page and figures after each core."""
    from hdl.catalog.registry import find_core

    if not PAGE.is_file():
        raise InputError(f"{PAGE} does not exist; the table is written in the project's source directory")
    return measure_all([find_core(name) for name in arguments.only or CORE_NAMES])


def how_to_resume(arguments: argparse.Namespace) -> str:
    """Return what to say after Ctrl-C."""
    return "what was measured is in the table; the same command resumes"


def measure_all(entries: Sequence[CoreEntry]) -> int:
    """Measure cores one after the other; a failure does not keep the others from being measured."""
    failures = []
    with tqdm(entries, unit="core", disable=None) as progress:
        for entry in progress:
            progress.set_description(entry.name)
            try:
                measure(entry)
            except (CircuitError, ToolError, InUseError) as error:
                failures.append(f"{entry.name}: {error}")
            write_table()
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    print(f"{PAGE} and {FIGURES}")
    return 1 if failures else 0


def measure(entry: CoreEntry) -> SynthesisReport:
    """Place and route the typical example of a core."""
    from hdl.tools.synthesis import synthesize_core

    core = entry.example(entry.typical)
    directory, name = CORES_DIRECTORY / entry.name, entry.name.replace("-", "_")
    return synthesize_core(core, directory, frequency=CORE_FREQUENCY, name=name, progress=False)


def write_table() -> None:
    """Write the figures of all cores that have been measured into page and JSON."""
    from hdl.tools.synthesis_report import read_report

    reports = {name: read_report(CORES_DIRECTORY / name) for name in CORE_NAMES}
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    table = markdown({name: report for name, report in reports.items() if report is not None})
    with atomic_write(PAGE) as file:
        file.write(f"{head}{BEGIN}\n{table}{END}{tail}")
    write_json(FIGURES, {name: to_json(report) for name, report in reports.items() if report is not None})


def markdown(reports: dict[str, SynthesisReport]) -> str:
    """Return the table of all cores; one that was not measured has no figures."""
    from hdl.catalog.registry import CORES

    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    for name, entry in CORES.items():
        report = reports.get(name)
        figures = ["–"] * 5
        if report is not None:
            counts = (report.luts, report.flip_flops, report.block_rams, report.multipliers)
            speed = min((clock.achieved_mhz for clock in report.clocks), default=None)
            figures = [f"{usage.used:,}" for usage in counts] + ["–" if speed is None else f"{speed:.0f}"]
        lines.append(f"| `{name}` | {' | '.join(figures)} | {entry.latency} | {entry.throughput} |")
    return "\n".join(lines) + "\n"
