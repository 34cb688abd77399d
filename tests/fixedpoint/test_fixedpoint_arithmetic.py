import math
from fractions import Fraction

import numpy as np
import pytest
from apytypes import APyFixedArray, OverflowMode, QuantizationMode
from hypothesis import given, settings
from hypothesis import strategies as st

from fixedpoint import QFormat, ResidualAdd, exact_matmul, requantize, shift_right_half_up
from fixedpoint.arithmetic import FLOAT32_EXACT, FLOAT64_EXACT

HALF = Fraction(1, 2)


def shifted(value, shift):
    """`value / 2**shift`, half up, from the definition."""
    return math.floor(Fraction(value) / Fraction(2) ** shift + HALF)


def test_ties_go_up_whatever_the_sign():
    values = np.array([-6, -5, -3, -2, -1, 0, 1, 2, 3, 5, 6])
    assert shift_right_half_up(values, 2).tolist() == [-1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 2]


def test_every_small_value_and_shift():
    values = np.arange(-300, 301)
    for shift in range(-8, 13):
        expected = [shifted(value, shift) for value in values.tolist()]
        assert shift_right_half_up(values, shift).tolist() == expected
        # An array of shifts takes the other way through the function.
        assert shift_right_half_up(values, np.full(values.shape, shift)).tolist() == expected


@settings(deadline=None)  # the machine may be busy
@given(st.integers(-(2**62) + 1, 2**62 - 1), st.integers(0, 200))
def test_right_shifts_of_any_size(value, shift):
    expected = shifted(value, shift)
    assert shift_right_half_up(np.array([value]), shift).tolist() == [expected]
    assert shift_right_half_up(np.array([value]), np.array([shift])).tolist() == [expected]


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 61), st.data())
def test_left_shifts_are_exact(shift, data):
    value = data.draw(st.integers(-(2 ** (62 - shift)) + 1, 2 ** (62 - shift) - 1))
    assert shift_right_half_up(np.array([value]), -shift).tolist() == [value << shift]
    assert shift_right_half_up(np.array(value), np.array([-shift])).tolist() == [value << shift]


@pytest.mark.parametrize("value", [2**62 - 1, -(2**62) + 1, 2**61, -(2**61), 1, 0, -1])
@pytest.mark.parametrize("shift", [61, 62, 63, 64, 65, 1000])
def test_the_far_end(value, shift):
    assert shift_right_half_up(np.array([value]), shift).tolist() == [shifted(value, shift)]
    assert shift_right_half_up(np.array([value]), np.array([shift])).tolist() == [shifted(value, shift)]


def test_shifts_broadcast_against_values():
    values = np.arange(-6, 6).reshape(3, 4)
    shifts = np.array([0, 1, 2, -3])
    expected = [
        [shifted(value, shift) for value, shift in zip(row, shifts.tolist(), strict=True)] for row in values.tolist()
    ]
    assert shift_right_half_up(values, shifts).tolist() == expected
    assert shift_right_half_up(np.int8(5), np.zeros((2, 3), dtype=np.int8)).shape == (2, 3)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
def test_narrow_types_do_not_overflow(kind):
    ends = np.array([np.iinfo(kind).min, np.iinfo(kind).max], dtype=kind)
    assert shift_right_half_up(ends, 1).tolist() == [shifted(int(end), 1) for end in ends]
    assert shift_right_half_up(ends, -9).tolist() == [int(end) << 9 for end in ends]


def test_requantize_saturates_after_rounding():
    output = QFormat(4, 0)
    values = np.array([-70, -68, -67, -61, 60, 59, 29, 28, 1000])
    assert requantize(values, 3, output).tolist() == [-8, -8, -8, -8, 7, 7, 4, 4, 7]
    assert requantize(np.array([-3, 3, 4]), -1, output).tolist() == [-6, 6, 7]


@settings(deadline=None)  # the machine may be busy
@given(st.integers(-(2**40), 2**40), st.integers(-10, 50), st.integers(1, 20), st.booleans())
def test_requantize_equals_rational_arithmetic(value, shift, bits, signed):
    output = QFormat(bits, 0, signed)
    expected = max(output.minimum_integer, min(output.maximum_integer, shifted(value, shift)))
    assert requantize(np.array([value]), shift, output).tolist() == [expected]


@pytest.mark.parametrize("shift", [-3, 0, 1, 5, 12, 16, 18])
def test_requantize_equals_apytypes_on_all_16_bit_accumulators(shift):
    codes = np.arange(-(1 << 15), 1 << 15)
    accumulators = APyFixedArray(codes.tolist(), bits=16, frac_bits=shift)
    cast = accumulators.cast(
        bits=8, frac_bits=0, quantization=QuantizationMode.TIES_POS, overflow=OverflowMode.SAT
    ).to_numpy()
    np.testing.assert_array_equal(requantize(codes, shift, QFormat(8, 0)), cast.astype(np.int64))


def test_residual_add_of_all_pairs_of_bytes():
    codes = np.arange(-128, 128)
    sums = ResidualAdd(QFormat(8, 3)).compute(codes[:, None], codes[None, :])
    assert sums.dtype == np.int64
    assert sums.tolist() == [[max(-128, min(127, a + b)) for b in range(-128, 128)] for a in range(-128, 128)]


def test_residual_add_does_not_wrap_narrow_types():
    rails = np.array([-32768, 32767], dtype=np.int16)
    assert ResidualAdd(QFormat(16, 10)).compute(rails, rails).tolist() == [-32768, 32767]


def python_matmul(a, b):
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)] for row in a]


@pytest.mark.parametrize(
    ("inner", "largest_a", "largest_b", "kind"),
    [
        (1023, 128, 128, np.int32),  # 2**24 − 2**14: the longest exact float32 product of bytes
        (1024, 128, 128, np.int64),  # 2**24 exactly: one too many
        (3, (FLOAT32_EXACT - 1) // 3, 1, np.int32),
        (512, 1 << 22, 1 << 22, np.int64),  # 2**53: integers
        (511, 1 << 22, 1 << 22, np.int64),  # below 2**53: float64
        (3, (FLOAT64_EXACT - 1) // 3, 1, np.int64),
        (2, 1 << 31, 1 << 30, np.int64),
    ],
)
def test_products_are_exact_right_at_the_bounds(inner, largest_a, largest_b, kind):
    generator = np.random.default_rng(inner)
    a = generator.integers(-largest_a, largest_a, size=(3, inner), endpoint=True)
    b = generator.integers(-largest_b, largest_b, size=(inner, 4), endpoint=True)
    a[0], b[:, 0] = largest_a, largest_b  # the largest possible sum
    a[1], b[:, 1] = largest_a, -largest_b
    a[2, ::2] = largest_a - 1  # odd sums: the first that a float loses
    product = exact_matmul(a, b, largest_a, largest_b)
    assert product.dtype == kind
    assert product.tolist() == python_matmul(a.tolist(), b.tolist())


def test_float32_would_not_be_exact_one_step_beyond_its_bound():
    """The bound is not merely safe, it is needed: the neighbour of the largest sum is lost."""
    a = np.array([[4096, 1]])
    b = np.array([[4096], [1]])
    assert int(np.matmul(a.astype(np.float32), b.astype(np.float32))[0, 0]) != 4096 * 4096 + 1
    assert exact_matmul(a, b, 4096, 4096).tolist() == [[4096 * 4096 + 1]]


def test_float64_would_not_be_exact_one_step_beyond_its_bound():
    a = np.array([[1 << 27, 1]])
    b = np.array([[1 << 26], [1]])
    assert int(np.matmul(a.astype(np.float64), b.astype(np.float64))[0, 0]) != (1 << 53) + 1
    assert exact_matmul(a, b, 1 << 27, 1 << 26).tolist() == [[(1 << 53) + 1]]


def test_sums_beyond_64_bits_are_refused():
    ones = np.ones((1, 2), dtype=np.int64)
    assert exact_matmul(ones, ones.T, 1 << 31, (1 << 31) - 1).tolist() == [[2]]
    with pytest.raises(OverflowError, match="64 bits"):
        exact_matmul(ones, ones.T, 1 << 31, 1 << 31)


@pytest.mark.parametrize(("value", "side"), [(4, "left"), (-4, "left"), (4, "right"), (-4, "right")])
def test_operands_beyond_their_bound_are_noticed(value, side):
    good, bad = np.ones((1, 1), dtype=np.int64), np.full((1, 1), value)
    operands = (bad, good) if side == "left" else (good, bad)
    with pytest.raises(AssertionError, match=f"{side} operand"):
        exact_matmul(*operands, 3, 3)


def test_batches_broadcast_and_empty_ones_stay_empty():
    generator = np.random.default_rng(1)
    a, b = generator.integers(-8, 8, size=(2, 1, 3, 5)), generator.integers(-8, 8, size=(4, 5, 2))
    np.testing.assert_array_equal(exact_matmul(a, b, 8, 8), np.matmul(a, b))
    assert exact_matmul(np.zeros((0, 5), dtype=np.int64), b[0], 8, 8).shape == (0, 2)
