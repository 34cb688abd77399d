"""A small stream circuit for the simulation's own tests, right or wrong in a way that the words fed
to it say.
"""

from amaranth.hdl import Assert, Format, Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.enum import Enum
from amaranth.lib.wiring import In, Out


class Fault(Enum, shape=4):
    """What goes wrong; one circuit for all, so that it is built once."""

    NONE = 0
    VALUE = 1  # one wrong result
    DROP = 2  # one result lost
    EXTRA = 3  # the last result given twice
    DEADLOCK = 4  # no more input is taken
    UNSTABLE = 5  # an offered payload changes
    WITHDRAW = 6  # an offered payload is taken back
    WAITS = 7  # valid waits for ready
    CONSTANT = 8
    ASSERTION = 9
    RUBBISH = 10  # takes the payload without looking at valid


FAULTY_WORD = 13  # where VALUE, DROP, DEADLOCK and ASSERTION strike


class Doubler(wiring.Component):
    """A register slice that doubles: o.value = 2·i.value + offset, one cycle of latency, one word a
    cycle.
    """

    i: In(stream.Signature(data.StructLayout({"value": signed(8), "last": 1, "fault": Fault})))
    o: Out(stream.Signature(data.StructLayout({"value": signed(10), "last": 1})))
    offset: In(signed(4))

    def elaborate(self, platform):
        m = Module()
        faults = {fault: Signal(name=f"fault_{fault.name.lower()}") for fault in Fault}
        taken = Signal(16)
        full = Signal()
        again = Signal()
        result = 2 * self.i.payload.value + self.offset
        m.d.comb += [self.i.ready.eq(self.o.ready | ~full), self.o.valid.eq(full)]
        with m.If(self.i.ready):
            m.d.sync += full.eq(self.i.valid)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [faults[fault].eq(self.i.payload.fault == fault) for fault in Fault]
            m.d.sync += taken.eq(taken + 1)
            m.d.sync += [self.o.payload.value.eq(result), self.o.payload.last.eq(self.i.payload.last)]
            with m.If(taken == FAULTY_WORD):
                with m.If(faults[Fault.VALUE]):
                    m.d.sync += self.o.payload.value.eq(result + 1)
                with m.If(faults[Fault.DROP]):
                    m.d.sync += full.eq(0)
                m.d.sync += Assert(~faults[Fault.ASSERTION], Format("alarm on word {}", taken))
            with m.If(faults[Fault.CONSTANT]):
                m.d.sync += self.o.payload.eq(self.o.payload)
        with m.If(faults[Fault.DEADLOCK] & (taken == FAULTY_WORD)):
            m.d.comb += self.i.ready.eq(0)
            with m.If(self.o.ready):
                m.d.sync += full.eq(0)
        with m.If(faults[Fault.EXTRA] & self.o.valid & self.o.ready & self.o.payload.last & ~again):
            m.d.sync += [full.eq(1), again.eq(1)]
        with m.If(self.o.valid & ~self.o.ready):
            with m.If(faults[Fault.UNSTABLE]):
                m.d.sync += self.o.payload.value.eq(self.o.payload.value + 1)
            with m.If(faults[Fault.WITHDRAW]):
                m.d.sync += full.eq(0)
        with m.If(faults[Fault.WAITS]):
            m.d.comb += self.o.valid.eq(full & self.o.ready)
        with m.If(faults[Fault.RUBBISH] & self.o.ready & full & ~self.i.valid):
            m.d.sync += [full.eq(1), self.o.payload.value.eq(result)]
        return m
