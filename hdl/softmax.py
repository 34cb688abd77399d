# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""Softmax as circuits: the numerators alone, for attention, and the whole function."""

from amaranth.hdl import Assert, Format, Module, Signal, unsigned
from amaranth.lib import data, fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out

import fixedpoint

from .arithmetic import saturate, shape_of
from .dot_product import Delay
from .errors import CircuitError
from .exponential import Exponential
from .reciprocal import Reciprocal


def _check(parameters: fixedpoint.Softmax) -> None:
    if not isinstance(parameters, fixedpoint.Softmax):
        raise TypeError(f"parameters must be a fixedpoint.Softmax, not {type(parameters).__name__}")


def _scores(parameters: fixedpoint.Softmax) -> stream.Signature:
    """Return the signature of a stream of rows of scores."""
    return stream.Signature(data.StructLayout({"score": shape_of(parameters.score), "last": 1}))


class SoftmaxNumerators(wiring.Component):
    """`fixedpoint.Softmax.numerators` as a circuit, and the sum of a row's numerators beside it.

    Equation: `o[j] = exponential(max(i) - i[j])`, `o_denominator = sum_j o[j]`.

    A row is stored while its maximum is found; then it is read again, one numerator a cycle.  The denominator of a row is offered from the
    cycle after its last numerator has been taken.  Until it is taken, the next row runs up to, not including, its last numerator:
    a consumer takes numerators first and the denominator afterwards, or both as they come.

    Latency: `latency` = 3 + E cycles from a row's last score taken to its first numerator offered: address, buffer,
    subtraction, and E = 3 or 4 of `Exponential`; then one a cycle.
    Throughput: a row of N takes 2·N cycles: N to store, N to read; the next row's first score is taken N + 1 cycles after the last one of this row.
    Resources: a buffer of `length` scores, an `Exponential`, no multiplier.
    In simulation a row without `last` on its `length`-th score is an assertion's failure; in hardware it ends there.

    Attributes:
        parameters: Formats, the longest row, the exponential.
        latency: The formula above.
        i: In, stream of {score, last}: rows of 1 to `length` scores, `last` on the final one.
        o: Out, stream of {numerator, last}.
        o_denominator: Out, stream of unsigned sums, one a row.
    """

    def __init__(self, parameters: fixedpoint.Softmax):
        _check(parameters)
        self.parameters = parameters
        # A distance is at most the whole range of the scores: as many bits, without a sign.
        self._exponential = Exponential(parameters.exponential, parameters.score.bits)
        self.latency = 3 + self._exponential.latency
        numerator = data.StructLayout({"numerator": unsigned(parameters.exponential.output_bits), "last": 1})
        super().__init__(
            {
                "i": In(_scores(parameters)),
                "o": Out(stream.Signature(numerator)),
                "o_denominator": Out(stream.Signature(unsigned(parameters.denominator_bits))),
            }
        )

    def elaborate(self, platform):
        """Build the circuit."""
        m = Module()
        parameters = self.parameters
        length, score = parameters.length, shape_of(parameters.score)

        m.submodules.exponential = exponential = self._exponential
        m.submodules.row = row = memory.Memory(shape=score, depth=length, init=[])
        write_port, read_port = row.write_port(), row.read_port()
        move = exponential.i.ready  # buffer, subtraction and exponential move together

        # Store a row and find its maximum; then read it.
        reading = Signal()
        index = Signal(range(length))
        last_index = Signal(range(length))
        maximum = Signal(score)
        reference = Signal(score)  # the maximum of the row that is being read: the next row may already be arriving
        final = self.i.payload.last | (index == length - 1)
        m.d.comb += [
            self.i.ready.eq(~reading),
            write_port.en.eq(self.i.valid & self.i.ready),
            write_port.addr.eq(index),
            write_port.data.eq(self.i.payload.score),
            read_port.en.eq(move),
            read_port.addr.eq(index),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [index.eq(index + 1), last_index.eq(index)]
            with m.If((index == 0) | (self.i.payload.score > maximum)):
                m.d.sync += maximum.eq(self.i.payload.score)
            with m.If(final):
                m.d.sync += [index.eq(0), reading.eq(1)]
            m.d.sync += Assert(
                self.i.payload.last | (index != length - 1),
                Format("softmax input: no last on element {} of a row of at most {}", index, length),
            )
        with m.Elif(reading & move):
            m.d.sync += [index.eq(index + 1), reference.eq(maximum)]
            with m.If(index == last_index):
                m.d.sync += [index.eq(0), reading.eq(0)]

        # Subtract, then the exponential; `valid` and `last` travel beside.
        m.submodules.tags = tags = Delay(data.StructLayout({"valid": 1, "last": 1}), self.latency - 1)
        distance = Signal(unsigned(parameters.score.bits))
        m.d.comb += [
            tags.en.eq(move),
            tags.i.valid.eq(reading),
            tags.i.last.eq(index == last_index),
            exponential.i.valid.eq(tags.taps[2].valid),
            exponential.i.payload.eq(distance),
        ]
        with m.If(move):
            m.d.sync += distance.eq(reference - read_port.data)

        # Give numerators and add them up.  The last one waits until the denominator's register is free.
        hold = tags.o.last & self.o_denominator.valid
        total = Signal(unsigned(parameters.denominator_bits))
        with_this = Signal.like(total)
        m.d.comb += [
            self.o.valid.eq(exponential.o.valid & ~hold),
            exponential.o.ready.eq(self.o.ready & ~hold),
            self.o.payload.numerator.eq(exponential.o.payload),
            self.o.payload.last.eq(tags.o.last),
            with_this.eq(total + exponential.o.payload),
        ]
        with m.If(self.o_denominator.ready):
            m.d.sync += self.o_denominator.valid.eq(0)
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += total.eq(with_this)
            with m.If(self.o.payload.last):
                m.d.sync += [
                    total.eq(0),
                    self.o_denominator.valid.eq(1),
                    self.o_denominator.payload.eq(with_this),
                ]
        return m


class Softmax(wiring.Component):
    """`fixedpoint.Softmax.compute` as a circuit: rows of scores in, rows of probabilities out.

    Equation: `o[j] = requantize(numerator[j] * mantissa, exponent - probability.fraction)`, with mantissa and exponent the reciprocal of
    the row's denominator.

    The numerators of a row wait in a queue for their reciprocal, which stays at the output of `Reciprocal` until the last of them has used it.

    Latency: `latency(n)` = n + 7 + E + R cycles from the last score of a row of n taken to its first probability offered, with
    E = 3 or 4, `Exponential`'s, and R = ceil(log2 denominator_bits) + 2, the reciprocal's; then one a cycle.
    Throughput: a row of N takes 2·N cycles: reciprocal and multiplication of a row overlap the next one.  Rows of fewer than R + 1
    elements may wait for a reciprocal, which takes R + 1 cycles a row more than its elements.
    Resources: `SoftmaxNumerators`, a queue of `length` numerators, a `Reciprocal`, one hard multiplier.

    Attributes:
        parameters: Formats, the longest row, tables.
        i: In, stream of {score, last}: rows of 1 to `length` scores, `last` on the final one.
        o: Out, stream of {probability, last}.
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
        self._numerators = SoftmaxNumerators(parameters)
        self._reciprocal = Reciprocal(parameters.reciprocal, parameters.denominator_bits)
        probability = data.StructLayout({"probability": shape_of(parameters.probability), "last": 1})
        super().__init__({"i": In(_scores(parameters)), "o": Out(stream.Signature(probability))})

    def latency(self, elements: int) -> int:
        """Return the cycles from the last score of a row of `elements` taken to its first probability offered."""
        return elements + self._numerators.latency + self._reciprocal.latency + 4

    def cycles(self, elements: int, rows: int = 1) -> int:
        """Return the cycles from the first score taken to the last probability given, for rows of `elements` offered without a pause.

        Exact for one row, and for rows of at least R + 1 elements.
        """
        return (rows - 1) * 2 * elements + 2 * (elements - 1) + self.latency(elements)

    def elaborate(self, platform):
        """Build the circuit."""
        m = Module()
        parameters = self.parameters
        m.submodules.numerators = numerators = self._numerators
        m.submodules.reciprocal = reciprocal = self._reciprocal
        numerator = numerators.o.payload.shape()
        m.submodules.queue = queue = fifo.SyncFIFOBuffered(width=numerator.size, depth=parameters.length)

        wiring.connect(m, wiring.flipped(self.i), numerators.i)
        wiring.connect(m, numerators.o_denominator, reciprocal.i)
        wiring.connect(m, numerators.o, queue.w_stream)

        # Issue: a numerator and its row's reciprocal.
        waiting = data.View(numerator, queue.r_data)
        scale = reciprocal.o.payload
        move = Signal()
        issue = Signal()
        m.submodules.tags = tags = Delay(data.StructLayout({"valid": 1, "last": 1}), 4)
        m.d.comb += [
            move.eq(~self.o.valid | self.o.ready),
            issue.eq(move & queue.r_rdy & reciprocal.o.valid),
            queue.r_en.eq(issue),
            reciprocal.o.ready.eq(issue & waiting.last),
            tags.en.eq(move),
            tags.i.valid.eq(issue),
            tags.i.last.eq(waiting.last),
            self.o.valid.eq(tags.o.valid),
            self.o.payload.last.eq(tags.o.last),
        ]

        # Multiply; shift (the constant part costs nothing), round half up and saturate.  The doubling is shift_right_half_up_by's.
        multiplicand = Signal(numerator["numerator"].shape)
        mantissa = Signal.like(scale.mantissa)
        product = Signal(unsigned(len(multiplicand) + len(mantissa)))
        least_shift = self._least_exponent - parameters.probability.fraction
        shifts = [Signal(range(parameters.denominator_bits), name=f"shift_{stage}") for stage in range(2)]
        doubled = Signal(unsigned(len(product) + 1))
        with m.If(move):
            m.d.sync += [
                multiplicand.eq(waiting.numerator),
                mantissa.eq(scale.mantissa),
                shifts[0].eq(scale.exponent - self._least_exponent),
                product.eq(multiplicand * mantissa),
                shifts[1].eq(shifts[0]),
                doubled.eq(((product << 1) >> least_shift) >> shifts[1]),
                self.o.payload.probability.eq(saturate((doubled + 1) >> 1, parameters.probability)),
            ]
        return m
