# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""Softmax as circuits: the numerators alone, for attention, and the whole function."""

from itertools import pairwise

from amaranth.hdl import Assert, Format, Module, Mux, Signal, unsigned
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

import fixedpoint

from ..errors import CircuitError
from ..parts.arithmetic import multiply, saturate, shape_of
from ..parts.dot_product import Delay
from ..parts.exponential import Exponential
from ..parts.internals import Internals
from ..parts.multiplier import OPERAND_BITS, Multiplier
from ..parts.payload import connect
from ..parts.reciprocal import Reciprocal
from ..parts.registers import data_register
from ..parts.stream_parts import StreamQueue, StreamRegister

MAXIMA = 16  # rows whose maximum is known and whose first score has not been read


def _check(parameters: fixedpoint.Softmax) -> None:
    if not isinstance(parameters, fixedpoint.Softmax):
        raise TypeError(f"parameters must be a fixedpoint.Softmax, not {type(parameters).__name__}")


class SoftmaxNumerators(wiring.Component):
    """`fixedpoint.Softmax.numerators` as a circuit, and the sum of a row's numerators beside it.

    Equation: `o[j] = exponential(max(i) - i[j])`, `o_denominator = sum_j o[j]`.

    The denominator of a row is offered from the cycle after its last numerator has been taken. Two
    denominators may wait before the last numerator of another row does: a consumer takes numerators
    first and the denominator afterwards, or both as they come.

    Latency: `latency` = 4 + E cycles from a row's last score taken to its first numerator offered:
    maximum, FIFO, score, subtraction, and E = 3 or more of `Exponential`; then one a cycle.
    Throughput: one a cycle, rows of one length back to back without a gap. Short rows right behind
    a long one wait once 15 of them are whole. Resources: a FIFO of `length` + 2 scores, an
    `Exponential`, no multiplier. In simulation a row without `last` on its `length`-th score is an
    assertion's failure; in hardware it ends there.

    Source: base 2 instead of e: Stevens et al., "Softermax: Hardware/Software Co-Design of an
    Efficient Softmax for Transformers", arXiv:2103.09301.

    Attributes:
        parameters: Formats, the longest row, the exponential.
        latency: The formula above.
        i: In, stream of {score: `parameters.score`, last}: rows of 1 to `length` scores, `last` on
            the final one.
        o: Out, stream of {numerator, last}: unsigned, `exponential.output_bits` bits, full scale 1.
        o_denominator: Out, stream of a row's sum of numerators, `denominator_bits` unsigned bits.

    Internals:
        A row waits in a FIFO for its maximum; it is read while the next row arrives.
    """

    def __init__(self, parameters: fixedpoint.Softmax):
        _check(parameters)
        self.parameters = parameters
        function = parameters.exponential
        # Unscaled, a distance is at most the whole range of the scores.
        self._exponential = Exponential(function, parameters.score.bits)
        self.latency = 4 + self._exponential.latency
        denominator = unsigned((parameters.length * function.maximum).bit_length())
        numerator = data.StructLayout({"numerator": unsigned(function.output_bits), "last": 1})
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"score": shape_of(parameters.score), "last": 1}))),
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
        length, shape = self.parameters.length, shape_of(self.parameters.score)
        layout = data.StructLayout({"score": shape, "last": 1})
        maximum = data_register(shape)

        m.submodules.exponential = exponential = self._exponential
        # A row's first score is read three cycles after its last one has arrived.
        m.submodules.row = row = StreamQueue(layout, length + 2)
        m.submodules.maxima = maxima = fifo.SyncFIFOBuffered(width=len(maximum), depth=MAXIMA)
        m.submodules.denominators = denominators = StreamRegister(self.o_denominator.payload.shape())
        enable = exponential.i.ready  # of everything before the exponential too

        # Store a row and find its maximum.
        index = Signal(range(max(length, 2)))  # an assertion's message wants at least a bit
        found = Signal()
        score = self.i.payload.score
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
                Format("softmax input: no last on element {} of a row of at most {}", index, length),
            )

        # Read it once the maximum is known; subtract; `valid` and `last` are delayed beside it.
        m.submodules.tags = tags = Delay(data.StructLayout({"valid": 1, "last": 1}), 1 + exponential.latency)
        issue = enable & maxima.r_rdy & row.o.valid
        distance = data_register(unsigned(len(maximum)))
        m.d.comb += [
            row.o.ready.eq(issue),
            maxima.r_en.eq(issue & row.o.payload.last),
            tags.en.eq(enable),
            tags.i.valid.eq(issue),
            tags.i.last.eq(row.o.payload.last),
            exponential.i.valid.eq(tags.taps[1].valid),
            exponential.i.payload.eq(distance),
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


class Softmax(wiring.Component):
    """`fixedpoint.Softmax.compute` as a circuit: rows of scores in, rows of probabilities out.

    Equation: `o[j] = requantize(numerator[j] * mantissa, exponent - probability.fraction)`, with
    mantissa and exponent the reciprocal of the row's denominator.

    Latency: `latency(n)` = n + 10 + E + R cycles from the last score of a row of n taken to its
    first probability offered, with E = 3 or more, `Exponential`'s, and R = ceil(log2
    denominator_bits) + 2, the reciprocal's; then one a cycle. Throughput: one a cycle, rows of one
    length back to back without a gap: all stages work on different rows. Short rows right behind a
    long one may wait.
    Resources: `SoftmaxNumerators`, a queue of `length` + R + 4 numerators, a `Reciprocal`, one hard
    multiplier.

    Source: base 2 instead of e: Stevens et al., "Softermax: Hardware/Software Co-Design of an
    Efficient Softmax for Transformers", arXiv:2103.09301.

    Attributes:
        parameters: Formats, the longest row, tables.
        i: In, stream of {score: `parameters.score`, last}: rows of 1 to `length` scores, `last` on
            the final one.
        o: Out, stream of {probability: `parameters.probability`, last}.

    Internals:
        Numerators wait in a queue for their reciprocal; a register holds it for the whole row.
    """

    def __init__(self, parameters: fixedpoint.Softmax):
        _check(parameters)
        self.parameters = parameters
        # No denominator is smaller than the full-scale numerator of the row's maximum.
        self._least_exponent = parameters.exponential.output_bits - 1 + parameters.reciprocal.mantissa_bits
        if parameters.probability.fraction > self._least_exponent:
            raise CircuitError(
                f"the probability format {parameters.probability} is too fine: a numerator times a mantissa supports "
                f"at most {self._least_exponent} bits"
            )
        if parameters.reciprocal.mantissa_bits >= OPERAND_BITS:
            raise CircuitError(
                f"softmax needs a reciprocal of at most {OPERAND_BITS - 1} mantissa bits, for a hard multiplier with a sign, "
                f"not {parameters.reciprocal.mantissa_bits}"
            )
        self._numerators = SoftmaxNumerators(parameters)
        self._reciprocal = Reciprocal(parameters.reciprocal, parameters.denominator_bits)
        score = data.StructLayout({"score": shape_of(parameters.score), "last": 1})
        probability = data.StructLayout({"probability": shape_of(parameters.probability), "last": 1})
        super().__init__({"i": In(stream.Signature(score)), "o": Out(stream.Signature(probability))})

    def latency(self, elements: int) -> int:
        """Return the cycles from a row's last score taken to its first probability offered."""
        return elements + self._numerators.latency + self._reciprocal.latency + 1 + Multiplier.latency + 2

    def cycles(self, elements: int, rows: int = 1) -> int:
        """Return the cycles from the first score taken to the last probability given, for rows of
        `elements` offered without a pause.
        """
        return (rows + 1) * elements - 2 + self.latency(elements)

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        parameters = self.parameters
        m.submodules.numerators = numerators = self._numerators
        m.submodules.reciprocal = reciprocal = self._reciprocal
        m.submodules.scales = scales = StreamRegister(reciprocal.o.payload.shape())
        numerator = numerators.o.payload.shape()
        m.submodules.queue = queue = StreamQueue(numerator, parameters.length + reciprocal.latency + 4)

        connect(m, wiring.flipped(self.i), numerators.i)
        connect(m, numerators.o_denominator, reciprocal.i)
        connect(m, reciprocal.o, scales.i)
        connect(m, numerators.o, queue.i)

        # Issue: a numerator and its row's reciprocal.
        waiting = queue.o.payload
        scale = scales.o.payload
        enable = Signal()
        issue = Signal()
        m.submodules.tags = tags = Delay(data.StructLayout({"valid": 1, "last": 1}), Multiplier.latency + 2)
        m.d.comb += [
            enable.eq(~self.o.valid | self.o.ready),
            issue.eq(enable & queue.o.valid & scales.o.valid),
            queue.o.ready.eq(issue),
            scales.o.ready.eq(issue & waiting.last),
            tags.en.eq(enable),
            tags.i.valid.eq(issue),
            tags.i.last.eq(waiting.last),
            self.o.valid.eq(tags.o.valid),
            self.o.payload.last.eq(tags.o.last),
        ]

        # Multiply; shift (the constant part costs nothing), round half up and saturate.  The
        # doubling is shift_right_half_up_by's.
        product = multiply(m, "product", waiting.numerator, scale.mantissa, enable)
        least_shift = self._least_exponent - parameters.probability.fraction
        shifts = [
            data_register(range(parameters.denominator_bits), name=f"shift_{stage}")
            for stage in range(Multiplier.latency)
        ]
        doubled = data_register(unsigned(len(product) + 1))
        probability = data_register(self.o.payload.probability)
        with m.If(enable):
            m.d.sync += [
                shifts[0].eq(scale.exponent - self._least_exponent),
                *(after.eq(before) for before, after in pairwise(shifts)),
                doubled.eq(((product << 1) >> least_shift) >> shifts[-1]),
                probability.eq(saturate((doubled + 1) >> 1, parameters.probability)),
            ]
        m.d.comb += self.o.payload.probability.eq(probability)
        self.internals = Internals(numerators=numerators, reciprocal=reciprocal, scales=scales, queue=queue, tags=tags)
        return m
