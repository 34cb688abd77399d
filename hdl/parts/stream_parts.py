"""What joins streams and Amaranth's library lacks: a register that cuts every path, two kinds of
queue, and a converter between widths of words.
"""

from amaranth.hdl import Assert, Cat, Format, Module, Mux, Shape, ShapeLike, Signal, Value, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from ..errors import CircuitError
from .dot_product import Delay
from .internals import Internals
from .parameter_checks import check_shape, check_whole
from .payload import payload_shape
from .registers import data_register


def stall_together(m: Module, i: stream.Interface, o: stream.Interface, latency: int) -> Signal:
    """Join the handshakes of a pipeline that takes a payload a cycle and stalls as a whole
    while its result waits.

    Args:
        m: The module; gets a submodule `valid`.
        i: Stream in; its payload is left to the caller.
        o: Stream out, likewise.
        latency: Stages from `i` to `o`.

    Returns:
        The enable of every stage.
    """
    enable = Signal(name="enable")
    m.submodules.valid = valid = Delay(unsigned(1), latency)
    m.d.comb += [
        enable.eq(~o.valid | o.ready),
        i.ready.eq(enable),
        valid.en.eq(enable),
        valid.i.eq(i.valid),
        o.valid.eq(valid.o),
    ]
    return enable


class StreamRegister(wiring.Component):
    """A register slice: no path leads through it, neither from `i` to `o` nor from `o.ready` to
    `i.ready`.

    Equation: `o = i`.

    Latency: 1 cycle from a payload taken to it offered. Throughput: one a cycle.
    Resources: two registers of the payload and a multiplexer.

    Attributes:
        latency: 1.
        i: In, stream of the given shape.
        o: Out, stream of the same shape.

    Internals:
        It holds up to two payloads: the one that is offered, and one that arrived in the cycle in
        which the consumer first refused, of which the producer could not know yet.
    """

    latency = 1

    def __init__(self, shape: ShapeLike):
        check_shape("a stream register's shape", shape)
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        offered = data_register(self.o.payload)
        spare = data_register(self.o.payload)
        spare_valid = Signal()
        m.d.comb += [self.i.ready.eq(~spare_valid), self.o.payload.eq(offered)]
        with m.If(~self.o.valid | self.o.ready):
            m.d.sync += [
                offered.eq(Mux(spare_valid, spare, self.i.payload)),
                self.o.valid.eq(spare_valid | self.i.valid),
                spare_valid.eq(0),
            ]
        with m.Else():
            m.d.sync += spare_valid.eq(spare_valid | self.i.valid)
            with m.If(~spare_valid):
                m.d.sync += spare.eq(self.i.payload)
        self.internals = Internals(spare=spare, spare_valid=spare_valid)
        return m


class StreamQueue(wiring.Component):
    """A FIFO whose output comes from flip-flops.

    Equation: `o = i`. Latency: 3 cycles from a payload taken, with nothing before it, to it
    offered. Throughput: one a cycle from a depth of 3 on; one in two cycles with 2. Resources: a
    memory of `depth` - 1 payloads, in block RAM where the tools find that worth while, and a
    register of the payload.

    Attributes:
        depth: Payloads that the FIFO holds; the register holds one more.
        latency: 3.
        i: In, stream of the given shape.
        o: Out, stream of the same shape.

    Internals:
        Amaranth's buffered FIFO, whose block RAM answers late in the cycle, and a register behind
        it.
    """

    latency = 3

    def __init__(self, shape: ShapeLike, depth: int):
        check_shape("a queue's shape", shape)
        check_whole("a queue's depth", depth, 2)
        self.depth = depth
        self._width = Shape.cast(shape).width
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        m.submodules.memory = memory = SyncFIFOBuffered(width=self._width, depth=self.depth)
        word = data_register(self._width)
        m.d.comb += [
            memory.w_data.eq(self.i.payload),
            memory.w_en.eq(self.i.valid),
            self.i.ready.eq(memory.w_rdy),
            memory.r_en.eq(~self.o.valid | self.o.ready),
            Value.cast(self.o.payload).eq(word),
        ]
        with m.If(memory.r_en):
            m.d.sync += [word.eq(memory.r_data), self.o.valid.eq(memory.r_rdy)]
        self.internals = Internals(memory=memory)
        return m


class CreditQueue(wiring.Component):
    """A credit-controlled FIFO without back-pressure: the writer counts free places first.

    Equation: `o = data` of each cycle with `write`. Latency: 2 cycles from a payload written, with
    nothing before it, to it offered. Throughput: one a cycle.

    In simulation a write without room fails an assertion.
    Resources: a memory of `depth` - 1 payloads, distributed where it is small, and a register of
    the payload.

    Attributes:
        depth: Payloads that it holds, 3 or more: with two, the memory's only word would be read and
            written at once.
        level: Payloads that it holds now.
        latency: 2.
        write: In, 1 bit. Take `data`.
        data: In, of the given shape.
        o: Out, stream of the same shape.

    Internals:
        A FIFO with back-pressure compares its level in the cycle of a write, and the result goes to
        every cell of the memory; for wide payloads that is the longest path of a core. A pipeline
        that starts nothing without a free place for its result needs no such comparison.
    """

    latency = 2

    def __init__(self, shape: ShapeLike, depth: int):
        check_shape("a queue's shape", shape)
        check_whole("a queue's depth", depth, 3)
        self.depth = depth
        self.level = Signal(range(depth + 1))
        super().__init__({"write": In(1), "data": In(shape), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        places = self.depth - 1
        m.submodules.storage = storage = memory.Memory(
            shape=Shape.cast(payload_shape(self.o)).width, depth=places, init=[], attrs={"no_rw_check": 1}
        )
        write, read = storage.write_port(), storage.read_port(domain="comb")
        inner_level = Signal(range(places + 1))
        produce = Signal(range(places))
        consume = Signal(range(places))
        offered = data_register(len(read.data))
        load = Signal()
        m.d.comb += [
            write.en.eq(self.write),
            write.addr.eq(produce),
            write.data.eq(self.data),
            read.addr.eq(consume),
            load.eq((inner_level != 0) & (~self.o.valid | self.o.ready)),
            Value.cast(self.o.payload).eq(offered),
            self.level.eq(inner_level + self.o.valid),
        ]
        m.d.sync += [
            inner_level.eq(inner_level + self.write - load),
            Assert(~self.write | (inner_level != places), "a queue was written although it was full"),
        ]
        for place, step in ((produce, self.write), (consume, load)):
            with m.If(step):
                m.d.sync += place.eq(Mux(place == places - 1, 0, place + 1))
        with m.If(load):
            m.d.sync += [offered.eq(read.data), self.o.valid.eq(1)]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        self.internals = Internals(inner_level=inner_level, produce=produce, consume=consume)
        return m


class WidthConverter(wiring.Component):
    """Rows in words of `i_lanes` elements become rows in words of `o_lanes` elements; one of the
    two divides the other.

    Equation: the elements of `o`, word after word and lane after lane, are those of `i`. `last`
    stays on a row's final element.

    Latency: 1 cycle, from a word that completes one of `o` taken to that one offered. Throughput:
    a word of the narrower side each cycle, so that n of them pass in n cycles from the first one
    taken to the last one given. Resources: one register of the wider word.
    In simulation a row that ends inside a word of `o` is an assertion's failure; in hardware its
    end is lost.

    Attributes:
        element: Shape of an element.
        i_lanes, o_lanes: Elements a word.
        latency: 1.
        i: In, stream of {data: element, last}; with several lanes `data` is an array.
        o: Out, stream of {data, last}, of the same form.
    """

    latency = 1

    def __init__(self, element: ShapeLike, i_lanes: int, o_lanes: int):
        check_shape("a width converter's element", element)
        for name, lanes in (("i_lanes", i_lanes), ("o_lanes", o_lanes)):
            check_whole(f"a width converter's {name}", lanes)
        if i_lanes == o_lanes or max(i_lanes, o_lanes) % min(i_lanes, o_lanes):
            raise CircuitError(
                f"a width converter's lanes must differ, and one number divide the other, not be {i_lanes} and {o_lanes}"
            )
        self.element = element
        self.i_lanes, self.o_lanes = i_lanes, o_lanes
        super().__init__(
            {
                side: direction(stream.Signature(data.StructLayout({"data": word_shape(element, lanes), "last": 1})))
                for side, direction, lanes in (("i", In, i_lanes), ("o", Out, o_lanes))
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        widen = self.o_lanes > self.i_lanes
        ratio = self.o_lanes // self.i_lanes if widen else self.i_lanes // self.o_lanes
        narrow = Shape.cast(self.element).width * min(self.i_lanes, self.o_lanes)
        word, last = data_register(narrow * ratio), data_register()
        part = Signal(range(ratio))  # that arrives or leaves
        final = part == ratio - 1
        free = Signal()
        m.d.comb += free.eq(~self.o.valid | self.o.ready)
        # The elements shift by a narrow word, so that the first one ends up, or begins, in the
        # lowest bits.
        if widen:
            m.d.comb += [self.i.ready.eq(free), self.o.payload.data.eq(word), self.o.payload.last.eq(last)]
            with m.If(free):
                m.d.sync += self.o.valid.eq(self.i.valid & final)
            with m.If(free & self.i.valid):
                m.d.sync += [
                    word.eq(Cat(word[narrow:], self.i.payload.data)),
                    last.eq(self.i.payload.last),
                    part.eq(Mux(final, 0, part + 1)),
                    Assert(
                        final | ~self.i.payload.last,
                        Format("width converter: a row ends after {} of {} parts of a word", part + 1, ratio),
                    ),
                ]
        else:
            renewed = ~self.o.valid | final  # what it loads is a word of `i`, or nothing
            m.d.comb += [
                self.i.ready.eq(free & renewed),
                self.o.payload.data.eq(word),
                self.o.payload.last.eq(last & final),
            ]
            with m.If(free):
                m.d.sync += [
                    word.eq(Mux(renewed, Cat(self.i.payload.data), word[narrow:])),
                    last.eq(Mux(renewed, self.i.payload.last, last)),
                    self.o.valid.eq(~renewed | self.i.valid),
                    part.eq(Mux(renewed, 0, part + 1)),
                ]
        self.internals = Internals(part=part)
        return m


def word_shape(element: ShapeLike, lanes: int) -> ShapeLike:
    """Return the shape of `lanes` elements: the element itself for one lane, else an array."""
    return element if lanes == 1 else data.ArrayLayout(element, lanes)
