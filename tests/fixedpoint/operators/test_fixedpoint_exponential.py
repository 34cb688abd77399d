from decimal import Decimal, localcontext

import numpy as np
import pytest

from fixedpoint import Exponential

SIZES = [(8, 8), (4, 8), (8, 4), (1, 2), (10, 16), (12, 12), (6, 15)]


def integer_exponential(distance, fraction, table_bits, output_bits):
    """The docstring's equation in Python integers."""
    maximum = 2**output_bits - 1
    shift = fraction - table_bits
    u = (distance + (1 << shift >> 1)) >> shift if shift > 0 else distance << -shift
    with localcontext() as context:
        context.prec = 60
        entry = int(maximum * Decimal(2) ** (Decimal(-(u % 2**table_bits)) / 2**table_bits) + Decimal("0.5"))
    whole = u >> table_bits
    return (entry + (1 << whole >> 1)) >> whole if whole < 4 * output_bits else 0


@pytest.mark.parametrize(("table_bits", "output_bits"), SIZES)
def test_the_table_is_exactly_rounded(table_bits, output_bits):
    with localcontext() as context:
        context.prec = 60
        step = Decimal(2) ** (Decimal(-1) / 2**table_bits)
        value, expected = Decimal(2**output_bits - 1), []
        for _ in range(2**table_bits):
            expected.append(int(value + Decimal("0.5")))
            value *= step
    table = Exponential(8, table_bits, output_bits).table
    assert table.tolist() == expected
    assert table[0] == 2**output_bits - 1
    assert table[-1] >= 2 ** (output_bits - 1)


@pytest.mark.parametrize("fraction", [-3, 0, 3, 8, 9, 12])
@pytest.mark.parametrize(("table_bits", "output_bits"), SIZES)
def test_all_distances(fraction, table_bits, output_bits):
    """Every distance up to the last that is not zero, and some beyond."""
    exponential = Exponential(fraction, table_bits, output_bits)
    distances = np.arange(min((output_bits + 2) << max(fraction, 0), 1 << 17) + 2)
    results = exponential.compute(distances)
    exact = exponential.maximum * 2.0 ** -np.ldexp(distances.astype(float), -fraction)
    bound = 0.75
    if fraction > table_bits:
        bound += np.log(2) * exponential.maximum / 2 ** (table_bits + 1)
    assert np.abs(results - exact).max() <= bound
    assert (np.diff(results) <= 0).all()
    assert results[0] == exponential.maximum
    assert results.min() >= 0
    sample = np.unique(np.linspace(0, len(distances) - 1, 200).astype(int))
    expected = [integer_exponential(int(distance), fraction, table_bits, output_bits) for distance in sample]
    assert results[sample].tolist() == expected


@pytest.mark.parametrize("fraction", [-30, -8, 0, 8, 40])
def test_the_far_end_is_zero(fraction):
    exponential = Exponential(fraction)
    last = 9 << max(fraction, 0)
    assert exponential.compute(np.array([last, last + 1, 2 * last, 2**53, 2**61])).tolist() == [0, 0, 0, 0, 0]
    assert exponential.compute(np.array([(8 << max(fraction, 0)) if fraction >= 0 else 0])) > 0


def test_one_half_survives_and_less_does_not():
    exponential = Exponential(0)
    assert exponential.compute(np.arange(10)).tolist() == [255, 128, 64, 32, 16, 8, 4, 2, 1, 0]


def test_shapes_are_kept():
    assert Exponential(4).compute(np.zeros((2, 0, 3), dtype=np.int64)).shape == (2, 0, 3)
    assert Exponential(4).compute(np.int64(0)) == 255


def test_a_negative_distance_is_refused():
    with pytest.raises(ValueError, match="negative: -1"):
        Exponential(8).compute(np.array([0, -1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": -31}, "fraction"),
        ({"fraction": 41}, "fraction"),
        ({"fraction": 0, "table_bits": 0}, "table_bits"),
        ({"fraction": 0, "table_bits": 13}, "table_bits"),
        ({"fraction": 0, "output_bits": 1}, "output_bits"),
        ({"fraction": 0, "output_bits": 17}, "output_bits"),
    ],
)
def test_parameters_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Exponential(**arguments)
