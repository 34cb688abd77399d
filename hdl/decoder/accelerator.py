# amaranth: UnusedElaboratable=no
# (an accelerator may be built only to ask for its cycles)
"""The decoder behind the serial link: tokens as bytes, and how many cycles each took."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..parts.registers import data_register
from .machine import Machine

TOKEN_BYTES = 2  # of a token on the wire, lowest first
RESULTS = 2  # the next token, and the cycles it took
COUNT_BITS = 16


class DecoderAccelerator(wiring.Component):
    """A `Machine` for `hdl.board.link.HostLink`, whose messages have as many elements in as out.

    A token arrives in two bytes, the lower one first; out come the next token and the clock edges
    from the one taken to the other offered, at most 65,535, each in 16 bits.

    Attributes:
        machine: The decoder.
        i: In, stream of {data: signed byte, restart}: two a token.
        o: Out, stream of {data: 16 bits signed, last}: two a token.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": signed(8), "restart": 1}))),
                "o": Out(stream.Signature(data.StructLayout({"data": signed(COUNT_BITS), "last": 1}))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        m.submodules.machine = machine = self.machine
        low, has_low, asked, second = data_register(8), Signal(), Signal(), Signal()
        cycles = Signal(COUNT_BITS)
        wanted = data_register(machine.i.payload)
        m.d.comb += [self.i.ready.eq(~asked), machine.i.valid.eq(asked), machine.i.payload.eq(wanted)]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += has_low.eq(~has_low)
            with m.If(has_low):
                m.d.sync += [
                    asked.eq(1),
                    wanted.token.eq(Cat(low, self.i.payload.data)),
                    wanted.restart.eq(self.i.payload.restart),
                ]
            with m.Else():
                m.d.sync += low.eq(self.i.payload.data)
        with m.If(machine.i.valid & machine.i.ready):
            m.d.sync += [asked.eq(0), cycles.eq(1)]
        with m.Elif(~machine.o.valid & ~cycles.all()):
            m.d.sync += cycles.eq(cycles + 1)
        m.d.comb += [
            self.o.valid.eq(machine.o.valid),
            self.o.payload.last.eq(second),
            self.o.payload.data.eq(Mux(second, cycles, machine.o.payload)),
            machine.o.ready.eq(self.o.ready & second),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += second.eq(~second)
        return m
