r"""Integer LayerNorm without a rounded mean.

With \(S = \sum x_i\), \(Q = \sum x_i^2\) over \(C\) channels,

\[ \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}} = \frac{C x_i - S}{\sqrt{C Q - S^2 + C^2 \epsilon}}
\]

holds in whole numbers: neither mean nor variance is divided out, so nothing is rounded before the
reciprocal square root. Both sums can be gathered while the row arrives. Units cancel, so the
input's format matters only for epsilon.

Reference: Ba, Kiros, Hinton, "Layer Normalization", arXiv:1607.06450.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..arithmetic import Integers, requantize
from ..errors import QuantizationError
from ..qformat import IntegerArray, Overflow, QFormat, Rounding, bits_for, covering_fraction
from .reciprocal import ReciprocalSquareRoot
from .row_norm import RowNorm, check_finite, whole_epsilon


@dataclass(frozen=True, eq=False)
class LayerNorm(RowNorm):
    """LayerNorm over the last axis, then scale and shift, to `output`.

    Equations, all integers, `C = len(scale)`:
    `d_i = C·x_i − S`; `v = C·Q − S² + epsilon`;
    `n_i = requantize(d_i · r.mantissa, r.exponent − normalized.fraction)` with `r ~ 1/sqrt(v)`;
    `y_i = requantize(n_i · scale_i + shift_i, normalized.fraction + scale_format.fraction − output.fraction)`.

    Error: see `docs/fixedpoint/layer_norm.md`; the reciprocal square root's relative error, half a
    unit of n, gamma, beta and y.

    Widths: S and C·x_i `sum_bits`, Q `square_sum_bits`, d_i `difference_bits`, v `variance_bits`,
    `d_i · r.mantissa` those of its factors together, n_i 16, `n_i · scale_i + shift_i`
    `product_bits`. S, d, n and the product are signed.

    Attributes:
        input: Format of x, signed, at most 16 bits.
        scale: gamma, integers (C,) of `scale_format`.
        scale_format: Format of gamma, signed, at most 16 bits.
        shift: beta, integers (C,), in units of the product `n_i · scale_i`.
        output: Format of y.
        epsilon: The integer added to v, at least 1 so that v is positive.
        reciprocal_square_root: The function 1/sqrt.
    """

    input: QFormat
    scale: IntegerArray
    scale_format: QFormat
    shift: IntegerArray
    output: QFormat
    epsilon: int
    reciprocal_square_root: ReciprocalSquareRoot = field(default_factory=ReciprocalSquareRoot)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shift.shape != self.scale.shape:
            raise QuantizationError(
                f"LayerNorm scale and shift must be vectors of one length, not {self.scale.shape} and {self.shift.shape}"
            )
        if np.abs(self.shift).max() > self.shift_limit:
            raise QuantizationError(
                f"LayerNorm shift exceeds the product's range: {np.abs(self.shift).max()} > {self.shift_limit}"
            )

    @classmethod
    def from_float(
        cls,
        scale: np.ndarray,
        shift: np.ndarray,
        epsilon: float,
        input_format: QFormat,
        output: QFormat,
        scale_bits: int,
    ) -> LayerNorm:
        """Quantize a float LayerNorm's gamma, beta (C,) and epsilon.

        Raises:
            QuantizationError: A value is not finite, a vector is empty, or epsilon is negative.
        """
        check_finite("LayerNorm", epsilon, scale, shift)
        normalized = cls.normalized_format(len(scale))
        largest = 1 << (normalized.bits + scale_bits - 2)
        # A beta may take as much of the product's range as gamma; a small gamma beside a large beta
        # is scaled coarser.
        gamma_fraction = covering_fraction(float(np.abs(scale).max()), scale_bits)
        beta_fraction = covering_fraction(float(np.abs(shift).max()), largest.bit_length()) - normalized.fraction
        scale_format = QFormat(scale_bits, min(gamma_fraction, beta_fraction) if np.any(shift) else gamma_fraction)
        product = QFormat(bits_for(-largest, largest, True), normalized.fraction + scale_format.fraction)
        return cls(
            input=input_format,
            scale=scale_format.quantize(scale, Rounding.HALF_UP, Overflow.SATURATE),
            scale_format=scale_format,
            shift=np.clip(product.quantize(shift, Rounding.HALF_UP, Overflow.SATURATE), -largest, largest),
            output=output,
            epsilon=whole_epsilon(epsilon, len(scale), input_format),
        )

    @property
    def sum_bits(self) -> int:
        """Signed width of S and of C·x_i."""
        return self.scaled_bits

    @property
    def difference_bits(self) -> int:
        """Signed width of d_i: |C·x_i − S| <= (C − 1)·(2**bits − 1)."""
        largest = max(self.channels - 1, 1) * ((1 << self.input.bits) - 1)
        return bits_for(-largest, largest, True)

    @property
    def shift_limit(self) -> int:
        """Bound on |beta| in product units: beta may use as much of the range as the product."""
        return self.product_limit

    @property
    def product_bits(self) -> int:
        """Signed width of n_i · scale_i + shift_i."""
        return bits_for(-2 * self.shift_limit, 2 * self.shift_limit, True)

    def compute(self, x: Integers) -> IntegerArray:
        """Normalize rows.

        Args:
            x: Integers (..., C) of format `input`.

        Returns:
            int64 (..., C) of format `output`.
        """
        wide = self._rows(x)
        total = wide.sum(axis=-1, keepdims=True)  # (..., C) -> (..., 1)
        squares = (wide * wide).sum(axis=-1, keepdims=True)  # (..., C) -> (..., 1)
        variance = self.channels * squares - total * total + self.epsilon
        normalized = self._normalize(self.channels * wide - total, variance)
        return requantize(normalized * self.scale + self.shift, self.output_shift, self.output)
