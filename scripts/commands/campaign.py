# amaranth: UnusedElaboratable=no
# (a machine may be built only to ask for its cycles)
"""Verify cores against their specification on a million random vectors, with stalls and resets, and
whole decoders on a thousand texts of a full context.

A core is compiled by Verilator with sources, sinks and comparison in C++. Every result must equal
the integer model's. A failure is printed with the command that repeats it. A core that would take
too long gets as many vectors as the time allows; the table shows how many. A decoder's campaign
goes on where it was ended.

Example:
  positron campaign
  positron campaign softmax layer-norm --vectors 100000 --seed 7
  positron campaign decoder-m --sequences 20
  positron campaign --run runs/demo
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from hdl.catalog.names import CORE_NAMES, DECODER_NAMES, DEFAULT_BOARD
from model.errors import InputError
from scripts.output import add_json_argument, format_table, write_json
from scripts.runs import load_quantized, open_run

if TYPE_CHECKING:
    from hdl.catalog.registry import CoreEntry
    from sim.campaign import CampaignResult

DEFAULT_VECTORS = 1_000_000
DEFAULT_SEQUENCES = 200
DEFAULT_MINUTES = 10.0
RUN_NAME = "decoder"  # of a run's decoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "cores", nargs="*", metavar="CORE", help=f"of {', '.join(CORE_NAMES + DECODER_NAMES)} (default: all)"
    )
    parser.add_argument("--run", type=Path, metavar="RUN", help="the decoder of a quantized run, and no other core")
    parser.add_argument(
        "--vectors",
        type=int,
        default=DEFAULT_VECTORS,
        metavar="N",
        help="rows, tokens or values for each core, as fits it (default: %(default)s)",
    )
    parser.add_argument(
        "--sequences",
        type=int,
        default=DEFAULT_SEQUENCES,
        metavar="N",
        help="texts of a full context for each decoder (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of vectors, stalls and resets (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=DEFAULT_MINUTES,
        metavar="M",
        help="no new chunk of vectors begins for a core after so long (default: %(default)g)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/campaign"),
        metavar="DIR",
        help="where compiled cores are kept (default: %(default)s)",
    )
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the campaigns one after the other and print a table."""
    from hdl.catalog.registry import find_core

    if arguments.vectors < 1:
        raise InputError(f"--vectors must be at least 1, not {arguments.vectors}")
    if not arguments.minutes > 0:
        raise InputError(f"--minutes must be above 0, not {arguments.minutes:g}")
    if arguments.sequences < 1:
        raise InputError(f"--sequences must be at least 1, not {arguments.sequences}")
    if arguments.run and arguments.cores:
        raise InputError("name cores or --run, not both")
    names = [RUN_NAME] if arguments.run else list(dict.fromkeys(arguments.cores or CORE_NAMES + DECODER_NAMES))
    decoders = {RUN_NAME, *DECODER_NAMES}
    cores = {name: find_core(name) for name in names if name not in decoders}
    results: list[CampaignResult] = []
    try:
        for name in names:
            results.append(campaign(cores[name], arguments) if name in cores else decoder_campaign(name, arguments))
            if arguments.json:
                write_json(arguments.json, {"campaigns": results})
    finally:  # also after Ctrl-C or a missing tool
        if results:
            print_results(results)
            if arguments.json:
                print(f"figures: {arguments.json}")
    return 1 if any(result.failure for result in results) else 0


def campaign(entry: CoreEntry, arguments: argparse.Namespace) -> CampaignResult:
    """Build the small example of a core and run its campaign with a progress bar."""
    from sim.campaign import build_bench, run_campaign

    with tqdm(
        total=arguments.vectors, desc=entry.name, unit="vector", unit_scale=True, leave=False, disable=None
    ) as bar:
        bench = build_bench(entry, entry.example(), arguments.out)
        return run_campaign(
            entry, bench, arguments.vectors, arguments.seed, seconds=60 * arguments.minutes, progress=bar.update
        )


def decoder_campaign(name: str, arguments: argparse.Namespace) -> CampaignResult:
    """Build the machine of a shape, or of a run, and run its campaign with a progress bar."""
    from hdl.board.boards import find_board
    from hdl.board.decoder_estimate import best_estimate
    from hdl.board.two_sequences import estimate_of_two
    from hdl.decoder.machine import Machine
    from sim.decoder_campaign import run_decoder_campaign
    from sim.decoder_models import SHAPES
    from sim.simulators.decoder_process import compile_decoder

    model = load_quantized(open_run(arguments.run)) if name == RUN_NAME else SHAPES[name].model()
    sampling = name != RUN_NAME and SHAPES[name].sampling
    find = estimate_of_two if name != RUN_NAME and SHAPES[name].sequences > 1 else best_estimate
    plan = find(model, find_board(DEFAULT_BOARD), sampling=sampling).plan
    with tqdm(total=arguments.sequences, desc=name, unit="text", leave=False, disable=None) as bar:
        bench = compile_decoder(Machine(plan), arguments.out, fast=True)
        seconds = 60 * arguments.minutes
        return run_decoder_campaign(
            name, Machine(plan), arguments.sequences, arguments.seed, bench, seconds=seconds, progress=bar.update
        )


def print_results(results: list[CampaignResult]) -> None:
    """Print the table of verdicts, and how to repeat each failure."""
    headings = ("core", "vectors", "results", "cycles", "seconds", "seed", "verdict")
    rows = [
        (result.core, result.vectors, result.results, result.cycles, result.seconds, str(result.seed), verdict(result))
        for result in results
    ]
    print(format_table(headings, rows))
    for result in results:
        if result.failure:
            print(f"error: {result.failure}", file=sys.stderr)
            decoder = result.core == RUN_NAME or result.core in DECODER_NAMES
            again = f"--seed {result.failed_seed} --{'sequences' if decoder else 'vectors'} {result.failed_vectors}"
            core = "--run RUN" if result.core == RUN_NAME else result.core
            print(f"to repeat it: positron campaign {core} {again}", file=sys.stderr)


def verdict(result: CampaignResult) -> str:
    """Return a result in words."""
    if result.failure:
        return "DIFFERENT"
    return "all equal" if result.vectors == result.wanted else f"all equal; time was up, {result.wanted:,} wanted"


def how_to_resume(arguments: argparse.Namespace) -> str:
    """Return what to do after Ctrl-C."""
    return f"compiled cores are kept in {arguments.out}; name the cores that are not in a table above to run only those"
