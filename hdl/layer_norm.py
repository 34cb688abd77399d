# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""LayerNorm as a circuit, in whole numbers up to the reciprocal square root."""

from amaranth.hdl import Assert, Cat, Format, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

import fixedpoint
from fixedpoint import QFormat

from .arithmetic import saturate, shape_of
from .dot_product import Delay
from .errors import CircuitError
from .reciprocal import ReciprocalSquareRoot

LOW_BITS = 16  # of a difference: an unsigned part that fits a hard multiplier beside the root's mantissa
OUTPUT_MOVES = 12  # stages from an element's address to its result


class _Statistics(wiring.Component):
    """The sum S of a row and `v = C·Q − S² + epsilon`, with Q the row's sum of squares.

    S² is made of three products of half its width.  C·Q costs an addition for each bit of C's odd factor below the leading one: nothing
    for a power of two, one addition for 192 or 384.

    Attributes:
        settle: Cycles from the last element to `variance`; both results stay until the next row's first element.
        valid: In, 1 bit. An element arrives.
        first: In, 1 bit. It is a row's first.
        element: In, signed.
        total: Out, signed S.
        variance: Out, unsigned v.
    """

    def __init__(self, parameters: fixedpoint.LayerNorm):
        self.parameters = parameters
        self._trailing_zeros = (parameters.channels & -parameters.channels).bit_length() - 1
        self._odd_factor = parameters.channels >> self._trailing_zeros
        self.settle = max(6, 4 + self._odd_factor.bit_length())
        super().__init__(
            {
                "valid": In(1),
                "first": In(1),
                "element": In(shape_of(parameters.input)),
                "total": Out(signed(parameters.sum_bits)),
                "variance": Out(unsigned(parameters.variance_bits)),
            }
        )

    def elaborate(self, platform):
        """Build the circuit."""
        m = Module()
        parameters = self.parameters

        # Sums: one register before and one behind the multiplier.
        m.submodules.tags = tags = Delay(data.StructLayout({"valid": 1, "first": 1}), 2)
        m.d.comb += [tags.en.eq(1), tags.i.valid.eq(self.valid), tags.i.first.eq(self.first)]
        element = Signal.like(self.element)
        square = Signal(unsigned(2 * parameters.input.bits))
        squares = Signal(unsigned(parameters.square_sum_bits))
        m.d.sync += [element.eq(self.element), square.eq(element * element)]
        for tag, value, total in ((tags.taps[1], element, self.total), (tags.taps[2], square, squares)):
            with m.If(tag.valid):
                m.d.sync += total.eq(value + Mux(tag.first, 0, total))

        # S²: |S| in two halves; the outer two products do not overlap, so one addition joins all three.
        half = (parameters.sum_bits + 1) // 2
        magnitude = Signal(unsigned(2 * half))
        low, high = magnitude[:half], magnitude[half:]
        outer = Signal(unsigned(4 * half))
        cross = Signal(unsigned(2 * half))
        total_squared = Signal(unsigned(4 * half))
        m.d.sync += [
            magnitude.eq(Mux(self.total < 0, -self.total, self.total)),
            outer.eq(Cat(low * low, high * high)),
            cross.eq(low * high),
            total_squared.eq(outer + (cross << (half + 1))),
        ]

        # C·Q, Horner's scheme over the bits of the odd factor.
        multiple = squares
        for position in reversed(range(self._odd_factor.bit_length() - 1)):
            further = Signal(unsigned(parameters.variance_bits), name=f"multiple_{position}")
            m.d.sync += further.eq((multiple << 1) + (squares if self._odd_factor >> position & 1 else 0))
            multiple = further
        scaled = Signal(unsigned(parameters.variance_bits))
        m.d.sync += [
            scaled.eq((multiple << self._trailing_zeros) + parameters.epsilon),
            self.variance.eq(scaled - total_squared),
        ]
        return m


class LayerNorm(wiring.Component):
    """`fixedpoint.LayerNorm` as a circuit: rows of C elements in, normalized, scaled and shifted rows of C elements out.

    Equations, with S and Q the row's sums of elements and of squares: `v = C·Q − S² + epsilon`, `d_i = C·x_i − S`,
    `n_i = requantize(d_i / sqrt(v))`, `y_i = requantize(n_i · scale_i + shift_i)`.

    Three phases.  *Fill*: store the row, gather S and Q.  *Root*: v from the sums, then its reciprocal square root.
    *Output*: read the row again through one pipeline of two multiplications.  The next row fills as soon as this one's last element has been read.

    Latency: `latency` = 13 + K + R cycles from a row's last element taken to its first result offered; then one a cycle.
    K = max(6, 4 + bits of C's odd factor), to settle v; R = ceil(log2 ceil(variance_bits / 2)) + 2, the root's.
    Throughput: a row takes 2·C + K + R cycles.
    Resources: hard multipliers: 1 for x², 3 for S², 2 for d / sqrt(v), 1 for scale, and 1 for C·x unless C is a power of two.  Memories
    of C elements and of C pairs of scale and shift; the root's table.
    In simulation a `last` that does not agree with the count is an assertion's failure; in hardware the count alone decides.

    Source: Ba, Kiros, Hinton, "Layer Normalization", arXiv:1607.06450.

    Attributes:
        parameters: Formats, scale and shift.
        latency: The formula above.
        i: In, stream of {data: input format, last}: C elements, `last` on the C-th.
        o: Out, stream of {data: output format, last}: C elements, `last` on the C-th.
    """

    def __init__(self, parameters: fixedpoint.LayerNorm):
        if not isinstance(parameters, fixedpoint.LayerNorm):
            raise TypeError(f"parameters must be a fixedpoint.LayerNorm, not {type(parameters).__name__}")
        if parameters.reciprocal_square_root.mantissa_bits < parameters.normalized.fraction:
            raise CircuitError(
                f"LayerNorm of {parameters.channels} channels needs a reciprocal square root with at least "
                f"{parameters.normalized.fraction} mantissa bits, not {parameters.reciprocal_square_root.mantissa_bits}: "
                f"normalization would have to shift left"
            )
        self.parameters = parameters
        self._statistics = _Statistics(parameters)
        self._root = ReciprocalSquareRoot(parameters.reciprocal_square_root, parameters.variance_bits)
        self.latency = self._statistics.settle + self._root.latency + 1 + OUTPUT_MOVES
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": shape_of(parameters.input), "last": 1}))),
                "o": Out(stream.Signature(data.StructLayout({"data": shape_of(parameters.output), "last": 1}))),
            }
        )

    def cycles(self, rows: int = 1) -> int:
        """Return the cycles from the first element taken to the last result given, for rows offered without a pause."""
        channels = self.parameters.channels
        period = 2 * channels + self._statistics.settle + self._root.latency
        return (rows - 1) * period + 2 * (channels - 1) + self.latency

    def elaborate(self, platform):
        """Build the circuit."""
        m = Module()
        parameters = self.parameters
        channels = parameters.channels
        m.submodules.statistics = statistics = self._statistics
        m.submodules.root = root = self._root
        m.submodules.row = row = memory.Memory(shape=shape_of(parameters.input), depth=channels, init=[])
        write_port, read_port = row.write_port(), row.read_port()
        tag = data.StructLayout({"valid": 1, "last": 1, "index": range(channels)})
        m.submodules.tags = tags = Delay(tag, OUTPUT_MOVES)
        move = Signal()
        index = Signal(range(channels))
        last = Signal()
        m.d.comb += [
            move.eq(~self.o.valid | self.o.ready),
            last.eq(index == channels - 1),
            write_port.addr.eq(index),
            write_port.data.eq(self.i.payload.data),
            read_port.addr.eq(index),
            read_port.en.eq(move),
            statistics.valid.eq(self.i.valid & self.i.ready),
            statistics.first.eq(index == 0),
            statistics.element.eq(self.i.payload.data),
            root.i.payload.eq(statistics.variance),
            tags.en.eq(move),
            tags.i.last.eq(last),
            tags.i.index.eq(index),
            self.o.valid.eq(tags.o.valid),
            self.o.payload.last.eq(tags.o.last),
        ]

        # The phases.
        step = Signal()
        settled = Signal(range(statistics.settle))
        with m.If(step):
            m.d.sync += index.eq(Mux(last, 0, index + 1))
        with m.FSM(name="phase"):
            with m.State("FILL"):
                m.d.comb += [self.i.ready.eq(1), step.eq(self.i.valid), write_port.en.eq(self.i.valid)]
                with m.If(self.i.valid):
                    m.d.sync += Assert(
                        self.i.payload.last == last,
                        Format("LayerNorm input: last is {} on element {}", self.i.payload.last, index),
                    )
                    with m.If(last):
                        m.next = "SETTLE"
            with m.State("SETTLE"):
                m.d.sync += settled.eq(settled + 1)
                with m.If(settled == statistics.settle - 2):
                    m.d.sync += settled.eq(0)
                    m.next = "ASK"
            with m.State("ASK"):
                m.d.comb += root.i.valid.eq(1)
                with m.If(root.i.ready):
                    m.next = "WAIT"
            with m.State("WAIT"):
                # The row before may still stand in the stages that use its sum and root.
                m.d.comb += root.o.ready.eq(~Cat(stage.valid for stage in tags.taps[1:7]).any())
                with m.If(root.o.valid & root.o.ready):
                    m.next = "OUTPUT"
            with m.State("OUTPUT"):
                m.d.comb += [step.eq(move), tags.i.valid.eq(1)]
                with m.If(move & last):
                    m.next = "FILL"

        # A row's sum and root, kept while the next row fills.
        offset = Signal.like(statistics.total)
        mantissa = Signal.like(root.o.payload.mantissa)
        shift = Signal.like(root.o.payload.exponent)
        with m.If(root.o.valid & root.o.ready):
            m.d.sync += [
                offset.eq(statistics.total),
                mantissa.eq(root.o.payload.mantissa),
                shift.eq(root.o.payload.exponent - parameters.normalized.fraction),
            ]

        # Stages 2 to 9: element, C·x, minus S, two partial products, their sum, shift, clip, round.
        # The shift leaves one bit more than the result for rounding (shift_right_half_up_by's doubling).  Saturating to the
        # result's range and this bit first keeps the adder short; rounding can then exceed the range by one at most.
        normalized_format = parameters.normalized
        split = min(LOW_BITS, parameters.difference_bits - 1)
        element = Signal(shape_of(parameters.input))
        scaled = Signal(signed(parameters.sum_bits))
        difference = Signal(signed(parameters.difference_bits))
        low = Signal(unsigned(split + len(mantissa)))
        high = Signal(signed(parameters.difference_bits - split + len(mantissa)))
        quotient = Signal(signed(parameters.difference_bits + len(mantissa)))
        doubled = Signal(signed(len(quotient) + 1))
        clipped = Signal(signed(normalized_format.bits + 1))
        normalized = Signal(shape_of(normalized_format))
        with m.If(move):
            m.d.sync += [
                element.eq(read_port.data),
                scaled.eq(element * channels),
                difference.eq(scaled - offset),
                low.eq(difference[:split] * mantissa),
                high.eq(difference[split:].as_signed() * mantissa),
                quotient.eq((high << split) + low),
                doubled.eq((quotient << 1) >> shift),
                clipped.eq(saturate(doubled, QFormat(normalized_format.bits + 1, 0))),
                normalized.eq(saturate((clipped + 1) >> 1, normalized_format)),
            ]

        # Stages 10 to 12: times scale, plus shift, to the output format.  The shift in memory includes half an output unit: adding it rounds.
        half = (1 << parameters.output_shift) >> 1 if parameters.output_shift > 0 else 0
        total = Signal(signed(max(parameters.product_bits, half.bit_length()) + 1))
        pair = data.StructLayout({"scale": shape_of(parameters.scale_format), "shift": total.shape()})
        pairs = [
            {"scale": scale, "shift": shift + half}
            for scale, shift in zip(parameters.scale.tolist(), parameters.shift.tolist(), strict=True)
        ]
        m.submodules.affine = affine = memory.Memory(shape=pair, depth=channels, init=pairs)
        affine_port = affine.read_port()
        m.d.comb += [affine_port.addr.eq(tags.taps[7].index), affine_port.en.eq(move)]
        scale = Signal(shape_of(parameters.scale_format))
        product = Signal(signed(normalized_format.bits + parameters.scale_format.bits))
        beta = [Signal.like(total, name=f"beta_{stage}") for stage in range(2)]
        with m.If(move):
            m.d.sync += [
                scale.eq(affine_port.data.scale),
                beta[0].eq(affine_port.data.shift),
                product.eq(normalized * scale),
                beta[1].eq(beta[0]),
                total.eq(product + beta[1]),
            ]
            cast = (
                total >> parameters.output_shift if parameters.output_shift > 0 else total << -parameters.output_shift
            )
            m.d.sync += self.o.payload.data.eq(saturate(cast, parameters.output))
        return m
