# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""Base-2 exponentials of a row's distances below its maximum, and their sum: what softmax and
sampling begin with.
"""

from amaranth.hdl import Assert, Format, Module, Mux, Signal, unsigned
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

import fixedpoint
from fixedpoint import QFormat

from .arithmetic import multiply, shape_of, shift_right_half_up
from .dot_product import Delay
from .exponential import Exponential
from .internals import Internals
from .multiplier import Multiplier
from .payload import connect
from .registers import data_register
from .stream_parts import StreamQueue, StreamRegister

MAXIMA = 16  # rows whose maximum is known and whose first score has not been read


class RowNumerators(wiring.Component):
    """The circuit under `SoftmaxNumerators`.

    Equation: `o[j] = exponential(t[j])`, `t[j] = (max(i) - i[j]) * multiplier / 2**shift`, rounding
    half up, `o_denominator = sum_j o[j]`; without a scale `t[j] = max(i) - i[j]`.

    A row waits in a FIFO while its maximum is found; then it is read, one numerator a cycle, while
    the next row arrives.

    Attributes:
        score: Format of the scores.
        length: The longest row.
        latency: 4 + E cycles from a row's last score taken to its first numerator offered, 9 + E
            with a scale.
        i: In, stream of {`field`, last}: rows of 1 to `length` scores, `last` on the final one.
        o: Out, stream of {numerator, last}.
        o_denominator: Out, stream of unsigned sums, one a row.
    """

    _noun = "softmax"

    def __init__(
        self,
        score: QFormat,
        length: int,
        exponential: fixedpoint.Exponential,
        scale: tuple[int, int] | None = None,
        field: str = "score",
    ):
        self.score = score
        self.length = length
        self._field = field
        self._scale = scale
        # The distance from which on every exponential is 0; unscaled, a distance is at most the
        # whole range of the scores.
        self._farthest = (exponential.output_bits + 1) << max(exponential.fraction, 0)
        width = score.bits if scale is None else self._farthest.bit_length()
        self._exponential = Exponential(exponential, width)
        self._scale_stages = 0 if scale is None else Multiplier.latency + 2
        self.latency = 4 + self._scale_stages + self._exponential.latency
        denominator = unsigned((length * exponential.maximum).bit_length())
        numerator = data.StructLayout({"numerator": unsigned(exponential.output_bits), "last": 1})
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({field: shape_of(score), "last": 1}))),
                "o": Out(stream.Signature(numerator)),
                "o_denominator": Out(stream.Signature(denominator)),
            }
        )

    def cycles(self, elements: int, rows: int = 1) -> int:
        """Return the cycles from the first score taken to the last denominator given, for rows of
        `elements` offered without a pause.
        """
        return (rows + 1) * elements - 1 + self.latency

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        length, shape = self.length, shape_of(self.score)
        layout = data.StructLayout({"score": shape, "last": 1})

        m.submodules.exponential = exponential = self._exponential
        # A row's first score is read three cycles after its last one has arrived.
        m.submodules.row = row = StreamQueue(layout, length + 2)
        m.submodules.maxima = maxima = fifo.SyncFIFOBuffered(width=self.score.bits, depth=MAXIMA)
        m.submodules.denominators = denominators = StreamRegister(self.o_denominator.payload.shape())
        enable = exponential.i.ready  # of everything before the exponential too

        # Store a row and find its maximum.
        index = Signal(range(max(length, 2)))  # an assertion's message wants at least a bit
        maximum = data_register(shape)
        found = Signal()
        score = self.i.payload[self._field]
        taken = self.i.valid & self.i.ready
        final = self.i.payload.last | (index == length - 1)
        m.d.comb += [
            self.i.ready.eq(row.i.ready & (maxima.level < MAXIMA - 1)),
            row.i.valid.eq(taken),
            row.i.payload.score.eq(score),
            row.i.payload.last.eq(final),
            maxima.w_en.eq(found),
            maxima.w_data.eq(maximum),
        ]
        m.d.sync += found.eq(taken & final)
        with m.If(taken):
            m.d.sync += index.eq(Mux(final, 0, index + 1))
            with m.If((index == 0) | (score > maximum)):
                m.d.sync += maximum.eq(score)
            m.d.sync += Assert(
                self.i.payload.last | (index != length - 1),
                Format(f"{self._noun} input: no last on element {{}} of a row of at most {{}}", index, length),
            )

        # Read it once the maximum is known; subtract; `valid` and `last` are delayed beside it.
        m.submodules.tags = tags = Delay(
            data.StructLayout({"valid": 1, "last": 1}), 1 + self._scale_stages + exponential.latency
        )
        issue = enable & maxima.r_rdy & row.o.valid
        distance = data_register(unsigned(self.score.bits))
        m.d.comb += [
            row.o.ready.eq(issue),
            maxima.r_en.eq(issue & row.o.payload.last),
            tags.en.eq(enable),
            tags.i.valid.eq(issue),
            tags.i.last.eq(row.o.payload.last),
            exponential.i.valid.eq(tags.taps[1 + self._scale_stages].valid),
            exponential.i.payload.eq(self._scaled(m, distance, enable)),
        ]
        with m.If(enable):
            m.d.sync += distance.eq(maxima.r_data.as_signed() - row.o.payload.score)

        # Give numerators and add them up.  The last one waits until there is room for the
        # denominator.
        hold = tags.o.last & ~denominators.i.ready
        total = Signal.like(self.o_denominator.payload)
        with_this = Signal.like(total)
        m.d.comb += [
            self.o.valid.eq(exponential.o.valid & ~hold),
            exponential.o.ready.eq(self.o.ready & ~hold),
            self.o.payload.numerator.eq(exponential.o.payload),
            self.o.payload.last.eq(tags.o.last),
            with_this.eq(total + exponential.o.payload),
            denominators.i.valid.eq(self.o.valid & self.o.ready & tags.o.last),
            denominators.i.payload.eq(with_this),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += total.eq(Mux(tags.o.last, 0, with_this))
        connect(m, wiring.flipped(self.o_denominator), denominators.o)
        parts = {"row": row, "maxima": maxima, "denominators": denominators, "tags": tags, "exponential": exponential}
        self.internals = Internals(**parts, index=index, found=found)
        return m

    def _scaled(self, m: Module, distance: Signal, enable: Signal) -> Signal:
        """Return the exponential's argument."""
        if self._scale is None:
            return distance
        multiplier, shift = self._scale
        product = multiply(m, "scale", distance, multiplier, enable)
        rounded = data_register(unsigned(max(1, len(product) + 1 - shift)))
        clipped = data_register(unsigned(self._exponential.width))
        with m.If(enable):
            m.d.sync += [
                rounded.eq(shift_right_half_up(product, shift)),
                clipped.eq(Mux(rounded > self._farthest, self._farthest, rounded)),
            ]
        return clipped
