# amaranth: UnusedElaboratable=no
# (a machine is built only to ask for its cycles and sizes)
"""Compare the whole decoder's speed as a circuit with this machine's on the same model.

Cycles follow from the circuit's program, which the tests compare with simulation cycle for cycle;
the lower bound is the engine's words, a cycle each, as if nothing ever waited. The clock is the
synthesized one, or --frequency. NumPy and the C program run the integer model on this machine, one
sequence from its first token to a full context.

Example:
  positron benchmark decoder runs/demo
"""

from __future__ import annotations

import argparse
from typing import Any

from fixedpoint.transformer import QuantizedTransformer
from hdl.catalog.names import BOARD_NAMES, DEFAULT_BOARD, DEFAULT_FREQUENCY
from scripts.benchmarks.fixedpoint import measure_generation
from scripts.output import add_json_argument, format_table, write_json
from scripts.runs import add_run_argument, load_quantized, open_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's arguments."""
    add_run_argument(parser)
    parser.add_argument(
        "--board", default=DEFAULT_BOARD, help=f"one of {', '.join(BOARD_NAMES)} (default: %(default)s)"
    )
    parser.add_argument("--lanes", type=int, metavar="N", help="multipliers of its engine (default: the fastest)")
    parser.add_argument(
        "--frequency", type=float, metavar="MHZ", help="the circuit's clock (default: the synthesized one's)"
    )
    parser.add_argument("--seconds", type=float, default=20, help="time for this machine (default: %(default)s)")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and write the figures."""
    from hdl.tools.synthesis_report import read_report

    directory = open_run(arguments.run)
    quantized = load_quantized(directory)
    report = read_report(directory.synthesis)
    required = min((clock.required_mhz for clock in report.clocks), default=None) if report else None
    megahertz = arguments.frequency or required or DEFAULT_FREQUENCY / 1e6
    figures = predict(quantized, arguments.board, arguments.lanes)
    headings = [f"{figures['lanes']} lanes, {arguments.board}", "cycles", "lower bound", "engine at work"]
    rows = [
        [name, f"{one['cycles']:,.0f}", f"{one['words']:,.0f}", f"{one['words'] / one['cycles']:.0%}"]
        for name, one in figures["positions"].items()
    ]
    print(format_table(headings, rows))
    print()
    mean = figures["positions"]["mean of the context"]["cycles"]
    generation = measure_generation(directory.load_model(), quantized, arguments.seconds)
    speeds = {f"circuit, {megahertz:g} MHz": megahertz * 1e6 / mean}
    speeds |= {name: one["tokens_per_second"] for name, one in generation["contestants"].items()}
    print(format_table(["one sequence, mean of the context", "tokens/s"], list(speeds.items())))
    if generation["skipped"]:
        print(f"the C program is skipped: {generation['skipped']}")
    if arguments.json:
        write_json(arguments.json, {**figures, "megahertz": megahertz, "tokens_per_second": speeds})
        print(f"figures: {arguments.json}")
    return 0


def predict(quantized: QuantizedTransformer, board: str, lanes: int | None = None) -> dict[str, Any]:
    """Return the cycles and the engine's words of a decoder circuit, by position.

    Raises:
        CircuitError: No machine of this model fits the board.
    """
    from hdl.board.boards import find_board
    from hdl.board.decoder_estimate import best_estimate
    from hdl.decoder.machine import Machine

    machine = Machine(best_estimate(quantized, find_board(board), lanes).plan)
    program, context = machine.program, quantized.context_length
    words = [sum(program.words(step, position) for step in program.steps) for position in range(context)]
    cycles = [machine.cycles(position) for position in range(context)]
    places = {"first position": 0, "middle": (context - 1) // 2, "last position": context - 1}
    positions = {name: {"cycles": float(cycles[place]), "words": float(words[place])} for name, place in places.items()}
    positions["mean of the context"] = {"cycles": sum(cycles) / context, "words": sum(words) / context}
    return {"lanes": machine.plan.lanes, "positions": positions}
