r"""Choosing a token from integer logits, in integers: the most likely, or one at a temperature.

A softmax at temperature \(T\) is a base-2 softmax of \(x \log_2 e / T\). The token is the index of
the largest sum of that and of Gumbel noise:

\[ \mathrm{token} = \min \arg\max_i \left( \frac{x_i\, m}{2^s} + g_i \right), \quad
   \frac{m}{2^s} \approx \frac{\log_2 e}{T} . \]

One pass over the logits, in any order, with one multiplication a logit; nothing is summed.

References: `gumbel`; Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8(14), 2003; the
mixing of seeds is the finalizer of Appleby's MurmurHash3.
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
from ..qformat import IntegerArray, QFormat, as_int64, bits_for
from .gumbel import FRACTION, INDEX_BITS, LARGEST, SMALLEST, RandomArray, gumbel_noise, random_words
from .linear import LARGEST_LEFT_SHIFT

MULTIPLIER_BITS = 16
LONGEST_SHIFT = 62
MAXIMUM_LOGITS_BITS = 16
MAXIMUM_VOCABULARY = 1 << INDEX_BITS
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

    Equation: the token is the lowest index of the largest `score_i = x_i · multiplier / 2**shift +
    gumbel_noise(random_words(random, V))_i`, where the quotient rounds half up and has the noise's
    11 fraction bits: `multiplier / 2**shift ~ 2**11 · log2(e) / T` in units of a logit.

    Widths: product 32 bits, signed; noise 18; a score as many as the shift leaves, at most 61.

    Error: with p_i the softmax's probability at temperature T·(1 ± 2**-16) and V logits, the
    probability of token i over all words differs from p_i by at most
    `p_i · (1 − p_i) · 0.0022 + V · 2**-22 + 2**-15`; half the sum of all differences was below
    0.0001 wherever it was computed. A token less likely than the best by a factor of more than
    2**37 is never chosen. Derived in docs/fixedpoint/sampling.md.

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
        """Right shift from logit · multiplier to the units of the noise; may be negative."""
        return self.logits.fraction - FRACTION - self._scale[1]

    @property
    def score_bits(self) -> int:
        """Width of a score, signed: of the extreme logits with the extreme noise."""
        logits = np.array([self.logits.minimum_integer, self.logits.maximum_integer])
        extremes = shift_right_half_up(logits * self.multiplier, self.shift)
        return bits_for(int(extremes[0]) + SMALLEST, int(extremes[1]) + LARGEST, signed=True)

    def scores(self, logits: Integers, random: RandomArray) -> IntegerArray:
        """Return what `choose` compares, int64 (..., V), for logits (..., V) and numbers (...).

        Raises:
            ValueError: No logit, more than 65,536, or one outside the format `logits`; random
                numbers of another type or shape.
        """
        wide = as_int64(logits)
        if not 1 <= wide.shape[-1] <= MAXIMUM_VOCABULARY:
            raise ValueError(f"a sampler chooses from 1 to {MAXIMUM_VOCABULARY} logits, not {wide.shape[-1]}")
        if not self.logits.holds(wide):
            raise ValueError(f"a logit does not fit {self.logits}")
        if random.dtype != np.uint32 or random.shape != wide.shape[:-1]:
            raise ValueError(
                f"random numbers must be uint32 of shape {wide.shape[:-1]}, not {random.dtype} of {random.shape}"
            )
        scaled = shift_right_half_up(wide * self.multiplier, self.shift)
        return scaled + gumbel_noise(random_words(random, wide.shape[-1]))

    def choose(self, logits: Integers, random: RandomArray) -> IntegerArray:
        """Choose a token from each row.

        Args:
            logits: Integers (..., V) of format `logits`.
            random: uint32 (...), one number a row; not looked at when the temperature is 0.

        Returns:
            Token indices, int64 (...).

        Raises:
            ValueError: See `scores`.
        """
        return argmax(self.scores(logits, random) if self.temperature else np.asarray(logits))
