# amaranth: UnusedElaboratable=no
# (a machine may be built only to ask for its cycles)
"""Compare what a decoder on a board computes with the integer model, stage by stage.

First the weights in its memory and the embedding tables, then two tokens of a sequence: what each
unit gives at each stage, as checksums that the circuit makes while it computes. The first stage
that differs is named. Without RUN the run in runs/ that the board holds is taken. No board was
attached when this was written: it was tested with simulated ones.

Example:
  positron selftest /dev/ttyUSB0
  positron selftest /dev/ttyUSB0 runs/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hdl.errors import ToolError
from model.errors import InputError
from model.run import RunDirectory
from scripts.board import PLAN, built_decoder, choose_baud, fingerprint, open_port
from scripts.runs import load_named_quantized, open_run

RUNS = Path("runs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("port", metavar="PORT", help="the board's serial port, for instance /dev/ttyUSB0 or COM3")
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", help="the run that the board holds")
    parser.add_argument("--baud", type=int, help="bits per second (default: those of the run's bitstream)")


def run(arguments: argparse.Namespace) -> int:
    """Ask the board, and compare."""
    from hdl.board.decoder_host import DecoderHost
    from hdl.board.selftest import check_decoder
    from hdl.decoder.machine import Machine
    from hdl.decoder.plan import Plan

    directory = None if arguments.run is None else open_run(arguments.run)
    baud = choose_baud(arguments.baud, RUNS if directory is None else directory.synthesis)
    with open_port(arguments.port, baud) as port:
        board = DecoderHost(port)
        if directory is None:
            directory = find_run(board.identify().digest)
        quantized, digest = load_named_quantized(directory)
        _, record = built_decoder(directory)
        board.connect(fingerprint(directory, digest), quantized.context_length)
        sent = check_decoder(board, Machine(Plan(quantized, **{name: record[name] for name in PLAN})))
    print(
        f"the board computes as {directory.path} says: weights, embeddings and every stage of two tokens are equal "
        f"({sent:,} tokens sent, {board.host.repeated:,} requests sent again)"
    )
    return 0


def find_run(digest: bytes) -> RunDirectory:
    """Return the run whose decoder was built with a fingerprint.

    Raises:
        InputError: There is none in `RUNS`.
    """
    for path in sorted(RUNS.iterdir()) if RUNS.is_dir() else []:
        try:
            directory = open_run(path)
            if built_decoder(directory)[1]["fingerprint"] == digest.hex():
                return directory
        except (InputError, ToolError):
            continue
    raise InputError(
        f"no run in {RUNS} has the board's fingerprint {digest.hex()}; name one: positron selftest PORT RUN"
    )
