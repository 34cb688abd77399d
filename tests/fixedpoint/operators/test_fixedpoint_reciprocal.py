import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixedpoint import Reciprocal, ReciprocalSquareRoot

SIZES = [(10, 16), (2, 3), (4, 8), (7, 8), (8, 18), (12, 18), (12, 13)]
FUNCTIONS = [Reciprocal, ReciprocalSquareRoot]
FAR = [2**k + offset for k in range(40, 63) for offset in (-1, 0, 1)] + [2**63 - 1, 2**63 - 512, 2**63 - 513]


def stated_bound(function):
    index = function.index_bits + (1 if isinstance(function, Reciprocal) else 0)
    return Fraction(1, 2**index) + Fraction(1, 2**function.mantissa_bits)


def relative_error(function, value):
    """|result / exact − 1|, exactly for 1/x and to 2**-60 for 1/sqrt(x)."""
    result = function.compute(np.array([value]))
    approximation = Fraction(int(result.mantissa[0])) / 2 ** int(result.exponent[0])
    if isinstance(function, Reciprocal):
        return abs(approximation * value - 1)
    root = Fraction(math.isqrt(value << 128), 2**64)
    return abs(approximation * root - 1)


def indices(function, values):
    """The table index of each value, by the docstring's words, in Python integers."""
    results = []
    for value in values:
        position = value.bit_length() - 1
        if isinstance(function, Reciprocal):
            drop = position - function.index_bits
            leading = value >> drop if drop >= 0 else value << -drop
            results.append((leading - 2**function.index_bits, position))
        else:
            even = position - position % 2
            drop = even - (function.index_bits - 2)
            leading = value >> drop if drop >= 0 else value << -drop
            results.append((leading - 2 ** (function.index_bits - 2), even // 2))
    return results


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize(("index_bits", "mantissa_bits"), SIZES)
def test_all_arguments_up_to_2_to_the_20(kind, index_bits, mantissa_bits):
    function = kind(index_bits, mantissa_bits)
    values = np.arange(1, (1 << 20) + 1)
    result = function.compute(values)
    exact = 1 / values if kind is Reciprocal else 1 / np.sqrt(values)
    error = np.abs(np.ldexp(result.mantissa.astype(float), -result.exponent) / exact - 1)
    assert error.max() <= float(stated_bound(function)) * (1 + 1e-12)
    # The bound is tight: half of it would not do.
    assert error.max() >= float(stated_bound(function)) / 2
    assert result.mantissa.min() >= 1 << (mantissa_bits - 1)
    assert result.mantissa.max() < 1 << mantissa_bits


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize(("index_bits", "mantissa_bits"), SIZES)
def test_the_results_are_the_table_of_the_docstring(kind, index_bits, mantissa_bits):
    function = kind(index_bits, mantissa_bits)
    values = [*range(1, 70), *range(1000, 1100), *FAR]
    result = function.compute(np.array(values))
    for (index, exponent), mantissa, shift in zip(
        indices(function, values), result.mantissa.tolist(), result.exponent.tolist(), strict=True
    ):
        assert 0 <= index < len(function.table)
        assert shift == exponent + mantissa_bits
        if kind is Reciprocal:
            middle = 1 + (index + Fraction(1, 2)) / 2**index_bits
            expected = math.floor(2**mantissa_bits / middle + Fraction(1, 2))
        else:
            middle = (index + function.start + Fraction(1, 2)) / function.start
            # round(2**m / sqrt(middle)) without a float: floor(sqrt(4·(2**m)²/middle)) is twice the
            # root, floored
            expected = (math.isqrt(math.floor(4 ** (mantissa_bits + 1) / middle)) + 1) // 2
        assert mantissa == expected


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize(("index_bits", "mantissa_bits"), SIZES)
def test_every_table_entry_is_used_and_none_beyond(kind, index_bits, mantissa_bits):
    function = kind(index_bits, mantissa_bits)
    octaves = 1 if kind is Reciprocal else 2
    every = np.arange(1 << index_bits, 1 << (index_bits + octaves)) if kind is Reciprocal else None
    if every is None:
        width = index_bits - index_bits % 2 + 2  # an even exponent: mantissas 1 to 4
        every = np.arange(1 << width, 1 << (width + 2))
    np.testing.assert_array_equal(np.unique(function.compute(every).mantissa), np.unique(function.table))
    used = {index for index, _ in indices(function, every.tolist())}
    assert used == set(range(len(function.table)))
    assert (np.diff(function.table) <= 0).all()


@pytest.mark.parametrize("kind", FUNCTIONS)
@settings(deadline=None)  # the machine may be busy
@given(exponent=st.integers(20, 62), data=st.data())
def test_random_arguments_up_to_63_bits(kind, exponent, data):
    value = data.draw(st.integers(2**exponent, 2 ** (exponent + 1) - 1))
    function = kind()
    assert relative_error(function, value) <= stated_bound(function) + Fraction(1, 2**60)


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("value", FAR)
def test_arguments_that_float64_rounds_to_the_next_power_of_two(kind, value):
    function = kind()
    assert relative_error(function, value) <= stated_bound(function) + Fraction(1, 2**60)


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("value", [0, -1, -(2**62)])
def test_only_positive_arguments(kind, value):
    with pytest.raises(ValueError, match="positive"):
        kind().compute(np.array([5, value]))


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_shapes_are_kept(kind):
    assert kind().compute(np.ones((2, 3, 1), dtype=np.int32)).mantissa.shape == (2, 3, 1)
    assert kind().compute(np.ones((0, 3), dtype=np.int64)).exponent.shape == (0, 3)


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize(
    ("sizes", "message"),
    [((1, 16), "index_bits"), ((13, 18), "index_bits"), ((10, 10), "mantissa_bits"), ((10, 19), "mantissa_bits")],
)
def test_sizes_are_checked(kind, sizes, message):
    with pytest.raises(ValueError, match=message):
        kind(*sizes)
