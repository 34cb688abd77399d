import itertools
import math
from fractions import Fraction

import apytypes
import numpy as np
import pytest
from apytypes import APyFixedArray, OverflowMode, QuantizationMode
from hypothesis import given, settings
from hypothesis import strategies as st

from fixedpoint import Overflow, QFormat, QuantizationError, Rounding
from fixedpoint.qformat import MAXIMUM_BITS, bits_for, covering_fraction

APYTYPES_ROUNDING = {
    Rounding.HALF_UP: QuantizationMode.TIES_POS,
    Rounding.HALF_EVEN: QuantizationMode.TIES_EVEN,
    Rounding.FLOOR: QuantizationMode.TO_NEG,
    Rounding.TOWARD_ZERO: QuantizationMode.TO_ZERO,
}
APYTYPES_OVERFLOW = {Overflow.SATURATE: OverflowMode.SAT, Overflow.WRAP: OverflowMode.WRAP}
SMALL_FORMATS = [
    QFormat(bits, fraction, signed) for bits in (1, 2, 3, 4) for fraction in (-2, 0, 1, 5) for signed in (True, False)
]

formats = st.builds(QFormat, st.integers(1, MAXIMUM_BITS), st.integers(-80, 80), st.booleans())


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


# Text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Q4.4", QFormat(8, 4)),
        ("UQ0.8", QFormat(8, 8, signed=False)),
        ("Q-2.10", QFormat(8, 10)),
        ("Q12.-4", QFormat(8, -4)),
        ("Q1.0", QFormat(1, 0)),
        ("Q62.0", QFormat(62, 0)),
        ("UQ-61.62", QFormat(1, 62, signed=False)),
    ],
)
def test_text_is_read_and_written(text, expected):
    assert QFormat.parse(text) == expected
    assert str(expected) == text


@settings(deadline=None)  # the machine may be busy
@given(formats)
def test_every_format_survives_text(target):
    assert QFormat.parse(str(target)) == target


@pytest.mark.parametrize(
    "text",
    ["", "Q", "Q4", "Q4.", "q4.4", "SQ4.4", "Q4.4 ", " Q4.4", "Q4.4\n", "Q4,4", "Q--1.4", "Q1.5.2", "4.4", None, 44],
)
def test_other_text_is_refused_with_an_example(text):
    with pytest.raises(QuantizationError, match=r"like Q4\.4 or UQ0\.8"):
        QFormat.parse(text)


@pytest.mark.parametrize("text", ["Q0.0", "Q40.40", "Q-4.4", "UQ63.0"])
def test_text_of_an_impossible_width_is_refused(text):
    with pytest.raises(QuantizationError, match="1 to 62"):
        QFormat.parse(text)


@pytest.mark.parametrize(("bits", "fraction"), [(8.0, 0), (True, 0), ("8", 0), (8, 1.5), (8, False), (8, None)])
def test_sizes_must_be_integers(bits, fraction):
    with pytest.raises(TypeError, match="must be an integer"):
        QFormat(bits, fraction)


@pytest.mark.parametrize("bits", [0, -1, 63])
def test_widths_are_1_to_62(bits):
    with pytest.raises(ValueError, match="1 to 62"):
        QFormat(bits, 0)


def test_signed_must_be_a_bool():
    with pytest.raises(TypeError, match="signed"):
        QFormat(8, 0, 1)


# Range


@pytest.mark.parametrize(
    ("text", "lowest", "highest", "resolution"),
    [
        ("Q4.4", -8.0, 7.9375, 0.0625),
        ("UQ0.8", 0.0, 255 / 256, 1 / 256),
        ("Q12.-4", -2048.0, 2032.0, 16.0),
        ("Q-2.10", -0.125, 0.1240234375, 2**-10),
        ("Q1.0", -1.0, 0.0, 1.0),
        ("UQ1.0", 0.0, 1.0, 1.0),
    ],
)
def test_range(text, lowest, highest, resolution):
    target = QFormat.parse(text)
    assert (target.minimum, target.maximum, target.resolution) == (lowest, highest, resolution)


@settings(deadline=None)  # the machine may be busy
@given(formats)
def test_the_ends_of_the_range_are_the_last_integers_that_fit(target):
    ends = np.array([target.minimum_integer, target.maximum_integer])
    assert target.holds(ends)
    assert not target.holds(ends[1] + 1)
    assert not target.holds(ends[0] - 1)
    assert target.maximum_integer - target.minimum_integer == 2**target.bits - 1
    np.testing.assert_array_equal(target.fit(ends, Overflow.ERROR), ends)
    np.testing.assert_array_equal(target.fit(ends + np.array([-1, 1]), Overflow.SATURATE), ends)
    np.testing.assert_array_equal(target.fit(ends + np.array([-1, 1]), Overflow.WRAP), ends[::-1])
    with pytest.raises(QuantizationError, match="holds"):
        target.fit(ends + np.array([0, 1]), Overflow.ERROR)


def test_nothing_always_fits():
    assert QFormat(1, 0).holds(np.zeros((0, 3), dtype=np.int64))
    assert QFormat(1, 0).fit([], Overflow.ERROR).dtype == np.int64


@pytest.mark.parametrize("values", [[1.0], np.array([1.5]), np.array([1], dtype=np.uint64), [2**64], ["1"]])
def test_fit_takes_only_integers_that_int64_holds(values):
    with pytest.raises(TypeError, match="int64"):
        QFormat(8, 0).fit(values, Overflow.SATURATE)


# Rounding and overflow


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
    values = [value for value in values if abs(value) > 1e-200 or value == 0]  # subnormals are not scaled exactly
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
    """Signed and unsigned targets under all three overflows; the rounding is worked out on integers, without a float."""
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


# Formats of results


def all_values(target):
    return [i * Fraction(2) ** -target.fraction for i in range(target.minimum_integer, target.maximum_integer + 1)]


@pytest.mark.parametrize("operation", ["product", "sum"])
def test_result_formats_are_exact_and_the_smallest(operation):
    for a, b in itertools.product(SMALL_FORMATS, SMALL_FORMATS):
        result = getattr(a, operation)(b)
        units = Fraction(2) ** result.fraction
        combine = (lambda x, y: x * y) if operation == "product" else (lambda x, y: x + y)
        values = [combine(x, y) * units for x in all_values(a) for y in all_values(b)]
        assert all(value.denominator == 1 for value in values), (a, b)
        assert result.holds([int(value) for value in values]), (a, b)
        if result.bits > 1:
            narrower = QFormat(result.bits - 1, result.fraction, result.signed)
            assert not narrower.holds([int(value) for value in values]), (a, b)
        assert result.signed == (a.signed or b.signed)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 20), st.integers(-9, 25), st.integers(1, 20), st.integers(-9, 25), st.data())
def test_sums_and_products_equal_those_of_apytypes(bits_a, fraction_a, bits_b, fraction_b, data):
    a, b = QFormat(bits_a, fraction_a), QFormat(bits_b, fraction_b)

    def drawn(form):
        ends = [form.minimum_integer, form.maximum_integer]
        return ends + data.draw(st.lists(st.integers(*ends), min_size=2, max_size=2))

    codes = [(x, y) for x in drawn(a) for y in drawn(b)]
    x = APyFixedArray([x for x, _ in codes], bits=a.bits, frac_bits=a.fraction)
    y = APyFixedArray([y for _, y in codes], bits=b.bits, frac_bits=b.fraction)
    for ours, theirs, combine in ((a.product(b), x * y, "product"), (a.sum(b), x + y, "sum")):
        # apytypes counts bits alone, so a format of one bit, which has no positive number, may need one less.
        assert theirs.bits - (1 in (a.bits, b.bits)) <= ours.bits <= theirs.bits
        assert ours.fraction == theirs.frac_bits
        shifts = (ours.fraction - a.fraction, ours.fraction - b.fraction)
        exact = [p * q if combine == "product" else (p << shifts[0]) + (q << shifts[1]) for p, q in codes]
        assert np.ldexp(theirs.to_numpy(), ours.fraction).tolist() == exact
        assert ours.fit(exact, Overflow.ERROR).tolist() == exact


def test_a_result_too_wide_for_the_format_is_refused():
    with pytest.raises(ValueError, match="1 to 62"):
        QFormat(40, 0).product(QFormat(40, 0))


def test_bits_for_is_the_smallest_width():
    for lowest, highest in itertools.combinations_with_replacement(range(-20, 21), 2):
        bits = bits_for(lowest, highest, True)
        assert QFormat(bits, 0).holds([lowest, highest])
        assert bits == 1 or not QFormat(bits - 1, 0).holds([lowest, highest])
        if lowest >= 0:
            bits = bits_for(lowest, highest, False)
            assert QFormat(bits, 0, False).holds([lowest, highest])
            assert bits == 1 or not QFormat(bits - 1, 0, False).holds([lowest, highest])
    with pytest.raises(ValueError, match="unsigned"):
        bits_for(-1, 1, False)


@settings(deadline=None)  # the machine may be busy
@given(
    st.floats(min_value=0, max_value=1e300, exclude_min=True) | st.integers(-300, 300).map(lambda e: 2.0**e),
    st.integers(1, 62),
    st.booleans(),
)
def test_covering_fraction_is_the_finest_that_does_not_saturate(magnitude, bits, signed):
    largest = (1 << (bits - signed)) - 1
    fraction = covering_fraction(magnitude, bits, signed)
    if largest:
        assert Fraction(magnitude) * Fraction(2) ** fraction <= largest
        assert Fraction(magnitude) * Fraction(2) ** (fraction + 1) > largest


def test_covering_fraction_of_nothing_is_a_fraction_of_one():
    assert covering_fraction(0, 8) == 7
    assert covering_fraction(0, 8, signed=False) == 8
    assert covering_fraction(3, 1) == 0


@pytest.mark.parametrize("magnitude", [math.nan, math.inf, -1.0])
def test_covering_fraction_refuses(magnitude):
    with pytest.raises(QuantizationError, match="magnitude"):
        covering_fraction(magnitude, 8)
