"""What holds for LayerNorm and RMSNorm alike: the equations, the widths, and what is refused."""

import math

import numpy as np
import pytest
from fixedpoint_builders import adversarial_rows
from norm_equations import (
    CHANNELS,
    INPUT,
    OUTPUT,
    SCALE_FORMAT,
    identity,
    intermediates,
    norm_from_float,
    random_norm,
)

from fixedpoint import LayerNorm, QFormat, QuantizationError, ReciprocalSquareRoot, RMSNorm

pytestmark = pytest.mark.parametrize("kind", [LayerNorm, RMSNorm])


@pytest.mark.parametrize("input_format", [INPUT, QFormat(16, 0), QFormat(8, 4), QFormat(2, 0)], ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
def test_results_are_the_equations_and_no_intermediate_exceeds_its_width(kind, channels, input_format):
    norm = random_norm(kind, channels, input_format)
    for row in adversarial_rows(channels, input_format):
        expected = intermediates(norm, row)
        assert norm.compute(row).tolist() == expected["outputs"]
        if kind is LayerNorm:
            assert QFormat(norm.sum_bits, 0).holds(expected["sums"])
        assert QFormat(norm.square_sum_bits, 0, signed=False).holds(expected["squares"])
        assert QFormat(norm.difference_bits, 0).holds(expected["differences"])
        assert QFormat(norm.variance_bits, 0, signed=False).holds(expected["variance"])
        assert expected["variance"] >= 1
        assert norm.normalized.holds(expected["normalized"])
        assert QFormat(norm.product_bits, 0).holds(expected["products"])


def test_epsilon_counts_units_of_v(kind):
    """With v = C²(σ² + ε)·2**2f: at σ = 0.01 an epsilon of 1e-4 halves the variance's share."""
    row = np.array([10, -10] * 8)  # ±10/1024, without a mean
    norm = norm_from_float(kind, np.ones(16), np.zeros(16), 1e-4, output=QFormat(16, 12))
    assert norm.epsilon == round(16**2 * 1e-4 * 2**20)
    exact = (10 / 1024) / math.sqrt((10 / 1024) ** 2 + 1e-4)
    assert abs(norm.output.dequantize(norm.compute(row))[0] - exact) <= exact * 2**-9
    assert norm_from_float(kind, np.ones(2), np.zeros(2), 0.0).epsilon == 1


def test_the_table_size_matters(kind):
    row = np.random.default_rng(3).integers(-3000, 3000, size=64)
    coarse = identity(kind, 64, reciprocal_square_root=ReciprocalSquareRoot(4, 8))
    assert (identity(kind, 64).compute(row) != coarse.compute(row)).any()


def test_batches_are_rows(kind):
    norm = random_norm(kind, 5)
    rows = np.random.default_rng(2).integers(-900, 900, size=(2, 3, 5)).astype(np.int16)
    together = norm.compute(rows)
    assert together.shape == (2, 3, 5)
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(together[index], norm.compute(rows[index]))


def test_inputs_are_checked(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__} rows have 5 elements, not 6"):
        random_norm(kind, 5).compute(np.zeros((2, 6), dtype=np.int64))
    with pytest.raises(ValueError, match=f"{kind.__name__} input does not fit"):
        random_norm(kind, 5).compute(np.full(5, 32768))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": np.zeros((2, 2), dtype=np.int64)}, "scale must be a vector"),
        ({"scale": np.zeros(0, dtype=np.int64)}, "scale must be a vector of 1 to 4096"),
        ({"input": QFormat(17, 0)}, "input must be signed with at most 16 bits"),
        ({"input": QFormat(8, 0, signed=False)}, "input must be signed"),
        ({"scale": np.full(4, 128)}, "scale does not fit"),
        ({"scale_format": QFormat(17, 0)}, "scale format must be signed with at most 16 bits"),
        ({"output": QFormat(17, 0)}, "output must be signed with at most 16 bits"),
        ({"output": QFormat(8, 0, signed=False)}, "output must be signed"),
        ({"output": QFormat(8, 60)}, "finer than the product"),
        ({"epsilon": 0}, "epsilon must be 1"),
        ({"epsilon": 1 << 40}, "epsilon must be 1"),
        ({"epsilon": 1.0}, "epsilon must be a whole number"),
        ({"epsilon": True}, "epsilon must be a whole number"),
    ],
)
def test_parameters_are_checked(kind, changes, message):
    arguments = {
        "input": INPUT,
        "scale": np.ones(4, dtype=np.int64),
        "scale_format": SCALE_FORMAT,
        "output": OUTPUT,
        "epsilon": 5,
    }
    if kind is LayerNorm:
        arguments["shift"] = np.zeros(4, dtype=np.int64)
    kind(**arguments)
    with pytest.raises(QuantizationError, match=f"{kind.__name__} .*{message}"):
        kind(**(arguments | changes))


@pytest.mark.parametrize(
    ("scale", "epsilon", "message"),
    [
        ([1.0, math.nan], 1e-5, "NaN or infinite"),
        ([math.inf, 1.0], 1e-5, "NaN or infinite"),
        ([1.0, -math.inf], 1e-5, "NaN or infinite"),
        ([1.0, 1.0], math.nan, "NaN or infinite"),
        ([1.0, 1.0], math.inf, "NaN or infinite"),
        ([1.0, 1.0], -math.inf, "NaN or infinite"),
        ([1.0, 1.0], -1e-5, "must not be negative"),
        ([1.0, 1.0], 1e300, "epsilon must be"),
        ([], 1e-5, "at least one element"),
        ([[1.0]], 1e-5, "vectors"),
        ([1e30, 1.0], 1e-5, "finer than the product"),
    ],
)
def test_float_parameters_are_checked(kind, scale, epsilon, message):
    with pytest.raises(QuantizationError, match=message):
        norm_from_float(kind, np.array(scale), np.zeros(len(scale)), epsilon)


def test_an_epsilon_beyond_all_units_is_refused(kind):
    with pytest.raises(QuantizationError, match="cannot be counted"):
        norm_from_float(kind, np.ones(4), np.zeros(4), 1e300, QFormat(16, 600))
