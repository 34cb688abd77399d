import math
from fractions import Fraction

import numpy as np
import pytest
from fixedpoint_builders import adversarial_rows

from fixedpoint import LayerNorm, QFormat, QuantizationError, ReciprocalSquareRoot
from fixedpoint.qformat import bits_for

INPUT = QFormat(16, 10)
OUTPUT = QFormat(8, 5)
WIDE = QFormat(16, 10)
CHANNELS = [1, 2, 3, 4, 5, 16, 17, 64, 100, 128]


def identity(channels, input_format=INPUT, output=WIDE, epsilon=1):
    """A LayerNorm with gamma 1 and beta 0."""
    scale_format = QFormat(8, 6)
    return LayerNorm(
        input_format,
        np.full(channels, 64),
        scale_format,
        np.zeros(channels, dtype=np.int64),
        output,
        epsilon,
    )


def intermediates(norm, row):
    """The docstring's equations in Python integers: S, Q, all C·x_i, d_i, v, n_i, products and the outputs."""
    row = [int(x) for x in row]
    channels = len(row)
    total, squares = sum(row), sum(x * x for x in row)
    scaled = [channels * x for x in row]
    differences = [x - total for x in scaled]
    variance = channels * squares - total * total + norm.epsilon
    root = norm.reciprocal_square_root.compute(np.array([variance]))
    mantissa, exponent = int(root.mantissa[0]), int(root.exponent[0])

    def cast(value, shift, target):
        rounded = math.floor(Fraction(value) / Fraction(2) ** shift + Fraction(1, 2))
        return max(target.minimum_integer, min(target.maximum_integer, rounded))

    normalized = [cast(d * mantissa, exponent - norm.normalized.fraction, norm.normalized) for d in differences]
    products = [n * int(s) + int(b) for n, s, b in zip(normalized, norm.scale, norm.shift, strict=True)]
    shift = norm.normalized.fraction + norm.scale_format.fraction - norm.output.fraction
    return {
        "sums": [total, *scaled],
        "squares": squares,
        "differences": differences,
        "variance": variance,
        "normalized": normalized,
        "products": products,
        "outputs": [cast(product, shift, norm.output) for product in products],
    }


def random_norm(channels, seed=0, input_format=INPUT, output=OUTPUT, scale_bits=8):
    generator = np.random.default_rng(seed)
    return LayerNorm.from_float(
        generator.uniform(-2, 2, channels), generator.normal(size=channels), 1e-5, input_format, output, scale_bits
    )


@pytest.mark.parametrize("input_format", [INPUT, QFormat(16, 0), QFormat(8, 4), QFormat(2, 0)], ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
def test_results_are_the_equations_and_no_intermediate_exceeds_its_width(channels, input_format):
    norm = random_norm(channels, input_format=input_format)
    for row in adversarial_rows(channels, input_format):
        expected = intermediates(norm, row)
        assert norm.compute(row).tolist() == expected["outputs"]
        assert QFormat(norm.sum_bits, 0).holds(expected["sums"])
        assert QFormat(norm.square_sum_bits, 0, signed=False).holds(expected["squares"])
        assert QFormat(norm.difference_bits, 0).holds(expected["differences"])
        assert QFormat(norm.variance_bits, 0, signed=False).holds(expected["variance"])
        assert expected["variance"] >= 1
        assert norm.normalized.holds(expected["normalized"])
        assert QFormat(norm.product_bits, 0).holds(expected["products"])


@pytest.mark.parametrize("channels", [2, 17, 128])
def test_widths_are_needed(channels):
    """The adversarial rows reach the widths' last bits, so that no width is generous by accident."""
    norm = identity(channels)
    rows = adversarial_rows(channels, INPUT)
    total = max(abs(int(row.sum())) for row in rows)
    assert bits_for(-total, total - 1, True) == norm.sum_bits
    squares = max(int((row.astype(np.int64) ** 2).sum()) for row in rows)
    assert squares.bit_length() == norm.square_sum_bits
    difference = max(abs(value) for row in rows for value in intermediates(norm, row)["differences"])
    assert bits_for(-difference, difference, True) == norm.difference_bits
    norm = LayerNorm(
        INPUT, np.full(channels, -128), QFormat(8, 6), np.full(channels, norm.shift_limit), OUTPUT, norm.epsilon
    )
    largest = norm.shift_limit * 2
    assert bits_for(-largest, largest, True) == norm.product_bits


@pytest.mark.parametrize("channels", CHANNELS)
def test_no_normalized_element_saturates(channels):
    """|n| <= sqrt(C − 1): one element far from all others is the extreme."""
    norm = identity(channels)
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

    The reciprocal square root is off by a factor of 1 + r, the normalized value by half a unit more, gamma by half of its
    unit, beta by half of its unit, and the output rounds once.
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
    spreads = 10.0 ** generator.uniform(1, 4, size=(300, 1))
    rows = np.rint(spreads * generator.normal(size=(300, channels)) + 500 * generator.normal(size=(300, 1)))
    rows = np.clip(rows, INPUT.minimum_integer, INPUT.maximum_integer).astype(np.int64)
    values = INPUT.dequantize(rows)
    # epsilon is rounded to whole units of v; what remains is compared.
    epsilon = norm.epsilon / channels**2 * INPUT.resolution**2
    normalized = (values - values.mean(axis=-1, keepdims=True)) / np.sqrt(values.var(axis=-1, keepdims=True) + epsilon)
    exact = np.clip(normalized * gamma + beta, output.minimum, output.maximum)
    error = np.abs(output.dequantize(norm.compute(rows)) - exact) / output.resolution
    assert (error <= stated_bound(norm, normalized) + 1e-9).all()
    assert error.max() > 0.4  # it is not exact either: the comparison compares something


@pytest.mark.parametrize("input_format", [QFormat(8, 4), QFormat(8, 9)], ids=str)
def test_all_rows_of_two_bytes_are_within_the_derived_bound(input_format):
    gamma, beta = np.array([1.7, -0.3]), np.array([0.6, -1.2])
    norm = LayerNorm.from_float(gamma, beta, 1e-5, input_format, WIDE, 8)
    codes = np.arange(-128, 128)
    rows = np.stack(np.meshgrid(codes, codes), axis=-1).reshape(-1, 2)
    values = input_format.dequantize(rows)
    epsilon = norm.epsilon / 4 * input_format.resolution**2
    normalized = (values - values.mean(axis=-1, keepdims=True)) / np.sqrt(values.var(axis=-1, keepdims=True) + epsilon)
    error = np.abs(WIDE.dequantize(norm.compute(rows)) - (normalized * gamma + beta)) / WIDE.resolution
    assert len(rows) == 1 << 16
    assert (error <= stated_bound(norm, normalized) + 1e-9).all()


def test_a_gamma_of_zeros_gives_beta():
    beta = np.linspace(-2, 2, 8)
    norm = LayerNorm.from_float(np.zeros(8), beta, 1e-5, INPUT, OUTPUT, 8)
    results = OUTPUT.dequantize(norm.compute(np.arange(8) * 1000))
    assert np.abs(results - beta).max() <= OUTPUT.resolution / 2 + 2**-14


def test_zero_variance_gives_beta():
    norm = random_norm(16)
    beta = norm.output.dequantize(norm.compute(np.zeros(16, dtype=np.int64)))
    generator = np.random.default_rng(0)
    generator.uniform(-2, 2, 16)
    exact = np.clip(generator.normal(size=16), norm.output.minimum, norm.output.maximum)
    assert np.abs(beta - exact).max() <= norm.output.resolution / 2 + 2**-16
    for value in (INPUT.minimum_integer, -7, 1, INPUT.maximum_integer):
        np.testing.assert_array_equal(norm.compute(np.full(16, value)), norm.compute(np.zeros(16, dtype=np.int64)))


def test_the_mean_is_not_rounded():
    """A row whose mean is a fraction of a unit: a rounded mean would shift every result."""
    norm = identity(4, QFormat(16, 0), QFormat(16, 10))
    row = np.array([0, 0, 0, 1])
    exact = (row - 0.25) / math.sqrt(0.1875 + 1 / 16)
    assert np.abs(norm.output.dequantize(norm.compute(row)) - exact).max() <= 2**-9 * 1.8


def test_shift_invariance_is_exact():
    norm = random_norm(17)
    rows = np.random.default_rng(1).integers(-1000, 1000, size=(50, 17))
    np.testing.assert_array_equal(norm.compute(rows), norm.compute(rows + 12345))


def test_epsilon_counts_units_of_v():
    """With v = C²(σ² + ε)·2**2f: at σ = 0.01 an epsilon of 1e-4 halves the variance's share."""
    row = np.array([10, -10] * 8)  # ±10/1024
    norm = LayerNorm.from_float(np.ones(16), np.zeros(16), 1e-4, INPUT, QFormat(16, 12), 8)
    assert norm.epsilon == round(16**2 * 1e-4 * 2**20)
    exact = (10 / 1024) / math.sqrt((10 / 1024) ** 2 + 1e-4)
    assert abs(norm.output.dequantize(norm.compute(row))[0] - exact) <= exact * 2**-9
    assert LayerNorm.from_float(np.ones(2), np.zeros(2), 0.0, INPUT, OUTPUT, 8).epsilon == 1


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


def test_batches_are_rows():
    norm = random_norm(5)
    rows = np.random.default_rng(2).integers(-900, 900, size=(2, 3, 5)).astype(np.int16)
    together = norm.compute(rows)
    assert together.shape == (2, 3, 5)
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(together[index], norm.compute(rows[index]))


def test_inputs_are_checked():
    with pytest.raises(ValueError, match="5 elements, not 6"):
        random_norm(5).compute(np.zeros((2, 6), dtype=np.int64))
    with pytest.raises(ValueError, match="does not fit"):
        random_norm(5).compute(np.full(5, 32768))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": np.zeros((2, 2), dtype=np.int64)}, "must be a vector"),
        ({"scale": np.zeros(0, dtype=np.int64), "shift": np.zeros(0, dtype=np.int64)}, "1 to 4096"),
        ({"shift": np.zeros(3, dtype=np.int64)}, "vectors of one length"),
        ({"input": QFormat(17, 0)}, "at most 16 bits"),
        ({"input": QFormat(8, 0, signed=False)}, "signed"),
        ({"scale": np.full(4, 128)}, "scale does not fit"),
        ({"scale_format": QFormat(17, 0)}, "at most 16 bits"),
        ({"output": QFormat(17, 0)}, "output"),
        ({"output": QFormat(8, 60)}, "finer than the product"),
        ({"epsilon": 0}, "epsilon must be 1"),
        ({"epsilon": 1 << 40}, "epsilon must be 1"),
        ({"shift": np.full(4, (1 << 22) + 1)}, "exceeds the product"),
    ],
)
def test_parameters_are_checked(changes, message):
    arguments = {
        "input": INPUT,
        "scale": np.ones(4, dtype=np.int64),
        "scale_format": QFormat(8, 6),
        "shift": np.zeros(4, dtype=np.int64),
        "output": OUTPUT,
        "epsilon": 5,
    }
    LayerNorm(**arguments)
    with pytest.raises(QuantizationError, match=message):
        LayerNorm(**(arguments | changes))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["scale", "shift", "epsilon"])
def test_values_that_are_not_finite_are_refused(bad, place):
    scale, shift, epsilon = np.ones(4), np.zeros(4), 1e-5
    if place == "epsilon":
        epsilon = bad
    else:
        {"scale": scale, "shift": shift}[place][2] = bad
    with pytest.raises(QuantizationError, match="NaN or infinite"):
        LayerNorm.from_float(scale, shift, epsilon, INPUT, OUTPUT, 8)


def test_the_table_size_matters():
    row = np.random.default_rng(3).integers(-3000, 3000, size=64)
    fine, coarse = identity(64), identity(64)
    coarse = LayerNorm(
        coarse.input, coarse.scale, coarse.scale_format, coarse.shift, coarse.output, 1, ReciprocalSquareRoot(4, 8)
    )
    assert (fine.compute(row) != coarse.compute(row)).any()
