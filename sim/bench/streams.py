"""Drivers, monitors and watchdog of streams, clock edge by clock edge, for every simulator.

This runs inside the simulator, so it imports nothing heavy and works on plain integers: all the
circuit's outputs arrive as one word, all its inputs leave as another (`sim.bench.harness` makes the
circuit of that form).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

RESET_CYCLES = 2
# One pause in 1024 is long: pauses of a cycle alone never last as long as the circuit's own work.
PAUSES_A_LONG_ONE = 1024
LONGEST_PAUSE_BITS = 12


@dataclass(frozen=True)
class Port:
    """Where a stream's signals lie in the two words.

    Attributes:
        name: The component's attribute.
        width: Bits of the payload.
        flag_out: Bit of `valid` (of `ready`, for a sink) in the word that the bench writes.
        flag_in: Bit of `ready` (of `valid`, for a sink) in the word that the bench reads.
        offset: Lowest bit of the payload, in the word that is written for a source, read for a
            sink.
    """

    name: str
    width: int
    flag_out: int
    flag_in: int
    offset: int


def long_pause(random: Random) -> int:
    """Return the cycles of a long pause; each bit length up to the limit is equally likely."""
    bits = random.randrange(LONGEST_PAUSE_BITS)
    return 1 << bits | random.getrandbits(bits)


class SourceDriver:
    """Offers words on an input port of the circuit; holds each until it is taken, with random data
    between.

    Attributes:
        port: The port.
        sent: Words taken.
        pause: Cycles that are left of a long pause.
    """

    def __init__(self, port: Port, words: Sequence[int], stall: float, seed: str):
        self.port = port
        self.sent = 0
        self.pause = 0
        self._words = words
        self._stall = stall
        self._random = Random(seed)
        self._ready_bit = 1 << port.flag_in
        self._valid_bit = 1 << port.flag_out
        self._valid = False
        self._contribution = self._random_data()

    def _random_data(self) -> int:
        return self._random.getrandbits(self.port.width) << self.port.offset if self.port.width else 0

    @property
    def exhausted(self) -> bool:
        """Whether every word has been taken."""
        return self.sent == len(self._words)

    def edge(self, outputs: int) -> bool:
        """Take note of one clock edge; return whether a word was taken at it."""
        transfer = False
        if self._valid:
            if not outputs & self._ready_bit:
                return False
            self.sent += 1
            transfer = True
        self._valid = self.sent < len(self._words) and not self._pauses()
        if self._valid:
            self._contribution = self._words[self.sent] << self.port.offset | self._valid_bit
        else:
            self._contribution = self._random_data()
        return transfer

    def _pauses(self) -> bool:
        if self.pause:
            self.pause -= 1
            return True
        if not self._stall:
            return False
        drawn = self._random.random()
        if drawn * PAUSES_A_LONG_ONE < self._stall:
            self.pause = long_pause(self._random) - 1
        return drawn < self._stall

    def restart(self) -> None:
        """Withdraw the offer and begin again with the first word."""
        self.sent = self.pause = 0
        self._valid = False
        self._contribution = self._random_data()

    def inputs(self) -> int:
        """Return this port's bits of the word to write."""
        return self._contribution


class SinkDriver:
    """Decides when an output port's words are taken.

    A stall lasts one cycle, or until the circuit has shown `valid`: a circuit whose `valid` waits
    for `ready` would deadlock. Now and then a stall is a long one.

    Attributes:
        port: The port.
        ready: Whether a word is taken at the next clock edge.
        pause: Cycles that are left of the delay after a reset, or of a long pause.
    """

    def __init__(self, port: Port, stall: float, seed: str, sink_delay: int = 0):
        self.port = port
        self.ready = False
        self.pause = sink_delay
        self._delay = sink_delay
        self._stall = stall
        self._random = Random(seed)
        self._valid_bit = 1 << port.flag_in
        self._ready_bit = 1 << port.flag_out
        self._until_valid = False

    def edge(self, outputs: int) -> None:
        """Decide about the next clock edge."""
        if self.pause:
            self.pause -= 1
            self.ready = False
            return
        if not self._stall:
            self.ready = True
            return
        if self._until_valid and not outputs & self._valid_bit:
            return
        self._until_valid = False
        drawn = self._random.random()
        self.ready = drawn >= self._stall
        if drawn * PAUSES_A_LONG_ONE < self._stall:
            self.pause = long_pause(self._random) - 1
        elif not self.ready:
            self._until_valid = self._random.random() < 0.5

    def restart(self) -> None:
        """Begin with the delay after a reset; a pause until valid ends."""
        self._until_valid = False
        self.pause = self._delay

    def inputs(self) -> int:
        """Return this port's bits of the word to write."""
        return self._ready_bit if self.ready else 0


class Monitor:
    """Collects an output port's words and checks that an offer is held until it is taken."""

    def __init__(self, port: Port):
        self.port = port
        self.words: list[int] = []
        self._valid_bit = 1 << port.flag_in
        self._mask = (1 << port.width) - 1
        self._waiting: int | None = None

    def edge(self, outputs: int, ready: bool) -> bool:
        """Take note of one clock edge; return whether a word was given at it.

        Raises:
            ProtocolViolation: Valid fell, or the payload changed, before the transfer.
        """
        waiting = self._waiting
        if not outputs & self._valid_bit:
            if waiting is not None:
                raise ProtocolViolation(self.port.name, len(self.words), waiting, None)
            return False
        word = outputs >> self.port.offset & self._mask
        if waiting is not None and word != waiting:
            raise ProtocolViolation(self.port.name, len(self.words), waiting, word)
        if not ready:
            self._waiting = word
            return False
        self._waiting = None
        self.words.append(word)
        return True

    def restart(self) -> list[int]:
        """Forget the words given and the offer; return the former."""
        words, self.words, self._waiting = self.words, [], None
        return words


class ProtocolViolation(Exception):
    """An offer was withdrawn or changed before its transfer.

    Arguments: port, index, word offered, word a cycle later (None: no valid).
    """


@dataclass
class Record:
    """What happened in a run; plain data, so that it can travel as JSON from a simulator's process.

    Attributes:
        received: The words that each output port gave, since the reset in the middle if there was
            one.
        sent: How many words each input port took since then.
        received_before: The words that each output port gave before the reset in the middle; empty
            where there was none.
        cycles: Clock edges from the one at which the first input was taken to the one at which the
            last output was, since then.
        total_cycles: All clock edges of the run.
        stopped: Why the run ended: 'done', 'surplus' (a result too many), 'deadlock', 'protocol',
            'undefined' or 'assertion'.
        detail: For 'protocol', port, index, offered and later word; for 'undefined', the port; for
            'assertion', the message.
        seconds: Wall time of the simulation alone.
    """

    received: dict[str, list[int]] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    received_before: dict[str, list[int]] = field(default_factory=dict)
    cycles: int = 0
    total_cycles: int = 0
    stopped: str = ""
    detail: list = field(default_factory=list)
    seconds: float = 0.0


class Exchange:
    """Drives and watches all streams of a circuit.

    Attributes:
        stopped: Empty while the run goes on, then why it ended (see `Record.stopped`).
    """

    def __init__(self, plan: dict, stalls: dict):
        """Take the results of `sim.bench.bench.plan` and `asdict` of `sim.bench.stalls.Stalls`."""
        seed, reset_after = stalls["seed"], stalls["reset_after"]
        self._sources = [
            SourceDriver(Port(**port), plan["inputs"][port["name"]], stalls["source"], f"{seed} source {port['name']}")
            for port in plan["sources"]
        ]
        self._sinks = [
            (
                SinkDriver(Port(**port), stalls["sink"], f"{seed} sink {port['name']}", place * stalls["sink_delay"]),
                Monitor(Port(**port)),
            )
            for place, port in enumerate(plan["sinks"], start=1)
        ]
        self._expected = [plan["expected_counts"][sink.port.name] for sink, _ in self._sinks]
        self._num_inputs = sum(len(words) for words in plan["inputs"].values())
        self._idle_cycles = plan["idle_cycles"]
        self._watchdog_cycles = plan["watchdog_cycles"]
        self._reset_at = RESET_CYCLES + reset_after if reset_after else None
        self._received_before: dict[str, list[int]] = {}
        self._now = 0
        self._detail: list = []
        self._begin(RESET_CYCLES)

    def _begin(self, reset_cycles: int) -> None:
        """Begin with a reset; all words are again to be taken and given."""
        self._reset_left = reset_cycles
        self._missing = sum(self._expected)
        self._unsent = self._num_inputs
        self._quiet = 0
        self._first: int | None = None
        self._last = 0
        self.stopped = ""

    def _restart(self) -> None:
        """Reset all, in the middle of the run."""
        self._reset_at = None
        for source in self._sources:
            source.restart()
        for sink, monitor in self._sinks:
            sink.restart()
            self._received_before[sink.port.name] = monitor.restart()
        self._begin(1)

    def start(self) -> int:
        """Return the word to write before the first clock edge: reset and random payloads."""
        return 1 | self._inputs()

    def _inputs(self) -> int:
        word = 0
        for source in self._sources:
            word |= source.inputs()
        for sink, _ in self._sinks:
            word |= sink.inputs()
        return word

    def edge(self, outputs: int, undefined: int = 0) -> int:
        """Take note of one clock edge.

        Args:
            outputs: The circuit's outputs just before the edge.
            undefined: The bits of `outputs` that are neither 0 nor 1 (only some simulators know).

        Returns:
            The word to write after the edge.
        """
        self._now += 1
        if self._reset_left:
            self._reset_left -= 1
            if self._reset_left:
                return self.start()
            for source in self._sources:  # the last edge of the reset: nothing was offered yet
                source.edge(outputs)
        else:
            if undefined and self._is_undefined(outputs, undefined):
                return self._inputs()
            goes_on = self._observe(outputs)
            if self._reset_at is not None and (self._now == self._reset_at if goes_on else self.stopped == "done"):
                self._restart()
                return self.start()
            if not goes_on:
                return self._inputs()
        word = 0
        for source in self._sources:
            word |= source.inputs()
        for sink, _ in self._sinks:
            sink.edge(outputs)
            word |= sink.inputs()
        return word

    def _observe(self, outputs: int) -> bool:
        """Let every port see the edge; return whether the run goes on."""
        quiet = True
        for number, (sink, monitor) in enumerate(self._sinks):
            try:
                given = monitor.edge(outputs, sink.ready)
            except ProtocolViolation as violation:
                self.stopped, self._detail = "protocol", list(violation.args)
                return False
            if given:
                quiet = False
                self._last = self._now
                self._missing -= 1
                if len(monitor.words) > self._expected[number]:
                    self.stopped = "surplus"
                    return False
        for source in self._sources:
            if source.edge(outputs):
                quiet = False
                self._unsent -= 1
                if self._first is None:
                    self._first = self._now
        if not quiet:
            self._quiet = 0
            return True
        if any(source.pause for source in self._sources) or any(sink.pause for sink, _ in self._sinks):
            return True  # no transfer is due
        self._quiet += 1
        if not self._missing and not self._unsent:
            if self._quiet >= self._idle_cycles:
                self.stopped = "done"
        elif self._quiet >= self._watchdog_cycles:
            self.stopped = "deadlock"
        return not self.stopped

    def _is_undefined(self, outputs: int, undefined: int) -> bool:
        for source in self._sources:
            if undefined >> source.port.flag_in & 1:
                self.stopped, self._detail = "undefined", [source.port.name]
        for sink, _ in self._sinks:
            port = sink.port
            payload = ((1 << port.width) - 1) << port.offset
            if undefined >> port.flag_in & 1 or (outputs >> port.flag_in & 1 and undefined & payload):
                self.stopped, self._detail = "undefined", [port.name]
        return bool(self.stopped)

    def record(self, seconds: float) -> Record:
        """Return what has happened."""
        return Record(
            received={sink.port.name: monitor.words for sink, monitor in self._sinks},
            sent={source.port.name: source.sent for source in self._sources},
            received_before=self._received_before,
            cycles=max(0, self._last - self._first) if self._first is not None else 0,
            total_cycles=self._now,
            stopped=self.stopped,
            detail=self._detail,
            seconds=seconds,
        )
