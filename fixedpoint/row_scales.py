"""Quantization of a matrix's rows, each at its own power-of-two scale.

A row at fraction f stands for the values 2**-f · i, with i from −2**(bits−1) to 2**(bits−1) − 1, or
with ternary weights i in {−1, 0, 1}.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from .arithmetic import Integers
from .checks import is_whole
from .errors import QuantizationError
from .qformat import IntegerArray, Overflow, QFormat, Rounding, covering_fraction

WeightBits = int | Literal["ternary"]

FRACTION = QFormat(8, 0)  # a row's fraction is stored in a signed byte
# The covering power of two and the next seven below it. One weight at the covering scale, clipped
# to 1/2**j, is paid for only by more than 4**j others that it would have rounded to nothing, and
# rows have at most some thousands of columns.
CANDIDATES = 8


def storage_bits(weight_bits: WeightBits) -> int:
    """Return how many bits a weight is stored in: two for ternary ones.

    Raises:
        QuantizationError: Neither 2 to 8 nor "ternary".
    """
    if weight_bits == "ternary":
        return 2
    if not is_whole(weight_bits) or not 2 <= weight_bits <= 8:
        raise QuantizationError(f'weight_bits must be a whole number from 2 to 8, or "ternary", not {weight_bits!r}')
    return int(weight_bits)


def weight_range(weight_bits: WeightBits) -> tuple[int, int]:
    """Return the smallest and the largest integer that a weight may be."""
    if weight_bits == "ternary":
        return -1, 1
    code = QFormat(storage_bits(weight_bits), 0)
    return code.minimum_integer, code.maximum_integer


def quantize_rows(matrix: np.ndarray, fraction: Integers, weight_bits: WeightBits) -> IntegerArray:
    """Round real rows (R, K) half up to integers at fractions (R,), and saturate."""
    lowest, highest = weight_range(weight_bits)
    code = QFormat(storage_bits(weight_bits), 0)
    with np.errstate(over="ignore"):  # an infinity saturates
        scaled = np.ldexp(matrix, np.asarray(fraction)[:, None])  # (R, K), (R, 1) -> (R, K)
    return np.clip(code.quantize(scaled, Rounding.HALF_UP, Overflow.SATURATE), lowest, highest)


def covering_fractions(matrix: np.ndarray, weight_bits: WeightBits) -> IntegerArray:
    """Return the largest fraction of each row (R,) of a matrix (R, K) at which nothing saturates.

    A row of zeros gets the fraction of a row whose largest weight is 1. No fraction exceeds what a
    byte stores: weights below 2**-120 may become 0.

    Raises:
        QuantizationError: A weight is not finite, or so large (some 2**127) that a byte does not
            store its fraction.
    """
    bits = storage_bits(weight_bits)
    fraction = np.array([covering_fraction(float(peak), bits) for peak in np.abs(matrix).max(axis=1)], dtype=np.int64)
    if fraction.min() < FRACTION.minimum_integer:
        raise QuantizationError(
            f"a weight of {np.abs(matrix).max():g} is too large for a fraction of {FRACTION.bits} bits"
        )
    return np.minimum(fraction, FRACTION.maximum_integer)


def least_squares_fractions(matrix: np.ndarray, weight_bits: WeightBits, one_scale: bool = False) -> IntegerArray:
    """Return each row's fraction (R,) of least squared rounding error.

    Candidates: the covering power of two and the next seven below it. The finer ones clip the row's
    largest weights to round the many small ones better, the more the fewer bits there are. With
    `one_scale` all rows share the fraction of least squared error over the whole matrix.

    Raises:
        QuantizationError: As `covering_fractions`.
    """
    first = covering_fractions(matrix, weight_bits)
    if one_scale:
        first = np.full_like(first, first.min())
    # (R, 1) + (CANDIDATES,) -> (R, CANDIDATES)
    candidates = np.minimum(first[:, None] + np.arange(CANDIDATES), FRACTION.maximum_integer)
    errors = np.empty(candidates.shape)
    for column in range(CANDIDATES):
        fraction = candidates[:, column]
        # (R, K), (R, 1) -> (R, K)
        rounded = np.ldexp(quantize_rows(matrix, fraction, weight_bits).astype(np.float64), -fraction[:, None])
        errors[:, column] = ((rounded - matrix) ** 2).sum(axis=1)
    if one_scale:
        errors = np.broadcast_to(errors.sum(axis=0), errors.shape)
    # (R, CANDIDATES) -> (R, 1) -> (R,)
    return np.asarray(np.take_along_axis(candidates, errors.argmin(axis=1)[:, None], axis=1)[:, 0])
