"""Put everything that a run holds on one HTML page.

The page needs no network and no other file: the loss curve, a sample, the integer model, which
writes in the page, attention maps, the quantization table, the simulation's results and the
synthesis table. Steps that were not run yet are named with their command.

Example:
  positron report runs/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from model.files import atomic_write
from scripts.report.collect import collect
from scripts.report.page import page
from scripts.runs import add_run_argument, open_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_run_argument(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write the page (default: RUN/report.html)")


def run(arguments: argparse.Namespace) -> int:
    """Collect what there is and write the page."""
    directory = open_run(arguments.run)
    target = arguments.out or directory.report
    data = collect(directory)
    text = page(data)
    with atomic_write(target, "w") as file:
        file.write(text)
    print(f"report: {target} ({len(text.encode()) // 1024} KiB; open it in a browser)")
    for section, gap in data.gaps.items():
        commands = ", then ".join(f"positron {command}" for command in gap.commands)
        print(f"left out, {section}: {gap.reason} Make it: {commands}")
    return 0
