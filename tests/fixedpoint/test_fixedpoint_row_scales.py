"""Power-of-two scales of rows: the best of their candidates, at any width, at both ends of what a
byte stores.
"""

import numpy as np
import pytest

from fixedpoint import Linear, QFormat, QuantizationError
from fixedpoint.row_scales import (
    CANDIDATES,
    covering_fractions,
    least_squares_fractions,
    quantize_rows,
    storage_bits,
    weight_range,
)

WIDTHS = (2, 3, 4, 5, 6, 7, 8, "ternary")
RANGES = {
    2: (-2, 1),
    3: (-4, 3),
    4: (-8, 7),
    5: (-16, 15),
    6: (-32, 31),
    7: (-64, 63),
    8: (-128, 127),
    "ternary": (-1, 1),
}


def heavy_tailed_rows(rows, columns, seed=0):
    """Rows of very different sizes, some with a few large values."""
    generator = np.random.default_rng(seed)
    return generator.standard_t(3, size=(rows, columns)) * 2.0 ** np.linspace(-6, 6, rows)[:, None]


def squared_error(row, fraction, width):
    """The definition, one row at a time."""
    lowest, highest = RANGES[width]
    rounded = np.clip(np.floor(row * 2.0**fraction + 0.5), lowest, highest) / 2.0**fraction
    return ((rounded - row) ** 2).sum()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_scale_is_the_best_of_all(width):
    """No power of two at all is better, coarser ones and far finer ones included."""
    matrix = heavy_tailed_rows(40, 30)
    highest = RANGES[width][1]
    for row, fraction in zip(matrix, least_squares_fractions(matrix, width).tolist(), strict=True):
        covering = max(f for f in range(-40, 40) if np.abs(row).max() * 2.0**f <= highest)
        errors = [squared_error(row, f, width) for f in range(covering - 4, covering + 12)]
        assert squared_error(row, fraction, width) == min(errors)
        assert covering <= fraction < covering + CANDIDATES


@pytest.mark.parametrize("width", WIDTHS)
def test_integers_stay_in_their_range_and_reach_it(width):
    matrix = heavy_tailed_rows(40, 300)
    integers = quantize_rows(matrix, least_squares_fractions(matrix, width), width)
    assert (integers.min(), integers.max()) == RANGES[width] == weight_range(width)
    assert QFormat(storage_bits(width), 0).holds(integers)
    if width == "ternary":
        assert set(np.unique(integers)) == {-1, 0, 1}


def test_covering_is_the_finest_scale_without_saturation():
    matrix = np.array([[1.0, -1.0, 0.5], [127 / 64, 0.0, 0.0], [128 / 64, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert covering_fractions(matrix, 8).tolist() == [6, 6, 5, 7]


def test_ternary_zeroes_nearly_half_of_a_normal_row():
    """The least squared error of a ternary normal variable has its threshold near 0.6 deviations
    (Lloyd, 1982).
    """
    row = np.random.default_rng(1).normal(size=(1, 20000))
    best = min(
        (squared_error(row[0] * size, f, "ternary") / size**2, size, f)
        for size in 2.0 ** np.linspace(0, 1, 33)
        for f in range(-3, 6)
    )
    integers = quantize_rows(row * best[1], np.array([best[2]]), "ternary")
    assert 0.4 < (integers == 0).mean() < 0.5
    assert best[0] / row.size < 0.2  # the unrestricted optimum is 0.1902


def test_rows_of_zeros_and_of_next_to_nothing():
    assert not quantize_rows(np.zeros((2, 3)), least_squares_fractions(np.zeros((2, 3)), "ternary"), "ternary").any()
    assert least_squares_fractions(np.full((1, 3), 1e-44), 8).tolist() == [127]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e40])
def test_rows_without_a_scale_are_refused(bad):
    with pytest.raises(QuantizationError):
        least_squares_fractions(np.array([[1.0, bad]]), 4)


@pytest.mark.parametrize("bad", [1, 9, 4.0, True, "4", "binary", None])
def test_widths_that_do_not_exist_are_refused(bad):
    with pytest.raises(QuantizationError, match='weight_bits must be a whole number from 2 to 8, or "ternary"'):
        storage_bits(bad)


@pytest.mark.parametrize("width", WIDTHS)
def test_linear_takes_the_scales_that_it_is_given(width):
    generator = np.random.default_rng(4)
    weight, bias = generator.normal(size=(6, 20)), generator.normal(size=6)
    given = np.array([0, 1, 2, 3, 4, 5])
    layer = Linear.from_float(weight, bias, width, QFormat(8, 5), QFormat(8, 4), given)
    assert layer.weight_fraction.tolist() == given.tolist()
    assert layer.weight_bits == storage_bits(width)
    np.testing.assert_array_equal(layer.weight, quantize_rows(weight, given, width))
    # Weights that lie on the grid already come back as they are.
    again = Linear.from_float(layer.dequantized_weight(), bias, width, layer.input, layer.output, given)
    np.testing.assert_array_equal(again.weight, layer.weight)


@pytest.mark.parametrize("fraction", [np.zeros(5), np.full(6, 128), np.zeros((6, 1))], ids=str)
def test_linear_refuses_scales_that_do_not_fit(fraction):
    with pytest.raises(QuantizationError, match="a Linear of 6 rows needs as many fractions"):
        Linear.from_float(np.ones((6, 3)), None, 8, QFormat(8, 5), QFormat(8, 4), fraction)
