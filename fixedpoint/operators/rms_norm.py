r"""Integer RMSNorm: LayerNorm without its mean and its shift.

With \(Q = \sum x_i^2\) over \(C\) channels,

\[ \frac{x_i}{\sqrt{Q / C + \epsilon}} = \frac{C x_i}{\sqrt{C Q + C^2 \epsilon}} \]

holds in whole numbers, and is LayerNorm's quotient with \(S = 0\): one formula, one epsilon, one
circuit serve both. A power of two as \(C\) makes both multiplications a choice of wires.

Reference: Zhang, Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..arithmetic import Integers, requantize
from ..qformat import IntegerArray, Overflow, QFormat, Rounding, bits_for, covering_fraction
from .reciprocal import ReciprocalSquareRoot
from .row_norm import RowNorm, check_finite, whole_epsilon


@dataclass(frozen=True, eq=False)
class RMSNorm(RowNorm):
    """RMSNorm over the last axis, then scale, to `output`.

    Equations, all integers, `C = len(scale)`:
    `d_i = C·x_i`; `v = C·Q + epsilon`;
    `n_i = requantize(d_i · r.mantissa, r.exponent − normalized.fraction)` with `r ~ 1/sqrt(v)`;
    `y_i = requantize(n_i · scale_i, normalized.fraction + scale_format.fraction − output.fraction)`.

    Error: see `docs/fixedpoint/rms_norm.md`; the reciprocal square root's relative error, half a
    unit of n, gamma and y.

    Widths: d_i `difference_bits`, Q `square_sum_bits`, v `variance_bits`, `d_i · r.mantissa` those
    of its factors together, n_i 16, `n_i · scale_i` `product_bits`. d, n and the product are
    signed.

    Attributes:
        input: Format of x, signed, at most 16 bits.
        scale: gamma, integers (C,) of `scale_format`.
        scale_format: Format of gamma, signed, at most 16 bits.
        output: Format of y.
        epsilon: The integer added to v, at least 1 so that v is positive.
        reciprocal_square_root: The function 1/sqrt.
    """

    input: QFormat
    scale: IntegerArray
    scale_format: QFormat
    output: QFormat
    epsilon: int
    reciprocal_square_root: ReciprocalSquareRoot = field(default_factory=ReciprocalSquareRoot)

    @classmethod
    def from_float(
        cls, scale: np.ndarray, epsilon: float, input_format: QFormat, output: QFormat, scale_bits: int
    ) -> RMSNorm:
        """Quantize a float RMSNorm's gamma (C,) and epsilon.

        Raises:
            QuantizationError: A value is not finite, gamma is empty, or epsilon is negative.
        """
        check_finite("RMSNorm", epsilon, scale)
        scale_format = QFormat(scale_bits, covering_fraction(float(np.abs(scale).max()), scale_bits))
        return cls(
            input=input_format,
            scale=scale_format.quantize(scale, Rounding.HALF_UP, Overflow.SATURATE),
            scale_format=scale_format,
            output=output,
            epsilon=whole_epsilon(epsilon, len(scale), input_format),
        )

    @property
    def difference_bits(self) -> int:
        """Signed width of d_i = C·x_i."""
        return self.scaled_bits

    @property
    def product_bits(self) -> int:
        """Signed width of n_i · scale_i."""
        return bits_for(-self.product_limit, self.product_limit, True)

    def compute(self, x: Integers) -> IntegerArray:
        """Normalize rows.

        Args:
            x: Integers (..., C) of format `input`.

        Returns:
            int64 (..., C) of format `output`.
        """
        wide = self._rows(x)
        squares = (wide * wide).sum(axis=-1, keepdims=True)  # (..., C) -> (..., 1)
        normalized = self._normalize(self.channels * wide, self.channels * squares + self.epsilon)
        return requantize(normalized * self.scale, self.output_shift, self.output)
