import math

import numpy as np
import pytest

from fixedpoint import Overflow, QFormat, QuantizationError, Rounding, TableActivation

INPUT, OUTPUT = QFormat(8, 4), QFormat(8, 5)


def gelu(x):
    return np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in x])


def silu(x):
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("function", [gelu, silu, np.abs, lambda x: np.maximum(x, 0), np.sin])
@pytest.mark.parametrize("input_format", [INPUT, QFormat(4, 1), QFormat(8, 4, signed=False), QFormat(1, 0)], ids=str)
def test_every_input_gives_the_rounded_function(function, input_format):
    activation = TableActivation.from_function(function, input_format, OUTPUT)
    codes = np.arange(input_format.minimum_integer, input_format.maximum_integer + 1)
    for code, result in zip(codes.tolist(), activation.compute(codes).tolist(), strict=True):
        exact = float(function(np.array([code * input_format.resolution]))[0]) / OUTPUT.resolution
        assert result == min(127, max(-128, math.floor(exact + 0.5)))


def test_results_saturate_and_shapes_stay():
    activation = TableActivation.from_function(lambda x: 100 * x, INPUT, OUTPUT)
    assert activation.compute(np.array([[-128, -1, 0], [1, 127, 0]])).tolist() == [[-128, -128, 0], [127, 127, 0]]
    assert activation.compute(np.zeros((0, 2), dtype=np.int8)).shape == (0, 2)


def test_narrow_integer_types_index_correctly():
    activation = TableActivation.from_function(lambda x: x, INPUT, INPUT)
    codes = np.arange(-128, 128).astype(np.int8)
    np.testing.assert_array_equal(activation.compute(codes), codes)


@pytest.mark.parametrize("value", [-129, 128, 1000])
def test_inputs_are_checked(value):
    activation = TableActivation.from_function(np.abs, INPUT, OUTPUT)
    with pytest.raises(ValueError, match="does not fit"):
        activation.compute(np.array([0, value]))


def test_parameters_are_checked():
    with pytest.raises(QuantizationError, match="at most 10 bits"):
        TableActivation.from_function(np.abs, QFormat(11, 0), OUTPUT)
    with pytest.raises(QuantizationError, match="256 entries"):
        TableActivation(INPUT, OUTPUT, np.zeros(255, dtype=np.int64))
    with pytest.raises(QuantizationError, match="does not fit"):
        TableActivation(INPUT, OUTPUT, np.full(256, 128))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_function_that_is_not_finite_somewhere_is_refused(bad):
    with pytest.raises(QuantizationError, match=r"NaN or infinite at -0\.5"):
        TableActivation.from_function(lambda x: np.where(x == -0.5, bad, x), INPUT, OUTPUT)


def test_a_function_of_another_shape_is_refused():
    with pytest.raises(QuantizationError, match=r"256 values, not \(\)"):
        TableActivation.from_function(lambda x: x.sum(), INPUT, OUTPUT)


def test_a_constant_function_is_a_constant_table():
    activation = TableActivation.from_function(np.zeros_like, INPUT, OUTPUT)
    assert not activation.compute(np.arange(-128, 128)).any()


def test_the_table_is_the_formats_own_cast():
    activation = TableActivation.from_function(silu, INPUT, OUTPUT)
    expected = OUTPUT.quantize(silu(np.arange(-128, 128) / 16), Rounding.HALF_UP, Overflow.SATURATE)
    np.testing.assert_array_equal(activation.table, expected)
