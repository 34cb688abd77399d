r"""The operations under all integer inference: casts to fewer bits and exact matrix products.

Requantization. An accumulator with \(f_a\) fraction bits becomes an output with \(f_o\) by a shift
of \(s = f_a - f_o\): \(y = \mathrm{sat}\left(\lfloor (x + 2^{s-1}) / 2^s \rfloor\right)\), that is
half up, then saturate. In hardware: one adder behind a shifter. A negative \(s\) is an exact
shift to the left.

Exact products at BLAS speed. NumPy multiplies integer matrices without BLAS, many times slower
than floats. A float32 product of integers is exact while every partial sum stays below 2**24, a
float64 one below 2**53, whatever the order of the additions, since every intermediate value is then
a representable integer. The bound is K · max|a| · max|b|.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .qformat import IntegerArray, QFormat, as_int64

Integers = NDArray[np.integer[Any]]

FLOAT32_EXACT = 1 << 24
FLOAT64_EXACT = 1 << 53
# of magnitudes below 2**62 nothing but 0 is left, and adding half of 2**63 still fits an int64
LONGEST_SHIFT = 63


def shift_right_half_up(values: Integers, shift: Integers | int) -> IntegerArray:
    """Divide by `2**shift`, rounding half up (ties toward +infinity).

    Args:
        values: Integers of any shape, of magnitude below 2**62 before and after any shift to the
            left.
        shift: One shift, or an array that broadcasts against `values`; negative ones multiply.

    Returns:
        int64 of the broadcast shape. Shifts beyond 62 give 0, as an infinitely wide shifter would.
    """
    wide = as_int64(values)
    right = np.asarray(shift, dtype=np.int64)
    if right.ndim == 0 and right >= 1:  # the common case, without the masks
        amount = min(int(right), LONGEST_SHIFT)
        return (wide + (1 << (amount - 1))) >> amount
    left = np.maximum(-right, 0)
    amounts = np.clip(right, 0, LONGEST_SHIFT)
    half = np.where(amounts > 0, np.left_shift(np.int64(1), np.maximum(amounts - 1, 0)), 0)
    return ((wide << left) + half) >> amounts


def requantize(values: Integers, shift: Integers | int, output: QFormat) -> IntegerArray:
    """Cast accumulators to `output`: divide by `2**shift`, round half up, saturate.

    Equation: `y = max(minimum, min(maximum, floor((x + 2**(shift − 1)) / 2**shift)))`, for a
    negative shift `x · 2**−shift` inside. Error: half a unit of the output in its range. Width:
    adding the half may take one bit more than x; shifting by one less, adding 1 and shifting once
    more does not.

    Args:
        values: Accumulators, any shape.
        shift: Accumulator fraction minus output fraction; broadcasts against `values`.
        output: The format whose range saturates.

    Returns:
        int64 integers of format `output`.
    """
    return np.clip(shift_right_half_up(values, shift), output.minimum_integer, output.maximum_integer)


def exact_matmul(a: Integers, b: Integers, largest_a: int, largest_b: int) -> Integers:
    """Multiply integer matrices exactly, by BLAS where a bound proves that floats are exact.

    Args:
        a: Integers (..., M, K).
        b: Integers (..., K, N).
        largest_a: Bound on |a|, from its format.
        largest_b: Bound on |b|, from its format.

    Returns:
        (..., M, N): int32 where the float32 bound holds, int64 elsewhere.

    Raises:
        TypeError: An operand is not of integers.
        AssertionError: An operand breaks its bound.
        OverflowError: Sums could exceed int64.
    """
    if not (np.issubdtype(a.dtype, np.integer) and np.issubdtype(b.dtype, np.integer)):
        raise TypeError(f"an exact product is one of integers, not of {a.dtype} and {b.dtype}")
    inner = a.shape[-1]
    assert a.size == 0 or (int(a.max()) <= largest_a and int(a.min()) >= -largest_a), "left operand exceeds its bound"
    assert b.size == 0 or (int(b.max()) <= largest_b and int(b.min()) >= -largest_b), "right operand exceeds its bound"
    bound = inner * largest_a * largest_b
    # (..., M, K) @ (..., K, N) -> (..., M, N)
    if bound < FLOAT32_EXACT:
        return np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(np.int32)
    if bound < FLOAT64_EXACT:
        return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.int64)
    if bound >= 1 << 63:
        raise OverflowError(f"a sum of {inner} products up to {largest_a} x {largest_b} can exceed 64 bits")
    return np.matmul(a.astype(np.int64), b.astype(np.int64))
