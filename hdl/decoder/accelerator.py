# amaranth: UnusedElaboratable=no
# (an accelerator may be built only to ask for its cycles)
"""The decoder behind the serial link: tokens as bytes, their cycles, and what the machine's units
gave.
"""

from amaranth.hdl import Array, Cat, Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from fixedpoint.operators.sampling import MULTIPLIER_BITS

from ..errors import CircuitError
from ..parts.registers import data_register
from .machine import Machine
from .probe import COUNT_BITS, Probe
from .score_rows import RANDOM_BITS

# On the wire, lowest byte first. With `sample` the token is sampled; `unit` and `last` are a
# `Probe`'s.
REQUEST = data.StructLayout({"token": 16, "unit": 8, "last": COUNT_BITS})
SAMPLING_REQUEST = data.StructLayout(
    {**REQUEST.members, "sample": 8, "random": RANDOM_BITS, "multiplier": MULTIPLIER_BITS, "amount": 8}
)
RESULTS = 5  # the next token, its cycles, lower and upper half of the checksum, words counted
RESULT_BITS = 16


class DecoderAccelerator(wiring.Component):
    """A `Machine` for `hdl.board.link.HostLink`.

    A token arrives as a `REQUEST`, or a `SAMPLING_REQUEST` where the machine can sample; out come
    `RESULTS` numbers of 16 bits: the next token, the clock edges from the one taken to the other
    offered, at most 65,535, and a `Probe`'s checksum and count.

    Attributes:
        machine: The decoder.
        request: The layout of a token's bytes.
        i: In, stream of {data: signed byte, restart}: `request` a token.
        o: Out, stream of {data: 16 bits signed, last}: `RESULTS` a token.
    """

    def __init__(self, machine: Machine):
        if machine.plan.sequences > 1:
            raise CircuitError("a message carries one token: the serial link serves machines of one sequence")
        self.machine = machine
        self.request = SAMPLING_REQUEST if machine.plan.sampling else REQUEST
        self._probe = Probe(machine)
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": signed(8), "restart": 1}))),
                "o": Out(stream.Signature(data.StructLayout({"data": signed(RESULT_BITS), "last": 1}))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        m.submodules.machine = machine = self.machine
        m.submodules.probe = probe = self._probe
        size = self.request.size // 8
        received, restart = data_register(self.request), data_register(1)
        asked, running = Signal(), Signal()
        place = Signal(range(size))
        cycles, number = Signal(RESULT_BITS), Signal(range(RESULTS))
        wanted = machine.i.payload
        m.d.comb += [
            self.i.ready.eq(~asked & ~running),
            machine.i.valid.eq(asked),
            wanted.token.eq(received.token),
            wanted.restart.eq(restart),
            probe.unit.eq(received.unit),
            probe.last.eq(received.last),
            probe.start.eq(machine.i.valid & machine.i.ready),
        ]
        if machine.plan.sampling:
            m.d.comb += [wanted[name].eq(received[name]) for name in ("sample", "random", "multiplier", "amount")]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                received.as_value().eq(Cat(received.as_value()[8:], self.i.payload.data)),
                restart.eq(self.i.payload.restart),
                place.eq(place + 1),
            ]
            with m.If(place == size - 1):
                m.d.sync += [asked.eq(1), place.eq(0)]
        with m.If(probe.start):
            m.d.sync += [asked.eq(0), running.eq(1), cycles.eq(1)]
        with m.Elif(~machine.o.valid & ~cycles.all()):
            m.d.sync += cycles.eq(cycles + 1)
        halves = probe.checksum[:RESULT_BITS], probe.checksum[RESULT_BITS:]
        results = Array([machine.o.payload, cycles, *halves, probe.count])
        m.d.comb += [
            self.o.valid.eq(machine.o.valid),
            self.o.payload.last.eq(number == RESULTS - 1),
            self.o.payload.data.eq(results[number]),
            machine.o.ready.eq(self.o.ready & self.o.payload.last),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += number.eq(number + 1)
            with m.If(self.o.payload.last):
                m.d.sync += [number.eq(0), running.eq(0)]
        return m
