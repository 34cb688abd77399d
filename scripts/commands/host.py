"""Send vectors to a board over its serial port and compare every result with the golden model.

The board must hold the bitstream of `positron synthesize RUN --only attention`; the host asks it
which model it holds.

Example:
  positron host runs/demo --port /dev/ttyUSB0
"""

from __future__ import annotations

import argparse

from scripts.board import choose_baud, open_port
from scripts.commands.synthesize import attention_of
from scripts.output import add_json_argument, write_json
from scripts.runs import add_run_argument, attention_synthesis, load_quantized, open_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_run_argument(parser)
    parser.add_argument("--port", required=True, help="the board's serial port, for instance /dev/ttyUSB0 or COM3")
    parser.add_argument("--baud", type=int, help="bits per second (default: those of the run's bitstream)")
    parser.add_argument("--vectors", type=int, default=1000, help="tokens to send (default: 1000)")
    parser.add_argument("--layer", type=int, default=0, help="the layer that was synthesized (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the vectors (default: 0)")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Open the port, send, compare."""
    from hdl.board.hardware_check import exercise
    from hdl.board.link import Host

    directory = open_run(arguments.run)
    parameters = attention_of(load_quantized(directory), arguments.layer)
    with open_port(arguments.port, choose_baud(arguments.baud, attention_synthesis(directory))) as port:
        figures = exercise(Host(port), parameters, arguments.vectors, arguments.seed)
    print(
        f"{figures['values']:,} values of {figures['vectors']:,} tokens are all equal to the golden model's "
        f"({figures['tokens_per_second']:,.0f} tokens/s, serial port included)"
    )
    if figures["repeated_requests"] or figures["recovered_sequences"]:
        print(
            f"{figures['repeated_requests']:,} requests were sent again because no answer came, "
            f"{figures['recovered_sequences']:,} sequences because the board had been reset"
        )
    if arguments.json is not None:
        write_json(arguments.json, figures)
        print(f"figures: {arguments.json}")
    return 0
