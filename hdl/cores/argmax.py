"""Argmax as a circuit: the most likely token of a row of logits."""

from amaranth.hdl import Assert, Cat, Const, Format, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from fixedpoint import QFormat

from ..errors import CircuitError
from ..parts.arithmetic import shape_of
from ..parts.dot_product import Delay
from ..parts.internals import Internals
from ..parts.parameter_checks import check_whole
from ..parts.registers import data_register
from ..parts.stream_parts import word_shape

LONGEST_ROW = 1 << 16


def check_row(name: str, length: int, lanes: int) -> None:
    """Refuse a longest row, or lanes, that make no circuit.

    Raises:
        CircuitError: Not a whole number from 1 to 65,536, or not a power of two.
    """
    check_whole(f"{name} length", length, 1, LONGEST_ROW)
    check_whole(f"{name} lanes", lanes)
    if lanes & (lanes - 1):
        raise CircuitError(f"{name} lanes must be a power of two, not {lanes}")


class ArgMax(wiring.Component):
    """`fixedpoint.argmax` as a circuit: rows of logits in, the lowest index of each row's maximum
    out.

    Equation: `o = min {j : i[j] = max(i)}`.

    Latency: 2 cycles and one for each doubling of `lanes`, from a row's last word taken to its
    token offered.
    Throughput: a word a cycle, rows back to back without a gap; everything stalls while a token
    waits.
    Resources: a comparator a lane and registers for two logits each.
    In simulation a row without `last` on its last word is an assertion's failure; in hardware it
    ends there.

    Attributes:
        logits: Format of the logits.
        length: The longest row.
        lanes: Logits in a word, a power of two. A row is whole words, but for those beyond
            `length`, which are left out.
        latency: The formula above.
        i: In, stream of {data: `logits`, last}: rows of 1 to `length` logits, `last` on the final
            word; with several lanes `data` is an array.
        o: Out, stream of {token}, unsigned indices, one a row.

    Internals:
        Stages: logits, comparisons within a word, comparison with the words before.
    """

    def __init__(self, logits: QFormat, length: int, lanes: int = 1):
        if not isinstance(logits, QFormat):
            raise TypeError(f"logits must be a fixedpoint.QFormat, not {type(logits).__name__}")
        check_row("argmax", length, lanes)
        self.logits = logits
        self.length = length
        self.lanes = lanes
        self._levels = ceil_log2(lanes)
        self.latency = 2 + self._levels
        words = word_shape(shape_of(logits), lanes)
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": words, "last": 1}))),
                "o": Out(stream.Signature(data.StructLayout({"token": range(length)}))),
            }
        )

    def cycles(self, elements: int, rows: int = 1) -> int:
        """Return the cycles from the first word taken to the last token given, for rows of
        `elements` offered without a pause.
        """
        return rows * -(-elements // self.lanes) - 1 + self.latency

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        words = -(-self.length // self.lanes)
        # An assertion's message wants at least a bit.
        place = Signal(range(max(words, 2)))
        best_index = Signal(range(max(self.length, 2)))
        best, token = data_register(shape_of(self.logits)), data_register(range(self.length))
        tag = data.StructLayout({"valid": 1, "first": 1, "last": 1, "index": place.shape()})
        m.submodules.tags = tags = Delay(tag, self.latency - 1)
        enable = Signal()
        final = self.i.payload.last | (place == words - 1)
        m.d.comb += [
            enable.eq(~self.o.valid | self.o.ready),
            self.i.ready.eq(enable),
            self.o.payload.token.eq(token),
            tags.en.eq(enable),
            tags.i.valid.eq(self.i.valid),
            tags.i.first.eq(place == 0),
            tags.i.last.eq(final),
            tags.i.index.eq(place),
        ]
        with m.If(enable):
            m.d.sync += self.o.valid.eq(tags.o.valid & tags.o.last)
            with m.If(self.i.valid):
                m.d.sync += place.eq(Mux(final, 0, place + 1))
                m.d.sync += Assert(
                    self.i.payload.last | (place != words - 1),
                    Format("argmax input: no last on element {} of a row of at most {}", place, words),
                )

        # A register a lane, then a level of comparisons a stage: values and their lanes.
        taken: list[tuple[Value, Value]] = []
        for lane in range(self.lanes):
            logit = data_register(shape_of(self.logits), name=f"logit_{lane}")
            with m.If(enable):
                m.d.sync += logit.eq(self.i.payload.data if self.lanes == 1 else self.i.payload.data[lane])
            taken.append((logit, Cat()))
        beyond = self.length % self.lanes  # first lane without a logit in the last word; 0: none
        for level in range(self._levels):
            whole = Const(1) if not beyond else tags.taps[1 + level].index != words - 1
            winners: list[tuple[Value, Value]] = []
            for pair, ((left, left_lane), (right, right_lane)) in enumerate(zip(taken[::2], taken[1::2], strict=True)):
                exists = whole if ((2 * pair + 1) << level) >= beyond else Const(1)
                larger = exists & (right > left)
                value = data_register(shape_of(self.logits), name=f"value_{level}_{pair}")
                lane_of = data_register(level + 1, name=f"lane_{level}_{pair}")
                with m.If(enable):
                    m.d.sync += [
                        value.eq(Mux(larger, right, left)),
                        lane_of.eq(Cat(Mux(larger, right_lane, left_lane), larger)),
                    ]
                winners.append((value, lane_of))
            taken = winners

        # Only a larger logit takes over: of equal ones the first stays.
        ((logit, lane),) = taken
        index = Cat(lane, tags.o.index)
        with m.If(enable & tags.o.valid):
            m.d.sync += token.eq(best_index)
            with m.If(tags.o.first | (logit > best)):
                m.d.sync += [best.eq(logit), best_index.eq(index), token.eq(index)]
        self.internals = Internals(place=place, best_index=best_index, token=token, tags=tags)
        return m
