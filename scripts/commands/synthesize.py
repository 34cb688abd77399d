"""Make a bitstream of a run's whole decoder, or of its attention alone, or measure one core.

The decoder takes a token and gives the next one; weights, keys and values of all layers are on the
chip. Lanes and layout are chosen for the board, and the command says why. A model that does not fit
is refused before a tool runs, with what would have to shrink; --estimate says that, and the speed,
for all boards. Results lie in RUN/synthesis. --only attention builds one layer's attention, into
RUN/synthesis_attention. With --core, one core is placed and routed without pins, so there are
figures and no bitstream; its weights are a run's (--run) or an example's of a layer 128 wide
(attention: 64), and results lie in RUN/synthesis_CORE or build/cores/CORE.

Example:
  positron synthesize runs/demo
  positron synthesize runs/demo --estimate
  positron synthesize runs/demo --sequences 2 --estimate
  positron synthesize runs/demo --board ulx3s-45f --frequency 40 --lanes 64
  positron synthesize runs/demo --only attention
  positron synthesize --core softmax
  positron synthesize --core matrix-vector --run runs/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from fixedpoint import Attention, QuantizedTransformer
from hdl.catalog.names import CORE_NAMES, DEFAULT_BAUD, DEFAULT_FREQUENCY, DEFAULT_SEED
from hdl.errors import CircuitError
from model.errors import InputError
from scripts.board import PLAN, built_decoder, fingerprint
from scripts.commands.export_verilog import add_model_arguments, make_core
from scripts.machine_options import add_machine_arguments
from scripts.output import add_json_argument, format_table, write_json
from scripts.runs import MADE_FROM, attention_synthesis, load_named_quantized, open_run

if TYPE_CHECKING:
    from hdl.board.boards import Board
    from hdl.board.decoder_estimate import Estimate
    from hdl.tools.synthesis_report import SynthesisReport
    from model.run import RunDirectory

OWN = Path()  # the run's own bitstream
CORES_DIRECTORY = Path("build") / "cores"
CORE_FREQUENCY = 150e6  # Hz that place and route aims for where a core is measured alone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "run", metavar="RUN", type=Path, nargs="?", help="directory of a trained run, for instance runs/demo"
    )
    parser.add_argument(
        "--only", choices=["attention"], help="build this part of one layer instead of the whole decoder"
    )
    parser.add_argument(
        "--estimate", action="store_true", help="only say which boards have room for the decoder, and its speed"
    )
    parser.add_argument(
        "--sampling",
        action="store_true",
        help="the decoder can sample at a temperature, not only take the likeliest token",
    )
    parser.add_argument(
        "--sequences",
        type=int,
        default=1,
        metavar="N",
        help="texts that the decoder writes at once, 1 or 2 interleaved; of two the context may have to be shorter "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--exchangeable",
        action="store_true",
        help="put the decoder's tables into block RAM, so that --reuse can exchange them",
    )
    parser.add_argument(
        "--reuse",
        type=Path,
        metavar="RUN",
        nargs="?",
        const=OWN,
        help="without place and route: other block RAM contents in the decoder of RUN (default: the run's own)",
    )
    parser.add_argument("--core", metavar="CORE", help=f"measure one core alone: {', '.join(CORE_NAMES)}")
    add_machine_arguments(parser)
    parser.add_argument(
        "--frequency",
        type=float,
        metavar="MHZ",
        help=f"clock of the circuit (default: {DEFAULT_FREQUENCY / 1e6:g}, OrangeCrab 48; "
        f"with --core {CORE_FREQUENCY / 1e6:g})",
    )
    parser.add_argument(
        "--baud", type=int, help=f"bits per second of the board's serial port (default: {DEFAULT_BAUD:,})"
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--seed", type=int, default=DEFAULT_SEED, help=f"seed of place and route (default: {DEFAULT_SEED})"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="K",
        help="place and route the decoder with K seeds from --seed on, keep the fastest",
    )
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Synthesize, print, and keep the figures."""
    if arguments.frequency is not None and not 0 < arguments.frequency < float("inf"):
        raise InputError(f"--frequency must be positive, not {arguments.frequency:g}")
    decoder = arguments.core is None and arguments.only is None
    if arguments.seeds is not None and (arguments.seeds < 1 or not decoder):
        raise InputError("--seeds is a number of at least 1, for the whole decoder")
    if not 1 <= arguments.sequences <= 2:
        raise InputError(f"--sequences is 1 or 2, not {arguments.sequences}")
    chosen = arguments.smallest or arguments.sampling or arguments.sequences > 1 or arguments.lanes is not None
    exchange = arguments.exchangeable or arguments.reuse is not None
    if not decoder and (arguments.estimate or chosen or exchange):
        raise InputError(
            "--estimate, --lanes, --smallest, --sampling, --sequences, --exchangeable and --reuse belong to the whole "
            "decoder, not to --core or --only"
        )
    if exchange and arguments.seeds is not None:
        raise InputError("--seeds does not go with --exchangeable and --reuse")
    if arguments.core is not None and arguments.only is not None:
        raise InputError("--core measures one core; --only belongs to a run")
    if decoder and arguments.layer:
        raise InputError("--layer belongs to --only attention and to --core; the decoder holds all layers")
    if arguments.estimate:
        return show_estimates(arguments)
    if arguments.core is not None:
        report = measure_core(arguments)
    else:
        report = build_decoder(arguments) if decoder else build_attention(arguments)
    if arguments.json is not None:
        write_json(arguments.json, {**vars(report), "timing_met": report.timing_met})
        print(f"figures: {arguments.json}")
    return 0


def build_decoder(arguments: argparse.Namespace) -> SynthesisReport:
    """Make the bitstream of a run's whole decoder."""
    from hdl.board.boards import DecoderTop, find_board
    from hdl.board.decoder_estimate import estimate
    from hdl.decoder.machine import Machine
    from hdl.decoder.plan import Plan
    from hdl.tools.seeds import synthesize_seeds
    from hdl.tools.synthesis import synthesize
    from hdl.tools.synthesis_report import read_report

    directory = opened(arguments)
    quantized, manifest_sha256 = load_named_quantized(directory)
    reused = reused_decoder(arguments, directory)
    if reused is None:
        board, seed = find_board(arguments.board), arguments.seed
        chosen = choose_machine(arguments, quantized, board)
        print(chosen.reason, flush=True)
        frequency, baud = clock_and_baud(arguments, board)
    else:
        built, record = built_decoder(reused)
        board, seed = find_board(built.board), built.seed
        frequency, baud = record["frequency"], built.baud or DEFAULT_BAUD
        chosen = estimate(Plan(quantized, **{name: record[name] for name in PLAN}))
    digest = fingerprint(directory, manifest_sha256)
    top = DecoderTop(Machine(chosen.plan), digest, board, frequency, baud)
    before = read_report(directory.synthesis)
    if arguments.seeds is None:
        exchange = {"exchangeable": arguments.exchangeable, "reused": reused and reused.synthesis}
        report = synthesize(top, board, directory.synthesis, name="decoder", seed=seed, baud=baud, **exchange)
    else:
        seeds = range(seed, seed + arguments.seeds)
        report = synthesize_seeds(top, board, directory.synthesis, seeds, name="decoder", baud=baud)
    made_of = {"frequency": frequency, **{name: getattr(chosen.plan, name) for name in PLAN}}
    show(report, before, directory.synthesis, manifest_sha256, fingerprint=digest.hex(), **made_of)
    print(
        f"cycles a token at the first position, in the middle and at the end of the context: "
        f"{chosen.first:,}, {chosen.middle:,}, {chosen.last:,}; in the middle {frequency / chosen.middle:,.0f} tokens/s"
    )
    return report


def reused_decoder(arguments: argparse.Namespace, directory: RunDirectory) -> RunDirectory | None:
    """Return the run whose bitstream gets other contents, None where there is none."""
    if arguments.reuse is None:
        return None
    kept = arguments.seeds or arguments.lanes or arguments.smallest or arguments.frequency or arguments.baud
    if kept or arguments.sequences > 1:
        raise InputError("--reuse keeps board, lanes, sequences, clock, baud rate and seed of the bitstream")
    return directory if arguments.reuse == OWN else open_run(arguments.reuse)


def choose_machine(arguments: argparse.Namespace, quantized: QuantizedTransformer, board: Board) -> Estimate:
    """Return the machine that the options ask for."""
    from hdl.board.decoder_fit import fitting_machine
    from hdl.board.two_sequences import estimate_of_two

    find = fitting_machine if arguments.sequences == 1 else estimate_of_two
    return find(quantized, board, arguments.lanes, sampling=arguments.sampling, smallest=arguments.smallest)


def opened(arguments: argparse.Namespace) -> RunDirectory:
    """Return the run whose circuit is meant."""
    if arguments.run is None or arguments.core_run is not None:
        raise InputError("say which run: positron synthesize RUN; --run belongs to --core")
    return open_run(arguments.run)


def clock_and_baud(arguments: argparse.Namespace, board: Board) -> tuple[float, int]:
    """Return the circuit's clock in Hz and the serial port's bits per second."""
    frequency = board.frequency if arguments.frequency is None else arguments.frequency * 1e6
    return frequency, DEFAULT_BAUD if arguments.baud is None else arguments.baud


def build_attention(arguments: argparse.Namespace) -> SynthesisReport:
    """Make the bitstream of one layer's attention of a run."""
    from hdl.board.boards import AttentionTop, find_board
    from hdl.board.largest_fit import largest_embed_dim
    from hdl.board.requirements import DoesNotFit
    from hdl.tools.synthesis import synthesize
    from hdl.tools.synthesis_report import read_report

    directory, board = opened(arguments), find_board(arguments.board)
    quantized, manifest_sha256 = load_named_quantized(directory)
    parameters, target = attention_of(quantized, arguments.layer), attention_synthesis(directory)
    before = read_report(target)
    frequency, baud = clock_and_baud(arguments, board)
    top = AttentionTop(parameters, board, frequency, baud)
    try:
        report = synthesize(top, board, target, name="attention", seed=arguments.seed, baud=baud)
    except DoesNotFit as refusal:
        largest = largest_embed_dim(parameters, board, refusal.needs)
        raise CircuitError(
            f"{refusal}; with {parameters.num_heads} heads and a context of {parameters.context_length}, {board.name} has room for "
            f"an embed_dim of {largest} at most"
        ) from None
    show(report, before, target, manifest_sha256)
    return report


def show_estimates(arguments: argparse.Namespace) -> int:
    """Print for all boards what a run's decoder would need, and its speed."""
    from hdl.board.boards import BOARDS
    from scripts.decoder import FREQUENCY, estimate_row

    quantized, _ = load_named_quantized(opened(arguments))
    rows, figures = [], {}
    answers: dict[tuple[int, ...], Estimate | str] = {}  # by what the FPGA has
    refused: dict[str, list[str]] = {}
    for board in BOARDS.values():
        size = board.luts, board.block_rams, board.multipliers
        if size not in answers:
            try:
                answers[size] = choose_machine(arguments, quantized, board)
            except CircuitError as error:
                answers[size] = str(error)
        one = answers[size]
        if isinstance(one, str):
            refused.setdefault(one, []).append(board.name)
            continue
        rows.append(estimate_row(one, board))
        figures[board.name] = {
            "lanes": one.plan.lanes,
            **vars(one.needs),
            "luts": one.luts,
            "positions": one.plan.context_length,
            "cycles": [one.first, one.middle, one.last],
        }
    if rows:
        headings = (
            "board",
            "lanes",
            "block RAMs",
            "multipliers",
            "LUTs, about",
            *(["positions"] if arguments.sequences > 1 else []),
            "cycles: first",
            "middle",
            "last",
            "tokens/s",
        )
        print(format_table(headings, rows))
        print(f"tokens a second in the middle of the context at {FREQUENCY / 1e6:g} MHz, before place and route")
    for refusal, names in refused.items():
        print(f"{', '.join(names)}: {refusal}")
    if arguments.json is not None:
        write_json(arguments.json, figures)
        print(f"figures: {arguments.json}")
    return 0


def measure_core(arguments: argparse.Namespace) -> SynthesisReport:
    """Place and route one core alone."""
    from hdl.board.boards import find_board
    from hdl.catalog.registry import find_core
    from hdl.tools.synthesis import synthesize_core
    from hdl.tools.synthesis_report import read_report

    if arguments.run is not None:
        raise InputError(
            f"with --core the run is given by --run: positron synthesize --core {quote(arguments.core)} --run RUN"
        )
    if arguments.baud is not None:
        raise InputError("--baud belongs to a board's serial port; a core alone has none")
    entry, board = find_core(arguments.core), find_board(arguments.board)
    core = make_core(entry, arguments)
    if arguments.core_run is None:
        directory = CORES_DIRECTORY / entry.name
    else:
        directory = arguments.core_run / f"synthesis_{entry.name}"
    before = read_report(directory)
    frequency = CORE_FREQUENCY if arguments.frequency is None else arguments.frequency * 1e6
    report = synthesize_core(
        core, directory, board=board, frequency=frequency, name=entry.name.replace("-", "_"), seed=arguments.seed
    )
    show(report, before, directory)
    return report


def show(
    report: SynthesisReport,
    before: SynthesisReport | None,
    directory: Path,
    manifest_sha256: str | None = None,
    **made_of: Any,
) -> None:
    """Print a report, say so when it is an earlier one, and write down the integer model that it is
    of, if it is a run's, and how that became a circuit.
    """
    if report == before:
        print("up to date: circuit, constraints and tools are unchanged")
    print(report)
    if manifest_sha256 is None:
        print(f"reports and logs: {directory}")
        return
    # Not in the report, which does not change when the circuit of another model is the same.
    made_from = {"manifest_sha256": manifest_sha256, "inputs_sha256": report.inputs_sha256, **made_of}
    write_json(directory / MADE_FROM, made_from)
    print(f"bitstream: {directory / str(report.bitstream)}")


def attention_of(quantized: QuantizedTransformer, layer: int) -> Attention:
    """Return the attention parameters of one block of a quantized model.

    Raises:
        CircuitError: There is no such block.
    """
    if not 0 <= layer < len(quantized.blocks):
        raise CircuitError(f"there is no layer {layer}; the model has layers 0 to {len(quantized.blocks) - 1}")
    return quantized.blocks[layer].attention
