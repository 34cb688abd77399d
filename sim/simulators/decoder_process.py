"""A decoder machine compiled by Verilator, as a process that takes tokens and gives tokens."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol

from fixedpoint import QuantizedTransformer
from fixedpoint.operators.sampling import XorShift32
from hdl.decoder.machine import Machine
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
FIELDS = ("token", "restart", "sample", "random", "multiplier", "amount")


def compile_decoder(machine: Machine, build_directory: Path, *, fast: bool = False) -> Path:
    """Return the program of a machine (`native/decoder.cpp`), compiled unless it has been before.

    Args:
        machine: The circuit.
        build_directory: Where compiled simulations are kept.
        fast: For many tokens: the compiler takes longer, the program less.

    Raises:
        ToolError: A tool is missing or failed.
    """
    harness = Harness(machine)
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
    """A machine that is simulated, one token at a time.

    Args:
        machine: The circuit.
        build_directory: Where compiled simulations are kept.

    Attributes:
        machine: The circuit.
        cycles: Clock edges of each token so far, from the token taken to the next one offered.

    Raises:
        ToolError: A tool is missing or failed.
    """

    def __init__(self, machine: Machine, build_directory: Path):
        self.machine = machine
        self.cycles: list[int] = []
        bench = compile_decoder(machine, build_directory)
        self._process = subprocess.Popen(
            [bench], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=tool_environment()
        )

    def step(self, token: int, *, restart: bool, choice: tuple[int, Temperature] | None = None) -> int:
        """Return the token after `token`, which begins a sequence if `restart` is set.

        Args:
            token: The sequence's next token.
            restart: It begins a sequence.
            choice: The random number and the temperature to sample with; None for the likeliest
                token.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            number, heat = choice or (1, Temperature(0, 0))
            words = token, int(restart), int(choice is not None), number, heat.multiplier, heat.amount
            self._process.stdin.write(" ".join(map(str, words)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer says so
        answer = self._process.stdout.readline().split()
        if len(answer) != 2:
            raise ToolError(f"the simulated decoder gave no token (exit status {self._process.wait()})")
        self.cycles.append(int(answer[1]))
        return int(answer[0])

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

    def step(self, token: int, *, restart: bool, choice: tuple[int, Temperature] | None = None) -> int:
        """Return the token after `token`; see `SimulatedDecoder`."""


def stream_tokens(
    decoder: Decoder, model: QuantizedTransformer, sequence: list[int], temperature: float = 0.0, seed: int = 0
) -> Iterator[None]:
    """Lengthen a token sequence in place, for ever, as the integer model does with the same seed;
    see `stream` in `model.generation.loop`.
    """
    heat = Temperature.of(model.logits.output, temperature) if temperature else None
    context_length, start, generator = model.context_length, -1, XorShift32.from_seed(seed, 1)
    while True:
        first = context_start(len(sequence), context_length)
        begin = len(sequence) - 1 if first == start else first
        for index in range(begin, len(sequence)):
            last = index == len(sequence) - 1
            choice = (int(generator.next()[0]), heat) if last and heat is not None else None
            chosen = decoder.step(sequence[index], restart=index == first, choice=choice)
        start = first
        sequence.append(chosen)
        yield


def _header(harness: Harness) -> str:
    source, sink = harness.sources[0], harness.sinks[0]
    places = payload_shape(harness.component.i)
    numbers = {
        "READY_BIT": source.flag_in,
        "VALID_BIT": sink.flag_in,
        "TOKEN_BITS": sink.width,
        "TOKEN_OUT": sink.offset,
        "I_VALID": source.flag_out,
        "O_READY": sink.flag_out,
        "WATCHDOG_CYCLES": WATCHDOG_CYCLES,
    }
    lines = [f"constexpr unsigned {name} = {value};" for name, value in numbers.items()]
    fields = [
        f"{{{source.offset + places[name].offset}, {places[name].width}}}" if name in places.members else "{0, 0}"
        for name in FIELDS
    ]
    lines.append(f"constexpr Field FIELDS[] = {{{', '.join(fields)}}}; // {', '.join(FIELDS)}")
    return "\n".join(lines) + "\n"
