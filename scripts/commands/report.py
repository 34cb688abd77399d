"""Put everything that a run holds on one HTML page.

The page needs no network and no other file: the loss curve, a sample, the integer model, which
writes in the page, attention maps, the quantization table, the simulation's results and the
synthesis table. Steps that were not run yet are named with their command.

Several runs are compared on one page: their figures, losses, bytes and samples side by side.

Examples:
  positron report runs/demo
  positron report runs/demo runs/mine --out comparison.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

from model.files import atomic_write, file_digest
from model.run import RunDirectory
from scripts.report.collect import collect
from scripts.report.comparison import comparison
from scripts.report.page import page
from scripts.runs import open_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="directory of a trained run; several are compared"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write the page (default: RUN/report.html, of several runs comparison.html in the first)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Collect what there is and write the page."""
    directories = [open_run(run) for run in arguments.runs]
    first, several = directories[0], len(directories) > 1
    target = arguments.out or (first.path / "comparison.html" if several else first.report)
    data = [collect(directory, alone=not several) for directory in directories]
    text = comparison(data, list(map(held_out_text, directories))) if several else page(data[0])
    with atomic_write(target, "w") as file:
        file.write(text)
    print(f"report: {target} ({len(text.encode()) // 1024} KiB; open it in a browser)")
    for one in data:
        of_run = f" of {one.name}" if several else ""
        for section, gap in one.gaps.items():
            commands = ", then ".join(f"positron {command}" for command in gap.commands)
            print(f"left out, {section}{of_run}: {gap.reason} Make it: {commands}")
    return 0


def held_out_text(directory: RunDirectory) -> str:
    """Return what tells the held-out text and the vocabulary of a run from another's."""
    file = directory.validation_tokens
    return f"{file_digest(file) if file.exists() else 'none'} {directory.load_tokenizer().fingerprint()}"
