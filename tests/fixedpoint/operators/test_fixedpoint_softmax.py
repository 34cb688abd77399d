from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixedpoint import Exponential, QFormat, Reciprocal, Softmax

SCORE = QFormat(20, 8)


def softmax_of(score=SCORE, length=64, **arguments):
    return Softmax(score, length, Exponential(score.fraction), **arguments)


def float_softmax(scores, fraction, valid=None):
    exponents = np.ldexp(scores.astype(float), -fraction)
    weights = 2.0 ** (exponents - exponents.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def derived_bound(softmax, scores):
    """The error of a probability, from the stated errors of its parts; see
    docs/fixedpoint/softmax.md.

    Numerators are off by `a` units each, so numerator and denominator together move a quotient by
    at most a·(1 + N·p) / D; the reciprocal adds its relative error, the cast half a unit.
    """
    exponential = softmax.exponential
    rounding_of_t = exponential.fraction > exponential.table_bits
    a = 0.75 + rounding_of_t * np.log(2) * exponential.maximum / 2 ** (exponential.table_bits + 1)
    exact = float_softmax(scores, softmax.score.fraction)
    denominator = softmax.numerators(scores).sum(axis=-1, keepdims=True)
    reciprocal = 2.0 ** -(softmax.reciprocal.index_bits + 1) + 2.0**-softmax.reciprocal.mantissa_bits
    quotient = a * (1 + scores.shape[-1] * exact) / denominator
    # A 1 saturates one unit lower.
    return (
        quotient
        + reciprocal * (exact + quotient)
        + np.where(exact > 1 - 2.0**-9, 1.0, 0.5) * softmax.probability.resolution
    )


@pytest.mark.parametrize("fraction", [-2, 0, 4, 8, 11])
@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_probabilities_are_within_the_derived_bound(fraction, length):
    score = QFormat(20, fraction)
    softmax = softmax_of(score, length, probability=QFormat(12, 12, signed=False))
    generator = np.random.default_rng(length)
    for spread in (0.1, 1, 4, 20):
        scores = np.rint(np.ldexp(spread * generator.normal(size=(200, length)), fraction)).astype(np.int64)
        error = np.abs(softmax.probability.dequantize(softmax.compute(scores)) - float_softmax(scores, fraction))
        assert (error <= derived_bound(softmax, scores)).all()


@pytest.mark.parametrize("fraction", [-1, 3, 5])
def test_all_rows_of_two_bytes_are_within_the_derived_bound(fraction):
    score = QFormat(8, fraction)
    softmax = softmax_of(score, 2, probability=QFormat(12, 12, signed=False))
    codes = np.arange(-128, 128)
    rows = np.stack(np.meshgrid(codes, codes), axis=-1).reshape(-1, 2)
    error = np.abs(softmax.probability.dequantize(softmax.compute(rows)) - float_softmax(rows, fraction))
    assert len(rows) == 1 << 16
    assert (error <= derived_bound(softmax, rows)).all()


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(SCORE.minimum_integer, SCORE.maximum_integer), min_size=1, max_size=64))
def test_any_row_equals_integer_arithmetic(row):
    softmax = softmax_of()
    largest = max(row)
    numerators = [int(softmax.exponential.compute(np.array([largest - score]))[0]) for score in row]
    total = sum(numerators)
    assert softmax.numerators(np.array(row)).tolist() == numerators
    position = total.bit_length() - 1
    index = (total << 10 >> position) - 1024
    mantissa = int(softmax.reciprocal.table[index])
    expected = [
        min(255, int(Fraction(numerator * mantissa, 2 ** (position + 16 - 8)) + Fraction(1, 2)))
        for numerator in numerators
    ]
    assert softmax.compute(np.array(row)).tolist() == expected


def test_equal_scores_share():
    softmax = softmax_of(probability=QFormat(16, 16, signed=False))
    for length in range(1, 65):
        for value in (SCORE.minimum_integer, -1, 0, SCORE.maximum_integer):
            probabilities = softmax.probability.dequantize(softmax.compute(np.full(length, value)))
            assert len(set(probabilities.tolist())) == 1
            assert abs(probabilities[0] - 1 / length) <= (2**-11 + 2**-16) / length + 2**-16


def test_one_hot_and_one_element():
    softmax = softmax_of()
    scores = np.full(64, SCORE.minimum_integer)
    scores[5] = SCORE.maximum_integer
    assert softmax.compute(scores).tolist() == [255 if index == 5 else 0 for index in range(64)]
    assert softmax.compute(np.array([SCORE.minimum_integer])).tolist() == [255]
    assert softmax.numerators(np.array([[-3], [7]])).tolist() == [[255], [255]]


def test_a_constant_does_not_matter_and_order_is_kept():
    softmax = softmax_of()
    scores = np.random.default_rng(2).integers(-2000, 2000, size=(50, 32))
    np.testing.assert_array_equal(softmax.compute(scores), softmax.compute(scores + 77777))
    order = np.argsort(scores, axis=-1)
    assert (np.diff(np.take_along_axis(softmax.compute(scores), order, axis=-1), axis=-1) >= 0).all()


def test_rows_sum_to_one_within_their_rounding():
    softmax = softmax_of(probability=QFormat(16, 16, signed=False))
    scores = np.random.default_rng(3).integers(-1000, 1000, size=(200, 64))
    totals = softmax.probability.dequantize(softmax.compute(scores)).sum(axis=-1)
    assert np.abs(totals - 1).max() <= 64 * 2**-17 + 2**-11 + 2**-16


def test_the_denominator_fits_its_width():
    for length in (1, 2, 3, 64, 257):
        softmax = softmax_of(length=length)
        total = int(softmax.numerators(np.zeros(length, dtype=np.int64)).sum())
        assert total == length * 255
        assert total.bit_length() == softmax.denominator_bits


def test_the_widest_and_coarsest_scores():
    """Distances of 2**32 at 30 bits before the point: shifted to the table's step they would need
    70 bits.
    """
    for fraction in (-30, 0, 31, 40):
        score = QFormat(32, fraction)
        row = np.array([score.minimum_integer, score.maximum_integer, 0, score.maximum_integer])
        exact = 255 * 2.0 ** (np.ldexp(row.astype(float), -fraction) - score.maximum)
        assert np.abs(softmax_of(score).numerators(row) - exact).max() <= 0.75 + 0.35


def test_masked_elements_do_not_take_part():
    softmax = softmax_of()
    scores = np.random.default_rng(4).integers(-3000, 3000, size=(5, 6, 6))
    scores[:, 0, 1:] = SCORE.maximum_integer  # what is masked is larger than all that is not
    causal = np.tri(6, dtype=bool)
    numerators = softmax.numerators(scores, causal)
    for row in range(6):
        np.testing.assert_array_equal(numerators[:, row, : row + 1], softmax.numerators(scores[:, row, : row + 1]))
        assert not numerators[:, row, row + 1 :].any()
    lowest = np.full(3, SCORE.minimum_integer)
    assert softmax.numerators(lowest, np.array([True, False, True])).tolist() == [255, 0, 255]


@pytest.mark.parametrize(
    ("scores", "valid", "message"),
    [
        (np.zeros((2, 0)), None, "1 to 64 elements, not 0"),
        (np.zeros((2, 65)), None, "1 to 64 elements, not 65"),
        (np.array([SCORE.maximum_integer + 1]), None, "does not fit"),
        (np.array([SCORE.minimum_integer - 1]), None, "does not fit"),
        (np.zeros((2, 2)), np.array([[True, False], [False, False]]), "no valid element"),
    ],
)
def test_rows_are_checked(scores, valid, message):
    with pytest.raises(ValueError, match=message):
        softmax_of().numerators(scores.astype(np.int64), valid)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Softmax(QFormat(8, 4, signed=False), 4, Exponential(4)), "signed"),
        (lambda: Softmax(QFormat(33, 4), 4, Exponential(4)), "2 to 32 bits"),
        (lambda: Softmax(SCORE, 0, Exponential(8)), "length"),
        (lambda: Softmax(SCORE, 65537, Exponential(8)), "length"),
        (lambda: Softmax(SCORE, 4, Exponential(7)), "7 fraction bits, but scores have 8"),
        (lambda: Softmax(SCORE, 4, Exponential(8), Reciprocal(), QFormat(8, 8)), "UQ0"),
        (lambda: Softmax(SCORE, 4, Exponential(8), Reciprocal(), QFormat(8, 7, signed=False)), "UQ0"),
    ],
)
def test_parameters_are_checked(build, message):
    with pytest.raises(ValueError, match=message):
        build()
