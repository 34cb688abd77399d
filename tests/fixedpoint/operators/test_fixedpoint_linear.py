import math
from fractions import Fraction

import numpy as np
import pytest

from fixedpoint import Linear, QFormat, QuantizationError
from fixedpoint.operators.linear import least_squares_fractions

INPUT, OUTPUT = QFormat(8, 5), QFormat(8, 3)


def python_linear(layer, x):
    """The docstring's equation in Python integers."""
    results = []
    for weights, bias, fraction in zip(
        layer.weight.tolist(), layer.bias.tolist(), layer.weight_fraction.tolist(), strict=True
    ):
        accumulator = bias + sum(w * v for w, v in zip(weights, x, strict=True))
        assert QFormat(layer.accumulator_bits, 0).holds(accumulator)
        shift = layer.input.fraction + fraction - layer.output.fraction
        rounded = math.floor(Fraction(accumulator) / Fraction(2) ** shift + Fraction(1, 2))
        results.append(max(layer.output.minimum_integer, min(layer.output.maximum_integer, rounded)))
    return results


def scaled_rows(rows, columns, generator, spread=6):
    """Weights whose rows have very different sizes."""
    return generator.normal(size=(rows, columns)) * 2.0 ** np.linspace(-spread, spread, rows)[:, None]


@pytest.mark.parametrize("output", [OUTPUT, QFormat(16, 10), QFormat(8, -2), QFormat(4, 12)], ids=str)
@pytest.mark.parametrize("weight_bits", range(2, 9))
def test_equals_python_integers_at_every_scale(weight_bits, output):
    generator = np.random.default_rng(weight_bits)
    layer = Linear.from_float(scaled_rows(13, 9, generator), generator.normal(size=13), weight_bits, INPUT, output)
    assert len(set(layer.shift.tolist())) >= 6
    inputs = generator.integers(-128, 127, size=(20, 9), endpoint=True)
    inputs[0], inputs[1] = 127, -128
    assert layer.compute(inputs).tolist() == [python_linear(layer, x) for x in inputs.tolist()]
    np.testing.assert_array_equal(layer.compute(inputs[3]), layer.compute(inputs)[3])
    assert layer.compute(inputs.reshape(4, 5, 9)).shape == (4, 5, 13)


def test_rows_saturate_at_both_rails():
    layer = Linear.from_float(np.array([[100.0] * 4, [-100.0] * 4, [0.0] * 4]), None, 8, INPUT, OUTPUT)
    assert layer.compute(np.full(4, 127)).tolist() == [127, -128, 0]


@pytest.mark.parametrize("weight_bits", [2, 4, 8])
def test_real_results_are_near_the_float_layer(weight_bits):
    """Every error has a bound: half a unit of each weight times its input, half a unit of the
    accumulator, of the output.
    """
    generator = np.random.default_rng(3)
    weight, bias = scaled_rows(10, 32, generator, spread=2), generator.normal(size=10)
    layer = Linear.from_float(weight, bias, weight_bits, INPUT, QFormat(16, 4))
    inputs = generator.integers(-128, 127, size=(50, 32), endpoint=True)
    values = INPUT.dequantize(inputs)
    exact = values @ weight.T + bias
    error = np.abs(layer.output.dequantize(layer.compute(inputs)) - exact)
    weight_error = np.abs(layer.dequantized_weight() - weight)
    unit = 2.0**-layer.weight_fraction * INPUT.resolution
    assert (error <= np.abs(values) @ weight_error.T + unit / 2 + layer.output.resolution / 2 + 1e-12).all()
    if weight_bits == 8:
        assert error.max() < 1


# Scales


def test_clipping_is_chosen_where_it_pays():
    row = np.array([[1.01, *[0.1, -0.13, 0.11, 0.07] * 50]])
    assert least_squares_fractions(row, 4)[0] > 2  # covering would be 2
    assert least_squares_fractions(np.array([[1.0, -1.0]]), 8)[0] == 6


def test_a_row_of_zeros():
    layer = Linear.from_float(np.zeros((2, 3)), np.array([0.0, 1.5]), 8, INPUT, OUTPUT)
    assert not layer.weight.any()
    assert layer.compute(np.array([127, -128, 5])).tolist() == [0, 12]


@pytest.mark.parametrize("bias", [1.0, -1.0, 100.0, 1e9])
def test_tiny_weights_beside_a_large_bias(bias):
    """The row is scaled coarser until its bias fits the accumulator; the bias is what remains."""
    output = QFormat(8, 6 - math.ceil(math.log2(abs(bias))))
    layer = Linear.from_float(np.full((1, 4), 1e-9), np.array([bias]), 8, INPUT, output)
    assert abs(int(layer.bias[0])) <= layer.bias_limit
    assert abs(int(layer.bias[0])) > layer.bias_limit // 4
    result = output.dequantize(layer.compute(np.array([1, 2, 3, 4])))[0]
    assert abs(result - bias) <= output.resolution


@pytest.mark.parametrize("magnitude", [5e-324, 1e-310, 1e-45, 1e-38, 1e-30])
def test_vanishing_weights_and_biases_are_quantized_without_a_warning(magnitude):
    layer = Linear.from_float(np.full((2, 3), magnitude), np.full(2, magnitude), 8, INPUT, OUTPUT)
    assert QFormat(8, 0).holds(layer.weight_fraction)
    assert layer.compute(np.full(3, 127)).tolist() == [0, 0]


@pytest.mark.parametrize("magnitude", [1e50, 1e300])
def test_weights_beyond_any_scale_are_refused(magnitude):
    with pytest.raises(QuantizationError, match="too large"):
        Linear.from_float(np.full((2, 3), magnitude), None, 8, INPUT, QFormat(8, -1000))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["weight", "bias"])
def test_values_that_are_not_finite_are_refused(bad, place):
    weight, bias = np.ones((2, 3)), np.zeros(2)
    {"weight": weight, "bias": bias}[place][1] = bad
    with pytest.raises(QuantizationError, match="NaN or infinite"):
        Linear.from_float(weight, bias, 8, INPUT, OUTPUT)


def test_biases_are_exactly_rounded():
    """In units of the accumulator, half up."""
    generator = np.random.default_rng(8)
    bias = generator.normal(size=50)
    layer = Linear.from_float(generator.normal(size=(50, 4)), bias, 8, INPUT, OUTPUT)
    for value, fraction, integer in zip(
        bias.tolist(), layer.weight_fraction.tolist(), layer.bias.tolist(), strict=True
    ):
        assert integer == math.floor(Fraction(value) * 2 ** (fraction + INPUT.fraction) + Fraction(1, 2))


# Widths


@pytest.mark.parametrize(
    ("columns", "weight_bits", "input_bits"), [(1, 8, 8), (3, 4, 8), (128, 8, 8), (1000, 2, 8), (77, 8, 16)]
)
def test_accumulators_are_wide_enough_and_no_wider(columns, weight_bits, input_bits):
    source = QFormat(input_bits, 0)
    low, high = -(1 << (weight_bits - 1)), (1 << (weight_bits - 1)) - 1
    limit = columns << (weight_bits + input_bits - 2)
    layer = Linear(
        source,
        QFormat(16, 0),
        np.array([[low] * columns, [high] * columns, [low] * columns]),
        weight_bits,
        np.zeros(3, dtype=np.int64),
        np.array([limit, -limit, -limit]),
    )
    extremes = [layer.accumulate(np.full(columns, end)) for end in (source.minimum_integer, source.maximum_integer)]
    assert QFormat(layer.accumulator_bits, 0).holds(extremes)
    assert not QFormat(layer.accumulator_bits - 1, 0).holds(extremes)
    assert max(int(extreme.max()) for extreme in extremes) == 2 * limit


def test_accumulators_beyond_32_bits_are_refused():
    def build(columns):
        zeros = np.zeros(1, dtype=np.int64)
        return Linear(QFormat(16, 0), OUTPUT, np.zeros((1, columns), dtype=np.int64), 8, zeros, zeros)

    # 2·K·2**22 < 2**31: the bound itself, 2**31, would need a 33rd bit on the positive side.
    assert build(255).accumulator_bits == 32
    with pytest.raises(QuantizationError, match="256 products of 16 x 8 bits needs 33 bits"):
        build(256)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": np.ones(3, dtype=np.int64)}, "matrix"),
        ({"weight": np.ones((0, 3), dtype=np.int64)}, "matrix"),
        ({"bias": np.zeros(3, dtype=np.int64)}, "shape"),
        ({"weight_fraction": np.zeros((2, 1), dtype=np.int64)}, "shape"),
        ({"weight_bits": 1}, "2 to 8, not 1"),
        ({"weight_bits": 9}, "2 to 8, not 9"),
        ({"weight": np.full((2, 3), 128)}, "does not fit 8 bits"),
        ({"weight": np.full((2, 3), -129)}, "does not fit 8 bits"),
        ({"input": QFormat(8, 0, signed=False)}, "signed"),
        ({"output": QFormat(8, 0, signed=False)}, "signed"),
        ({"bias": np.array([0, 3 * 2**14 + 1])}, "bias exceeds"),
        ({"bias": np.array([0, -3 * 2**14 - 1])}, "bias exceeds"),
        ({"weight_fraction": np.array([0, 128])}, "-128 to 127"),
        ({"output": QFormat(8, 40)}, "finer than an accumulator"),
    ],
)
def test_parameters_are_checked(changes, message):
    arguments = {
        "input": INPUT,
        "output": OUTPUT,
        "weight": np.ones((2, 3), dtype=np.int64),
        "weight_bits": 8,
        "weight_fraction": np.zeros(2, dtype=np.int64),
        "bias": np.zeros(2, dtype=np.int64),
    }
    Linear(**arguments)
    with pytest.raises(QuantizationError, match=message):
        Linear(**(arguments | changes))


def test_inputs_out_of_range_are_noticed():
    layer = Linear.from_float(np.ones((1, 2)), None, 8, INPUT, OUTPUT)
    with pytest.raises(AssertionError, match="left operand"):
        layer.compute(np.array([129, 0]))
