"""Histograms of a tensor's values, gathered piece by piece, from which its format is chosen.

Bins are as wide as a power of two and begin at 0, so when a larger value arrives pairs of them
merge, and nothing that was counted is lost. A format's rounding boundaries and rails lie on edges
of bins (a format of 8 bits that covers the largest value has steps of 64 to 128 bins), so the noise
of any format can be read off afterwards: the distance of a bin's middle from what it is rounded to,
and the variance w²/12 of values spread evenly inside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ..errors import QuantizationError
from ..qformat import FloatArray, IntegerArray, Overflow, QFormat, Rounding, covering_fraction

HALF = 1 << 13  # bins on each side of 0
FINEST = -1100  # the exponent of bins that have seen only zeros: below all float64 numbers
# the covering power of two and the next five below it: at 4 bits a clipped peak is worth that much
CANDIDATES = 6
# Activations below 2**-13 are next to nothing beside a LayerNorm's, and finer formats would cost
# the exponential range.
MAXIMUM_FRACTION = 20


@dataclass(eq=False)
class Histogram:
    """How often a tensor's values were where.

    Attributes:
        counts: Values in each bin (2 · HALF,); bin i holds those from (i − HALF) · 2**exponent up
            to the next one's.
        exponent: Binary logarithm of a bin's width.
        peak: The largest magnitude.
        square_sum: Σ v².
    """

    counts: IntegerArray = field(default_factory=lambda: np.zeros(2 * HALF, np.int64))
    exponent: int = FINEST
    peak: float = 0.0
    square_sum: float = 0.0

    @property
    def size(self) -> int:
        """Values counted."""
        return int(self.counts.sum())

    def add(self, values: np.ndarray) -> None:
        """Count the values of an array of any shape.

        Raises:
            QuantizationError: A value is NaN or infinite.
        """
        flat = np.asarray(values).reshape(-1)
        if flat.size == 0:
            return
        peak = float(max(flat.max(), -flat.min()))  # NaN, if there is one
        if not math.isfinite(peak):
            raise QuantizationError("a value is NaN or infinite")
        if peak > 0:
            # peak = mantissa · 2**exponent with mantissa < 1 lies inside bins of width 2**exponent
            # / HALF.
            self._widen(math.frexp(peak)[1] - (HALF.bit_length() - 1))
        self.peak = max(self.peak, peak)
        self.square_sum += float(np.square(flat, dtype=np.float64).sum())
        places = np.floor(np.ldexp(flat, -self.exponent)).astype(np.int64) + HALF
        self.counts += np.bincount(places, minlength=2 * HALF)

    def _widen(self, exponent: int) -> None:
        """Merge bins until each is 2**exponent wide; they never become narrower."""
        if exponent <= self.exponent:
            return
        places = (np.arange(-HALF, HALF) >> min(exponent - self.exponent, 62)) + HALF
        self.counts = np.bincount(places, weights=self.counts, minlength=2 * HALF).astype(np.int64)
        self.exponent = exponent

    @property
    def middles(self) -> FloatArray:
        """The middle of each bin."""
        return np.ldexp(np.arange(-HALF, HALF) + 0.5, self.exponent)

    def percentile(self, percent: float) -> float:
        """Return the magnitude, a bin's edge, that this percentage of the values do not exceed."""
        magnitudes = self.counts[HALF:] + self.counts[:HALF][::-1]
        place = int(np.searchsorted(np.cumsum(magnitudes), self.size * percent / 100)) + 1
        return min(math.ldexp(place, self.exponent), self.peak)

    def noise(self, target: QFormat) -> float:
        """Return Σ (v − round trip of v through a format)², rounding half up and saturating."""
        return float(self.counts @ self._squared_errors(target))

    def _squared_errors(self, target: QFormat) -> FloatArray:
        """The mean squared error of each bin's values (2 · HALF,)."""
        middles = self.middles
        width, step = math.ldexp(1.0, self.exponent), target.resolution
        # one or several codes to a bin: what is not clipped errs evenly over a step
        if step <= width:
            return np.square(middles - np.clip(middles, target.minimum, target.maximum)) + step * step / 12
        codes = target.quantize(middles, Rounding.HALF_UP, Overflow.SATURATE)
        return np.square(middles - target.dequantize(codes)) + width * width / 12

    def saturated(self, target: QFormat) -> float:
        """Return the fraction of values outside a format's range."""
        if self.peak <= target.maximum or self.size == 0:
            return 0.0
        middles = self.middles
        outside = (middles < target.minimum) | (middles > target.maximum)
        return float(self.counts[outside].sum()) / self.size

    def signal_to_noise(self, target: QFormat) -> float:
        """Return 10·log10(Σ v² / Σ (v − round trip)²) in dB; infinite where all values are 0."""
        return math.inf if self.square_sum == 0 else decibels(self.square_sum, self.noise(target))

    def least_squares_format(self, bits: int) -> QFormat:
        """Return the signed format of least noise: the covering one or one of the next five."""
        first = covering_format(self.peak, bits)
        candidates = [QFormat(bits, min(first.fraction + finer, MAXIMUM_FRACTION)) for finer in range(CANDIDATES)]
        return min(candidates, key=self.noise)


def covering_format(magnitude: float, bits: int) -> QFormat:
    """Return the finest signed format of at most 20 fraction bits that covers ±magnitude."""
    return QFormat(bits, min(covering_fraction(magnitude, bits), MAXIMUM_FRACTION))


def decibels(power: float, noise: float) -> float:
    """Return 10·log10(power / noise); infinite without noise."""
    if noise == 0:
        return math.inf
    return -math.inf if power == 0 else 10 * math.log10(power / noise)


def signal_to_noise(signal: np.ndarray, approximation: np.ndarray) -> float:
    """Return 10·log10(Σ signal² / Σ (signal − approximation)²) in dB; infinite without noise."""
    reference = np.asarray(signal, dtype=np.float64)
    return decibels(float((reference**2).sum()), float(((reference - approximation) ** 2).sum()))
