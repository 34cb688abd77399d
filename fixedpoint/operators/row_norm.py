r"""What LayerNorm and RMSNorm have in common: division by the root of a sum of squares, gamma.

Both are written with whole numbers \(d_i\) and \(v\), such that the normalized element is \(d_i /
\sqrt v\): nothing is rounded before the reciprocal square root. They differ in \(d_i\) and \(v\)
alone, and in LayerNorm's shift at the end.
"""

from __future__ import annotations

import math

import numpy as np

from ..arithmetic import requantize
from ..errors import QuantizationError
from ..qformat import IntegerArray, QFormat, as_int64, bits_for
from .linear import LARGEST_LEFT_SHIFT
from .operator import UnaryOperator, same_channels
from .reciprocal import ReciprocalSquareRoot

MAXIMUM_CHANNELS = 4096
MAXIMUM_BITS = 16  # of an input, a scale and an output


class RowNorm(UnaryOperator):
    """Fields, widths and the last two steps of `LayerNorm` and `RMSNorm`.

    `n_i = requantize(d_i · r.mantissa, r.exponent − normalized.fraction)` with `r ~ 1/sqrt(v)`,
    then `n_i · scale_i`.
    """

    input: QFormat
    scale: IntegerArray
    scale_format: QFormat
    output: QFormat
    epsilon: int
    reciprocal_square_root: ReciprocalSquareRoot

    def __post_init__(self) -> None:
        """Raise a QuantizationError where the fields do not fit together."""
        name = type(self).__name__
        if self.scale.ndim != 1 or not 1 <= len(self.scale) <= MAXIMUM_CHANNELS:
            raise QuantizationError(
                f"{name} scale must be a vector of 1 to {MAXIMUM_CHANNELS} elements, not of shape {self.scale.shape}"
            )
        for port, form in (("input", self.input), ("scale format", self.scale_format), ("output", self.output)):
            if not form.signed or form.bits > MAXIMUM_BITS:
                raise QuantizationError(f"{name} {port} must be signed with at most {MAXIMUM_BITS} bits, not {form}")
        if not self.scale_format.holds(self.scale):
            raise QuantizationError(f"{name} scale does not fit {self.scale_format}")
        if isinstance(self.epsilon, bool) or not isinstance(self.epsilon, int):
            raise QuantizationError(f"{name} epsilon must be a whole number, not {self.epsilon!r}")
        if not 1 <= self.epsilon < 1 << (self.variance_bits - 1):
            raise QuantizationError(f"{name} epsilon must be 1 to 2**{self.variance_bits - 1} - 1, not {self.epsilon}")
        if self.output_shift < -LARGEST_LEFT_SHIFT:
            raise QuantizationError(
                f"{name} output {self.output} is {-self.output_shift} bits finer than the product; "
                f"at most {LARGEST_LEFT_SHIFT} are supported"
            )

    @staticmethod
    def normalized_format(channels: int) -> QFormat:
        """Return the 16-bit format of n_i.

        No element of C exceeds `sqrt(C - 1)` in magnitude without its mean, `sqrt(C)` with it, so
        the range needs no calibration. `sqrt(C)` itself is reached only by a row of zeros but for
        one element, with C a power of 4, and is then one unit beyond the format.
        """
        return QFormat(16, 15 - math.isqrt(max(channels - 1, 1)).bit_length())

    @property
    def channels(self) -> int:
        """The row's length C."""
        return len(self.scale)

    def output_channels(self, channels: int) -> int:
        """Return the channels of the output."""
        return same_channels(self.channels, channels)

    @property
    def normalized(self) -> QFormat:
        """Format of n_i."""
        return self.normalized_format(self.channels)

    @property
    def scaled_bits(self) -> int:
        """Signed width of C·x_i, and of a sum of C elements."""
        return bits_for(self.channels * self.input.minimum_integer, self.channels * self.input.maximum_integer, True)

    @property
    def square_sum_bits(self) -> int:
        """Unsigned width of Q, the sum of squares."""
        return (self.channels << (2 * self.input.bits - 2)).bit_length()

    @property
    def variance_bits(self) -> int:
        """Unsigned width of v; one bit above C·Q leaves room for epsilon."""
        return (self.channels**2 << (2 * self.input.bits - 2)).bit_length() + 1

    @property
    def product_limit(self) -> int:
        """Bound on |n_i · scale_i|."""
        return 1 << (self.normalized.bits + self.scale_format.bits - 2)

    @property
    def output_shift(self) -> int:
        """Right shift from product to output."""
        return self.normalized.fraction + self.scale_format.fraction - self.output.fraction

    def _rows(self, x: np.ndarray) -> IntegerArray:
        """Return x (..., C) as int64, checked."""
        wide = as_int64(x)
        if wide.shape[-1] != self.channels:
            raise ValueError(f"{type(self).__name__} rows have {self.channels} elements, not {wide.shape[-1]}")
        if not self.input.holds(wide):
            raise ValueError(f"a {type(self).__name__} input does not fit {self.input}")
        return wide

    def _normalize(self, difference: IntegerArray, variance: IntegerArray) -> IntegerArray:
        """Return n (..., C) of format `normalized` for d (..., C) and v (..., 1)."""
        root = self.reciprocal_square_root.compute(variance)
        return requantize(difference * root.mantissa, root.exponent - self.normalized.fraction, self.normalized)


def check_finite(name: str, epsilon: float, *vectors: np.ndarray) -> None:
    """Refuse float parameters that no norm can have.

    Raises:
        QuantizationError: An empty vector, a value that is NaN or infinite, a negative epsilon.
    """
    if not all(vector.ndim == 1 and vector.size for vector in vectors):
        raise QuantizationError(f"{name} needs vectors of at least one element")
    if not (all(np.isfinite(vector).all() for vector in vectors) and math.isfinite(epsilon)):
        raise QuantizationError(f"a {name} scale, shift or epsilon is NaN or infinite")
    if epsilon < 0:
        raise QuantizationError(f"a {name} epsilon must not be negative: {epsilon:g}")


def whole_epsilon(epsilon: float, channels: int, input_format: QFormat) -> int:
    """Return epsilon in units of v, `C² · epsilon · 2**(2 · input fraction)`, at least 1."""
    try:
        return max(1, round(math.ldexp(channels**2 * epsilon, 2 * input_format.fraction)))
    except OverflowError:
        raise QuantizationError(f"an epsilon of {epsilon:g} cannot be counted in units of {input_format}") from None
