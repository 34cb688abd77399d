r"""Rotary positions in integers: pairs of channels turned by an angle that grows with the position.

Channels \(2i\) and \(2i+1\) of a head of size \(d\) at position \(t\) become

\[ y_{2i} = x_{2i} \cos\theta - x_{2i+1} \sin\theta, \quad
   y_{2i+1} = x_{2i} \sin\theta + x_{2i+1} \cos\theta, \quad \theta = t \cdot b^{-2i/d} . \]

The sum of both products is rounded once. x is as wide as the residual stream, so that a query or
key is in effect rounded once between its projection and the scores.

Reference: Su et al., "RoFormer", arXiv:2104.09864. Derived in docs/fixedpoint/rotary.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arithmetic import Integers, requantize
from ..errors import QuantizationError
from ..qformat import IntegerArray, Overflow, QFormat, Rounding, as_int64, bits_for
from .operator import UnaryOperator

# Holds 1 exactly; the next value below is 1 - 2**-14.
FACTOR = QFormat(16, 14)
MAXIMUM_INPUT_BITS = 16


@dataclass(frozen=True, eq=False)
class RotationTable:
    """Cosines and sines of all angles, the same for all layers and heads.

    Attributes:
        cosine: Integers (T, d / 2) of format `FACTOR`.
        sine: Integers (T, d / 2) of format `FACTOR`.
    """

    cosine: IntegerArray
    sine: IntegerArray

    def __post_init__(self) -> None:
        if self.cosine.ndim != 2 or 0 in self.cosine.shape or self.cosine.shape != self.sine.shape:
            raise QuantizationError(
                f"a rotation has cosines and sines (positions, pairs), not {self.cosine.shape} and {self.sine.shape}"
            )
        if max(int(np.abs(self.cosine).max()), int(np.abs(self.sine).max())) > 1 << FACTOR.fraction:
            raise QuantizationError("a cosine or sine is beyond 1")

    @classmethod
    def from_factors(cls, factors: np.ndarray) -> RotationTable:
        """Round complex factors (T, d / 2) of magnitude 1, half up."""
        cosine, sine = (
            FACTOR.quantize(part, Rounding.HALF_UP, Overflow.SATURATE) for part in (factors.real, factors.imag)
        )
        return cls(cosine, sine)

    @property
    def context_length(self) -> int:
        """Positions T."""
        return len(self.cosine)

    @property
    def head_dim(self) -> int:
        """Channels of a head d."""
        return 2 * self.cosine.shape[1]

    def equals(self, other: RotationTable) -> bool:
        """Return whether both turn by the same numbers."""
        return np.array_equal(self.cosine, other.cosine) and np.array_equal(self.sine, other.sine)


@dataclass(frozen=True, eq=False)
class Rotation(UnaryOperator):
    """Heads of queries or keys turned by their position's angles.

    Equation: the one above with integer cosines c and sines s:
    `y = requantize(x · c ∓ x' · s, input fraction + 14 − output fraction)`.

    Error: half a unit of the output, and of each product the rounding of its factor, at most
    `2**-15 · |x|`.

    Widths: `sum_bits`, at most 32.

    Attributes:
        input: Format of x, at most 16 bits.
        output: Format of y.
        table: The factors.
    """

    input: QFormat
    output: QFormat
    table: RotationTable

    def __post_init__(self) -> None:
        if not self.input.signed or not self.output.signed or self.input.bits > MAXIMUM_INPUT_BITS:
            raise QuantizationError(
                f"a rotation reads at most {MAXIMUM_INPUT_BITS} signed bits, not {self.input} to {self.output}"
            )
        if self.shift < 0:
            raise QuantizationError(f"a rotation cannot make {self.output} of {self.input}: it is finer than a product")

    @property
    def shift(self) -> int:
        """Right shift of a sum of products."""
        return self.input.fraction + FACTOR.fraction - self.output.fraction

    @property
    def sum_bits(self) -> int:
        """Signed width of the sum of both products, from the formats alone."""
        largest = 1 << (self.input.bits + FACTOR.fraction)
        return bits_for(-largest, largest, True)

    def output_channels(self, channels: int) -> int:
        """Return the channels of the output."""
        if channels % self.table.head_dim:
            raise QuantizationError(f"takes whole heads of {self.table.head_dim} channels, not {channels}")
        return channels

    def compute(self, x: Integers, first_position: int = 0) -> IntegerArray:
        """Turn rows that stand at positions `first_position`, ….

        Args:
            x: Integers (..., T, C) of format `input`, C whole heads.
            first_position: Position of the first row.

        Returns:
            int64 (..., T, C) of format `output`.

        Raises:
            ValueError: A position is beyond the table.
        """
        wide = as_int64(x)
        length, channels = wide.shape[-2:]
        if first_position < 0 or first_position + length > self.table.context_length:
            raise ValueError(
                f"positions {first_position} to {first_position + length - 1} exceed the context of "
                f"{self.table.context_length}"
            )
        rows = slice(first_position, first_position + length)
        # (T, d / 2) -> (T, 1, d / 2)
        cosine, sine = self.table.cosine[rows, None], self.table.sine[rows, None]
        # (..., T, C) -> (..., T, heads, d / 2, 2)
        pairs = wide.reshape(*wide.shape[:-1], channels // self.table.head_dim, -1, 2)
        even, odd = pairs[..., 0], pairs[..., 1]  # -> (..., T, heads, d / 2)
        # two (..., T, heads, d / 2) -> (..., T, heads, d / 2, 2)
        sums = np.stack([even * cosine - odd * sine, even * sine + odd * cosine], axis=-1)
        return requantize(sums, self.shift, self.output).reshape(wide.shape)  # -> (..., T, C)
