"""A decoder machine compiled by Verilator, as a process that takes tokens and gives tokens."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from fixedpoint import QuantizedTransformer
from fixedpoint.operators.sampling import XorShift32
from hdl.decoder.accelerator import Turn
from hdl.decoder.machine import Machine
from hdl.decoder.probe import ProbedMachine, Unit
from hdl.decoder.score_rows import Temperature
from hdl.errors import ToolError
from hdl.parts.payload import payload_shape
from hdl.tools.toolchain import tool_environment
from model.generation.loop import context_start

from ..bench.harness import Harness
from .native_bench import compile_bench
from .processes import run_logged, tail

SOURCE = Path(__file__).with_name("native") / "decoder.cpp"
WATCHDOG_CYCLES = 1_000_000
# of a token, in a line's order
FIELDS = ("active", "token", "restart", "sample", "random", "multiplier", "amount")


def compile_decoder(machine: Machine | ProbedMachine, build_directory: Path, *, fast: bool = False) -> Path:
    """Return the program of a machine (`native/decoder.cpp`), compiled unless it has been before.

    Args:
        machine: The circuit.
        build_directory: Where compiled simulations are kept.
        fast: For many tokens: the compiler takes longer, the program less.

    Raises:
        ToolError: A tool is missing or failed.
    """
    harness = Harness(machine, one_reset=True)
    texts = {"machine.h": _header(harness)}
    return compile_bench("decoder", harness, texts, SOURCE, build_directory, fast=fast) / "bench"


def compare_records(bench: Path, records: Path) -> tuple[str, list[int]]:
    """Run a compiled machine on a file of records; return "done" and the cycles, or what is wrong,
    the record's number, what came and what should have.

    Raises:
        ToolError: The program failed.
    """
    log = records.with_suffix(".log")
    status = run_logged([str(bench), str(records)], log, tool_environment(), records.parent)
    words = log.read_text(encoding="utf-8", errors="replace").split()
    if status or not words:
        raise ToolError(f"the simulated decoder ended with exit status {status}:\n{tail(log)}")
    return words[0], [int(word) for word in words[1:]]


class SimulatedDecoder:
    """A machine that is simulated, a token of each of its sequences at a time.

    Args:
        machine: The circuit.
        build_directory: Where compiled simulations are kept.
        probed: Whether `ask` can be used.

    Attributes:
        machine: The circuit.
        cycles: Clock edges of each token, or pair of tokens, so far, from the one taken to the next
            offered.

    Raises:
        ToolError: A tool is missing or failed.
    """

    def __init__(self, machine: Machine, build_directory: Path, probed: bool = False):
        self.machine, self._probed = machine, probed
        self.cycles: list[int] = []
        bench = compile_decoder(ProbedMachine(machine) if probed else machine, build_directory)
        self._process = subprocess.Popen(
            [bench], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=tool_environment()
        )

    def step(self, turns: Sequence[Turn | None]) -> list[int]:
        """Return each sequence's next token; it means nothing where a sequence sits out.

        Args:
            turns: Each sequence's, None for one that sits out; fewer where the others sit out.
        """
        answer = self._exchange(turns, *([0, 0] if self._probed else []))
        sequences = self.machine.plan.sequences
        self.cycles.append(answer[sequences])
        return answer[:sequences]

    def ask(self, turns: Sequence[Turn | None], unit: Unit, last: int) -> int:
        """Return the checksum of a unit's words while it takes turns, up to the one that is counted
        `last` from 0; see `hdl.decoder.probe.checksum`.
        """
        return self._exchange(turns, int(unit), last)[-1]

    def _exchange(self, turns: Sequence[Turn | None], *probe: int) -> list[int]:
        """Return each sequence's next token, the cycles, and where it is probed the checksum."""
        assert self._process.stdin is not None and self._process.stdout is not None
        words: list[int] = []
        sequences = self.machine.plan.sequences
        for turn in [*turns, *[None] * (sequences - len(turns))]:
            one = turn or Turn(0, False)
            number, heat = one.choice or (1, Temperature(0, 0))
            words += [turn is not None, one.token, one.restart, one.choice is not None]
            words += [number, heat.multiplier, heat.amount]
        words += probe
        try:
            self._process.stdin.write(" ".join(str(int(word)) for word in words) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer says so
        answer = self._process.stdout.readline().split()
        if len(answer) != sequences + 1 + self._probed:
            raise ToolError(f"the simulated decoder gave no token (exit status {self._process.wait()})")
        return list(map(int, answer))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> SimulatedDecoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        self.close()


class Decoder(Protocol):
    """A decoder circuit, simulated or on a board."""

    def step(self, turns: Sequence[Turn | None]) -> list[int]:
        """Return each sequence's next token; see `SimulatedDecoder`."""


def stream_tokens(
    decoder: Decoder,
    model: QuantizedTransformer,
    sequence: list[int],
    temperature: float = 0.0,
    seed: int = 0,
    context_length: int | None = None,
) -> Iterator[None]:
    """Lengthen a token sequence in place, for ever, as the integer model does with the same seed;
    see `stream` in `model.generation.loop`.
    """
    turns = _turns(model, context_length or model.context_length, sequence, temperature, seed)
    turn = next(turns)
    while True:
        length = len(sequence)
        turn = turns.send(decoder.step([turn])[0])
        if len(sequence) > length:
            yield


def write_together(
    decoder: Decoder,
    model: QuantizedTransformer,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    context_length: int | None = None,
    on_token: Callable[[int, int], None] = lambda number, token: None,
) -> list[list[int]]:
    """Return `num_tokens` tokens for each of one or two prompts, interleaved on one machine.

    Args:
        decoder: Of a machine for so many sequences.
        model: What it computes.
        prompts: One of each sequence, of at least one token, of any length.
        num_tokens: How many to make for each.
        temperature: 0 for the likeliest token.
        seed: Of the first one's samples; the second one's is larger by one.
        context_length: The machine's, if it is not the model's.
        on_token: Called with a sequence's number and its new token.
    """
    sequences = [list(prompt) for prompt in prompts]
    writers = [
        _turns(model, context_length or model.context_length, sequence, temperature, seed + number)
        for number, sequence in enumerate(sequences)
    ]
    next_turns: list[Turn | None] = [next(writer) if num_tokens else None for writer in writers]
    while any(next_turns):
        tokens = decoder.step(next_turns)
        for number, (writer, sequence) in enumerate(zip(writers, sequences, strict=True)):
            if next_turns[number] is not None:
                length = len(sequence)
                next_turns[number] = writer.send(tokens[number])
                if len(sequence) > length:
                    on_token(number, sequence[-1])
                if len(sequence) == len(prompts[number]) + num_tokens:
                    next_turns[number] = None
    return [sequence[len(prompt) :] for sequence, prompt in zip(sequences, prompts, strict=True)]


def _turns(
    model: QuantizedTransformer, context_length: int, sequence: list[int], temperature: float, seed: int
) -> Generator[Turn, int]:
    """Yield what a sequence gives the machine, be sent the token chosen, and lengthen it."""
    heat = Temperature.of(model.logits.output, temperature) if temperature else None
    start, generator = -1, XorShift32.from_seed(seed, 1)
    while True:
        first = context_start(len(sequence), context_length)
        begin = len(sequence) - 1 if first == start else first
        for index in range(begin, len(sequence)):
            last = index == len(sequence) - 1
            choice = (int(generator.next()[0]), heat) if last and heat is not None else None
            chosen = yield Turn(sequence[index], index == first, choice)
        start = first
        sequence.append(chosen)


def _header(harness: Harness) -> str:
    source, sink = harness.sources[0], harness.sinks[0]
    places, plan = payload_shape(harness.component.i), harness.component.plan
    probed = isinstance(harness.component, ProbedMachine)
    probe, checksum, token_bits = [], 0, sink.width
    begin = source.offset
    if probed:
        probe = [(begin + places[name].offset, places[name].width) for name in ("unit", "last")]
        given = payload_shape(harness.component.o)
        checksum, token_bits = sink.offset + given["checksum"].offset, given["given"].width
        places, begin = places["choice"].shape, begin + places["choice"].offset
    choices = (
        [(places[number].offset, places[number].shape) for number in range(plan.sequences)]
        if plan.sequences > 1
        else [(0, places)]
    )
    numbers = {
        "READY_BIT": source.flag_in,
        "VALID_BIT": sink.flag_in,
        "SEQUENCES": plan.sequences,
        "TOKEN_BITS": token_bits // plan.sequences,
        "TOKEN_OUT": sink.offset,
        "I_VALID": source.flag_out,
        "O_READY": sink.flag_out,
        "PROBED": int(probed),
        "CHECKSUM_OUT": checksum,
        "WATCHDOG_CYCLES": WATCHDOG_CYCLES,
    }
    lines = [f"constexpr unsigned {name} = {value};" for name, value in numbers.items()]
    fields = [
        f"{{{begin + place + choice[name].offset}, {choice[name].width}}}" if name in choice.members else "{0, 0}"
        for place, choice in choices
        for name in FIELDS
    ]
    lines.append(f"constexpr Field FIELDS[] = {{{', '.join(fields)}}}; // {', '.join(FIELDS)}")
    probes = ", ".join(f"{{{offset}, {width}}}" for offset, width in probe or [(0, 0)])
    lines.append(f"constexpr Field PROBE[] = {{{probes}}}; // unit, last")
    return "\n".join(lines) + "\n"
