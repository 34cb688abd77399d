"""Gumbel noise: the equations again in Python's own numbers, the error of every value, and words
that look like independent random numbers.
"""

import math

import numpy as np

from fixedpoint import XorShift32
from fixedpoint.operators.gumbel import gumbel_noise, noise_table, random_words

WORD = (1 << 32) - 1
TABLE = noise_table().tolist()
ROUNDS = ((0, 13, 19), (4, 15, 6), (13, 5, 6), (20, 11, 10), (30, 16, 8))


def reference_word(random, index):
    x = index
    for rotation, left, right in ROUNDS:
        x ^= (random << rotation | random >> (32 - rotation)) & WORD
        x = (x + (x << left)) & WORD
        x ^= x >> right
    return x


def line(half, octave, segment):
    """An entry's value and slope before rounding, with math's functions."""

    def f(m):
        u = m * 2.0 ** -(octave + 2)
        return math.log2(-math.log2(u)) if half else -math.log2(-math.log1p(-u) / math.log(2)) - octave

    first, middle, last = (f(1 + (segment + part) / 32) for part in (0, 0.5, 1))
    return 2**11 * (middle + (first + last) / 2) / 2, 2**9 * (first - last)


def reference_noise(word):
    half = word >> 31
    odd = (word ^ (WORD if half else 0)) << 1 & WORD | 1
    octave = 32 - odd.bit_length()
    mantissa = (odd << octave & WORD) >> 19 & 0xFFF
    entry = TABLE[half * 512 + min(octave, 15) * 32 + (mantissa >> 7)]
    size = (entry >> 5) - ((entry & 31) * (2 * (mantissa & 127) - 127) + 32 >> 6)
    return -size if half else (octave << 11) + size


def places():
    """A word of every place that the noise depends on, the number of words there, and the ends of
    their part of 0 to 1.
    """
    words, counts = [np.arange(1 << 12)], [np.ones(1 << 12, dtype=np.int64)]
    for bits in range(12, 31):  # below the leading one of the word, 12 of which are looked at
        words.append((1 << 12 | np.arange(1 << 12)) << (bits - 12))
        counts.append(np.full(1 << 12, 1 << (bits - 12)))
    words, counts = np.concatenate(words), np.concatenate(counts)
    both = np.concatenate([words, WORD - words]).astype(np.uint32)
    return both, np.tile(counts, 2), words / 2**32, (words + counts) / 2**32


def test_words_are_the_equation():
    generator = np.random.default_rng(0)
    numbers = np.array([1, WORD, 1 << 31, *generator.integers(1, 2**32, 20)], dtype=np.uint32)
    words = random_words(numbers, 40)
    assert words.dtype == np.uint32
    assert words.tolist() == [[reference_word(number, i) for i in range(40)] for number in numbers.tolist()]
    last = random_words(numbers[5], 1 << 16)
    assert last[[300, 65535]].tolist() == [reference_word(int(numbers[5]), i) for i in (300, 65535)]
    assert len(np.unique(last)) == 1 << 16  # no two tokens of a row have the same word
    np.testing.assert_array_equal(random_words(numbers[5], 7), last[:7])


def test_entries_are_the_equation_and_none_is_near_a_tie():
    """A logarithm that is wrong in its last places gives the same table."""
    exact = np.array([line(half, octave, segment) for half in (0, 1) for octave in range(16) for segment in range(32)])
    value, slope = noise_table() >> 5, noise_table() & 31
    assert noise_table().max() < 1 << 18
    np.testing.assert_array_equal(value, np.minimum(np.floor(exact[:, 0] + 0.5), 8191))
    np.testing.assert_array_equal(slope, np.floor(exact[:, 1] + 0.5))
    assert slope.max() == 26
    assert np.abs(exact % 1 - 0.5).min() > 1e-5


def test_noise_is_the_equation():
    generator = np.random.default_rng(1)
    ends = [value for bit in range(32) for power in [1 << bit] for value in (power - 1, power, WORD - power)]
    shifted = generator.integers(0, 2**32, 3000) >> generator.integers(0, 32, 3000)
    words = np.array([*ends, WORD, *shifted, *(WORD - shifted)], dtype=np.uint32)
    noise = gumbel_noise(words)
    assert noise.dtype == np.int32
    assert noise.tolist() == [reference_noise(word) for word in words.tolist()]
    assert gumbel_noise(words[:6].reshape(2, 3)).tolist() == noise[:6].reshape(2, 3).tolist()


def test_every_value_is_within_the_stated_error():
    """All words, at both ends of their part of 0 to 1, in units of 2**-11."""
    words, counts, low, high = places()
    assert counts.sum() == 1 << 32
    below, above = (gumbel_noise(half).astype(float) for half in np.split(words, 2))
    with np.errstate(divide="ignore"):
        for end in (low, high):
            near = -np.log2(-np.log1p(-end) / math.log(2)) * 2**11
            far = -np.log2(-np.log2(end)) * 2**11
            for noise, ideal, looked_at in ((below, near, low >= 2.0**-22), (above, far, low >= 2.0**-16)):
                error = (noise - ideal)[looked_at]
                assert -3.1 < error.min() < -1
                assert 1 < error.max() < 2.3
    # outside: at most 32.5, and never below −4.01 though the ideal falls to −5.04
    assert (below.max(), above.min()) == (66501, -8195)
    assert (gumbel_noise(np.array([0, WORD], dtype=np.uint32)) == [66501, -8195]).all()


def chi_square(counts):
    """How many standard deviations the chi-square of equal shares lies above its mean."""
    expected, degrees = counts.sum() / counts.size, counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees)


def test_words_look_independent():
    """Pairs of words of neighbouring tokens, of tokens 256 apart, of successive numbers of a
    generator and of neighbouring sequences, by 8 upper bits of each; and where the smallest word
    of a row lies.
    """
    generators, pairs, smallest = XorShift32.from_seed(1, 32), np.zeros((4, 1 << 16)), np.zeros(512)
    before = random_words(generators.next(), 512) >> np.uint32(24)
    for _ in range(250):
        words = random_words(generators.next(), 512)
        smallest += np.bincount(words.argmin(axis=1), minlength=512)
        top = words >> np.uint32(24)
        neighbours = [(top[:, :-1], top[:, 1:]), (top[:, :-256], top[:, 256:]), (before, top), (top[:-1], top[1:])]
        for count, (one, other) in zip(pairs, neighbours, strict=True):
            count += np.bincount((one << np.uint32(8) | other).ravel().astype(np.int64), minlength=1 << 16)
        before = top
    assert max(chi_square(count) for count in (*pairs, smallest)) < 5


def test_every_bit_changes_every_bit_of_a_word_half_of_the_times():
    """The index's 16 bits and the number's 32: within five standard deviations of 16,384 words."""
    generator = np.random.default_rng(3)
    numbers = generator.integers(1, 2**32, 16, dtype=np.uint32)
    places, words = generator.integers(0, 1 << 16, 1024), random_words(numbers, 1 << 16)
    changed = [words[:, places ^ (1 << bit)] for bit in range(16)]
    changed += [random_words(numbers ^ np.uint32(1 << bit), 1 << 16)[:, places] for bit in range(32)]
    for other in changed:
        flipped = (words[:, places] ^ other).reshape(-1, 1).view(np.uint8)
        share = np.unpackbits(flipped, axis=1).mean(axis=0)
        assert np.abs(share - 0.5).max() < 5 / (2 * math.sqrt(len(flipped)))
