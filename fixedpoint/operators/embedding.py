"""Token and position embeddings: 8-bit tables with power-of-two scales, added and saturated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arithmetic import Integers, shift_right_half_up
from ..errors import QuantizationError
from ..qformat import IntegerArray, Overflow, QFormat, Rounding, as_int64
from .linear import FRACTION, LARGEST_LEFT_SHIFT, least_squares_fractions


@dataclass(frozen=True, eq=False)
class EmbeddingTable:
    """A quantized lookup table: row n has the values `weight[n] · 2**-weight_fraction[n]`.

    Attributes:
        weight: Integers (N, C), `weight_bits` wide.
        weight_bits: Width of an entry, 2 to 8.
        weight_fraction: Fraction bits of each row (N,), −128 to 127.
    """

    weight: IntegerArray
    weight_bits: int
    weight_fraction: IntegerArray

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or 0 in self.weight.shape:
            raise QuantizationError(
                f"an embedding table is a matrix (entries, channels), not of shape {self.weight.shape}"
            )
        if self.weight_fraction.shape != (len(self.weight),):
            raise QuantizationError(
                f"an embedding of {len(self.weight)} rows needs as many fractions, not {self.weight_fraction.shape}"
            )
        if not 2 <= self.weight_bits <= 8 or not QFormat(self.weight_bits, 0).holds(self.weight):
            raise QuantizationError(f"an embedding entry does not fit {self.weight_bits} bits (2 to 8)")
        if not FRACTION.holds(self.weight_fraction):
            raise QuantizationError(
                f"a weight_fraction is outside {FRACTION.minimum_integer} to {FRACTION.maximum_integer}"
            )

    @classmethod
    def from_float(cls, table: np.ndarray, weight_bits: int) -> EmbeddingTable:
        """Quantize a table (N, C), each row at the scale of least squared error.

        Raises:
            QuantizationError: A value is not finite.
        """
        matrix = np.asarray(table, dtype=np.float64)
        if not np.isfinite(matrix).all():
            raise QuantizationError("an embedding value is NaN or infinite")
        fraction = least_squares_fractions(matrix, weight_bits)
        scaled = np.ldexp(matrix, fraction[:, None])  # (N, C), (N, 1) -> (N, C)
        return cls(QFormat(weight_bits, 0).quantize(scaled, Rounding.HALF_UP, Overflow.SATURATE), weight_bits, fraction)

    def compute(self, index: Integers, output: QFormat) -> IntegerArray:
        """Return rows `index` (...) in units of `output`, int64 (..., C), not yet saturated."""
        # (..., C), (..., 1) -> (..., C)
        return shift_right_half_up(self.weight[index], (self.weight_fraction[index] - output.fraction)[..., None])


@dataclass(frozen=True, eq=False)
class Embedding:
    """Token plus position embedding in the residual format, saturated once after the sum.

    Where rotations or nothing say what a position is, there is no position table.

    Equation: `y = sat(half_up(token[t] / 2**s) + half_up(position[p] / 2**u))`, with each row's own
    shift `s`, `u` = its fraction − the output's.

    Error: half a unit of the output a table, beside the rounding of the tables themselves. Width:
    the sum is at most one bit wider than the wider row; `accumulator_table` refuses one beyond 32
    bits.
    """

    token: EmbeddingTable
    position: EmbeddingTable | None
    output: QFormat

    def __post_init__(self) -> None:
        if self.position is not None and self.token.weight.shape[1] != self.position.weight.shape[1]:
            raise QuantizationError(
                f"token and position embeddings differ in width: {self.token.weight.shape[1]} and {self.position.weight.shape[1]}"
            )
        for table in self.tables.values():
            if self.output.fraction - int(table.weight_fraction.min()) > LARGEST_LEFT_SHIFT:
                raise QuantizationError(
                    f"an embedding row is more than {LARGEST_LEFT_SHIFT} bits coarser than the output {self.output}"
                )

    @property
    def tables(self) -> dict[str, EmbeddingTable]:
        """The tables that there are, by name."""
        return {"token": self.token} | ({} if self.position is None else {"position": self.position})

    @property
    def inputs(self) -> tuple[QFormat, ...]:
        """Formats of what it reads: tokens have none."""
        return ()

    def output_channels(self) -> int:
        """Return the channels of the output."""
        return int(self.token.weight.shape[1])

    def compute(self, tokens: Integers, first_position: int = 0) -> IntegerArray:
        """Return int64 (..., T, C) for tokens (..., T) at positions from `first_position`.

        Raises:
            ValueError: A token is not in the vocabulary, or a position is beyond the context.
        """
        index = as_int64(tokens)
        vocabulary = len(self.token.weight)
        if index.size and not 0 <= int(index.min()) <= int(index.max()) < vocabulary:
            raise ValueError(f"a token must be 0 to {vocabulary - 1}; got {int(index.min())} to {int(index.max())}")
        total = self.token.compute(index, self.output)
        if self.position is not None:
            stop, context = first_position + index.shape[-1], len(self.position.weight)
            if first_position < 0 or stop > context:
                raise ValueError(f"positions {first_position} to {stop - 1} exceed the context of {context}")
            total = total + self.position.compute(np.arange(first_position, stop), self.output)
        return self.output.fit(total, Overflow.SATURATE)
