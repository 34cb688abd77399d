"""Casting to a Q-format under every rounding and overflow: against tables, rational arithmetic,
whole numbers and apytypes.
"""

import math
from fractions import Fraction

import apytypes
import numpy as np
import pytest
from apytypes import APyFixedArray, OverflowMode, QuantizationMode
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fixedpoint_qformat import formats

from fixedpoint import Overflow, QFormat, QuantizationError, Rounding

APYTYPES_ROUNDING = {
    Rounding.HALF_UP: QuantizationMode.TIES_POS,
    Rounding.HALF_EVEN: QuantizationMode.TIES_EVEN,
    Rounding.FLOOR: QuantizationMode.TO_NEG,
    Rounding.TOWARD_ZERO: QuantizationMode.TO_ZERO,
}
APYTYPES_OVERFLOW = {Overflow.SATURATE: OverflowMode.SAT, Overflow.WRAP: OverflowMode.WRAP}


def round_exactly(value, rounding):
    """Round a Fraction to an integer from the definition of each mode."""
    floor = math.floor(value)
    rest = value - floor
    if rounding is Rounding.HALF_UP:
        return floor + (rest >= Fraction(1, 2))
    if rounding is Rounding.HALF_EVEN:
        return round(value)
    if rounding is Rounding.FLOOR:
        return floor
    return math.trunc(value)


def wrap_exactly(value, target):
    lowest = target.minimum_integer
    return (value - lowest) % 2**target.bits + lowest


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        # value:               −2.5 −2.25 −1.5 −0.75 −0.5 −0.25  0  0.25 0.5 0.75 1.5 2.25 2.5
        (Rounding.HALF_UP, [-2, -2, -1, -1, 0, 0, 0, 0, 1, 1, 2, 2, 3]),
        (Rounding.HALF_EVEN, [-2, -2, -2, -1, 0, 0, 0, 0, 0, 1, 2, 2, 2]),
        (Rounding.FLOOR, [-3, -3, -2, -1, -1, -1, 0, 0, 0, 0, 1, 2, 2]),
        (Rounding.TOWARD_ZERO, [-2, -2, -1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 2]),
    ],
)
def test_rounding_of_ties_and_negatives(rounding, expected):
    values = np.array([-2.5, -2.25, -1.5, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1.5, 2.25, 2.5])
    assert QFormat(8, 0).quantize(values, rounding, Overflow.ERROR).tolist() == expected
    # The same in other units.
    assert QFormat(8, 3).quantize(values / 8, rounding, Overflow.ERROR).tolist() == expected
    assert QFormat(8, -3).quantize(values * 8, rounding, Overflow.ERROR).tolist() == expected


def test_next_to_a_tie_the_exact_remainder_decides():
    below, above = np.nextafter(0.5, 0), np.nextafter(-0.5, -1)
    assert QFormat(8, 0).quantize([below, above], Rounding.HALF_UP, Overflow.ERROR).tolist() == [0, -1]
    odd = 2.0**52 + 1  # adding a half would round to the even neighbour
    assert QFormat(60, 0).quantize([odd, -odd], Rounding.HALF_UP, Overflow.ERROR).tolist() == [2**52 + 1, -(2**52) - 1]


@pytest.mark.parametrize(
    ("overflow", "expected"),
    [
        (Overflow.SATURATE, [-8, -8, -8, 7, 7, 7]),
        (Overflow.WRAP, [7, -8, -8, 7, -8, -7]),
    ],
)
def test_both_rails(overflow, expected):
    values = [-9.0, -8.4, -8.0, 7.4, 7.5, 9.0]  # 7.5 rounds up and over the end
    assert QFormat(4, 0).quantize(values, Rounding.HALF_UP, overflow).tolist() == expected


@pytest.mark.parametrize("value", [-8.6, 7.5, 1e30, -np.inf, np.inf])
def test_overflow_error_says_range_and_value(value):
    with pytest.raises(QuantizationError, match=r"Q4\.0"):
        QFormat(4, 0).quantize([0.0, value], Rounding.HALF_UP, Overflow.ERROR)


@pytest.mark.parametrize("overflow", Overflow)
@pytest.mark.parametrize("rounding", Rounding)
def test_nan_is_always_refused(rounding, overflow):
    with pytest.raises(QuantizationError, match="NaN"):
        QFormat(8, 4).quantize([1.0, np.nan], rounding, overflow)


@pytest.mark.parametrize("rounding", Rounding)
def test_infinities_and_whatever_is_beyond_float64_saturate(rounding):
    wide = QFormat(62, 1000)
    expected = [wide.minimum_integer, wide.maximum_integer, wide.minimum_integer, wide.maximum_integer]
    assert wide.quantize([-np.inf, np.inf, -1e300, 1e300], rounding, Overflow.SATURATE).tolist() == expected
    with pytest.raises(QuantizationError, match="too large"):
        wide.quantize([np.inf], rounding, Overflow.WRAP)


@pytest.mark.parametrize("signed", [True, False])
def test_the_widest_format_saturates_at_its_own_ends(signed):
    target = QFormat(62, 0, signed)
    values = [-(2.0**62), -(2.0**61), 2.0**60, 2.0**61, 2.0**62, 2.0**63, 1e30]
    expected = [max(target.minimum_integer, min(target.maximum_integer, int(value))) for value in values]
    assert target.quantize(values, Rounding.HALF_UP, Overflow.SATURATE).tolist() == expected


def test_wrapping_the_largest_int64_is_exact():
    ends = [-(2**63), 2**63 - 1]
    for target in (QFormat(62, 0), QFormat(62, 0, False), QFormat(5, 0), QFormat(1, 0)):
        assert target.fit(ends, Overflow.WRAP).tolist() == [wrap_exactly(value, target) for value in ends]


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False), min_size=1, max_size=8),
    formats,
    st.sampled_from(list(Rounding)),
)
def test_quantize_equals_rational_arithmetic(values, target, rounding):
    # subnormals are not scaled exactly
    values = [value for value in values if abs(value) > 1e-200 or value == 0]
    exact = [round_exactly(Fraction(value) * Fraction(2) ** target.fraction, rounding) for value in values]
    clipped = [max(target.minimum_integer, min(target.maximum_integer, integer)) for integer in exact]
    assert target.quantize(values, rounding, Overflow.SATURATE).tolist() == clipped
    if all(abs(integer) <= 2**62 for integer in exact):
        wrapped = target.quantize(values, rounding, Overflow.WRAP).tolist()
        assert wrapped == [wrap_exactly(integer, target) for integer in exact]
    if clipped == exact:
        assert target.quantize(values, rounding, Overflow.ERROR).tolist() == exact
    else:
        with pytest.raises(QuantizationError):
            target.quantize(values, rounding, Overflow.ERROR)


EVERY_16_BITS = np.arange(-(1 << 15), 1 << 15)
TARGETS = [QFormat(4, 2), QFormat(6, -1), QFormat(5, 9), QFormat(8, 3), QFormat(1, 0), QFormat(15, 6), QFormat(12, 8)]


@pytest.fixture(scope="module")
def apytypes_source():
    """Every 16-bit code as Q10.6."""
    return APyFixedArray(EVERY_16_BITS.tolist(), int_bits=10, frac_bits=6)


@pytest.mark.parametrize("rounding", APYTYPES_ROUNDING)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_quantize_equals_apytypes_on_all_16_bit_inputs(apytypes_source, target, rounding):
    values = np.ldexp(EVERY_16_BITS, -6)
    for overflow, mode in APYTYPES_OVERFLOW.items():
        cast = apytypes_source.cast(
            int_bits=target.bits - target.fraction,
            frac_bits=target.fraction,
            quantization=APYTYPES_ROUNDING[rounding],
            overflow=mode,
        )
        expected = np.ldexp(cast.to_numpy(), target.fraction).astype(np.int64)
        np.testing.assert_array_equal(target.quantize(values, rounding, overflow), expected)
        assert len(set(expected.tolist())) > 1


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_all_16_bit_inputs_in_whole_numbers(target, rounding, signed):
    """Signed and unsigned targets under all three overflows; the rounding is worked out on
    integers, without a float.
    """
    target = QFormat(target.bits, target.fraction, signed)
    values, dropped = np.ldexp(EVERY_16_BITS, -6), 6 - target.fraction
    unit, codes = 1 << max(dropped, 0), EVERY_16_BITS << max(-dropped, 0)
    floor, rest = codes // unit, codes % unit
    exact = {
        Rounding.FLOOR: floor,
        Rounding.HALF_UP: floor + (2 * rest >= unit),
        Rounding.HALF_EVEN: floor + (2 * rest > unit) + ((2 * rest == unit) & (floor % 2 == 1)),
        Rounding.TOWARD_ZERO: floor + ((codes < 0) & (rest > 0)),
    }[rounding]
    inside = (exact >= target.minimum_integer) & (exact <= target.maximum_integer)
    assert inside.any()
    assert not inside.all()
    saturated = np.minimum(np.maximum(exact, target.minimum_integer), target.maximum_integer)
    np.testing.assert_array_equal(target.quantize(values, rounding, Overflow.SATURATE), saturated)
    wrapped = target.quantize(values, rounding, Overflow.WRAP)
    np.testing.assert_array_equal(wrapped[inside], exact[inside])
    assert target.holds(wrapped)
    assert not ((wrapped - exact) % 2**target.bits).any()
    np.testing.assert_array_equal(target.quantize(values[inside], rounding, Overflow.ERROR), exact[inside])
    for beyond in values[~inside][[0, -1]]:
        with pytest.raises(QuantizationError, match="holds"):
            target.quantize([0.0, beyond], rounding, Overflow.ERROR)


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.integers(-(2**50), 2**50), min_size=1, max_size=20),
    st.integers(2, 40),
    st.integers(-10, 50),
    st.sampled_from(list(APYTYPES_ROUNDING)),
    st.sampled_from(list(APYTYPES_OVERFLOW)),
)
def test_quantize_equals_apytypes_on_random_formats(codes, bits, fraction, rounding, overflow):
    target = QFormat(bits, fraction)
    source = APyFixedArray(codes, int_bits=26, frac_bits=26)
    cast = source.cast(
        bits=bits,
        frac_bits=fraction,
        quantization=APYTYPES_ROUNDING[rounding],
        overflow=APYTYPES_OVERFLOW[overflow],
    )
    scaled = Fraction(2) ** (fraction - 26)
    if all(abs(code * scaled) < 2**61 for code in codes):
        expected = np.ldexp(cast.to_numpy(), fraction).astype(np.int64)
        assert (
            target.quantize(np.ldexp(np.array(codes, dtype=float), -26), rounding, overflow).tolist()
            == expected.tolist()
        )


def test_the_oracle_is_the_one_we_think():
    assert apytypes.fx(-0.5, int_bits=3, frac_bits=1).cast(3, 0, QuantizationMode.TIES_POS) == 0
    assert apytypes.fx(0.5, int_bits=3, frac_bits=1).cast(3, 0, QuantizationMode.TIES_POS) == 1


@settings(deadline=None)  # the machine may be busy
@given(formats, st.data())
def test_dequantize_undoes_itself(target, data):
    narrow = QFormat(min(target.bits, 53), target.fraction, target.signed)
    integers = data.draw(st.lists(st.integers(narrow.minimum_integer, narrow.maximum_integer), max_size=10))
    values = narrow.dequantize(integers)
    assert [Fraction(value) for value in values.tolist()] == [i * Fraction(2) ** -target.fraction for i in integers]
    assert narrow.quantize(values, Rounding.FLOOR, Overflow.ERROR).tolist() == integers
