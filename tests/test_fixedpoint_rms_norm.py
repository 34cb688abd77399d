import math
from fractions import Fraction

import numpy as np
import pytest
from fixedpoint_builders import adversarial_rows

from fixedpoint import LayerNorm, QFormat, QuantizationError, ReciprocalSquareRoot, RMSNorm
from fixedpoint.qformat import bits_for

INPUT = QFormat(16, 10)
OUTPUT = QFormat(8, 5)
WIDE = QFormat(16, 10)
CHANNELS = [1, 2, 3, 4, 5, 16, 17, 64, 100, 128]


def identity(channels, input_format=INPUT, output=WIDE):
    """An RMSNorm with gamma 1."""
    return RMSNorm(input_format, np.full(channels, 64), QFormat(8, 6), output, 1)


def intermediates(norm, row):
    """The docstring's equations in Python integers: Q, d_i, v, n_i, products and the outputs."""
    row = [int(x) for x in row]
    squares = sum(x * x for x in row)
    differences = [len(row) * x for x in row]
    variance = len(row) * squares + norm.epsilon
    root = norm.reciprocal_square_root.compute(np.array([variance]))
    mantissa, exponent = int(root.mantissa[0]), int(root.exponent[0])

    def cast(value, shift, target):
        rounded = math.floor(Fraction(value) / Fraction(2) ** shift + Fraction(1, 2))
        return max(target.minimum_integer, min(target.maximum_integer, rounded))

    normalized = [cast(d * mantissa, exponent - norm.normalized.fraction, norm.normalized) for d in differences]
    products = [n * int(s) for n, s in zip(normalized, norm.scale, strict=True)]
    return {
        "squares": squares,
        "differences": differences,
        "variance": variance,
        "normalized": normalized,
        "products": products,
        "outputs": [cast(product, norm.output_shift, norm.output) for product in products],
    }


def random_norm(channels, seed=0, input_format=INPUT, output=OUTPUT, scale_bits=8):
    scale = np.random.default_rng(seed).uniform(-2, 2, channels)
    return RMSNorm.from_float(scale, 1e-5, input_format, output, scale_bits)


@pytest.mark.parametrize("input_format", [INPUT, QFormat(16, 0), QFormat(8, 4), QFormat(2, 0)], ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
def test_results_are_the_equations_and_no_intermediate_exceeds_its_width(channels, input_format):
    norm = random_norm(channels, input_format=input_format)
    for row in adversarial_rows(channels, input_format):
        expected = intermediates(norm, row)
        assert norm.compute(row).tolist() == expected["outputs"]
        assert QFormat(norm.difference_bits, 0).holds(expected["differences"])
        assert QFormat(norm.square_sum_bits, 0, signed=False).holds(expected["squares"])
        assert QFormat(norm.variance_bits, 0, signed=False).holds(expected["variance"])
        assert QFormat(norm.product_bits, 0).holds(expected["products"])


@pytest.mark.parametrize("channels", [2, 17, 128])
def test_widths_are_needed(channels):
    norm = RMSNorm(INPUT, np.full(channels, -128), QFormat(8, 6), OUTPUT, 1)
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
    """LSBs of the output, derived in docs/fixedpoint/rms_norm.md: LayerNorm's without beta, and a whole unit where n saturates."""
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
    spreads = 10.0 ** generator.uniform(0, 4, size=(300, 1))
    rows = np.rint(spreads * generator.normal(size=(300, channels)) + 500 * generator.normal(size=(300, 1)))
    rows[:3] = 0  # rows of one element, the largest normalized value there is
    rows[0, 0], rows[1, -1], rows[2, 0] = 32767, -32768, 300
    rows = np.clip(rows, INPUT.minimum_integer, INPUT.maximum_integer).astype(np.int64)
    values = INPUT.dequantize(rows)
    epsilon = norm.epsilon / channels**2 * INPUT.resolution**2  # in whole units of v
    normalized = values / np.sqrt((values**2).mean(axis=-1, keepdims=True) + epsilon)
    exact = np.clip(normalized * gamma, output.minimum, output.maximum)
    error = np.abs(output.dequantize(norm.compute(rows)) - exact) / output.resolution
    assert (error <= stated_bound(norm, normalized) + 1e-9).all()
    assert error.max() > 0.3  # it is not exact either: the comparison compares something


@pytest.mark.parametrize("input_format", [QFormat(8, 4), QFormat(8, 9)], ids=str)
def test_all_rows_of_two_bytes_are_within_the_derived_bound(input_format):
    gamma = np.array([1.7, -0.3])
    norm = RMSNorm.from_float(gamma, 1e-5, input_format, WIDE, 8)
    codes = np.arange(-128, 128)
    rows = np.stack(np.meshgrid(codes, codes), axis=-1).reshape(-1, 2)
    values = input_format.dequantize(rows)
    epsilon = norm.epsilon / 4 * input_format.resolution**2
    normalized = values / np.sqrt((values**2).mean(axis=-1, keepdims=True) + epsilon)
    error = np.abs(WIDE.dequantize(norm.compute(rows)) - normalized * gamma) / WIDE.resolution
    assert len(rows) == 1 << 16
    assert (error <= stated_bound(norm, normalized) + 1e-9).all()


@pytest.mark.parametrize("channels", CHANNELS)
def test_the_normalized_format_holds_every_row(channels):
    """|n| <= sqrt(C), reached by one element alone; at powers of 4 that is one unit beyond the format."""
    norm = identity(channels)
    row = np.zeros(channels, dtype=np.int64)
    row[0] = 32767
    normalized = norm.normalized.dequantize(intermediates(norm, row)["normalized"])
    assert (
        abs(normalized[0] - math.sqrt(channels)) <= (2**-10 + 2**-16) * math.sqrt(channels) + norm.normalized.resolution
    )
    assert norm.normalized.maximum + norm.normalized.resolution >= math.sqrt(channels)


def test_a_row_of_zeros_stays_zero():
    assert random_norm(16).compute(np.zeros((2, 16), dtype=np.int64)).tolist() == [[0] * 16] * 2


def test_signs_are_symmetric_up_to_rounding():
    norm = random_norm(17)
    rows = np.random.default_rng(1).integers(-9000, 9000, size=(50, 17))
    assert np.abs(norm.compute(rows) + norm.compute(-rows)).max() <= 1


def test_epsilon_counts_units_of_v():
    row = np.array([10, -10] * 8)  # ±10/1024
    norm = RMSNorm.from_float(np.ones(16), 1e-4, INPUT, QFormat(16, 12), 8)
    assert norm.epsilon == round(16**2 * 1e-4 * 2**20)
    exact = (10 / 1024) / math.sqrt((10 / 1024) ** 2 + 1e-4)
    assert abs(norm.output.dequantize(norm.compute(row))[0] - exact) <= exact * 2**-9
    assert RMSNorm.from_float(np.ones(2), 0.0, INPUT, OUTPUT, 8).epsilon == 1


def test_a_gamma_of_zeros_gives_zeros():
    norm = RMSNorm.from_float(np.zeros(8), 1e-5, INPUT, OUTPUT, 8)
    assert not norm.compute(np.arange(8) * 100).any()


def test_batches_are_rows():
    norm = random_norm(5)
    rows = np.random.default_rng(2).integers(-900, 900, size=(2, 3, 5)).astype(np.int16)
    together = norm.compute(rows)
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(together[index], norm.compute(rows[index]))


def test_inputs_are_checked():
    with pytest.raises(ValueError, match="RMSNorm rows have 5 elements, not 6"):
        random_norm(5).compute(np.zeros((2, 6), dtype=np.int64))
    with pytest.raises(ValueError, match="RMSNorm input does not fit"):
        random_norm(5).compute(np.full(5, 32768))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": np.zeros((2, 2), dtype=np.int64)}, "must be a vector"),
        ({"scale": np.zeros(0, dtype=np.int64)}, "1 to 4096"),
        ({"input": QFormat(17, 0)}, "input must be signed with at most 16 bits"),
        ({"scale": np.full(4, 128)}, "scale does not fit"),
        ({"scale_format": QFormat(17, 0)}, "scale format must be signed"),
        ({"output": QFormat(8, 0, signed=False)}, "output must be signed"),
        ({"output": QFormat(8, 60)}, "finer than the product"),
        ({"epsilon": 0}, "RMSNorm epsilon must be 1"),
        ({"epsilon": 1 << 40}, "epsilon must be 1"),
        ({"epsilon": 1.0}, "whole number"),
        ({"reciprocal_square_root": ReciprocalSquareRoot(4, 8)}, None),
    ],
)
def test_parameters_are_checked(changes, message):
    arguments = {
        "input": INPUT,
        "scale": np.ones(4, dtype=np.int64),
        "scale_format": QFormat(8, 6),
        "output": OUTPUT,
        "epsilon": 5,
    }
    if message is None:
        RMSNorm(**(arguments | changes))
        return
    with pytest.raises(QuantizationError, match=message):
        RMSNorm(**(arguments | changes))


@pytest.mark.parametrize(
    ("scale", "epsilon", "message"),
    [
        ([1.0, math.nan], 1e-5, "NaN or infinite"),
        ([1.0, -math.inf], 1e-5, "NaN or infinite"),
        ([1.0, 1.0], math.nan, "NaN or infinite"),
        ([1.0, 1.0], -1e-5, "must not be negative"),
        ([1.0, 1.0], 1e300, "epsilon"),
        ([], 1e-5, "at least one element"),
        ([[1.0]], 1e-5, "vectors"),
        ([1e30, 1.0], 1e-5, "finer than the product"),
    ],
)
def test_float_parameters_are_checked(scale, epsilon, message):
    with pytest.raises(QuantizationError, match=message):
        RMSNorm.from_float(np.array(scale), epsilon, INPUT, OUTPUT, 8)


@pytest.mark.parametrize(
    ("epsilon", "fraction", "message"), [(-1.0, 10, "negative"), (1e300, 600, "cannot be counted")]
)
def test_layer_norm_refuses_the_same(epsilon, fraction, message):
    with pytest.raises(QuantizationError, match=message):
        LayerNorm.from_float(np.ones(4), np.zeros(4), epsilon, QFormat(16, fraction), OUTPUT, 8)
