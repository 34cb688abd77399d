"""Histograms that are gathered piece by piece: what they say of a format is what the values
themselves say.
"""

import math

import numpy as np
import pytest
from fixedpoint_builders import histogram_of

from fixedpoint import Overflow, QFormat, QuantizationError, Rounding
from fixedpoint.quantization.histogram import CANDIDATES, HALF, Histogram, covering_format, decibels, signal_to_noise


def noise(values, target):
    return float(
        ((target.dequantize(target.quantize(values, Rounding.HALF_UP, Overflow.SATURATE)) - values) ** 2).sum()
    )


def heavy_tailed(seed, size=4000):
    generator = np.random.default_rng(seed)
    return generator.standard_t(2 + seed % 4, size=size) * 10.0 ** generator.integers(-3, 4)


@pytest.mark.parametrize("bits", [4, 6, 8, 16])
@pytest.mark.parametrize("seed", range(5))
def test_noise_and_saturation_are_those_of_the_values(bits, seed):
    values = heavy_tailed(seed)
    histogram = histogram_of(values)
    for fraction in range(-2, 4):
        target = QFormat(bits, covering_format(histogram.peak, bits).fraction + fraction)
        assert histogram.noise(target) == pytest.approx(noise(values, target), rel=0.05)
        outside = ((values < target.minimum) | (values > target.maximum)).mean()
        assert histogram.saturated(target) == pytest.approx(outside, abs=2 / len(values))
    assert histogram.signal_to_noise(target) == pytest.approx(
        signal_to_noise(values, target.dequantize(target.quantize(values, Rounding.HALF_UP, Overflow.SATURATE))),
        abs=0.3,
    )


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("seed", range(5))
def test_the_format_has_the_least_noise_of_its_candidates(bits, seed):
    values = heavy_tailed(seed)
    chosen = histogram_of(values).least_squares_format(bits)
    covering = max(f for f in range(-30, 40) if np.abs(values).max() * 2.0**f <= (1 << (bits - 1)) - 1)
    assert covering <= chosen.fraction < covering + CANDIDATES
    least = min(noise(values, QFormat(bits, covering + finer)) for finer in range(-3, 12))
    assert noise(values, chosen) <= 1.01 * least


@pytest.mark.parametrize("order", [1, -1])
def test_pieces_count_like_the_whole(order):
    """Small values first or last: bins merge on the way, or are wide from the start."""
    pieces = [heavy_tailed(0) * 2.0**exponent for exponent in (-9, 0, 5)][::order]
    gathered = Histogram()
    for piece in pieces:
        gathered.add(piece)
    whole = histogram_of(np.concatenate(pieces))
    np.testing.assert_array_equal(gathered.counts, whole.counts)
    assert (gathered.exponent, gathered.peak, gathered.size) == (whole.exponent, whole.peak, 12000)
    assert gathered.square_sum == pytest.approx(whole.square_sum, rel=1e-12)


def test_counts_against_the_definition():
    values = np.array([0.0, -1e-9, 0.75, -0.75, 0.75])
    histogram = histogram_of(values)
    assert histogram.exponent == -13
    expected = {HALF: 1, HALF - 1: 1, HALF + 6144: 2, HALF - 6144: 1}
    assert {int(place): int(histogram.counts[place]) for place in np.flatnonzero(histogram.counts)} == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("percent", [50, 90, 99, 99.9, 100])
def test_percentiles(dtype, percent):
    values = np.random.default_rng(0).normal(size=20000).astype(dtype)
    histogram = histogram_of(values)
    exact = np.percentile(np.abs(values), percent)
    assert histogram.percentile(percent) == pytest.approx(
        exact, abs=2 * 2.0**histogram.exponent + 2e-2 * (percent > 99)
    )
    assert (np.abs(values) <= histogram.percentile(percent)).mean() >= percent / 100 - 1e-12


def test_outliers_are_clipped_where_that_pays():
    values = np.concatenate([np.full(1, 4.1), np.random.default_rng(0).normal(size=5000) * 0.5])
    assert histogram_of(values).least_squares_format(4).maximum < 4.1
    assert histogram_of(np.array([1.0, -1.0])).least_squares_format(8).maximum >= 1


@pytest.mark.parametrize("constant", [0.0, 1.0, -3.7, 1e-40, 5e-324, 1e20, 1e100])
def test_constant_values_have_a_format(constant):
    values = np.full(10, constant)
    histogram = histogram_of(values)
    chosen = histogram.least_squares_format(8)
    # what two factors of a score may have, so that the exponential can read it
    assert chosen.fraction <= 20
    if 1e-40 < abs(constant) <= 1e20:
        assert noise(values, chosen) <= 10 * (constant / 64) ** 2
    assert histogram.signal_to_noise(chosen) == math.inf if constant == 0 else histogram.peak == abs(constant)
    assert histogram.saturated(chosen) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(QuantizationError, match="NaN or infinite"):
        histogram_of(np.array([1.0, bad, 2.0]))


def test_nothing_at_all_is_no_trouble():
    histogram = histogram_of(np.zeros(0))
    assert histogram.size == 0
    assert histogram.saturated(QFormat(8, 0)) == 0


def test_signal_to_noise():
    signal = np.array([3.0, 4.0])
    assert signal_to_noise(signal, signal) == math.inf
    assert signal_to_noise(signal, signal + np.array([0.3, 0.4])) == pytest.approx(20)
    assert signal_to_noise(np.zeros(2), np.ones(2)) == decibels(0, 1) == -math.inf
