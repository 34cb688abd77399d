"""Measure how fast this machine trains, generates and tokenizes, and compare it with the circuit.

Each benchmark is a subcommand of its own with its own options.

Example:
  positron benchmark circuit runs/demo
  positron benchmark train --help
"""

from __future__ import annotations

import argparse

from scripts.cli import add_command, help_text, import_command, overview

BENCHMARKS = ("train", "generate", "fixedpoint", "tokenize", "circuit", "decoder")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each benchmark."""
    parser.epilog = f"benchmarks:\n{overview(BENCHMARKS, 'benchmark')}"
    subparsers = parser.add_subparsers(
        metavar="BENCHMARK", dest="benchmark", required=True, help="one of those below; each has --help"
    )
    for name in BENCHMARKS:
        subparser = add_command(subparsers, name, help_text(f"benchmark {name}"))
        import_command(f"benchmark {name}").add_arguments(subparser)


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen benchmark."""
    return int(import_command(f"benchmark {arguments.benchmark}").run(arguments))
