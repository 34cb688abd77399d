r"""Gumbel noise in integers: a number for each token of a vocabulary, from one random number.

With \(u_i\) uniform between 0 and 1 and independent, \(g_i = -\log_2(-\log_2 u_i)\), the index of
the largest \(x_i + g_i\) is i with probability \(2^{x_i} / \sum_j 2^{x_j}\): softmax, without a sum
and in one pass. A word of 32 bits stands for \(u_i\) and is a hash of the random number and of i,
so any lane of a circuit makes the noise of any token. Both logarithms together are one table of
1,024 × 18 bits, one block RAM, whose entries are straight lines.

Derived in docs/fixedpoint/sampling.md. References: Maddison, Tarlow and Minka, "A* Sampling",
arXiv:1411.0030; Jang, Gu and Poole, arXiv:1611.01144; Maddison, Mnih and Teh, arXiv:1611.00712.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arithmetic import shift_right_half_up
from ..qformat import IntegerArray

RandomArray = NDArray[np.uint32]

INDEX_BITS = 16  # of a token
# A round of the hash: the random number rotated to the left, then x += x << left, x ^= x >> right.
ROUNDS = ((0, 13, 19), (4, 15, 6), (13, 5, 6), (20, 11, 10), (30, 16, 8))
FRACTION = 11  # of the noise
OCTAVES = 16  # of the table, for each half of the words; the last one stands for all below it
SEGMENT_BITS, REST_BITS = 5, 7  # of a mantissa: which line, and where on it
VALUE_BITS, SLOPE_BITS = 13, 5  # of an entry
SLOPE_FRACTION = FRACTION - 2
SMALLEST, LARGEST = -8195, 66501  # noise
# what an export says of it
NOISE = {
    "fraction": FRACTION,
    "octaves": OCTAVES,
    "segment_bits": SEGMENT_BITS,
    "rest_bits": REST_BITS,
    "value_bits": VALUE_BITS,
    "slope_bits": SLOPE_BITS,
    "slope_fraction": SLOPE_FRACTION,
}
WORD_BITS = 32


def random_words(random: RandomArray, count: int) -> RandomArray:
    """Return words uint32 (..., count), of tokens 0 to count − 1, for random numbers (...).

    Equation, modulo 2**32: x = i; for each (k, a, b) of `ROUNDS`: `x ^= rotate_left(random, k)`,
    `x += x << a`, `x ^= x >> b`. For one random number no two tokens have the same word.
    """
    key = random[..., None]  # (...) -> (..., 1)
    words: Any = np.arange(count, dtype=np.uint32)
    for rotation, left, right in ROUNDS:
        words = words ^ (key << rotation | key >> (WORD_BITS - rotation))  # (..., count)
        words *= np.uint32((1 << left) + 1)
        words ^= words >> right
    return words


@cache
def noise_table() -> IntegerArray:
    """Return the entries `value · 2**5 + slope`, int64 (1024,).

    Index: half · 512 + octave · 32 + segment. With `m0` and `m1` the ends of the segment,
    1 + segment / 32 and 1 + (segment + 1) / 32, `mm` their middle, and the function
    `f(m) = −log2(−log2(1 − m · 2**−(octave + 2))) − octave` of half 0,
    `f(m) = log2(octave + 2 − log2 m)` of half 1:
    `value = min(round(2**11 · (f(mm) + (f(m0) + f(m1)) / 2) / 2), 2**13 − 1)`,
    `slope = round(2**9 · (f(m0) − f(m1)))`, both rounding half up.
    """
    octave = np.arange(OCTAVES)[:, None]  # -> (octaves, 1)
    ends = 1 + np.arange(2 << SEGMENT_BITS | 1) / (2 << SEGMENT_BITS)  # and middles
    near = -np.log2(-np.log1p(-ends * 2.0 ** -(octave + 2)) / np.log(2)) - octave
    f = np.stack([near, np.log2(octave + 2 - np.log2(ends))])  # 2 × (octaves, n) -> (2, octaves, n)
    first, middle, last = f[..., :-1:2], f[..., 1::2], f[..., 2::2]
    value = np.floor(2.0**FRACTION * (middle + (first + last) / 2) / 2 + 0.5).astype(np.int64)
    slope = np.floor(2.0**SLOPE_FRACTION * (first - last) + 0.5).astype(np.int64)
    return (np.minimum(value, (1 << VALUE_BITS) - 1) << SLOPE_BITS | slope).ravel()


@cache
def _noise_of_places() -> NDArray[np.int32]:
    """Return the noise of every half, place of the leading one and mantissa, int32 (2**18,)."""
    half, place, mantissa = np.ogrid[:2, :WORD_BITS, : 1 << (SEGMENT_BITS + REST_BITS)]
    octave = WORD_BITS - 1 - place
    line = (half * OCTAVES + np.minimum(octave, OCTAVES - 1)) << SEGMENT_BITS
    entry = noise_table()[line + (mantissa >> REST_BITS)]
    slope, rest = entry & ((1 << SLOPE_BITS) - 1), mantissa & ((1 << REST_BITS) - 1)
    fall = shift_right_half_up(slope * (2 * rest + 1 - (1 << REST_BITS)), REST_BITS + 1 - (FRACTION - SLOPE_FRACTION))
    size = (entry >> SLOPE_BITS) - fall
    return np.where(half == 0, size + (octave << FRACTION), -size).astype(np.int32).ravel()


def gumbel_noise(words: RandomArray) -> NDArray[np.int32]:
    """Return `g` with 11 fraction bits, int32 of the same shape, −8,195 to 66,501.

    Equations: half = the word's highest bit; y = 2·word + 1, of the complemented word where half is
    1; octave = leading zeros of the 32 bits of y; segment and rest = the 5 and the 7 bits below the
    leading one, zeros where y is short; value and slope from the table, where octaves from 15 on
    are one; `size = value − round(slope · (2·rest − 127) / 2**6)`, half up;
    `g = 2**11 · octave + size` for half 0, `g = −size` for half 1.
    """
    half = words >> np.uint32(31)
    odd = (words ^ (np.uint32(0) - half)) << np.uint32(1) | np.uint32(1)
    # A double's exponent is the place of the leading one, its upper bits are the mantissa.
    places = odd.astype(np.float64).view(np.int64) >> (52 - SEGMENT_BITS - REST_BITS)
    places -= 1023 << (SEGMENT_BITS + REST_BITS)
    places += half.astype(np.int64) << (SEGMENT_BITS + REST_BITS + 5)
    return _noise_of_places().take(places)
