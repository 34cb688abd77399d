# amaranth: UnusedElaboratable=no
# (a machine may be built only to ask for its cycles)
"""Verify the circuits against the golden model, with a run's own weights and activations.

Each circuit is simulated at full speed and with streams that stall at random. Every value that it
returns must equal the integer model's; the number of values, and at full speed the number of
cycles, must be what was predicted. At last the whole decoder, compiled by Verilator, writes text:
every token must be the integer model's, in the predicted cycles, and for one token every stage of
every layer, by its checksum.

Example:
  positron simulate runs/demo
  positron simulate runs/demo --only decoder --smallest
  positron simulate runs/demo --only softmax --vectors 4 --vcd build/waves
  positron simulate runs/demo --simulator icarus --vectors 100 --only softmax
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdl.catalog.names import RUN_CORES
from hdl.errors import CircuitError
from model.errors import InputError
from scripts.commands.generate import default_prompt
from scripts.machine_options import add_machine_arguments
from scripts.output import add_json_argument, compiling, format_duration, format_table, write_json
from scripts.runs import add_run_argument, load_named_quantized, open_run, simulation_file
from sim.simulators.tools import SIMULATORS, default_simulator

if TYPE_CHECKING:
    from fixedpoint import QuantizedTransformer
    from model.run import RunDirectory
    from scripts.circuit_text import CircuitText
    from scripts.layers import StageValues
    from sim.bench.bench import SimulationResult, StreamBench
    from sim.simulators.decoder_process import SimulatedDecoder

STALL_PROBABILITY = 0.3
SINK_DELAY = 4000  # cycles without ready at first; longer than a token's work takes
DEFAULT_VECTORS = 1000
DECODER = "decoder"
TEXT_TOKENS = 300  # that the decoder writes


@dataclass(frozen=True)
class Verdict:
    """What a bench has shown.

    Attributes:
        name: The circuit.
        compared: Output values compared with the golden model's.
        cycles: Clock cycles from the first input to the last output.
        stalls: Whether the streams stalled at random.
        equal: Whether everything was as expected.
        seconds: Wall time, building included.
        message: Empty, or what was wrong.
    """

    name: str
    compared: int
    cycles: int
    stalls: bool
    equal: bool
    seconds: float
    message: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_run_argument(parser)
    parser.add_argument("--simulator", choices=SIMULATORS, help="default: verilator where it can run, else amaranth")
    parser.add_argument(
        "--vectors",
        type=int,
        default=DEFAULT_VECTORS,
        metavar="N",
        help="input vectors for each circuit (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the stalls and of the choice of text (default: %(default)s)"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=(*RUN_CORES, DECODER),
        metavar="CIRCUIT",
        help=f"only this circuit, of {', '.join((*RUN_CORES, DECODER))}; may be given more than once",
    )
    parser.add_argument(
        "--vcd",
        type=Path,
        metavar="DIRECTORY",
        help="write every signal of every run as a waveform, with Amaranth's simulator; best with --only and few --vectors",
    )
    add_machine_arguments(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Simulate every circuit both ways and keep the results in the run directory."""
    from sim.bench.core_benches import run_benches

    if arguments.vectors < 1:
        raise InputError(f"--vectors must be at least 1, not {arguments.vectors}")
    began = time.monotonic()
    directory = open_run(arguments.run)
    if arguments.vcd is not None and arguments.simulator not in (None, "amaranth"):
        raise InputError(f"--vcd is for --simulator amaranth, not {arguments.simulator}")
    chosen = "amaranth" if arguments.vcd is not None else arguments.simulator
    simulator, reason = (chosen, "") if chosen else default_simulator()
    if reason:
        print(reason)
    tokens = directory.load_validation_tokens().ravel()
    quantized, manifest_sha256 = load_named_quantized(directory)
    verdicts, written, timeline, layers = [], None, None, None
    if arguments.only != [DECODER]:
        only = [name for name in arguments.only or () if name != DECODER]
        benches = run_benches(quantized, tokens, num_vectors=arguments.vectors, seed=arguments.seed, only=only)
        verdicts = simulate_all(benches, simulator, arguments.seed, directory.simulation / "build", arguments.vcd)
    if DECODER in (arguments.only or [DECODER]):
        verdict, written, timeline, layers = simulate_decoder(arguments, simulator, directory, quantized)
        verdicts += [verdict] if verdict else []
    print(
        format_table(
            ("circuit", "streams", "values", "cycles", "result", "seconds"),
            [
                (
                    verdict.name,
                    "stalling" if verdict.stalls else "full speed",
                    verdict.compared,
                    verdict.cycles,
                    "all equal" if verdict.equal else "DIFFERENT",
                    round(verdict.seconds, 1),
                )
                for verdict in verdicts
            ],
        )
    )
    figures = {
        "simulator": simulator,
        "seed": arguments.seed,
        "vectors": arguments.vectors,
        "manifest_sha256": manifest_sha256,
        "seconds": time.monotonic() - began,
        "benches": verdicts,
        "written": written,
        "timeline": timeline,
        "layers": layers,
    }
    for path in filter(None, (simulation_file(directory), arguments.json)):
        write_json(path, figures)
        print(f"figures: {path}")
    failures = [verdict for verdict in verdicts if not verdict.equal]
    for failure in failures:
        print(f"error: {failure.message}", file=sys.stderr)
    if not failures:
        compared = sum(verdict.compared for verdict in verdicts)
        print(
            f"{compared:,} values, every one equal to the golden model's, in {format_duration(time.monotonic() - began)}"
        )
    return 1 if failures else 0


def simulate_decoder(
    arguments: argparse.Namespace, simulator: str, directory: RunDirectory, quantized: QuantizedTransformer
) -> tuple[Verdict | None, CircuitText | None, dict[str, Any] | None, list[StageValues] | None]:
    """Let the decoder circuit write text; return the verdict, None where it is left out, the text,
    when its units are at work, and one token layer by layer.
    """
    from hdl.board.boards import find_board
    from hdl.board.decoder_fit import fitting_machine
    from hdl.decoder.machine import Machine
    from hdl.decoder.spans import spans_and_gaps
    from scripts.circuit_text import write_text
    from scripts.layers import layer_by_layer

    if simulator != "verilator":
        print("the whole decoder is left out: only Verilator is fast enough for its text")
        return None, None, None, None
    began = time.monotonic()
    try:
        chosen = fitting_machine(quantized, find_board(arguments.board), arguments.lanes, smallest=arguments.smallest)
    except CircuitError as error:
        print(f"the whole decoder is left out: {error}")
        return None, None, None, None
    tokenizer = directory.load_tokenizer()
    prompt = default_prompt(tokenizer)
    layers: list[StageValues] = []

    def examine(decoder: SimulatedDecoder) -> None:
        tokens = directory.load_validation_tokens().ravel()
        layers.extend(layer_by_layer(directory.load_model(), quantized, decoder, tokens))

    print(f"the circuit of {chosen.plan.lanes} lanes is compiled, then it writes:", flush=True)
    build, begun = directory.simulation / "build", False
    try:
        with compiling(DECODER, build) as compiled:

            def show(text: str) -> None:
                nonlocal begun
                compiled()
                print(text if begun else prompt + text, end="", flush=True)
                begun = True

            written = write_text(chosen, tokenizer, prompt, TEXT_TOKENS, build, show, examine=examine)
    except CircuitError as error:
        return Verdict(DECODER, 0, 0, False, False, time.monotonic() - began, str(error)), None, None, None
    finally:
        print()
    cycles = round(written.tokens * written.cycles)
    position = chosen.plan.context_length // 2
    spans, gaps, total = spans_and_gaps(Machine(chosen.plan), position)
    timeline = {"position": position, "cycles": total, "spans": spans, "gaps": gaps}
    return Verdict(DECODER, written.tokens, cycles, False, True, time.monotonic() - began), written, timeline, layers


def simulate_all(
    benches: Sequence[StreamBench], simulator: str, seed: int, build: Path, waveforms: Path | None = None
) -> list[Verdict]:
    """Run each bench at full speed and with stalls; a failure does not stop the others."""
    from sim.bench.bench import BenchFailure
    from sim.simulators.runner import simulate

    work = [(bench, stall) for bench in benches for stall in (0.0, STALL_PROBABILITY)]
    verdicts = []
    if waveforms is not None:
        waveforms.mkdir(parents=True, exist_ok=True)
    for number, (bench, stall) in enumerate(work, start=1):
        stage = f"[{number}/{len(work)}] {bench.name}, {'stalling' if stall else 'full speed'}"
        with compiling(stage, build):
            waveform = waveforms and waveforms / f"{bench.name}-{'stalling' if stall else 'full-speed'}.vcd"
            began = time.monotonic()
            try:
                result = simulate(
                    bench,
                    simulator,
                    build_directory=build,
                    seed=seed,
                    source_stall=stall,
                    sink_stall=stall,
                    sink_delay=SINK_DELAY if stall else 0,
                    waveform=waveform,
                )
                verdicts.append(passed(result, time.monotonic() - began))
            except BenchFailure as failure:
                verdicts.append(Verdict(bench.name, 0, 0, stall > 0, False, time.monotonic() - began, str(failure)))
        if waveform is not None:
            print(f"waveform: {waveform}")
    return verdicts


def passed(result: SimulationResult, seconds: float) -> Verdict:
    """Return the verdict on a bench that has passed."""
    stalls = result.source_stall > 0 or result.sink_stall > 0
    return Verdict(result.name, sum(result.transfers.values()), result.cycles, stalls, True, seconds)
