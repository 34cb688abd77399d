r"""Integer matrix-vector product with one power-of-two scale per output row.

\(y_r = \mathrm{requantize}\left(b_r + \sum_k W_{rk} x_k,\; s_r\right)\). Row \(r\) of the weights
has its own fraction \(f_r\); its accumulator then has \(f_x + f_r\) fraction bits, and \(s_r =
f_x + f_r - f_y\): a scale is a shift, never a multiplier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arithmetic import Integers, exact_matmul, requantize
from ..errors import QuantizationError
from ..qformat import FloatArray, IntegerArray, Overflow, QFormat, Rounding, bits_for
from ..row_scales import FRACTION, WeightBits, least_squares_fractions, quantize_rows, storage_bits
from .operator import UnaryOperator, same_channels

__all__ = ["FRACTION", "LARGEST_LEFT_SHIFT", "Linear", "least_squares_fractions"]

MAXIMUM_ACCUMULATOR_BITS = 32
LARGEST_LEFT_SHIFT = 28  # an accumulator shifted further could leave int64 before it saturates


@dataclass(frozen=True, eq=False)
class Linear(UnaryOperator):
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
        cls,
        weight: np.ndarray,
        bias: np.ndarray | None,
        weight_bits: WeightBits,
        input_format: QFormat,
        output: QFormat,
        fraction: Integers | None = None,
    ) -> Linear:
        """Round weights (R, K) and bias (R,) half up, each row at its power-of-two scale.

        Args:
            weight: Real weights (R, K).
            bias: Real biases (R,), or None.
            weight_bits: Width of a weight, 2 to 8, or "ternary": −1, 0 and 1, stored in two bits.
            input_format: Format of x.
            output: Format of y.
            fraction: Fraction of each row (R,), −128 to 127; None for the scales of least squared
                error. A row whose bias does not fit beside it gets a coarser one.

        Raises:
            QuantizationError: A value is not finite, or not of a size that the formats can hold.
        """
        matrix = np.asarray(weight, dtype=np.float64)
        offset = np.zeros(len(matrix)) if bias is None else np.asarray(bias, dtype=np.float64)
        if not (np.isfinite(matrix).all() and np.isfinite(offset).all()):
            raise QuantizationError("a weight or bias is NaN or infinite")
        chosen = least_squares_fractions(matrix, weight_bits) if fraction is None else np.asarray(fraction)
        if chosen.shape != (len(matrix),) or not FRACTION.holds(chosen):
            raise QuantizationError(
                f"a Linear of {len(matrix)} rows needs as many fractions of {FRACTION.minimum_integer} to {FRACTION.maximum_integer}"
            )
        bits = storage_bits(weight_bits)
        chosen = np.minimum(chosen, largest_fractions(offset, matrix.shape[1], bits, input_format)).astype(np.int64)
        limit = matrix.shape[1] << (bits + input_format.bits - 2)
        accumulator = QFormat(bits_for(-limit, limit, True), 0)
        units = accumulator.quantize(
            np.ldexp(offset, chosen + input_format.fraction), Rounding.HALF_UP, Overflow.SATURATE
        )
        return cls(
            input=input_format,
            output=output,
            weight=quantize_rows(matrix, chosen, weight_bits),
            weight_bits=bits,
            weight_fraction=chosen,
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

    def output_channels(self, channels: int) -> int:
        """Return the channels of the output."""
        same_channels(self.columns, channels)
        return self.rows

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
        """Return accumulators `W x + bias`, int64 (..., R), for x (..., K) of format `input`."""
        # (..., K) @ (K, R) -> (..., R)
        products = exact_matmul(x, self.weight.T, 1 << (self.input.bits - 1), 1 << (self.weight_bits - 1))
        return products.astype(np.int64) + self.bias

    def compute(self, x: Integers) -> IntegerArray:
        """Return outputs, int64 (..., R) of format `output`, for x (..., K) of format `input`."""
        return requantize(self.accumulate(x), self.shift, self.output)

    def dequantized_weight(self) -> FloatArray:
        """Return the weights' real values (R, K)."""
        # (R, K), (R, 1) -> (R, K)
        return np.ldexp(self.weight.astype(np.float64), -self.weight_fraction[:, None])


def largest_fractions(bias: np.ndarray, columns: int, weight_bits: int, input_format: QFormat) -> FloatArray:
    """Return the largest fraction (R,) at which each bias (R,) fits; infinite where all do.

    A bias may take as much of the accumulator as the products; a row of tiny weights beside a large
    bias is scaled coarser.
    """
    limit = columns << (weight_bits + input_format.bits - 2)
    with np.errstate(divide="ignore", over="ignore"):  # no bias, or next to none, limits nothing
        return np.asarray(np.floor(np.log2(limit / np.abs(bias))) - input_format.fraction)
