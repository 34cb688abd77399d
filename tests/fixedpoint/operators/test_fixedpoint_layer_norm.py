"""LayerNorm: its widths are needed, its errors within the derived bound, its mean exact. What
RMSNorm shares: test_fixedpoint_row_norm.py.
"""

import math

import numpy as np
import pytest
from fixedpoint_builders import adversarial_rows
from norm_equations import (
    CHANNELS,
    INPUT,
    OUTPUT,
    SCALE_FORMAT,
    WIDE,
    errors_in_units,
    every_row_of_two_bytes,
    identity,
    intermediates,
    normalized_in_float,
    random_norm,
    rows_of_many_spreads,
)

from fixedpoint import LayerNorm, QFormat, QuantizationError
from fixedpoint.qformat import bits_for


@pytest.mark.parametrize("channels", [2, 17, 128])
def test_widths_are_needed(channels):
    """The adversarial rows reach the widths' last bits, so that no width is generous by
    accident.
    """
    norm = identity(LayerNorm, channels)
    rows = adversarial_rows(channels, INPUT)
    total = max(abs(int(row.sum())) for row in rows)
    assert bits_for(-total, total - 1, True) == norm.sum_bits
    squares = max(int((row.astype(np.int64) ** 2).sum()) for row in rows)
    assert squares.bit_length() == norm.square_sum_bits
    difference = max(abs(value) for row in rows for value in intermediates(norm, row)["differences"])
    assert bits_for(-difference, difference, True) == norm.difference_bits
    norm = LayerNorm(
        INPUT, np.full(channels, -128), SCALE_FORMAT, np.full(channels, norm.shift_limit), OUTPUT, norm.epsilon
    )
    largest = norm.shift_limit * 2
    assert bits_for(-largest, largest, True) == norm.product_bits


@pytest.mark.parametrize("channels", CHANNELS)
def test_no_normalized_element_saturates(channels):
    """|n| <= sqrt(C − 1): one element far from all others is the extreme."""
    norm = identity(LayerNorm, channels)
    row = np.zeros(channels, dtype=np.int64)
    row[0] = 32767
    expected = math.sqrt(channels - 1)
    normalized = norm.normalized.dequantize(intermediates(norm, row)["normalized"])
    assert abs(normalized[0] - expected) <= (2**-10 + 2**-16) * expected + norm.normalized.resolution
    assert norm.normalized.maximum >= expected * (1 - 2**-10)
    if channels > 2:  # half of the range is not enough
        assert norm.normalized.maximum / 2 < expected


def stated_bound(norm, exact_normalized):
    """LSBs of the output, derived in docs/fixedpoint/layer_norm.md.

    The reciprocal square root is off by a factor of 1 + r, the normalized value by half a unit
    more, gamma by half of its unit, beta by half of its unit, and the output rounds once.
    """
    r = 2.0**-10 + 2.0**-16
    scale = np.abs(norm.scale_format.dequantize(norm.scale))
    magnitude = np.abs(exact_normalized)
    normalized = r * magnitude + norm.normalized.resolution / 2
    gamma = norm.scale_format.resolution / 2
    beta = norm.normalized.resolution * norm.scale_format.resolution / 2
    total = scale * normalized + gamma * magnitude + beta
    return total / norm.output.resolution + 0.5


@pytest.mark.parametrize("channels", [2, 16, 64, 128, 512])
@pytest.mark.parametrize("output", [QFormat(8, 4), QFormat(16, 10)], ids=str)
def test_within_the_derived_bound_of_float(channels, output):
    generator = np.random.default_rng(channels)
    gamma, beta = generator.uniform(-2, 2, channels), generator.normal(size=channels)
    norm = LayerNorm.from_float(gamma, beta, 1e-5, INPUT, output, 8)
    rows = rows_of_many_spreads(channels, generator, 1)
    normalized = normalized_in_float(norm, rows)
    errors = errors_in_units(norm, rows, normalized * gamma + beta)
    assert (errors <= stated_bound(norm, normalized) + 1e-9).all()
    assert errors.max() > 0.4  # it is not exact either: the comparison compares something


@pytest.mark.parametrize("input_format", [QFormat(8, 4), QFormat(8, 9)], ids=str)
def test_all_rows_of_two_bytes_are_within_the_derived_bound(input_format):
    gamma, beta = np.array([1.7, -0.3]), np.array([0.6, -1.2])
    norm = LayerNorm.from_float(gamma, beta, 1e-5, input_format, WIDE, 8)
    rows = every_row_of_two_bytes()
    normalized = normalized_in_float(norm, rows)
    errors = errors_in_units(norm, rows, normalized * gamma + beta)
    assert len(rows) == 1 << 16
    assert (errors <= stated_bound(norm, normalized) + 1e-9).all()


def test_a_gamma_of_zeros_gives_beta():
    beta = np.linspace(-2, 2, 8)
    norm = LayerNorm.from_float(np.zeros(8), beta, 1e-5, INPUT, OUTPUT, 8)
    results = OUTPUT.dequantize(norm.compute(np.arange(8) * 1000))
    assert np.abs(results - beta).max() <= OUTPUT.resolution / 2 + 2**-14


def test_zero_variance_gives_beta():
    exact = np.random.default_rng(0).normal(size=16)
    norm = LayerNorm.from_float(np.full(16, 1.5), exact, 1e-5, INPUT, OUTPUT, 8)
    beta = OUTPUT.dequantize(norm.compute(np.zeros(16, dtype=np.int64)))
    assert np.abs(beta - np.clip(exact, OUTPUT.minimum, OUTPUT.maximum)).max() <= OUTPUT.resolution / 2 + 2**-16
    for value in (INPUT.minimum_integer, -7, 1, INPUT.maximum_integer):
        np.testing.assert_array_equal(norm.compute(np.full(16, value)), norm.compute(np.zeros(16, dtype=np.int64)))


def test_the_mean_is_not_rounded():
    """A row whose mean is a fraction of a unit: a rounded mean would shift every result."""
    norm = identity(LayerNorm, 4, QFormat(16, 0), QFormat(16, 10))
    row = np.array([0, 0, 0, 1])
    exact = (row - 0.25) / math.sqrt(0.1875 + 1 / 16)
    assert np.abs(norm.output.dequantize(norm.compute(row)) - exact).max() <= 2**-9 * 1.8


def test_shift_invariance_is_exact():
    norm = random_norm(LayerNorm, 17)
    rows = np.random.default_rng(1).integers(-1000, 1000, size=(50, 17))
    np.testing.assert_array_equal(norm.compute(rows), norm.compute(rows + 12345))


@pytest.mark.parametrize("gamma", [1e-3, 0.02, 0.5])
def test_a_large_beta_beside_a_small_gamma_is_kept(gamma):
    norm = LayerNorm.from_float(np.full(64, gamma), np.full(64, 3.0), 1e-5, INPUT, OUTPUT, 8)
    row = np.random.default_rng(5).integers(-3000, 3000, size=64)
    values = INPUT.dequantize(row)
    exact = gamma * (values - values.mean()) / values.std() + 3.0
    assert np.abs(OUTPUT.dequantize(norm.compute(row)) - np.clip(exact, OUTPUT.minimum, OUTPUT.maximum)).max() <= 0.04


def test_outputs_saturate_at_both_rails():
    norm = LayerNorm.from_float(np.full(64, 2.0), np.zeros(64), 1e-5, INPUT, OUTPUT, 8)
    row = np.zeros(64, dtype=np.int64)
    row[0], row[1] = 32767, -32768
    assert norm.compute(row)[:2].tolist() == [127, -128]


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        (np.zeros(3, dtype=np.int64), "vectors of one length"),
        (np.full(4, (1 << 22) + 1), "exceeds the product's range"),
        (np.full(4, -(1 << 22) - 1), "exceeds the product's range"),
    ],
)
def test_shifts_are_checked(shift, message):
    arguments = (INPUT, np.ones(4, dtype=np.int64), SCALE_FORMAT)
    LayerNorm(*arguments, np.full(4, 1 << 22), OUTPUT, 5)
    with pytest.raises(QuantizationError, match=message):
        LayerNorm(*arguments, shift, OUTPUT, 5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_float_shifts_that_are_not_finite_are_refused(bad):
    with pytest.raises(QuantizationError, match="NaN or infinite"):
        LayerNorm.from_float(np.ones(4), np.array([0.0, 0.0, bad, 0.0]), 1e-5, INPUT, OUTPUT, 8)
