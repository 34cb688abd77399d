# amaranth: UnusedElaboratable=no
import numpy as np

from fixedpoint import QFormat
from hdl.registry import CORES
from hdl.vectors import each_row, random_magnitudes, random_rows

FORMAT = QFormat(8, 4)
LONGEST = 6


def rows_of(seed, count=2000, shortest=2):
    return random_rows(FORMAT, shortest, LONGEST, np.random.default_rng(seed), count)


def test_rows_are_of_all_kinds_and_lengths():
    rows = rows_of(1)
    assert len(rows) == 2000
    assert {len(row) for row in rows} == set(range(2, LONGEST + 1))
    assert all(FORMAT.holds(row) for row in rows)
    later = rows[6:]  # the limits come first; every kind comes back among the random ones
    values = np.concatenate(later)
    assert (values.min(), values.max()) == (-128, 127)
    assert sum(len(set(row.tolist())) == 1 for row in later) > 200
    assert sum(set(row.tolist()) == {-128, 127} for row in later) > 200
    assert sum((row == 127).sum() == 1 and (row == -128).sum() == len(row) - 1 for row in later) > 100
    assert sum(len(set(row.tolist())) == len(row) for row in later) > 500


def test_rows_follow_their_seed_and_few_are_the_limits():
    assert all(np.array_equal(*pair) for pair in zip(rows_of(3), rows_of(3), strict=True))
    assert not all(np.array_equal(*pair) for pair in zip(rows_of(3), rows_of(4), strict=True))
    assert [row.tolist() for row in rows_of(1, count=2)] == [[127] * LONGEST, [-128] * LONGEST]


def test_rows_are_answered_together_as_alone():
    softmax = CORES["softmax"].example().parameters
    rows = random_rows(softmax.score, 1, softmax.length, np.random.default_rng(2), 300)
    for result, row in zip(each_row(softmax.compute, rows), rows, strict=True):
        np.testing.assert_array_equal(result, softmax.compute(row))
    numbers = np.arange(300)
    sums = each_row(lambda matrix, number: matrix.sum(axis=-1) + number, rows, numbers)
    assert sums == [row.sum() + number for row, number in zip(rows, numbers, strict=True)]


def test_magnitudes_have_all_lengths():
    values = random_magnitudes(40, 1, np.random.default_rng(0), 5000)
    assert (len(values), values.min(), values.max()) == (5000, 1, (1 << 40) - 1)
    assert {int(value).bit_length() for value in values} == set(range(1, 41))
    assert np.bincount([int(value).bit_length() for value in values], minlength=41)[20] > 50
