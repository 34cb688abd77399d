"""Any pointwise function of a number of at most 10 bits, as a table of exactly rounded results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..arithmetic import Integers
from ..errors import QuantizationError
from ..qformat import FloatArray, IntegerArray, Overflow, QFormat, Rounding, as_int64
from .operator import UnaryOperator

MAXIMUM_INPUT_BITS = 10


@dataclass(frozen=True, eq=False)
class TableActivation(UnaryOperator):
    """A pointwise function `y = table[x - minimum(x)]`.

    Error: half a unit of the output, where the function is in its range. Widths: none but those of
    x and y.

    Attributes:
        input: Format of x, at most `MAXIMUM_INPUT_BITS`: 1,024 entries of 16 bits are one block
            RAM.
        output: Format of y.
        table: Integers (2**input.bits,) of format `output`, in the order of x from smallest to
            largest.
    """

    input: QFormat
    output: QFormat
    table: IntegerArray

    def __post_init__(self) -> None:
        if self.input.bits > MAXIMUM_INPUT_BITS:
            raise QuantizationError(f"a table activation reads at most {MAXIMUM_INPUT_BITS} bits, not {self.input}")
        if self.table.shape != (1 << self.input.bits,):
            raise QuantizationError(
                f"the table of a {self.input} input has {1 << self.input.bits} entries, not {self.table.shape}"
            )
        if not self.output.holds(self.table):
            raise QuantizationError(f"a table entry does not fit {self.output}")

    @classmethod
    def from_function(
        cls, function: Callable[[FloatArray], FloatArray], input_format: QFormat, output: QFormat
    ) -> TableActivation:
        """Tabulate a real function, each entry rounded half up and saturated.

        Raises:
            QuantizationError: The function is NaN or infinite at a value of the input, or not
                pointwise.
        """
        codes = np.arange(input_format.minimum_integer, input_format.maximum_integer + 1)
        arguments = input_format.dequantize(codes)
        values = np.asarray(function(arguments), dtype=np.float64)
        if values.shape != arguments.shape:
            raise QuantizationError(
                f"an activation of {len(arguments)} inputs needs {len(arguments)} values, not {values.shape}"
            )
        if not np.isfinite(values).all():
            raise QuantizationError(f"an activation is NaN or infinite at {arguments[~np.isfinite(values)][0]:g}")
        return cls(input_format, output, output.quantize(values, Rounding.HALF_UP, Overflow.SATURATE))

    def compute(self, x: Integers) -> IntegerArray:
        """Return the function of integers (any shape) of format `input`, in format `output`."""
        wide = as_int64(x)
        if not self.input.holds(wide):
            raise ValueError(f"an activation input does not fit {self.input}")
        return self.table[wide - self.input.minimum_integer]
