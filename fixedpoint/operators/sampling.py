r"""Choosing a token from integer logits, in integers: the most likely, or one at a temperature.

A softmax at temperature \(T\) is a base-2 softmax of \(x \log_2 e / T\). The distance of each
logit below the row's maximum, times that one constant, is the argument of `Exponential`; a random
number, scaled to the sum of all numerators, then falls into the share of one token:

\[ t_i = \frac{(\max x - x_i)\, m}{2^s}, \quad e_i = 2^{-t_i}, \quad
   \theta = \left\lfloor \frac{r \sum_i e_i}{2^{32}} \right\rfloor, \quad \mathrm{token} = \min
   \Big\{ i : \sum_{j \le i} e_j > \theta \Big\} . \]

Nothing is divided, so nothing is normalized: one multiplication a token of the vocabulary, and one
for the threshold.

References: Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8(14), 2003; the mixing of
seeds is the finalizer of Appleby's MurmurHash3.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arithmetic import Integers, shift_right_half_up
from ..checks import is_real, is_whole, plain
from ..errors import QuantizationError
from ..qformat import IntegerArray, QFormat, as_int64
from .exponential import Exponential
from .linear import LARGEST_LEFT_SHIFT

RandomArray = NDArray[np.uint32]

MULTIPLIER_BITS = 16
LONGEST_SHIFT = 62
MAXIMUM_LOGITS_BITS = 16
MAXIMUM_VOCABULARY = 1 << 16  # so many numerators of 16 bits sum to less than 2**32
# a table that fills one block RAM of 1,024 × 16
EXPONENTIAL = Exponential(fraction=10, table_bits=10, output_bits=16)
GOLDEN_RATIO = 0x9E3779B9  # 2**32 / 1.618…, odd: its multiples are spread evenly over 32 bits
WORD = (1 << 32) - 1


def argmax(logits: Integers) -> IntegerArray:
    """Return the lowest index of each row's maximum, int64 (...), for integers (..., V).

    Raises:
        ValueError: Rows without an element.
    """
    if logits.shape[-1] == 0:
        raise ValueError("argmax needs at least one logit")
    return logits.argmax(axis=-1)  # (..., V) -> (...)


def _avalanche(word: int) -> int:
    """Return 32 bits that each depend on all bits of `word`; a bijection (MurmurHash3 `fmix32`)."""
    word ^= word >> 16
    word = word * 0x85EBCA6B & WORD
    word ^= word >> 13
    word = word * 0xC2B2AE35 & WORD
    return word ^ word >> 16


def mix(seed: int, sequence: int) -> int:
    """Return the first state of the generator of one sequence of a call: 32 bits, never 0.

    `mix(seed, i) = a(a(seed) + (i + 1) · 0x9E3779B9)` modulo 2**32, where `a` is a bijection of
    32-bit words (multiply and xor-shift), so that different sequences of a seed, and one sequence
    under different seeds, differ. The one argument that would give 0 gives 0x9E3779B9.

    Args:
        seed: 0 to 2**32 − 1.
        sequence: Index of the sequence in its batch, 0 to 2**32 − 1.

    Raises:
        QuantizationError: A seed or sequence outside that range.
    """
    for name, value in (("seed", seed), ("sequence", sequence)):
        if not is_whole(value) or not 0 <= value <= WORD:
            raise QuantizationError(f"a {name} must be a whole number from 0 to 2**32 - 1, not {value!r}")
    return _avalanche((_avalanche(int(seed)) + (int(sequence) + 1) * GOLDEN_RATIO) & WORD) or GOLDEN_RATIO


class XorShift32:
    """One 32-bit random number generator a sequence: `x ^= x << 13; x ^= x >> 17; x ^= x << 5`.

    Its period is 2**32 − 1: every number but 0. Three shifts of wires and three exclusive ors in
    hardware.

    Attributes:
        state: uint32 (N,), the last number of each generator.
    """

    def __init__(self, state: ArrayLike) -> None:
        words = np.atleast_1d(np.asarray(state))
        if words.ndim != 1 or words.dtype.kind not in "iu" or (words < 1).any() or (words > WORD).any():
            raise QuantizationError(f"random states must be whole numbers from 1 to 2**32 - 1, not {state!r}")
        self.state: RandomArray = words.astype(np.uint32)

    @classmethod
    def from_seed(cls, seed: int, sequences: int) -> XorShift32:
        """Return the generators of the first `sequences` sequences of a call with `seed`."""
        return cls(np.array([mix(seed, index) for index in range(sequences)], dtype=np.uint32))

    def next(self, active: NDArray[np.bool_] | None = None) -> RandomArray:
        """Advance the generators and return their numbers, uint32 (N,).

        Args:
            active: Booleans (N,): who advances; the others keep their state, and what is returned
                for them has no use. None: all.
        """
        word = self.state ^ (self.state << np.uint32(13))
        word ^= word >> np.uint32(17)
        word ^= word << np.uint32(5)
        self.state = word if active is None else np.where(active, word, self.state)
        return self.state.copy()


@dataclass(frozen=True)
class Sampler:
    """Choice of a token at a temperature.

    Equations: `t_i = (max x − x_i) · multiplier / 2**shift`, rounding half up, with 10 fraction
    bits, where `multiplier / 2**shift ~ 2**10 · log2(e) / T` in units of a logit;
    `e_i = exponential(t_i)`, 16 bits; `threshold = floor(random · Σe / 2**32)`; the token is the
    first whose cumulative sum exceeds it.

    Widths: distance 16 bits, product 32, Σe 32 (at most 65,536 logits), `random · Σe` 64, all
    unsigned.

    Error: with p_i the real softmax's probability, V logits, D = Σe and N = 65535·Σ2**-t the real
    sum, the share of the generator's numbers that choose token i differs from p_i by at most
    `(2·r·p_i·N + 3/4·(1 + V·p_i)) / D + 2**-31`, `r = 2**(2**-11 + 17·2**-16) − 1` = 0.0005. A
    token less likely than the best by a factor of more than 2**17 is never chosen. Derived in
    docs/fixedpoint/sampling.md.

    Attributes:
        logits: Format of the logits, signed, at most 16 bits.
        temperature: Logits are divided by it; 0 takes the most likely token and uses no random
            number.
    """

    logits: QFormat
    temperature: float

    def __post_init__(self) -> None:
        if not self.logits.signed or self.logits.bits > MAXIMUM_LOGITS_BITS:
            raise QuantizationError(f"a sampler reads signed logits of at most 16 bits, not {self.logits}")
        if not is_real(self.temperature):
            raise QuantizationError(f"a temperature must be a number, not {self.temperature!r}")
        # Python's number: a narrower float cannot be compared with the largest one.
        object.__setattr__(self, "temperature", plain(self.temperature))
        if not 0 <= self.temperature <= sys.float_info.max:
            raise QuantizationError(
                f"a temperature must be 0 (the most likely token) or a positive number, not {self.temperature!r}"
            )
        if self.temperature and not -LARGEST_LEFT_SHIFT <= self.shift <= LONGEST_SHIFT:
            raise QuantizationError(
                f"a temperature of {self.temperature:g} is too {'high' if self.shift > 0 else 'low'} for logits of {self.logits}"
            )

    @cached_property
    def _scale(self) -> tuple[int, int]:
        """log2(e) / T as a 16-bit integer and the power of two that it is multiplied by."""
        if not self.temperature:
            raise ValueError("a temperature of 0 takes the maximum and scales nothing")
        # Divided last: 1 / T alone could leave the floats' range.
        mantissa, exponent = math.frexp(self.temperature)
        quotient, extra = math.frexp(math.log2(math.e) / mantissa)
        multiplier = math.floor(math.ldexp(quotient, MULTIPLIER_BITS) + 0.5)
        exponent = extra - exponent - MULTIPLIER_BITS
        return (multiplier, exponent) if multiplier < 1 << MULTIPLIER_BITS else (multiplier >> 1, exponent + 1)

    @property
    def multiplier(self) -> int:
        """The mantissa of log2(e) / T, 2**15 to 2**16 − 1."""
        return self._scale[0]

    @property
    def shift(self) -> int:
        """Right shift from distance · multiplier to the exponential's argument; may be negative."""
        return self.logits.fraction - EXPONENTIAL.fraction - self._scale[1]

    def numerators(self, logits: Integers) -> IntegerArray:
        """Return `2**-t` in units of 1/65535, int64 (..., V), for logits (..., V).

        Raises:
            ValueError: No logit, more than 65,536, or one outside the format `logits`.
        """
        wide = as_int64(logits)
        if not 1 <= wide.shape[-1] <= MAXIMUM_VOCABULARY:
            raise ValueError(f"a sampler chooses from 1 to {MAXIMUM_VOCABULARY} logits, not {wide.shape[-1]}")
        if not self.logits.holds(wide):
            raise ValueError(f"a logit does not fit {self.logits}")
        distance = wide.max(axis=-1, keepdims=True) - wide  # (..., 1) - (..., V) -> (..., V)
        return EXPONENTIAL.compute(shift_right_half_up(distance * self.multiplier, self.shift))

    def choose(self, logits: Integers, random: RandomArray) -> IntegerArray:
        """Choose a token from each row.

        Args:
            logits: Integers (..., V) of format `logits`.
            random: uint32 (...), one number a row; not looked at when the temperature is 0.

        Returns:
            Token indices, int64 (...).
        """
        if not self.temperature:
            return argmax(np.asarray(logits))
        cumulative = self.numerators(logits).cumsum(axis=-1)
        if random.dtype != np.uint32 or random.shape != cumulative.shape[:-1]:
            raise ValueError(
                f"random numbers must be uint32 of shape {cumulative.shape[:-1]}, not {random.dtype} of {random.shape}"
            )
        # Both factors are below 2**32: the product fits 64 unsigned bits.
        threshold = (random.astype(np.uint64) * cumulative[..., -1].astype(np.uint64)) >> np.uint64(32)
        # (..., V) <= (..., 1) -> (..., V) -> (...)
        return (cumulative <= threshold.astype(np.int64)[..., None]).sum(axis=-1, dtype=np.int64)
