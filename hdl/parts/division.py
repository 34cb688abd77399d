"""Late normalization: weighted sums of values times the reciprocal of their softmax denominator."""

from amaranth.hdl import Module, Shape, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

import fixedpoint

from ..errors import CircuitError
from .arithmetic import saturate, shape_of
from .registers import data_register

# of a weighted sum: an unsigned half that fits a hard multiplier beside the reciprocal's mantissa
LOW_BITS = 16


class SoftmaxDivision(wiring.Component):
    """`fixedpoint.Attention.normalize`'s multiplication and cast, after the reciprocal is known.

    Equation: `o = requantize(weighted * mantissa, exponent + value fraction - context fraction)`.
    The product is made of two halves, each of which fits a hard multiplier with a register before
    and after it.

    Latency: 5 cycles, no handshake. Throughput: one a cycle. Resources: 2 hard multipliers
    (ECP5).

    Attributes:
        latency: 5.
        weighted: In, signed: a sum of numerators times values.
        mantissa, exponent: In, unsigned: the denominator's reciprocal.
        o: Out, signed: the context.
    """

    latency = 5

    def __init__(self, parameters: fixedpoint.Attention):
        if not isinstance(parameters, fixedpoint.Attention):
            raise TypeError(f"parameters must be a fixedpoint.Attention, not {type(parameters).__name__}")
        self.parameters = parameters
        softmax = parameters.softmax
        self._fraction_shift = parameters.value.output.fraction - parameters.context.fraction
        # The row's maximum contributes a full-scale numerator, so no denominator is smaller than
        # that.
        smallest = softmax.exponential.output_bits - 1 + parameters.reciprocal.mantissa_bits + self._fraction_shift
        if smallest < 0:
            raise CircuitError(
                f"the context format {parameters.context} is too fine for values of {parameters.value.output}: "
                f"normalization would have to shift left"
            )
        self._exponent_bits = (softmax.denominator_bits - 1 + parameters.reciprocal.mantissa_bits).bit_length()
        super().__init__(
            {
                "weighted": In(signed(parameters.weighted_sum_bits)),
                "mantissa": In(unsigned(parameters.reciprocal.mantissa_bits)),
                "exponent": In(unsigned(self._exponent_bits)),
                "o": Out(shape_of(parameters.context)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        parameters = self.parameters
        weighted = data_register(self.weighted)
        mantissa = data_register(self.mantissa)
        m.d.sync += [weighted.eq(self.weighted), mantissa.eq(self.mantissa)]

        split = min(LOW_BITS, len(weighted) - 1)
        low = data_register(unsigned(split + len(mantissa)))
        high = data_register(signed(len(weighted) - split + len(mantissa)))
        product = data_register(signed(len(weighted) + len(mantissa)))
        m.d.sync += [
            low.eq(weighted[:split] * mantissa),
            high.eq(weighted[split:].as_signed() * mantissa),
            product.eq((high << split) + low),
        ]

        # The exponent is delayed beside the product; 1 is shift_right_half_up_by's doubling.
        shift = Signal(unsigned(self._exponent_bits + 1))
        shifts = [Signal.like(shift, name=f"shift_{stage}") for stage in range(2)]
        m.d.sync += [shift.eq(self.exponent + self._fraction_shift), shifts[0].eq(shift), shifts[1].eq(shifts[0])]
        doubled = data_register(Shape(len(product) + 1, signed=True))
        m.d.sync += doubled.eq((product << 1) >> shifts[1])
        m.d.sync += self.o.eq(saturate((doubled + 1) >> 1, parameters.context))
        return m
