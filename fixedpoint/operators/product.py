"""The elementwise product of two tensors: the gate of SwiGLU (Shazeer, arXiv:2002.05202)."""

from __future__ import annotations

from dataclasses import dataclass

from ..arithmetic import Integers, requantize
from ..errors import QuantizationError
from ..qformat import IntegerArray, QFormat, as_int64, bits_for
from .operator import same_channels

MAXIMUM_INPUT_BITS = 16


@dataclass(frozen=True)
class Product:
    """The rounded product of two tensors.

    Equation: `y = requantize(a · b, a's fraction + b's fraction − output fraction)`.

    Error: half a unit of the output, where the product is in its range. Width: `product_bits`, at
    most 32.

    Attributes:
        first, second: Formats of what it reads, at most 16 bits each.
        output: Format of y.
    """

    first: QFormat
    second: QFormat
    output: QFormat

    def __post_init__(self) -> None:
        formats = (self.first, self.second, self.output)
        if not all(one.signed for one in formats) or max(one.bits for one in self.inputs) > MAXIMUM_INPUT_BITS:
            raise QuantizationError(
                f"a product reads at most {MAXIMUM_INPUT_BITS} signed bits, not {self.first} and {self.second}"
            )
        if self.shift < 0:
            raise QuantizationError(
                f"a product of {self.first} and {self.second} cannot become {self.output}: that is finer than it is"
            )

    @property
    def inputs(self) -> tuple[QFormat, ...]:
        """Formats of what it reads."""
        return self.first, self.second

    def output_channels(self, first: int, second: int) -> int:
        """Return the channels of the output."""
        return same_channels(first, second)

    @property
    def shift(self) -> int:
        """Right shift of a product."""
        return self.first.fraction + self.second.fraction - self.output.fraction

    @property
    def product_bits(self) -> int:
        """Signed width of a product, from the formats alone."""
        largest = 1 << (self.first.bits + self.second.bits - 2)
        return bits_for(-largest, largest, True)

    def compute(self, first: Integers, second: Integers) -> IntegerArray:
        """Return products, int64 of format `output`, of integers of the two formats."""
        return requantize(as_int64(first) * as_int64(second), self.shift, self.output)
