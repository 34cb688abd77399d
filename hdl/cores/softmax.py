# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""Softmax as circuits: the numerators alone, for attention, and the whole function."""

from itertools import pairwise

from amaranth.hdl import Module, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

import fixedpoint

from ..errors import CircuitError
from ..parts.arithmetic import multiply, saturate, shape_of
from ..parts.dot_product import Delay
from ..parts.internals import Internals
from ..parts.multiplier import OPERAND_BITS, Multiplier
from ..parts.payload import connect
from ..parts.reciprocal import Reciprocal
from ..parts.registers import data_register
from ..parts.row_numerators import RowNumerators
from ..parts.stream_parts import StreamQueue, StreamRegister


def _check(parameters: fixedpoint.Softmax) -> None:
    if not isinstance(parameters, fixedpoint.Softmax):
        raise TypeError(f"parameters must be a fixedpoint.Softmax, not {type(parameters).__name__}")


class SoftmaxNumerators(RowNumerators):
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
        super().__init__(parameters.score, parameters.length, parameters.exponential)


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
