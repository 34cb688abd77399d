"""Send vectors to a board over its serial port and compare every result with the golden model.

The board must hold the bitstream of `positron synthesize RUN`; the host asks it which model it holds.

Example:
  positron host runs/demo --port /dev/ttyUSB0
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
from tqdm import tqdm

from hdl.board import DEFAULT_BAUD
from hdl.errors import ToolError
from hdl.link import ANSWER_SECONDS, Host, Identity
from scripts.output import add_json_argument, write_json
from scripts.runs import add_run_argument, load_quantized, open_run
from scripts.synthesize import attention_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_run_argument(parser)
    parser.add_argument("--port", required=True, help="the board's serial port, for instance /dev/ttyUSB0 or COM3")
    parser.add_argument("--baud", type=int, default=DEFAULT_BAUD, help=f"bits per second (default: {DEFAULT_BAUD:,})")
    parser.add_argument("--vectors", type=int, default=1000, help="tokens to send (default: 1000)")
    parser.add_argument("--layer", type=int, default=0, help="the layer that was synthesized (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the vectors (default: 0)")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Open the port, send, compare."""
    parameters = attention_of(load_quantized(open_run(arguments.run)), arguments.layer)
    with open_port(arguments.port, arguments.baud) as port:
        figures = exercise(Host(port), parameters, arguments.vectors, arguments.seed)
    print(
        f"{figures['values']:,} values of {figures['vectors']:,} tokens are all equal to the golden model's "
        f"({figures['tokens_per_second']:,.0f} tokens/s, serial port included)"
    )
    if arguments.json is not None:
        write_json(arguments.json, figures)
        print(f"figures: {arguments.json}")
    return 0


def open_port(name: str, baud: int):
    """Open a serial port.

    Raises:
        ToolError: There is none of this name, or it cannot be used.
    """
    import serial
    from serial.tools.list_ports import comports

    try:
        return serial.Serial(name, baud, timeout=ANSWER_SECONDS, write_timeout=ANSWER_SECONDS)
    except (serial.SerialException, ValueError) as error:
        ports = ", ".join(sorted(port.device for port in comports())) or "none"
        raise ToolError(f"cannot open the serial port {name}: {error}; ports found: {ports}") from None


def random_tokens(parameters, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 tokens (count, C) and booleans (count,) that say which start a sequence.

    Sequences have all lengths up to the whole context; some end by themselves, at the context's end.
    """
    generator = np.random.default_rng(seed)
    tokens = generator.integers(-128, 128, (count, parameters.embed_dim), dtype=np.int8)
    restart = generator.random(count) < 1 / (1 + parameters.context_length)
    restart[:1] = True
    return tokens, restart


def exercise(host: Host, parameters, vectors: int, seed: int) -> dict:
    """Compare a connected accelerator with the golden model on random tokens.

    Raises:
        ToolError: It is another model, it fell silent, or a value differs.
    """
    if vectors < 1:
        raise ToolError(f"at least one vector must be sent, not {vectors}")
    host.connect(Identity.of(parameters))
    tokens, restart = random_tokens(parameters, vectors, seed)
    expected = parameters.compute_stream(tokens.astype(np.int64), restart)
    start = time.perf_counter()
    for index in tqdm(range(vectors), unit="token", disable=None):
        result = host.send(tokens[index], bool(restart[index]))
        wrong = np.flatnonzero(result != expected[index])
        if wrong.size:
            element = wrong[0]
            raise ToolError(
                f"token {index}, element {element}: the board says {result[element]}, the golden model {expected[index, element]} "
                f"({wrong.size} of {result.size} elements differ)"
            )
    seconds = time.perf_counter() - start
    return {
        "vectors": vectors,
        "values": int(expected.size),
        "seed": seed,
        "seconds": seconds,
        "tokens_per_second": vectors / seconds,
    }


if __name__ == "__main__":
    from scripts.cli import main

    sys.exit(main(["host", *sys.argv[1:]]))
