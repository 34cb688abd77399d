r"""Base-2 exponentials of non-positive numbers, \(2^{-t}\), by table and shift.

With \(t = n + f\), \(n\) whole and \(0 \le f < 1\): \(2^{-t} = 2^{-f} / 2^n\). The fraction bits
index a table of \(2^{-f}\), the integer bits shift what comes out. Softmax needs nothing else when
its scores are base-2 logarithms, which costs nothing: the factor \(\log_2 e\) is folded into the
query projection before that is quantized.

The result counts units of \(1/(2^b - 1)\), not of \(2^{-b}\): the row's largest element, \(t = 0\),
then uses the whole range, and softmax divides the scale away again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..arithmetic import Integers, shift_right_half_up
from ..qformat import IntegerArray, as_int64


@dataclass(frozen=True)
class Exponential:
    """The function `2**-t` for `t >= 0`, by a table of `2**table_bits` entries and a shift.

    Equation, with every division rounding half up: `u = t / 2**(fraction - table_bits)`,
    `e = table[u % 2**table_bits] / 2**(u >> table_bits)`.

    Error: |e − (2**output_bits − 1)·2**−t| <= 3/4 + ln 2 · (2**output_bits − 1) /
    2**(table_bits + 1) units. Half a unit is the table's rounding for t < 1; beyond that at most
    half of it is left, and the shift's own half unit comes on top. The last term (0.35 units at 8
    and 8 bits) is the rounding of `t` to the table's step and is absent where
    `fraction <= table_bits`.

    Widths: the result and a table entry have `output_bits`; `u` is clipped to `output_bits + 1`
    before the point, where the result is 0.

    Attributes:
        fraction: Fraction bits of `t`; may be negative.
        table_bits: Fraction bits that index the table.
        output_bits: Width of the unsigned result.
    """

    fraction: int
    table_bits: int = 8
    output_bits: int = 8

    def __post_init__(self) -> None:
        if not -30 <= self.fraction <= 40:
            raise ValueError(f"exponential fraction must be -30 to 40, not {self.fraction}")
        if not 1 <= self.table_bits <= 12:
            raise ValueError(f"exponential table_bits must be 1 to 12, not {self.table_bits}")
        if not 2 <= self.output_bits <= 16:
            raise ValueError(f"exponential output_bits must be 2 to 16, not {self.output_bits}")

    @property
    def maximum(self) -> int:
        """The result at `t = 0`, `2**output_bits - 1`."""
        return (1 << self.output_bits) - 1

    @property
    def shift(self) -> int:
        """Bits of `t` below the table's step; negative when `t` is coarser than the table."""
        return self.fraction - self.table_bits

    @cached_property
    def table(self) -> IntegerArray:
        """Entries `round(maximum * 2**(-i / 2**table_bits))`, int64 (2**table_bits,)."""
        steps = np.arange(1 << self.table_bits)
        return np.floor(self.maximum * 2.0 ** (-steps / (1 << self.table_bits)) + 0.5).astype(np.int64)

    def compute(self, distance: Integers) -> IntegerArray:
        """Return the exponentials of `-distance`.

        Args:
            distance: Non-negative integers with `fraction` fraction bits, any shape.

        Returns:
            int64 of the same shape, 0 to `maximum`.

        Raises:
            ValueError: A distance is negative.
        """
        wide = as_int64(distance)
        if wide.size and int(wide.min()) < 0:
            raise ValueError(f"an exponential's distance below the maximum cannot be negative: {int(wide.min())}")
        # From t = output_bits + 1 on the result is 0. Clipped first: coarse distances are shifted
        # left, by up to 42 bits.
        nearest = np.minimum(wide, (self.output_bits + 1) << max(self.fraction, 0))
        index = shift_right_half_up(nearest, self.shift)
        whole = np.minimum(index >> self.table_bits, self.output_bits + 1)
        return shift_right_half_up(self.table[index & ((1 << self.table_bits) - 1)], whole)
