"""What a decoder's units give, as one number that a host can compare with the specification's."""

from collections.abc import Iterable
from enum import IntEnum
from functools import reduce
from operator import xor

from amaranth.hdl import Cat, Module, Signal, Value, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..parts.dot_product import Delay
from ..parts.payload import payload_shape
from ..parts.registers import data_register
from .machine import Machine
from .program import Work

CHECKSUM_BITS, COUNT_BITS = 32, 16
POLYNOMIAL = 0x04C11DB7
FAN_IN = 4  # of an adder's stage, as a lookup table has


class Unit(IntEnum):
    """A unit whose words can be added up."""

    NONE = 0
    WEIGHTS = 1  # words that the engine reads from its memory
    RESIDUAL = 2  # embedding and sums
    NORMS = 3
    MATRICES = 4  # requantized results
    ROTATION = 5
    CONTEXT = 6
    ACTIVATION = 7


def fold(word: int) -> int:
    """Return a word's pieces of 32 bits, added without carry."""
    result = 0
    while word:
        result, word = result ^ (word & ((1 << CHECKSUM_BITS) - 1)), word >> CHECKSUM_BITS
    return result


def checksum(words: Iterable[int]) -> int:
    """Return the checksum of unsigned words.

    A word is folded and added, without carry, to the sum so far times x modulo the polynomial of
    CRC-32. Words of which one piece of 32 bits differs never have the same sum.
    """
    total = 0
    for word in words:
        total = (total << 1) ^ (POLYNOMIAL if total >> (CHECKSUM_BITS - 1) else 0)
        total = (total ^ fold(word)) & ((1 << CHECKSUM_BITS) - 1)
    return total


class Probe(wiring.Component):
    """The checksum of a unit's words of one token, up to one of them.

    Equation: `checksum(words[: last + 1])`.

    Latency: `latency` cycles after a word. Where few logits come a cycle, a token is offered one
    cycle before its last logits are in the checksum; an accelerator's answer has two numbers
    before it.
    Resources: a third of a lookup table for each bit of all units' words, and some 100: 580 with
    128 lanes, and 800 flip-flops.

    Attributes:
        latency: Cycles from a word to the checksum with it.
        start: In, 1 bit: a token begins.
        unit, last: In; stable from then on.
        checksum: Out.
        count: Out, words that the unit gave.
    """

    def __init__(self, machine: Machine):
        self._machine = machine
        self.latency = 2 + max(_stages(len(word)) for _, word in self._taps().values())
        super().__init__(
            {
                "start": In(1),
                "unit": In(Unit),
                "last": In(COUNT_BITS),
                "checksum": Out(CHECKSUM_BITS),
                "count": Out(COUNT_BITS),
            }
        )

    def _taps(self) -> dict[Unit, tuple[Value | None, Value]]:
        """Return when a unit gives a word, and the word; None for the engine, see `elaborate`."""
        machine = self._machine
        taps: dict[Unit, tuple[Value | None, Value]] = {
            # as the memory has them; the engine's elements may be wider
            Unit.WEIGHTS: (None, Cat(lane[: machine.plan.weight_element_bits] for lane in machine.engine.word)),
            Unit.RESIDUAL: (machine.residual.o.valid, machine.residual.o.values.as_value()),
            Unit.NORMS: (machine.norms.o.valid, machine.norms.o.data.as_value()),
            Unit.MATRICES: (machine.requantize.o.valid, machine.requantize.o.values.as_value()),
            Unit.CONTEXT: (machine.divide.o.valid, machine.divide.o.data.as_value()),
            Unit.ACTIVATION: (machine.hidden.o.valid, machine.hidden.o.values.as_value()),
        }
        if machine.rotate is not None:
            taps[Unit.ROTATION] = machine.rotate.o.valid, machine.rotate.o.values.as_value()
        return taps

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        machine = self._machine
        command = machine.sequencer.command
        m.submodules.weights = weights = Delay(unsigned(1), machine.memory_latency)
        m.d.comb += [weights.en.eq(1), weights.i.eq(command.valid & (command.work == Work.WEIGHTS))]
        folded, valids = [], []
        for unit, (valid, word) in self._taps().items():
            stages = _stages(len(word))
            name = unit.name.lower()
            m.submodules[f"{name}_valid"] = delay = Delay(unsigned(1), stages)
            m.d.comb += [delay.en.eq(1), delay.i.eq(weights.o if valid is None else valid)]
            pieces = [word[start : start + CHECKSUM_BITS] for start in range(0, len(word), CHECKSUM_BITS)]
            for stage in range(stages):
                groups = [pieces[start : start + FAN_IN] for start in range(0, len(pieces), FAN_IN)]
                pieces = [data_register(CHECKSUM_BITS, name=f"{name}_{stage}_{place}") for place in range(len(groups))]
                m.d.sync += [piece.eq(reduce(xor, group)) for piece, group in zip(pieces, groups, strict=True)]
            # Of the units that were not chosen nothing is added.
            chosen, given = Signal(CHECKSUM_BITS, name=f"{name}_chosen"), Signal(name=f"{name}_given")
            m.d.sync += [given.eq(delay.o & (self.unit == unit)), chosen.eq(0)]
            with m.If(delay.o & (self.unit == unit)):
                m.d.sync += chosen.eq(pieces[0])
            folded.append(chosen)
            valids.append(given)
        stepped = (self.checksum << 1) ^ self.checksum[-1].replicate(CHECKSUM_BITS) & POLYNOMIAL
        with m.If(self.start):
            m.d.sync += [self.checksum.eq(0), self.count.eq(0)]
        with m.Elif(reduce(lambda one, other: one | other, valids)):
            m.d.sync += self.count.eq(self.count + 1)
            with m.If(self.count <= self.last):
                m.d.sync += self.checksum.eq(stepped ^ reduce(xor, folded))
        return m


class ProbedMachine(wiring.Component):
    """A machine with its `Probe`, a token at a time.

    Attributes:
        machine: The decoder.
        plan: Its plan.
        i: In, stream of {choice, unit, last}: the machine's payload and the probe's inputs.
        o: Out, stream of {given, checksum}: the machine's payload, and the sum of the words that
            the unit gave up to the last one.
    """

    def __init__(self, machine: Machine):
        self.machine, self.plan = machine, machine.plan
        self._probe = Probe(machine)
        choice, given = payload_shape(machine.i), payload_shape(machine.o)
        taken = data.StructLayout({"choice": choice, "unit": Unit, "last": COUNT_BITS})
        answer = data.StructLayout({"given": given, "checksum": CHECKSUM_BITS})
        super().__init__({"i": In(stream.Signature(taken)), "o": Out(stream.Signature(answer))})

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        m.submodules.machine, m.submodules.probe = machine, probe = self.machine, self._probe
        m.d.comb += [
            machine.i.valid.eq(self.i.valid),
            self.i.ready.eq(machine.i.ready),
            Value.cast(machine.i.payload).eq(Value.cast(self.i.payload.choice)),
            probe.start.eq(self.i.valid & self.i.ready),
            self.o.valid.eq(machine.o.valid),
            machine.o.ready.eq(self.o.ready),
            Value.cast(self.o.payload.given).eq(Value.cast(machine.o.payload)),
            self.o.payload.checksum.eq(probe.checksum),
        ]
        with m.If(probe.start):
            m.d.sync += [probe.unit.eq(self.i.payload.unit), probe.last.eq(self.i.payload.last)]
        return m


def _stages(bits: int) -> int:
    """Return the stages in which a word of so many bits is folded, at least one."""
    pieces, stages = -(-bits // CHECKSUM_BITS), 0
    while pieces > 1 or not stages:
        pieces, stages = -(-pieces // FAN_IN), stages + 1
    return stages
