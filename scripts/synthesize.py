"""Make a bitstream of the attention accelerator and say what it takes and how fast it is.

The accelerator holds the weights of one layer of a quantized run. Results lie in RUN/synthesis.

Example:
  positron synthesize runs/demo
  positron synthesize runs/demo --board ulx3s-45f --frequency 40 --json figures.json
"""

from __future__ import annotations

import argparse
import sys

from hdl.board import BOARDS, DEFAULT_FREQUENCY, AttentionTop, find_board
from hdl.errors import CircuitError
from hdl.synthesis import DEFAULT_SEED, read_report, synthesize
from scripts.output import add_json_argument, write_json
from scripts.runs import add_run_argument, load_quantized, open_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_run_argument(parser)
    parser.add_argument("--board", default="ulx3s-85f", help=f"one of {', '.join(sorted(BOARDS))} (default: ulx3s-85f)")
    parser.add_argument(
        "--frequency",
        type=float,
        default=DEFAULT_FREQUENCY / 1e6,
        metavar="MHZ",
        help=f"clock of the circuit (default: {DEFAULT_FREQUENCY / 1e6:g})",
    )
    parser.add_argument(
        "--layer", type=int, default=0, help="the transformer block whose attention is built (default: 0)"
    )
    parser.add_argument(
        "--seed", type=int, default=DEFAULT_SEED, help=f"seed of place and route (default: {DEFAULT_SEED})"
    )
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Synthesize, print, and keep the figures in the run directory."""
    directory = open_run(arguments.run)
    board = find_board(arguments.board)
    parameters = attention_of(load_quantized(directory), arguments.layer)
    before = read_report(directory.synthesis)
    top = AttentionTop(parameters, board, arguments.frequency * 1e6)
    report = synthesize(top, board, directory.synthesis, name="attention", seed=arguments.seed)
    if report == before:
        print("up to date: circuit, constraints and tools are unchanged")
    print(report)
    print(f"bitstream: {directory.synthesis / report.bitstream}")
    if arguments.json is not None:
        write_json(arguments.json, {**vars(report), "timing_met": report.timing_met})
        print(f"figures: {arguments.json}")
    return 0


def attention_of(quantized, layer: int):
    """Return the attention parameters of one block of a quantized model.

    Raises:
        CircuitError: There is no such block.
    """
    if not 0 <= layer < len(quantized.blocks):
        raise CircuitError(f"there is no layer {layer}; the model has layers 0 to {len(quantized.blocks) - 1}")
    return quantized.blocks[layer].attention


if __name__ == "__main__":
    from scripts.cli import main

    sys.exit(main(["synthesize", *sys.argv[1:]]))
