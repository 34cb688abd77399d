"""Stimuli, expected results and their comparison: the same for every simulator."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from amaranth.hdl import Shape
from amaranth.lib import wiring

from hdl import CircuitError

from .harness import Harness, stream_ports
from .payload import unpack
from .stalls import Stalls
from .streams import Record


class BenchFailure(AssertionError):
    """A circuit did not do what its bench expects.

    Attributes:
        kind: 'value', 'constant', 'missing', 'extra', 'deadlock', 'protocol', 'undefined',
            'assertion' or 'cycles'.
        bench: The bench's name.
        port: The output port concerned, if one is.
        index: Index of the result on that port.
        expected: What should have come, as the payload's shape shows it.
        got: What came.
    """

    def __init__(
        self,
        kind: str,
        bench: str,
        message: str,
        port: str | None = None,
        index: int | None = None,
        expected: Any = None,
        got: Any = None,
    ):
        super().__init__(f"{bench}: {message}")
        self.kind, self.bench, self.port, self.index, self.expected, self.got = kind, bench, port, index, expected, got


@dataclass(frozen=True, eq=False)
class StreamBench:
    """A circuit with the stimuli of its inputs and the results expected of its outputs.

    Attributes:
        name: For people and for file names.
        component: A fresh component; its ports are streams, and plain inputs that stay constant.
        inputs: For each stream input, the raw words of its payloads (`sim.bench.payload.pack_all`
            makes them).
        outputs: For each stream output, the raw words expected, all of them.
        constants: Values of the plain inputs.
        expected_cycles: Clock edges from the one at which the first input is taken to the one at
            which the last output is, without stalls (a register in between: 1). Checked only in
            runs without stalls.
        idle_cycles: Cycles to wait for surplus results after the last expected one.
        watchdog_cycles: Cycles without any transfer that count as a deadlock.
    """

    name: str
    component: wiring.Component
    inputs: Mapping[str, Sequence[int]]
    outputs: Mapping[str, Sequence[int]]
    constants: Mapping[str, int] = field(default_factory=dict)
    expected_cycles: int | None = None
    idle_cycles: int = 64
    watchdog_cycles: int = 10_000

    def __post_init__(self) -> None:
        """Refuse a bench that does not fit its circuit or could not fail."""
        inputs, outputs = stream_ports(self.component)
        for kind, shapes, words in (("inputs", inputs, self.inputs), ("outputs", outputs, self.outputs)):
            if set(shapes) != set(words):
                raise CircuitError(
                    f"bench {self.name}: {kind} given for {sorted(words)}, the circuit has {sorted(shapes)}"
                )
            for port, shape in shapes.items():
                limit = 1 << Shape.cast(shape).width
                if len(words[port]) and not (min(words[port]) >= 0 and max(words[port]) < limit):
                    raise CircuitError(
                        f"bench {self.name}: {port} takes raw words from 0 to {limit - 1}; use sim.bench.payload"
                    )
        if not any(len(words) for words in self.outputs.values()):
            raise CircuitError(f"bench {self.name} expects no result, so it cannot fail")
        if self.idle_cycles < 1 or self.watchdog_cycles < 1:
            raise CircuitError(f"bench {self.name}: idle_cycles and watchdog_cycles must be at least 1")

    def harness(self) -> Harness:
        """Return the circuit in the form that the simulators run."""
        return Harness(self.component, self.constants)


@dataclass(frozen=True)
class SimulationResult:
    """The result of a bench that passed.

    Attributes:
        name: The bench.
        simulator: 'amaranth', 'verilator' or 'icarus'.
        transfers: For each output port, how many results were compared, all of them equal.
        cycles: Clock edges from the one at which the first input was taken to the one at which the
            last output was.
        total_cycles: All clock edges simulated.
        seed: Seed of the stalls and of the random data between transfers.
        source_stall: Probability that a source pauses for a cycle.
        sink_stall: Probability that a sink pauses.
        reset_after: Cycles after which the circuit was reset and the run began again; 0: no reset.
            Results from before are compared too, but not counted in `transfers` and `cycles`.
        sink_delay: Cycles after a reset in which no sink took a word.
        seconds: Wall time, building included, of all runs that were asked for together.
        simulation_seconds: Wall time of the simulation itself.
    """

    name: str
    simulator: str
    transfers: dict[str, int]
    cycles: int
    total_cycles: int
    seed: int
    source_stall: float
    sink_stall: float
    reset_after: int
    sink_delay: int
    seconds: float
    simulation_seconds: float


def plan(bench: StreamBench, harness: Harness) -> dict:
    """Return what `sim.bench.streams.Exchange` needs beside the stalls, as plain data."""
    return {
        "sources": [asdict(port) for port in harness.sources],
        "sinks": [asdict(port) for port in harness.sinks],
        "inputs": {name: [int(word) for word in words] for name, words in bench.inputs.items()},
        "expected_counts": {name: len(words) for name, words in bench.outputs.items()},
        "idle_cycles": bench.idle_cycles,
        "watchdog_cycles": bench.watchdog_cycles,
    }


def judge(bench: StreamBench, record: Record, stalls: Stalls, simulator: str) -> None:
    """Raise `BenchFailure` unless the run did what the bench expects.

    Args:
        bench: The bench.
        record: What happened.
        stalls: The run's stalls and resets.
        simulator: The simulator's name, for the message.
    """
    _, shapes = stream_ports(bench.component)
    where = f"({simulator}, {stalls}, {record.total_cycles} cycles)"
    counts = ", ".join(
        f"{port} gave {len(record.received[port])} of {len(bench.outputs[port])}" for port in bench.outputs
    )

    def fail(kind: str, message: str, **details: Any) -> NoReturn:
        raise BenchFailure(kind, bench.name, f"{message}; {counts} {where}", **details)

    received = [*record.received_before.items(), *record.received.items()]
    for port, got in received:
        wanted = bench.outputs[port]
        if len(got) > 1 and len(set(got)) == 1 and len({int(word) for word in wanted[: len(got)]}) > 1:
            fail("constant", f"{port} gives nothing but {unpack(shapes[port], got[0])}", port=port, index=0, got=got[0])
        for index, (expected_word, word) in enumerate(zip(wanted, got, strict=False)):
            if word != expected_word:
                values = {"expected": unpack(shapes[port], int(expected_word)), "got": unpack(shapes[port], word)}
                message = f"{port}[{index}]: expected {values['expected']}, got {values['got']}"
                fail("value", message, port=port, index=index, **values)
    match record.stopped:
        case "protocol":
            port, index, offered, later = record.detail
            values = {"expected": unpack(shapes[port], offered)}
            change = "valid fell" if later is None else f"the payload became {unpack(shapes[port], later)}"
            message = f"{port}[{index}]: {values['expected']} was offered, then {change} before the transfer"
            fail("protocol", message, port=port, index=index, **values)
        case "undefined":
            port = record.detail[0]
            fail("undefined", f"{port} carries bits that are neither 0 nor 1", port=port)
        case "assertion":
            fail("assertion", f"an assertion of the circuit failed: {record.detail[0]}")
    for port, wanted in bench.outputs.items():
        got = record.received[port]
        if len(got) > len(wanted):
            value = unpack(shapes[port], got[len(wanted)])
            fail(
                "extra",
                f"{port}[{len(wanted)}]: nothing expected, got {value}",
                port=port,
                index=len(wanted),
                got=value,
            )
    untaken = {
        port: len(words) - record.sent[port] for port, words in bench.inputs.items() if record.sent[port] < len(words)
    }
    if untaken:
        left = ", ".join(f"{count} of {port}" for port, count in untaken.items())
        fail("deadlock", f"no transfer for {bench.watchdog_cycles} cycles, inputs not taken: {left}")
    for port, wanted in bench.outputs.items():
        got = record.received[port]
        if len(got) < len(wanted):
            value = unpack(shapes[port], int(wanted[len(got)]))
            message = f"{port}[{len(got)}]: expected {value}, nothing came for {bench.watchdog_cycles} cycles"
            fail("missing", message, port=port, index=len(got), expected=value)
    if record.stopped != "done":
        fail("assertion", f"the simulation ended early ({record.stopped or 'no reason given'})")
    if bench.expected_cycles is not None and stalls.at_full_speed and record.cycles != bench.expected_cycles:
        values = {"expected": bench.expected_cycles, "got": record.cycles}
        fail(
            "cycles",
            f"{bench.expected_cycles} cycles from first input to last output expected, {record.cycles} taken",
            **values,
        )
