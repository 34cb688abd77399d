"""RMSNorm: LayerNorm's quotient where rows have no mean, with its own widths and bound. What both
share: test_fixedpoint_row_norm.py.
"""

import math

import numpy as np
import pytest
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

from fixedpoint import LayerNorm, QFormat, RMSNorm
from fixedpoint.qformat import bits_for


@pytest.mark.parametrize("channels", [2, 17, 128])
def test_widths_are_needed(channels):
    norm = RMSNorm(INPUT, np.full(channels, -128), SCALE_FORMAT, OUTPUT, 1)
    extreme = intermediates(norm, np.full(channels, INPUT.minimum_integer))
    assert bits_for(extreme["differences"][0], 0, True) == norm.difference_bits
    assert extreme["squares"].bit_length() == norm.square_sum_bits
    assert norm.variance_bits == (channels * extreme["squares"]).bit_length() + 1
    assert bits_for(0, -128 * -32768, True) == norm.product_bits


@pytest.mark.parametrize("channels", [4, 16, 128])
def test_rows_without_a_mean_are_layer_normalized(channels):
    """With S = 0 the two norms are one formula, bit for bit."""
    half = np.random.default_rng(channels).integers(-3000, 3000, size=(40, channels // 2))
    rows = np.concatenate([half, -half], axis=-1)
    scale = np.random.default_rng(1).uniform(-2, 2, channels)
    layer = LayerNorm.from_float(scale, np.zeros(channels), 1e-5, INPUT, OUTPUT, 8)
    root_mean_square = RMSNorm.from_float(scale, 1e-5, INPUT, OUTPUT, 8)
    np.testing.assert_array_equal(root_mean_square.compute(rows), layer.compute(rows))
    assert (root_mean_square.compute(rows + 500) != layer.compute(rows + 500)).any()


def stated_bound(norm, exact_normalized):
    """LSBs of the output, derived in docs/fixedpoint/rms_norm.md: LayerNorm's without beta, and a
    whole unit where n saturates.
    """
    r = 2.0**-10 + 2.0**-16
    scale = np.abs(norm.scale_format.dequantize(norm.scale))
    magnitude = np.abs(exact_normalized)
    half = np.where(magnitude * (1 + r) > norm.normalized.maximum, 1.0, 0.5)
    normalized = r * magnitude + norm.normalized.resolution * half
    return (scale * normalized + norm.scale_format.resolution / 2 * magnitude) / norm.output.resolution + 0.5


@pytest.mark.parametrize("channels", [1, 2, 16, 64, 128, 512])
@pytest.mark.parametrize("output", [QFormat(8, 4), QFormat(16, 10)], ids=str)
def test_within_the_derived_bound_of_float(channels, output):
    generator = np.random.default_rng(channels)
    gamma = generator.uniform(-2, 2, channels)
    norm = RMSNorm.from_float(gamma, 1e-5, INPUT, output, 8)
    rows = rows_of_many_spreads(channels, generator, 0)
    rows[:3] = 0  # rows of one element, the largest normalized value there is
    rows[0, 0], rows[1, -1], rows[2, 0] = 32767, -32768, 300
    normalized = normalized_in_float(norm, rows)
    errors = errors_in_units(norm, rows, normalized * gamma)
    assert (errors <= stated_bound(norm, normalized) + 1e-9).all()
    assert errors.max() > 0.3  # it is not exact either: the comparison compares something


@pytest.mark.parametrize("input_format", [QFormat(8, 4), QFormat(8, 9)], ids=str)
def test_all_rows_of_two_bytes_are_within_the_derived_bound(input_format):
    gamma = np.array([1.7, -0.3])
    norm = RMSNorm.from_float(gamma, 1e-5, input_format, WIDE, 8)
    rows = every_row_of_two_bytes()
    normalized = normalized_in_float(norm, rows)
    assert len(rows) == 1 << 16
    assert (errors_in_units(norm, rows, normalized * gamma) <= stated_bound(norm, normalized) + 1e-9).all()


@pytest.mark.parametrize("channels", CHANNELS)
def test_the_normalized_format_holds_every_row(channels):
    """|n| <= sqrt(C), reached by one element alone; at powers of 4 that is one unit beyond the
    format.
    """
    norm = identity(RMSNorm, channels)
    row = np.zeros(channels, dtype=np.int64)
    row[0] = 32767
    normalized = norm.normalized.dequantize(intermediates(norm, row)["normalized"])
    expected = math.sqrt(channels)
    assert abs(normalized[0] - expected) <= (2**-10 + 2**-16) * expected + norm.normalized.resolution
    assert norm.normalized.maximum + norm.normalized.resolution >= expected


def test_a_row_of_zeros_stays_zero():
    assert random_norm(RMSNorm, 16).compute(np.zeros((2, 16), dtype=np.int64)).tolist() == [[0] * 16] * 2


def test_signs_are_symmetric_up_to_rounding():
    norm = random_norm(RMSNorm, 17)
    rows = np.random.default_rng(1).integers(-9000, 9000, size=(50, 17))
    assert np.abs(norm.compute(rows) + norm.compute(-rows)).max() <= 1


def test_a_gamma_of_zeros_gives_zeros():
    norm = RMSNorm.from_float(np.zeros(8), 1e-5, INPUT, OUTPUT, 8)
    assert not norm.compute(np.arange(8) * 100).any()
