import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fixedpoint_gumbel import places, reference_noise, reference_word

from fixedpoint import QFormat, QuantizationError, Sampler, XorShift32, argmax
from fixedpoint.operators.gumbel import gumbel_noise
from fixedpoint.operators.sampling import GOLDEN_RATIO, WORD, _avalanche, mix

LOGITS = QFormat(16, 10)
TEMPERATURES = [1e-3, 0.05, 0.5, 0.8, 1.0, 1.3, 4.0, 1000.0]
WORDS = np.array([1, 2, 1 << 31, WORD - 1, WORD], dtype=np.uint32)


def half_up(value):
    return math.floor(value + Fraction(1, 2))


def choose_exactly(logits, random, sampler):
    """The docstring's equations in Python's integers and fractions."""
    scores = [
        half_up(Fraction(logit * sampler.multiplier) / Fraction(2) ** sampler.shift)
        + reference_noise(reference_word(random, index))
        for index, logit in enumerate(logits)
    ]
    return scores.index(max(scores))


# The maximum


def test_argmax_takes_the_lowest_index_of_the_maximum():
    assert argmax(np.array([3])).tolist() == 0
    assert argmax(np.array([[1, 7, 7, -2], [-5, -5, -5, -5], [-3, -2, -1, -1]])).tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match="at least one"):
        argmax(np.zeros((2, 0), dtype=np.int64))


@pytest.mark.parametrize("random", WORDS)
def test_temperature_zero_is_argmax(random):
    rows = np.random.default_rng(0).integers(-5, 5, size=(40, 9))
    np.testing.assert_array_equal(Sampler(LOGITS, 0.0).choose(rows, np.full(40, random)), argmax(rows))
    with pytest.raises(ValueError, match="scales nothing"):
        _ = Sampler(LOGITS, 0.0).multiplier


# Random numbers


def test_published_numbers():
    """Marsaglia's own seed, and the published finalizer of MurmurHash3 at 1."""
    generator = XorShift32(2463534242)
    assert [int(generator.next()[0]) for _ in range(3)] == [723471715, 2497366906, 2064144800]
    assert (_avalanche(0), _avalanche(1)) == (0, 0x514E28B7)


def test_numbers_are_the_equation():
    states = np.random.default_rng(1).integers(1, 2**32, size=200, dtype=np.uint32)
    expected = []
    for state in states.tolist():
        state ^= state << 13 & WORD
        state ^= state >> 17
        expected.append(state ^ (state << 5 & WORD))
    generator = XorShift32(states)
    assert generator.next().tolist() == expected
    assert generator.state.tolist() == expected


def test_the_period_is_every_number_but_zero():
    """The step is linear over GF(2); its order divides 2**32 − 1 and no quotient by a prime, so it
    is 2**32 − 1.
    """

    def step(columns):
        """The images of the 32 unit vectors under one more step."""
        return XorShift32(columns).next()

    def compose(outer, inner):
        bits = (inner[:, None] >> np.arange(32, dtype=np.uint32)) & 1
        return np.bitwise_xor.reduce(np.where(bits == 1, outer[None, :], np.uint32(0)), axis=1)

    identity = np.uint32(1) << np.arange(32, dtype=np.uint32)
    matrix = step(identity)

    def power(exponent):
        result, base = identity, matrix
        while exponent:
            if exponent & 1:
                result = compose(base, result)
            base, exponent = compose(base, base), exponent >> 1
        return result

    np.testing.assert_array_equal(power(2), step(matrix))
    np.testing.assert_array_equal(power(2**32 - 1), identity)
    for prime in (3, 5, 17, 257, 65537):
        assert (power((2**32 - 1) // prime) != identity).any()


def test_only_active_generators_advance():
    generator, reference = XorShift32.from_seed(3, 4), XorShift32.from_seed(3, 4)
    before = generator.state.copy()
    numbers = generator.next(np.array([True, False, True, False]))
    expected = reference.next()
    assert numbers[[0, 2]].tolist() == expected[[0, 2]].tolist()
    assert generator.state.tolist() == [expected[0], before[1], expected[2], before[3]]
    numbers[:] = 0  # the caller's copy
    assert (generator.state != 0).all()


def test_first_states_differ_and_are_reproducible():
    states = [mix(7, index) for index in range(5000)]
    assert len(set(states)) == 5000
    assert len({mix(seed, 0) for seed in range(5000)}) == 5000
    assert XorShift32.from_seed(7, 5).state.tolist() == states[:5]
    assert (mix(0, 0), mix(0, 1), mix(1, 0)) == (2462723854, 1020716019, 1348811757)


@pytest.mark.parametrize("seed", [0, 1, 12345, WORD])
def test_a_first_state_is_never_zero(seed):
    # the one whose hash is a(0) = 0
    sequence = (-_avalanche(seed) * pow(GOLDEN_RATIO, -1, 2**32) - 1) & WORD
    assert mix(seed, sequence) == GOLDEN_RATIO


@pytest.mark.parametrize("seed", [-1, 1 << 32, 1.0, True, None, "1"])
def test_seeds_are_32_bits(seed):
    with pytest.raises(QuantizationError, match=r"from 0 to 2\*\*32 - 1"):
        mix(seed, 0)
    with pytest.raises(QuantizationError, match="sequence"):
        mix(0, seed)


@pytest.mark.parametrize("state", [0, [1, 0], [-1], [1 << 32], [1.0], [[1]]])
def test_states_are_checked(state):
    with pytest.raises(QuantizationError, match=r"1 to 2\*\*32 - 1"):
        XorShift32(state)


# Sampling


@settings(deadline=None, max_examples=80)  # the machine may be busy
@given(
    st.integers(2, 16),
    st.integers(-4, 14),
    st.floats(1e-3, 1e3) | st.sampled_from([1.0, 0.5, 2.0, math.log2(math.e)]),
    st.data(),
)
def test_choices_are_the_equations(bits, fraction, temperature, data):
    sampler = Sampler(QFormat(bits, fraction), temperature)
    low, high = sampler.logits.minimum_integer, sampler.logits.maximum_integer
    size = data.draw(st.integers(1, 12))
    near = st.integers(max(low, high - 40), high)
    rows = data.draw(st.lists(st.lists(st.integers(low, high) | near, min_size=size, max_size=size), min_size=1))
    random = data.draw(
        st.lists(st.integers(1, WORD) | st.sampled_from([1, WORD]), min_size=len(rows), max_size=len(rows))
    )
    chosen = sampler.choose(np.array(rows), np.array(random, dtype=np.uint32))
    assert chosen.tolist() == [choose_exactly(row, word, sampler) for row, word in zip(rows, random, strict=True)]


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-9, *TEMPERATURES, 1e9])
def test_the_multiplier_is_the_nearest_of_16_bits(temperature):
    fraction = 10 + math.frexp(temperature)[1] * -1 if not 1e-8 < temperature < 1e8 else 10
    sampler = Sampler(QFormat(16, fraction), temperature)
    assert 1 << 15 <= sampler.multiplier < 1 << 16
    exact = Fraction(math.log2(math.e)) / Fraction(temperature) * Fraction(2) ** (11 - fraction)
    approximate = sampler.multiplier / Fraction(2) ** sampler.shift
    assert abs(approximate / exact - 1) <= Fraction(1, 2**16)


def test_a_multiplier_that_rounds_up_to_17_bits_is_halved():
    sampler = Sampler(LOGITS, math.log2(math.e) / (1 - 2**-18))
    assert sampler.multiplier == 1 << 15
    # 2**11 units of noise, 2**10 units of a logit
    assert sampler.multiplier / 2**sampler.shift == 2.0


@pytest.fixture(scope="module")
def distribution():
    """The smallest noise, and the share of all words that have each noise from there on."""
    words, counts, _, _ = places()
    noise = gumbel_noise(words).astype(np.int64)
    lowest = int(noise.min())
    return lowest, np.bincount(noise - lowest, weights=counts) / 2**32  # exact in a float64


def probabilities(scores, distribution):
    """The probability of each token with these scores without noise, when its noise is that of a
    random word: the sum over all sums k of P(this one is k), P(those before are less), P(those
    behind are not more).
    """
    shares = distribution[1]
    spread = np.array(scores) - min(scores)
    exactly = np.zeros((len(spread), len(shares) + int(spread.max())))
    for row, offset in zip(exactly, spread, strict=True):
        row[offset : offset + len(shares)] = shares
    at_most = exactly.cumsum(axis=1)
    behind = np.cumprod(at_most[::-1], axis=0)[::-1]
    before = np.cumprod(at_most - exactly, axis=0)
    before = np.concatenate([np.ones_like(before[:1]), before[:-1]])
    behind = np.concatenate([behind[1:], np.ones_like(behind[:1])])
    return (exactly * before * behind).sum(axis=1)


def softmax(scores):
    exact = np.exp2((scores - np.max(scores)) / 2**11)
    return exact / exact.sum()


@pytest.mark.parametrize("size", [1, 2, 3, 65])
def test_probabilities_are_the_softmax_within_the_derived_bound(size, distribution):
    """Exactly, over all words, at every temperature; and much closer than the bound."""
    assert distribution[1].sum() == 1
    generator, farthest = np.random.default_rng(size), 0
    for temperature in TEMPERATURES if size < 65 else (0.8, 4.0):
        sampler = Sampler(LOGITS, temperature)
        for spread in (0, 300, 3000) if size < 65 else (1000,):
            row = np.clip(np.rint(spread * generator.normal(size=size)), -32768, 32767).astype(np.int64)
            exact = softmax(row * (sampler.multiplier * 2.0**-sampler.shift))
            scaled = [
                half_up(Fraction(logit * sampler.multiplier) / Fraction(2) ** sampler.shift) for logit in row.tolist()
            ]
            scaled = np.maximum(scaled, max(scaled) - 45 * 2**11)  # farther ones are never chosen
            p = probabilities(scaled, distribution)
            assert (np.abs(p - exact) <= 0.0022 * exact * (1 - exact) + size * 2**-22 + 2**-15).all()
            farthest = max(farthest, np.abs(p - exact).sum() / 2)
    assert farthest < 1e-4  # the logits are rounded, too


def test_two_tokens_at_every_distance(distribution):
    """Down to the least likely one, whose share may be off by a thousandth of itself up to 20
    doublings below the best, and that is 0 from 37 on.
    """
    for distance in [*range(20), *range(20, 37 * 2**11, 769)]:
        p, exact = probabilities([0, -distance], distribution), softmax(np.array([0, -distance]))
        assert np.abs(p - exact).max() < 5e-5
        assert distance > 20 * 2**11 or abs(p[1] / exact[1] - 1) < 1e-3
    assert probabilities([0, -37 * 2**11], distribution).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.1, 0.8, 1.0, 2.0, 1e3])
@pytest.mark.parametrize("size", [2, 3, 65, 512])
def test_sampled_frequencies(size, temperature):
    """The real generators: a chi-square of 40,000 tokens or more that chance exceeds once in a
    million times (five and a half standard deviations of many degrees of freedom, more of few).
    """
    sampler, generator = Sampler(LOGITS, temperature), np.random.default_rng(size)
    row = np.rint(1000 * temperature * generator.normal(size=size)).clip(-32768, 32767).astype(np.int64)
    p, counts = softmax(row * (sampler.multiplier * 2.0**-sampler.shift)), np.zeros(size)
    generators = XorShift32.from_seed(11, 400)
    for _ in range(100 if size == 512 else 500):
        chosen = sampler.choose(np.broadcast_to(row, (400, size)), generators.next())
        counts += np.bincount(chosen, minlength=size)
    degrees = size - 1
    # Wilson and Hilferty: the cube root of a chi-square is nearly normal
    limit = degrees * (1 - 2 / (9 * degrees) + 4.9 * math.sqrt(2 / (9 * degrees))) ** 3
    expected = counts.sum() * p
    assert expected.min() > 4
    assert ((counts - expected) ** 2 / expected).sum() < limit


def test_equal_logits_are_chosen_equally_often():
    """512 of them by 128 sequences: where the largest noise lies, whatever it is."""
    sampler, generators, counts = Sampler(LOGITS, 1.0), XorShift32.from_seed(3, 128), np.zeros(512)
    for _ in range(400):
        counts += np.bincount(sampler.choose(np.zeros((128, 512), dtype=int), generators.next()), minlength=512)
    assert abs(((counts - 100) ** 2 / 100).sum() - 511) < 5 * math.sqrt(2 * 511)


def test_the_lowest_index_of_equal_sums_is_chosen():
    """Scores that coarse logits and their noise make equal are rare, so equal sums are made."""
    sampler, random = Sampler(LOGITS, 1.0), np.array(12345, dtype=np.uint32)
    noise = sampler.scores(np.zeros(400, dtype=int), random)
    first, second = next((i, j) for j in range(400) for i in range(j) if noise[i] == noise[j])
    row = np.full(400, -32768)
    row[[first, second]] = 32767
    assert sampler.scores(row, random)[first] == sampler.scores(row, random)[second]
    assert sampler.choose(row, random) == first


def test_the_largest_vocabulary():
    rows = np.zeros((2, 1 << 16), dtype=np.int64)
    numbers = np.array([1, 7], dtype=np.uint32)
    chosen = Sampler(LOGITS, 1.0).choose(rows, numbers)
    for token, number in zip(chosen.tolist(), numbers.tolist(), strict=True):
        noise = [reference_noise(reference_word(number, index)) for index in range(1 << 16)]
        assert token == noise.index(max(noise))
    with pytest.raises(ValueError, match="1 to 65536 logits, not 65537"):
        Sampler(LOGITS, 1.0).choose(np.zeros(65537, dtype=np.int64), numbers[0])


def test_what_is_too_unlikely_is_never_chosen():
    row = np.full(5, -32768)
    row[3] = 32767
    for random in WORDS:
        assert Sampler(LOGITS, 1.0).choose(row, np.asarray(random)).tolist() == 3


def test_rows_are_chosen_alone():
    rows = np.random.default_rng(2).integers(-3000, 3000, size=(2, 3, 7))
    random = np.random.default_rng(3).integers(1, 2**32, size=(2, 3), dtype=np.uint32)
    together = Sampler(LOGITS, 1.0).choose(rows.astype(np.int16), random)
    assert together.shape == (2, 3)
    assert together.dtype == np.int64
    for index in np.ndindex(2, 3):
        assert together[index] == Sampler(LOGITS, 1.0).choose(rows[index], random[index])
    assert Sampler(LOGITS, 1.0).choose(np.zeros((0, 7), dtype=int), np.zeros(0, dtype=np.uint32)).shape == (0,)


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf, 10**400, True, "1", None])
def test_temperatures_are_checked(temperature):
    with pytest.raises(QuantizationError, match="temperature must be"):
        Sampler(LOGITS, temperature)


@pytest.mark.parametrize(("temperature", "word"), [(1e-15, "low"), (1e20, "high")])
def test_temperatures_beyond_the_shifter_are_refused(temperature, word):
    with pytest.raises(QuantizationError, match=rf"too {word} for logits of Q6\.10"):
        Sampler(LOGITS, temperature)


@pytest.mark.parametrize("logits", [QFormat(17, 0), QFormat(8, 0, signed=False)])
def test_formats_are_checked(logits):
    with pytest.raises(QuantizationError, match="at most 16 bits"):
        Sampler(logits, 1.0)


def test_inputs_are_checked():
    sampler = Sampler(LOGITS, 1.0)
    with pytest.raises(ValueError, match="1 to 65536 logits, not 0"):
        sampler.choose(np.zeros((2, 0), dtype=int), np.ones(2, dtype=np.uint32))
    with pytest.raises(ValueError, match="does not fit"):
        sampler.choose(np.array([32768]), np.array(1, dtype=np.uint32))
    for random in (np.ones(3, dtype=np.uint32), np.ones(2, dtype=np.int64)):
        with pytest.raises(ValueError, match="must be uint32 of shape"):
            sampler.choose(np.zeros((2, 4), dtype=int), random)
