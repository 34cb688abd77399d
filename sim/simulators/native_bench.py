"""Benches without Python in the loop: a circuit compiled by Verilator together with sources, sinks
and monitor in C++ (`native/harness.cpp`).

Some twenty times faster than cocotb, for many vectors; failures read like the other simulators'.
"""

import json
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from amaranth.back import rtlil
from amaranth.hdl import Elaboratable

from hdl import CircuitError, ToolError
from hdl.tools.toolchain import require_tool, tool_environment, tool_version

from ..bench.bench import BenchFailure
from ..bench.harness import Harness, stream_ports
from ..bench.payload import WORD_BITS, unpack
from ..bench.stalls import Stalls
from ..bench.streams import LONGEST_PAUSE_BITS, PAUSES_A_LONG_ONE, Port
from .builds import Compilation, copy_library, hash_texts, kept_build, refuse_spaces, simulator_environment
from .processes import run_logged, tail
from .runner import ASSERTION, rtlil_to_verilog

SOURCE = Path(__file__).with_name("native") / "harness.cpp"
NEEDED_TOOLS = ("yosys", "verilator", "perl", "make", "c++")
# One C++ file: less to compile, and none that needs a header of its own precompiled.
COMPILATION = Compilation(
    ("-O3", "--no-timing", "--output-split", "0", "--assert", "-CFLAGS", "-std=c++17 -I.."), "-O1"
)
OPTIONS = (
    *("--cc", "--exe", "--build", "--top-module", "top", "-Mdir", "objects", "-o", "bench"),
    *("--x-initial", "unique", "-Wno-fatal", "-Wno-lint", *COMPILATION.options),
)
# What is simulated for hours: twice as long to compile.
FAST = "-O3 -march=native"
PROBABILITY_ONE = 1 << 32
IDLE_CYCLES = 64
WATCHDOG_CYCLES = 10_000
# The C++'s verdict on a stream that breaks the rules → the rest of the message.
BROKEN_RULES = {"withdrawn": "then valid fell", "protocol": "then the payload became {got}"}


@dataclass(frozen=True)
class NativeResult:
    """A run in which every result was the expected one.

    Attributes:
        results: Words compared on all outputs, those before a reset in the middle left out.
        cycles: Clock edges from the first input taken to the last output given.
        total_cycles: All clock edges.
    """

    results: int
    cycles: int
    total_cycles: int


@dataclass(frozen=True)
class NativeBench:
    """A compiled circuit with its sources and sinks.

    Attributes:
        name: For messages.
        executable: The program.
        sources, sinks: The streams.
        shapes: Payload shapes of the sinks.
    """

    name: str
    executable: Path
    sources: tuple[Port, ...]
    sinks: tuple[Port, ...]
    shapes: Mapping[str, object]

    @classmethod
    def build(cls, name: str, harness: Harness, build_directory: Path) -> "NativeBench":
        """Compile a circuit, unless it has been before.

        Raises:
            ToolError: A tool is missing or failed.
        """
        directory = compile_bench(name, harness, {"ports.h": _ports_header(harness)}, SOURCE, build_directory)
        _, shapes = stream_ports(harness.component)
        return cls(name, directory / "bench", tuple(harness.sources), tuple(harness.sinks), shapes)

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        stalls: Stalls | None = None,
        *,
        expected_cycles: int | None = None,
    ) -> NativeResult:
        """Feed the circuit and compare.

        Args:
            inputs: For each stream input, what `sim.bench.payload.pack_words` returns for its
                payloads.
            outputs: The same for each stream output: all that must come.
            stalls: Full speed without a reset if None.
            expected_cycles: As `sim.bench.bench.StreamBench`'s: checked where nothing pauses.

        Raises:
            BenchFailure: The circuit did not do what was expected.
            ToolError: The program could not run.
        """
        stalls = stalls or Stalls()
        if not sum(map(len, outputs.values())):
            raise CircuitError(f"{self.name} gives no result, so this bench cannot fail")
        with tempfile.TemporaryDirectory(prefix="positron-bench-") as made:
            directory = Path(made)
            with (directory / "vectors").open("wb") as file:
                for port, words in self._words(inputs, outputs):
                    if words.shape[1] != -(-port.width // WORD_BITS):
                        raise CircuitError(
                            f"{port.name} has {port.width} bits; its payloads come in {words.shape[1]} words"
                        )
                    file.write(np.uint64(len(words)).tobytes())
                    file.write(np.ascontiguousarray(words, dtype=np.uint32).tobytes())
            thresholds = [int(probability * PROBABILITY_ONE) for probability in (stalls.source, stalls.sink)]
            numbers = [stalls.seed, *thresholds, stalls.reset_after, stalls.sink_delay, IDLE_CYCLES, WATCHDOG_CYCLES]
            log = directory / "log"
            status = run_logged(
                [str(self.executable), "vectors", "result", *map(str, numbers)], log, tool_environment(), directory
            )
            result = directory / "result"
            if status not in (0, 1) or not result.exists():
                failed = ASSERTION.search(log.read_text(encoding="utf-8", errors="replace"))
                if failed:
                    message = failed.group(1).strip() or "no message"
                    raise BenchFailure("assertion", self.name, f"an assertion of the circuit failed: {message}")
                raise ToolError(f"the bench of {self.name} ended with exit status {status}:\n{tail(log)}")
            record = json.loads(result.read_text(encoding="utf-8"))
        return self._judge(record, inputs, outputs, stalls, expected_cycles)

    def _words(
        self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[Port, np.ndarray]]:
        for ports, words in ((self.sources, inputs), (self.sinks, outputs)):
            if {port.name for port in ports} != set(words):
                raise CircuitError(
                    f"{self.name} has streams {', '.join(port.name for port in ports)}, not {', '.join(words)}"
                )
            yield from ((port, words[port.name]) for port in ports)

    def _judge(
        self,
        record: dict,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        stalls: Stalls,
        expected_cycles: int | None,
    ) -> NativeResult:
        """Raise `BenchFailure` unless the run did what was expected."""
        counts = ", ".join(f"{port} gave {given} of {len(outputs[port])}" for port, given in record["received"].items())
        where = f"{counts} (native bench, {stalls}, {record['total_cycles']} cycles)"

        def fail(kind: str, message: str, **details: Any) -> NoReturn:
            raise BenchFailure(kind, self.name, f"{message}; {where}", **details)

        stopped = record["stopped"]
        if stopped != "done" and "port" in record:
            port, index = record["port"], record["index"]
            got, offered = (unpack(self.shapes[port], int(record[name], 16)) for name in ("got", "offered"))
            place = {"port": port, "index": index}
            if stopped in BROKEN_RULES:
                rule = BROKEN_RULES[stopped].format(got=got)
                fail("protocol", f"{port}[{index}]: {offered} was offered, {rule} before the transfer", **place)
            if stopped == "extra":
                fail("extra", f"{port}[{index}]: nothing expected, got {got}", got=got, **place)
            expected = unpack(self.shapes[port], int.from_bytes(outputs[port][index].astype("<u4").tobytes(), "little"))
            fail("value", f"{port}[{index}]: expected {expected}, got {got}", expected=expected, got=got, **place)
        untaken = {port: len(words) - record["sent"][port] for port, words in inputs.items()}
        if any(untaken.values()):
            left = ", ".join(f"{count} of {port}" for port, count in untaken.items() if count)
            fail("deadlock", f"no transfer for {WATCHDOG_CYCLES} cycles, inputs not taken: {left}")
        for port, words in outputs.items():
            if record["received"][port] != len(words):
                fail("missing", f"{port}: nothing came for {WATCHDOG_CYCLES} cycles", port=port)
        if stopped != "done":
            fail("missing", f"the run ended early ({stopped})")
        if stalls.at_full_speed and expected_cycles is not None and record["cycles"] != expected_cycles:
            message = f"{expected_cycles} cycles from first input to last output expected, {record['cycles']} taken"
            fail("cycles", message, expected=expected_cycles, got=record["cycles"])
        return NativeResult(sum(record["received"].values()), record["cycles"], record["total_cycles"])


def compile_bench(
    name: str,
    circuit: Elaboratable,
    texts: Mapping[str, str],
    source: Path,
    build_directory: Path,
    *,
    fast: bool = False,
) -> Path:
    """Return the directory of a circuit's simulation, the program `bench`, compiled unless it has
    been before.

    Args:
        name: For messages.
        circuit: The top module of the Verilog.
        texts: File name → text of what the source includes.
        source: The C++ program.
        build_directory: Where compiled simulations are kept.
        fast: For long simulations: it takes longer to compile.

    Raises:
        ToolError: A tool is missing or failed.
    """
    more = [f"OPT_FAST={FAST}"] if fast else []
    for tool in NEEDED_TOOLS:
        require_tool(tool)
    build_directory = Path(build_directory).resolve()
    refuse_spaces(build_directory)
    tools = [f"{tool} {tool_version(tool)}" for tool in NEEDED_TOOLS]
    netlist = rtlil.convert(circuit, name="top", emit_src=False)
    texts = {**texts, source.name: source.read_text(encoding="utf-8")}

    def make(directory: Path, log: Path) -> list[Path]:
        for file, text in {**texts, "top.v": rtlil_to_verilog(netlist)}.items():
            (directory / file).write_text(text, encoding="utf-8")
        objects = directory / "objects"
        objects.mkdir()
        library = COMPILATION.library(build_directory)
        copy_library(library, objects)
        flags = " ".join(shlex.quote(flag) for flag in (*COMPILATION.flags(library), *more))
        command = [str(require_tool("verilator")), *OPTIONS, "-MAKEFLAGS", flags, "top.v", source.name]
        status = run_logged(command, log, simulator_environment(), directory)
        if status:
            raise ToolError(f"verilator could not build {name} (exit status {status}); {log} ends:\n{tail(log)}")
        return [directory / "top.v", objects / "bench"]

    key = hash_texts(netlist, *OPTIONS, *COMPILATION.flags(), *more, *texts.values(), *tools)
    return kept_build(build_directory, f"native-{key}", make)


def _ports_header(harness: Harness) -> str:
    """Return `ports.h`."""

    def table(name: str, ports: list[Port]) -> str:
        for port in ports:
            assert re.fullmatch(r"\w+", port.name), port.name
        rows = "".join(
            f'    {{"{port.name}", {port.width}, {port.flag_out}, {port.flag_in}, {port.offset}}},\n' for port in ports
        )
        return f"static const std::vector<Port> {name} = {{\n{rows}}};\n"

    constants = f"constexpr Word PAUSES_A_LONG_ONE = {PAUSES_A_LONG_ONE}, LONGEST_PAUSE_BITS = {LONGEST_PAUSE_BITS};\n"
    return constants + table("SOURCES", harness.sources) + table("SINKS", harness.sinks)


__all__ = ["NativeBench", "NativeResult", "compile_bench"]
