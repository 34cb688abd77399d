"""Q-formats: their text, their range, and the formats of sums and products."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from apytypes import APyFixedArray
from hypothesis import given, settings
from hypothesis import strategies as st

from fixedpoint import Overflow, QFormat, QuantizationError
from fixedpoint.qformat import MAXIMUM_BITS, bits_for, covering_fraction

SMALL_FORMATS = [
    QFormat(bits, fraction, signed) for bits in (1, 2, 3, 4) for fraction in (-2, 0, 1, 5) for signed in (True, False)
]


formats = st.builds(QFormat, st.integers(1, MAXIMUM_BITS), st.integers(-80, 80), st.booleans())


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
        # apytypes counts bits alone, so a format of one bit, which has no positive number, may need
        # one less.
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
