r"""Reciprocals and reciprocal square roots of positive integers, by normalization and one table.

A positive \(x\) is written \(x = m \cdot 2^e\) with \(m\) in a fixed interval; the leading bits of
\(m\) index a table, and \(e\) becomes a shift. Each entry is the function at the *middle* of the
interval of mantissas that share its index, which halves the error of taking the interval's start.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..arithmetic import Integers
from ..qformat import IntegerArray, as_int64


@dataclass(frozen=True)
class ScaledReciprocal:
    """Results `mantissa * 2**-exponent`, both int64 arrays of the argument's shape."""

    mantissa: IntegerArray
    exponent: IntegerArray


def _check_table(name: str, index_bits: int, mantissa_bits: int) -> None:
    if not 2 <= index_bits <= 12:
        raise ValueError(f"{name} index_bits must be 2 to 12, not {index_bits}")
    # with equal widths the first entry would round up to one bit more
    if not index_bits < mantissa_bits <= 18:
        raise ValueError(f"{name} mantissa_bits must be {index_bits + 1} (index_bits + 1) to 18, not {mantissa_bits}")


def _floor_log2(values: Integers) -> IntegerArray:
    """Return the position of the leading one; exact for every positive int64."""
    wide = as_int64(values)
    if wide.size and int(wide.min()) <= 0:
        raise ValueError(f"a reciprocal needs a positive argument, not {int(wide.min())}")
    # float64 rounds beyond 53 bits, possibly up to the next power of two; the shift corrects that.
    position = np.frexp(wide.astype(np.float64))[1].astype(np.int64) - 1
    return position - (wide >> position == 0)


def _shift(values: Integers, right: IntegerArray) -> IntegerArray:
    """Drop `right` low bits (floor), or append zeros where negative."""
    wide = as_int64(values)
    return np.where(right >= 0, wide >> np.maximum(right, 0), wide << np.maximum(-right, 0))


@dataclass(frozen=True)
class Reciprocal:
    """The function `1 / x` for integers `x >= 1`.

    Equation: with `e = floor(log2 x)` and `i` the `index_bits` bits below the leading one (zeros
    appended where `x` is short), `1 / x ~ table[i] * 2**-(e + mantissa_bits)`,
    `table[i] = round(2**mantissa_bits / (1 + (i + 1/2) / 2**index_bits))`.

    Relative error: at most `2**-(index_bits + 1) + 2**-mantissa_bits`.

    Widths: the mantissa has `mantissa_bits`; of an argument of b bits the exponent is at most
    `b - 1 + mantissa_bits`.

    Attributes:
        index_bits: Bits that index the table. 10 fill one block RAM of 1,024 × 18.
        mantissa_bits: Width of an entry; its top bit is always 1.
    """

    index_bits: int = 10
    mantissa_bits: int = 16

    def __post_init__(self) -> None:
        _check_table("reciprocal", self.index_bits, self.mantissa_bits)

    @cached_property
    def table(self) -> IntegerArray:
        """Mantissas, int64 (2**index_bits,): falling, at least 2**(mantissa_bits − 1)."""
        middle = 1 + (np.arange(1 << self.index_bits) + 0.5) / (1 << self.index_bits)
        return np.floor(2.0**self.mantissa_bits / middle + 0.5).astype(np.int64)

    def compute(self, values: Integers) -> ScaledReciprocal:
        """Return `1 / values` as mantissa and exponent; `exponent` includes `mantissa_bits`.

        Raises:
            ValueError: A value is not positive.
        """
        position = _floor_log2(values)
        index = _shift(values, position - self.index_bits) - (1 << self.index_bits)
        return ScaledReciprocal(self.table[index], position + self.mantissa_bits)


@dataclass(frozen=True)
class ReciprocalSquareRoot:
    r"""The function `1 / sqrt(x)` for integers `x >= 1`.

    Equation: `e = floor(log2 x)` with its lowest bit cleared, so that \(x = m 4^{e/2}\), \(1 \le m
    < 4\), and halving the exponent stays whole. The leading `index_bits` bits of `m` (two before
    the point) are the index `i`, from a quarter of `2**index_bits` upward:
    `1 / sqrt(x) ~ table[i - start] * 2**-(e / 2 + mantissa_bits)`, `start = 2**(index_bits - 2)`,
    `table[i - start] = round(2**mantissa_bits / sqrt((i + 1/2) / start))`.

    Relative error: at most `2**-index_bits + 2**-mantissa_bits`; the worst mantissas are those next
    to 1.

    Widths: the mantissa has `mantissa_bits`; of an argument of b bits the exponent is at most
    `(b - 1) / 2 + mantissa_bits`.

    Attributes:
        index_bits: Bits of the index; three quarters of the `2**index_bits` codes occur.
        mantissa_bits: Width of an entry.
    """

    index_bits: int = 10
    mantissa_bits: int = 16

    def __post_init__(self) -> None:
        _check_table("reciprocal square root", self.index_bits, self.mantissa_bits)

    @property
    def start(self) -> int:
        """The smallest index, `2**(index_bits - 2)`."""
        return 1 << (self.index_bits - 2)

    @cached_property
    def table(self) -> IntegerArray:
        """Mantissas, int64 (3/4 · 2**index_bits,): falling, at least 2**(mantissa_bits − 1)."""
        middle = (np.arange(self.start, 4 * self.start) + 0.5) / self.start
        return np.floor(2.0**self.mantissa_bits / np.sqrt(middle) + 0.5).astype(np.int64)

    @property
    def largest_ratio(self) -> float:
        """The least upper bound of `result · sqrt(x)`."""
        # an entry is furthest above 1/sqrt at the upper end of its interval
        ends = np.arange(self.start + 1, 4 * self.start + 1) / self.start
        return float((self.table * np.sqrt(ends)).max() * 2.0**-self.mantissa_bits)

    def compute(self, values: Integers) -> ScaledReciprocal:
        """Return `1 / sqrt(values)` as mantissa and exponent; `exponent` includes `mantissa_bits`.

        Raises:
            ValueError: A value is not positive.
        """
        even = _floor_log2(values) & ~np.int64(1)
        index = _shift(values, even - (self.index_bits - 2)) - self.start
        return ScaledReciprocal(self.table[index], (even >> 1) + self.mantissa_bits)
