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
from typing import TYPE_CHECKING, Any

from fixedpoint.transformer import QuantizedTransformer
from hdl import CircuitError
from hdl.catalog.names import BOARD_NAMES, DEFAULT_BOARD, DEFAULT_FREQUENCY
from scripts.benchmarks.fixedpoint import measure_generation
from scripts.output import add_json_argument, format_table, write_json
from scripts.runs import add_run_argument, load_quantized, open_run

if TYPE_CHECKING:
    from hdl.decoder.plan import Plan


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
    columns = ["cycles a token", "lower bound", "engine at work"]
    _show(figures["positions"], [f"{figures['lanes']} lanes, {arguments.board}", *columns])
    pair = figures["two_sequences"]
    if "refused" in pair:
        print(pair["refused"])
    else:
        _show(pair["positions"], [f"two sequences, {pair['lanes']} lanes, {pair['context']} positions each", *columns])
    print()
    mean = figures["positions"]["mean of the context"]["cycles"]
    generation = measure_generation(directory.load_model(), quantized, arguments.seconds)
    speeds = {f"circuit, {megahertz:g} MHz": megahertz * 1e6 / mean}
    if "positions" in pair:
        both = pair["positions"]["mean of the context"]["cycles"]
        speeds[f"two sequences together, context {pair['context']}"] = megahertz * 1e6 / both
    speeds |= {name: one["tokens_per_second"] for name, one in generation["contestants"].items()}
    print(format_table(["one sequence, mean of the context", "tokens/s"], list(speeds.items())))
    if generation["skipped"]:
        print(f"the C program is skipped: {generation['skipped']}")
    if arguments.json:
        write_json(arguments.json, {**figures, "megahertz": megahertz, "tokens_per_second": speeds})
        print(f"figures: {arguments.json}")
    return 0


def _show(positions: dict[str, dict[str, float]], headings: list[str]) -> None:
    """Print a table of cycles."""
    rows = [
        [name, f"{one['cycles']:,.0f}", f"{one['words']:,.0f}", f"{one['words'] / one['cycles']:.0%}"]
        for name, one in positions.items()
    ]
    print(format_table(headings, rows))


def predict(quantized: QuantizedTransformer, board: str, lanes: int | None = None) -> dict[str, Any]:
    """Return the cycles and the engine's words of a decoder circuit, by position: of one sequence,
    and of a token of two interleaved ones, as far as their context fits.

    Raises:
        CircuitError: No machine of this model fits the board.
    """
    from hdl.board.boards import find_board
    from hdl.board.decoder_estimate import best_estimate
    from hdl.board.two_sequences import estimate_of_two

    alone = best_estimate(quantized, find_board(board), lanes).plan
    figures: dict[str, Any] = {"lanes": alone.lanes, "positions": _by_position(alone)}
    try:
        pair = estimate_of_two(quantized, find_board(board), lanes).plan
    except CircuitError as error:
        return figures | {"two_sequences": {"refused": str(error)}}
    return figures | {
        "two_sequences": {"lanes": pair.lanes, "context": pair.context_length, "positions": _by_position(pair)}
    }


def _by_position(plan: Plan) -> dict[str, dict[str, float]]:
    """Return a token's cycles and words; with two sequences, half of a pair's."""
    from hdl.decoder.machine import Machine

    machine, count, context = Machine(plan), plan.sequences, plan.context_length
    steps = machine.program.steps
    words = [sum(machine.program.words(step, place) for step in steps) / count for place in range(context)]
    cycles = [machine.cycles([place] * count) / count for place in range(context)]
    places = {"first position": 0, "middle": (context - 1) // 2, "last position": context - 1}
    positions = {name: {"cycles": cycles[place], "words": words[place]} for name, place in places.items()}
    positions["mean of the context"] = {"cycles": sum(cycles) / context, "words": sum(words) / context}
    return positions
