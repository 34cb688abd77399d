r"""Integer LayerNorm without a rounded mean.

With \(S = \sum x_i\), \(Q = \sum x_i^2\) over \(C\) channels,

\[ \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}} = \frac{C x_i - S}{\sqrt{C Q - S^2 + C^2 \epsilon}} \]

holds in whole numbers: neither mean nor variance is divided out, so nothing is rounded before the reciprocal square root.
Both sums can be gathered while the row arrives.  Units cancel, so the input's format matters only for epsilon.

Reference: Ba, Kiros, Hinton, "Layer Normalization", arXiv:1607.06450.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .arithmetic import Integers, requantize
from .errors import QuantizationError
from .linear import LARGEST_LEFT_SHIFT
from .qformat import IntegerArray, Overflow, QFormat, Rounding, bits_for, covering_fraction
from .reciprocal import ReciprocalSquareRoot


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """LayerNorm over the last axis, then scale and shift, to `output`.

    Equations, all integers, `C = len(scale)`:
    `d_i = C·x_i − S`; `v = C·Q − S² + epsilon`; `n_i = requantize(d_i · r.mantissa, r.exponent − normalized.fraction)` with `r ~ 1/sqrt(v)`;
    `y_i = requantize(n_i · scale_i + shift_i, normalized.fraction + scale_format.fraction − output.fraction)`.

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
        if self.scale.ndim != 1 or not 1 <= len(self.scale) <= 4096 or self.shift.shape != self.scale.shape:
            raise QuantizationError(
                f"LayerNorm scale and shift must be vectors of one length, 1 to 4096, not {self.scale.shape} and {self.shift.shape}"
            )
        if not self.input.signed or self.input.bits > 16:
            raise QuantizationError(f"LayerNorm input must be signed with at most 16 bits, not {self.input}")
        if not self.scale_format.signed or self.scale_format.bits > 16 or not self.scale_format.holds(self.scale):
            raise QuantizationError(f"LayerNorm scale does not fit {self.scale_format} (signed, at most 16 bits)")
        if not self.output.signed or self.output.bits > 16:
            raise QuantizationError(f"LayerNorm output must be signed with at most 16 bits, not {self.output}")
        if isinstance(self.epsilon, bool) or not isinstance(self.epsilon, int):
            raise QuantizationError(f"LayerNorm epsilon must be a whole number, not {self.epsilon!r}")
        if not 1 <= self.epsilon < 1 << (self.variance_bits - 1):
            raise QuantizationError(
                f"LayerNorm epsilon must be 1 to 2**{self.variance_bits - 1} - 1, not {self.epsilon}"
            )
        if np.abs(self.shift).max() > self.shift_limit:
            raise QuantizationError(
                f"LayerNorm shift exceeds the product's range: {np.abs(self.shift).max()} > {self.shift_limit}"
            )
        if self.output_shift < -LARGEST_LEFT_SHIFT:
            raise QuantizationError(
                f"LayerNorm output {self.output} is {-self.output_shift} bits finer than the product; "
                f"at most {LARGEST_LEFT_SHIFT} are supported"
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
            QuantizationError: A value is not finite.
        """
        if not (np.isfinite(scale).all() and np.isfinite(shift).all() and math.isfinite(epsilon)):
            raise QuantizationError("a LayerNorm scale, shift or epsilon is NaN or infinite")
        channels = len(scale)
        normalized = cls.normalized_format(channels)
        largest = 1 << (normalized.bits + scale_bits - 2)
        # A beta may take as much of the product's range as gamma; a small gamma beside a large beta is scaled coarser.
        gamma_fraction = covering_fraction(float(np.abs(scale).max()), scale_bits)
        beta_fraction = covering_fraction(float(np.abs(shift).max()), largest.bit_length()) - normalized.fraction
        scale_format = QFormat(scale_bits, min(gamma_fraction, beta_fraction) if np.any(shift) else gamma_fraction)
        product = QFormat(bits_for(-largest, largest, True), normalized.fraction + scale_format.fraction)
        in_units = channels**2 * epsilon * math.ldexp(1, 2 * input_format.fraction)
        return cls(
            input=input_format,
            scale=scale_format.quantize(scale, Rounding.HALF_UP, Overflow.SATURATE),
            scale_format=scale_format,
            shift=np.clip(product.quantize(shift, Rounding.HALF_UP, Overflow.SATURATE), -largest, largest),
            output=output,
            epsilon=max(1, round(in_units)),
        )

    @staticmethod
    def normalized_format(channels: int) -> QFormat:
        """Return the 16-bit format of n_i. No element of C exceeds `sqrt(C - 1)` in magnitude, so the range needs no calibration."""
        return QFormat(16, 15 - math.isqrt(max(channels - 1, 1)).bit_length())

    @property
    def channels(self) -> int:
        """The row's length C."""
        return len(self.scale)

    @property
    def normalized(self) -> QFormat:
        """Format of n_i."""
        return self.normalized_format(self.channels)

    @property
    def sum_bits(self) -> int:
        """Signed width of S and of C·x_i."""
        return bits_for(self.channels * self.input.minimum_integer, self.channels * self.input.maximum_integer, True)

    @property
    def difference_bits(self) -> int:
        """Signed width of d_i: |C·x_i − S| <= (C − 1)·(2**bits − 1)."""
        largest = max(self.channels - 1, 1) * ((1 << self.input.bits) - 1)
        return bits_for(-largest, largest, True)

    @property
    def square_sum_bits(self) -> int:
        """Unsigned width of Q."""
        return (self.channels << (2 * self.input.bits - 2)).bit_length()

    @property
    def variance_bits(self) -> int:
        """Unsigned width of v; one bit above C·Q leaves room for epsilon."""
        return (self.channels**2 << (2 * self.input.bits - 2)).bit_length() + 1

    @property
    def shift_limit(self) -> int:
        """Bound on |beta| in product units: beta may use as much of the range as the product."""
        return 1 << (self.normalized.bits + self.scale_format.bits - 2)

    @property
    def product_bits(self) -> int:
        """Signed width of n_i · scale_i + shift_i."""
        return bits_for(-2 * self.shift_limit, 2 * self.shift_limit, True)

    @property
    def output_shift(self) -> int:
        """Right shift from product to output."""
        return self.normalized.fraction + self.scale_format.fraction - self.output.fraction

    def compute(self, x: Integers) -> IntegerArray:
        """Normalize rows.

        Args:
            x: Integers (..., C) of format `input`.

        Returns:
            int64 (..., C) of format `output`.
        """
        wide = np.asarray(x, dtype=np.int64)
        if wide.shape[-1] != self.channels:
            raise ValueError(f"LayerNorm rows have {self.channels} elements, not {wide.shape[-1]}")
        if not self.input.holds(wide):
            raise ValueError(f"a LayerNorm input does not fit {self.input}")
        total = wide.sum(axis=-1, keepdims=True)
        squares = (wide * wide).sum(axis=-1, keepdims=True)
        root = self.reciprocal_square_root.compute(self.channels * squares - total * total + self.epsilon)
        difference = self.channels * wide - total
        normalized = requantize(difference * root.mantissa, root.exponent - self.normalized.fraction, self.normalized)
        return requantize(normalized * self.scale + self.shift, self.output_shift, self.output)
