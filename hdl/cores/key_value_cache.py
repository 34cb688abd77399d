"""The memory of attention as a core: a token's key and value go in, all keys and then all values so
far come out.
"""

from collections.abc import Iterable

from amaranth.hdl import Assert, Format, Module, Mux, Shape, ShapeLike, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from ..errors import CircuitError
from ..parts.dot_product import Delay
from ..parts.internals import Internals
from ..parts.parameter_checks import check_shape, check_whole
from ..parts.registers import data_register
from ..parts.stream_parts import word_shape

READ_STAGES = 2  # the memory, and the register behind it that its slow output deserves


class KeyValueCache(wiring.Component):
    """Stores each token's key and value, and gives back those of the tokens 0 to its own, in order.

    Equation: for token p of a sequence, `i` = key p, value p; `o` = key 0, …, key p, value 0, …,
    value p. A token starts a new sequence when `restart` is set on its first word, after reset, and
    after `context_length` tokens of a sequence.

    Latency: 3 cycles from a token's last word taken to its first key's first word offered.
    Throughput: one word a cycle in or out: with W = channels / lanes words a row, token p takes
    2·W + 2·(p + 1)·W cycles. Resources: a memory of 2·context_length·W words; no multiplier. In
    simulation a `last` that does not agree with the count is an assertion's failure; in hardware
    the count alone decides.

    Attributes:
        element: Shape of an element.
        channels: Elements of a key, and of a value.
        context_length: Tokens of a sequence.
        lanes: Elements a word; divides `channels`.
        words: W.
        i: In, stream of {data: element, restart, last}: 2·W words a token, `last` on the final one;
            with several lanes `data` is an array.
        o: Out, stream of {data: element, value, final, last}: `value` tells values from keys,
            `last` is set on a row's final word, `final` on the words of row p.

    Internals:
        Keys and values share one memory, so that one block RAM port serves both.
    """

    latency = 1 + READ_STAGES

    def __init__(self, element: ShapeLike, channels: int, context_length: int, lanes: int = 1):
        for name, number in (("channels", channels), ("context_length", context_length), ("lanes", lanes)):
            check_whole(f"key-value cache {name}", number)
        check_shape("key-value cache element", element)
        if channels % lanes:
            raise CircuitError(f"key-value cache lanes must divide its {channels} channels, not be {lanes}")
        self.element = element
        self.channels, self.context_length, self.lanes = channels, context_length, lanes
        self.words = channels // lanes
        word = word_shape(element, lanes)
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": word, "restart": 1, "last": 1}))),
                "o": Out(stream.Signature(data.StructLayout({"data": word, "value": 1, "final": 1, "last": 1}))),
            }
        )

    def cycles(self, positions: Iterable[int]) -> int:
        """Return the cycles from the first word taken to the last word given, without stalls.

        Args:
            positions: Each token's place in its sequence, 0 for the first.
        """
        return sum(2 * self.words * (position + 2) for position in positions) + self.latency - 2

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        words, rows = self.words, self.context_length
        width = Shape.cast(self.element).width * self.lanes
        m.submodules.cache = cache = memory.Memory(  # keys in the lower half, values in the upper
            shape=width, depth=2 * rows * words, init=[], attrs={"ram_style": "block"}
        )
        write_port, read_port = cache.write_port(), cache.read_port()
        values = rows * words  # where they begin

        giving, value = Signal(), Signal()
        word = Signal(range(max(words, 2)))  # of a row; an assertion's message wants at least a bit
        row = Signal(range(rows))  # that is given
        position = Signal(range(rows))  # of the token
        base = Signal(range(rows * words))  # its first address
        address = Signal(range(2 * rows * words))  # that is read
        last_word = word == words - 1

        # Take a key and a value.
        taken = self.i.valid & self.i.ready
        here = Mux(self.i.payload.restart & (word == 0) & ~value, 0, base)
        m.d.comb += [
            self.i.ready.eq(~giving),
            write_port.en.eq(taken),
            write_port.addr.eq(Mux(value, values, 0) + here + word),
            write_port.data.eq(self.i.payload.data),
        ]
        # Give the rows so far.
        enable, issue = Signal(), Signal()
        tag = data.StructLayout({"valid": 1, "value": 1, "final": 1, "last": 1})
        m.submodules.tags = tags = Delay(tag, READ_STAGES)
        final = row == position
        word_out = data_register(width)
        m.d.comb += [
            enable.eq(~self.o.valid | self.o.ready),
            issue.eq(giving & enable),
            read_port.en.eq(enable),
            read_port.addr.eq(address),
            tags.en.eq(enable),
            tags.i.valid.eq(giving),
            tags.i.value.eq(value),
            tags.i.final.eq(final),
            tags.i.last.eq(last_word),
            self.o.valid.eq(tags.o.valid),
            self.o.payload.data.eq(word_out),
            self.o.payload.value.eq(tags.o.value),
            self.o.payload.final.eq(tags.o.final),
            self.o.payload.last.eq(tags.o.last),
        ]
        with m.If(enable):
            m.d.sync += word_out.eq(read_port.data)

        with m.If(taken):
            m.d.sync += Assert(
                self.i.payload.last == (value & last_word),
                Format("key-value cache input: last is {} on word {} of a row", self.i.payload.last, word),
            )
            with m.If(self.i.payload.restart & (word == 0) & ~value):
                m.d.sync += [position.eq(0), base.eq(0)]
        with m.If(taken | issue):
            m.d.sync += word.eq(Mux(last_word, 0, word + 1))
        with m.If(taken & last_word):
            m.d.sync += value.eq(~value)
            with m.If(value):
                m.d.sync += giving.eq(1)
        with m.If(issue):
            m.d.sync += address.eq(address + 1)
            with m.If(last_word):
                m.d.sync += row.eq(row + 1)
                with m.If(final):
                    m.d.sync += [row.eq(0), value.eq(~value), address.eq(values)]
                    with m.If(value):
                        full = position == rows - 1
                        m.d.sync += [
                            giving.eq(0),
                            address.eq(0),
                            position.eq(Mux(full, 0, position + 1)),
                            base.eq(Mux(full, 0, base + words)),
                        ]
        counters = {"word": word, "row": row, "position": position, "base": base, "address": address}
        self.internals = Internals(giving=giving, value=value, **counters, cache=cache, tags=tags)
        return m
