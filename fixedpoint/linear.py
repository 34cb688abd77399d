r"""Integer matrix-vector product with one power-of-two scale per output row.

\(y_r = \mathrm{requantize}\left(b_r + \sum_k W_{rk} x_k,\; s_r\right)\).  Row \(r\) of the weights has its own fraction \(f_r\); its accumulator then
has \(f_x + f_r\) fraction bits, and \(s_r = f_x + f_r - f_y\): a scale is a shift, never a multiplier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arithmetic import Integers, exact_matmul, requantize
from .errors import QuantizationError
from .qformat import FloatArray, IntegerArray, Overflow, QFormat, Rounding, bits_for, covering_fraction

MAXIMUM_ACCUMULATOR_BITS = 32
LARGEST_LEFT_SHIFT = 28  # an accumulator shifted further could leave int64 before it saturates
FRACTION = QFormat(8, 0)  # a row's fraction is stored in a signed byte
FINER_CANDIDATES = 3  # the covering power of two and the next two below it


@dataclass(frozen=True, eq=False)
class Linear:
    """A quantized linear layer.

    Attributes:
        input: Format of x.
        output: Format of y.
        weight: Integers (R, K), `weight_bits` wide.
        weight_bits: Width of a weight, 2 to 8.
        weight_fraction: Fraction bits of each row (R,), −128 to 127.
        bias: Integers (R,) in accumulator units, |bias| <= `bias_limit`.
    """

    input: QFormat
    output: QFormat
    weight: IntegerArray
    weight_bits: int
    weight_fraction: IntegerArray
    bias: IntegerArray

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or 0 in self.weight.shape:
            raise QuantizationError(f"Linear weight must be a matrix (rows, columns), not of shape {self.weight.shape}")
        rows = (len(self.weight),)
        if self.bias.shape != rows or self.weight_fraction.shape != rows:
            raise QuantizationError(
                f"Linear bias and weight_fraction must have shape {rows}, not {self.bias.shape} and {self.weight_fraction.shape}"
            )
        if not 2 <= self.weight_bits <= 8:
            raise QuantizationError(f"Linear weight_bits must be 2 to 8, not {self.weight_bits}")
        if not QFormat(self.weight_bits, 0).holds(self.weight):
            raise QuantizationError(f"a weight does not fit {self.weight_bits} bits")
        if not FRACTION.holds(self.weight_fraction):
            raise QuantizationError(
                f"a weight_fraction is outside {FRACTION.minimum_integer} to {FRACTION.maximum_integer}"
            )
        if not self.input.signed or not self.output.signed:
            raise QuantizationError(f"Linear formats must be signed, not {self.input} and {self.output}")
        if np.abs(self.bias).max() > self.bias_limit:
            raise QuantizationError(f"a bias exceeds its limit: {np.abs(self.bias).max()} > {self.bias_limit}")
        if self.accumulator_bits > MAXIMUM_ACCUMULATOR_BITS:
            raise QuantizationError(
                f"an accumulator of {self.columns} products of {self.input.bits} x {self.weight_bits} bits needs "
                f"{self.accumulator_bits} bits; at most {MAXIMUM_ACCUMULATOR_BITS} are supported"
            )
        if self.shift.min() < -LARGEST_LEFT_SHIFT:
            raise QuantizationError(
                f"Linear output {self.output} is {-self.shift.min()} bits finer than an accumulator; "
                f"at most {LARGEST_LEFT_SHIFT} are supported"
            )

    @classmethod
    def from_float(
        cls, weight: np.ndarray, bias: np.ndarray | None, weight_bits: int, input_format: QFormat, output: QFormat
    ) -> Linear:
        """Quantize weights (R, K) and bias (R,), each row at the power-of-two scale of least squared error.

        Raises:
            QuantizationError: A value is not finite, or not of a size that the formats can hold.
        """
        matrix = np.asarray(weight, dtype=np.float64)
        offset = np.zeros(len(matrix)) if bias is None else np.asarray(bias, dtype=np.float64)
        if not (np.isfinite(matrix).all() and np.isfinite(offset).all()):
            raise QuantizationError("a weight or bias is NaN or infinite")
        fraction = least_squares_fractions(matrix, weight_bits)
        # A bias may take as much of the accumulator as the products; a row of tiny weights beside a large bias is scaled coarser.
        limit = matrix.shape[1] << (weight_bits + input_format.bits - 2)
        with np.errstate(divide="ignore", over="ignore"):  # no bias, or next to none, limits nothing
            bias_fraction = np.floor(np.log2(limit / np.abs(offset))) - input_format.fraction
        fraction = np.minimum(fraction, bias_fraction).astype(np.int64)
        scaled = np.ldexp(matrix, fraction[:, None])
        integers = QFormat(weight_bits, 0).quantize(scaled, Rounding.HALF_UP, Overflow.SATURATE)
        accumulator = QFormat(bits_for(-limit, limit, True), 0)
        units = accumulator.quantize(
            np.ldexp(offset, fraction + input_format.fraction), Rounding.HALF_UP, Overflow.SATURATE
        )
        return cls(
            input=input_format,
            output=output,
            weight=integers,
            weight_bits=weight_bits,
            weight_fraction=fraction,
            bias=np.clip(units, -limit, limit),
        )

    @property
    def rows(self) -> int:
        """Outputs R."""
        return self.weight.shape[0]

    @property
    def columns(self) -> int:
        """Inputs K."""
        return self.weight.shape[1]

    @property
    def bias_limit(self) -> int:
        """Bound on |bias|: the largest sum of products, K · 2**(weight_bits + input bits − 2)."""
        return self.columns << (self.weight_bits + self.input.bits - 2)

    @property
    def accumulator_bits(self) -> int:
        """Signed width that no sum of products and bias can exceed, from K and the widths alone."""
        return bits_for(-2 * self.bias_limit, 2 * self.bias_limit, True)

    @property
    def shift(self) -> IntegerArray:
        """Right shift of each row's accumulator (R,); negative where the output is finer."""
        return self.input.fraction + self.weight_fraction - self.output.fraction

    def accumulate(self, x: Integers) -> IntegerArray:
        """Return the accumulators `W x + bias`, int64 (..., R), for x (..., K) of format `input`."""
        products = exact_matmul(x, self.weight.T, 1 << (self.input.bits - 1), 1 << (self.weight_bits - 1))
        return products.astype(np.int64) + self.bias

    def compute(self, x: Integers) -> IntegerArray:
        """Return outputs, int64 (..., R) of format `output`, for x (..., K) of format `input`."""
        return requantize(self.accumulate(x), self.shift, self.output)

    def dequantized_weight(self) -> FloatArray:
        """Return the weights' real values (R, K)."""
        return np.ldexp(self.weight.astype(np.float64), -self.weight_fraction[:, None])


def least_squares_fractions(matrix: np.ndarray, bits: int) -> IntegerArray:
    """Return each row's fraction (R,) of least squared rounding error, among the covering power of two and the next two below it.

    The finer candidates clip the row's largest weights to round the many small ones better. A row of zeros gets the
    fraction of a row whose largest weight is 1. No fraction exceeds what a byte stores: weights below 2**-120 may become 0.

    Raises:
        QuantizationError: A weight of some 2**127 or more, whose fraction a byte does not store.
    """
    covering = np.array([covering_fraction(float(np.abs(row).max()), bits) for row in matrix], dtype=np.int64)
    if covering.min() < FRACTION.minimum_integer:
        raise QuantizationError(
            f"a weight of {np.abs(matrix).max():g} is too large for a fraction of {FRACTION.bits} bits"
        )
    candidates = np.minimum(covering[:, None] + np.arange(FINER_CANDIDATES), FRACTION.maximum_integer)
    integer = QFormat(bits, 0)
    errors = np.empty(candidates.shape)
    for column in range(FINER_CANDIDATES):
        exponent = candidates[:, column, None]
        rounded = integer.quantize(np.ldexp(matrix, exponent), Rounding.HALF_UP, Overflow.SATURATE)
        errors[:, column] = ((np.ldexp(rounded.astype(np.float64), -exponent) - matrix) ** 2).sum(axis=1)
    return np.take_along_axis(candidates, errors.argmin(axis=1)[:, None], axis=1)[:, 0]
