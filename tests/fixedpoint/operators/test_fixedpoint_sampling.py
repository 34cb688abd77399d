import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixedpoint import QFormat, QuantizationError, Sampler, XorShift32, argmax
from fixedpoint.operators.sampling import EXPONENTIAL, GOLDEN_RATIO, WORD, _avalanche, mix

LOGITS = QFormat(16, 10)
TEMPERATURES = [1e-3, 0.05, 0.5, 0.8, 1.0, 1.3, 4.0, 1000.0]
RELATIVE = 2 ** (2**-11 + 17 * 2**-16) - 1  # r of the docstring
WORDS = np.array([1, 2, 1 << 31, WORD - 1, WORD], dtype=np.uint32)


def half_up(value):
    return math.floor(value + Fraction(1, 2))


def choose_exactly(logits, random, sampler):
    """The docstring's equations in Python's integers and fractions."""
    numerators = []
    for logit in logits:
        t = half_up(Fraction((max(logits) - logit) * sampler.multiplier) / Fraction(2) ** sampler.shift)
        whole = t >> 10
        entry = int(EXPONENTIAL.table[t & 1023])
        numerators.append(half_up(Fraction(entry, 2**whole)) if whole < 40 else 0)
    threshold = random * sum(numerators) >> 32
    running = 0
    for index, numerator in enumerate(numerators):
        running += numerator
        if running > threshold:
            return index
    raise AssertionError("no token was chosen")


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
    exact = Fraction(math.log2(math.e)) / Fraction(temperature) * Fraction(2) ** (10 - fraction)
    approximate = sampler.multiplier / Fraction(2) ** sampler.shift
    assert abs(approximate / exact - 1) <= Fraction(1, 2**16)


def test_a_multiplier_that_rounds_up_to_17_bits_is_halved():
    sampler = Sampler(LOGITS, math.log2(math.e) / (1 - 2**-18))
    assert sampler.multiplier == 1 << 15
    # 2**10 table steps a unit, 2**10 units of a logit
    assert sampler.multiplier / 2**sampler.shift == 1.0


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_numerators_of_all_distances_are_within_the_bound(temperature):
    """Every distance that 16-bit logits have."""
    sampler = Sampler(LOGITS, temperature)
    logits = np.arange(LOGITS.minimum_integer, LOGITS.maximum_integer + 1)
    numerators = sampler.numerators(logits)
    distance = LOGITS.dequantize(LOGITS.maximum_integer - logits)
    exact = 65535 * np.exp(-distance / temperature)
    assert (np.abs(numerators - exact) <= RELATIVE * exact + 0.75).all()
    assert (np.diff(numerators) >= 0).all()
    assert numerators[-1] == 65535


def shares(sampler, row):
    """The exact share of the generator's 2**32 − 1 numbers that choose each token, from where
    `choose` changes its mind.
    """
    cumulative = np.concatenate([[0], sampler.numerators(row).cumsum()]).tolist()
    # The smallest r with floor(r·D / 2**32) >= c is ceil(c·2**32 / D).
    firsts = [-(-(c << 32) // cumulative[-1]) for c in cumulative]
    for first, last, token in zip(firsts[:-1], firsts[1:], range(len(row)), strict=True):
        if last > first:
            ends = np.array([max(first, 1), last - 1], dtype=np.uint32)
            assert sampler.choose(np.array([row, row]), ends).tolist() == [token, token]
    firsts[0] = 1  # the generator has no zero
    return np.diff(np.array(firsts, dtype=np.float64)) / WORD


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_shares_are_the_softmax_within_the_derived_bound(temperature):
    generator = np.random.default_rng(5)
    for spread in (0, 300, 3000, 30000):
        for size in (1, 2, 65):
            sampler = Sampler(LOGITS, temperature)
            row = np.clip(np.rint(spread * generator.normal(size=size)), -32768, 32767).astype(np.int64)
            scores = LOGITS.dequantize(row - row.max()) / temperature
            exact = np.exp(scores)
            n, d = 65535 * exact.sum(), sampler.numerators(row).sum()
            p = exact / exact.sum()
            bound = (2 * RELATIVE * p * n + 0.75 * (1 + size * p)) / d + 2**-31
            assert (np.abs(shares(sampler, row) - p) <= bound).all()


def test_sampled_frequencies():
    """10 sequences of 4,000 numbers each: a chi-square of 7 degrees of freedom stays below its 99.9
    % point.
    """
    sampler = Sampler(LOGITS, 0.8)
    row = np.array([2000, 1500, 1500, 900, 0, -500, 1999, 1200])
    generator = XorShift32.from_seed(11, 10)
    counts = np.zeros(8)
    for _ in range(4000):
        counts += np.bincount(sampler.choose(np.tile(row, (10, 1)), generator.next()), minlength=8)
    p = np.exp(LOGITS.dequantize(row) / 0.8)
    expected = 40000 * p / p.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 24.3


def test_the_largest_vocabulary_at_the_largest_numbers():
    rows = np.zeros((2, 1 << 16), dtype=np.int64)
    chosen = Sampler(LOGITS, 1.0).choose(rows, np.array([1, WORD], dtype=np.uint32))
    assert chosen.tolist() == [0, 65535]
    assert (1 << 16) * EXPONENTIAL.maximum < 1 << 32
    with pytest.raises(ValueError, match="1 to 65536 logits, not 65537"):
        Sampler(LOGITS, 1.0).numerators(np.zeros(65537, dtype=np.int64))


def test_what_is_too_unlikely_is_never_chosen():
    row = np.full(5, -32768)
    row[3] = 32767
    for random in WORDS:
        assert Sampler(LOGITS, 1.0).choose(row, np.asarray(random)).tolist() == 3
    assert Sampler(LOGITS, 1.0).numerators(row).tolist() == [0, 0, 0, 65535, 0]


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
        sampler.numerators(np.array([32768]))
    for random in (np.ones(3, dtype=np.uint32), np.ones(2, dtype=np.int64)):
        with pytest.raises(ValueError, match="must be uint32 of shape"):
            sampler.choose(np.zeros((2, 4), dtype=int), random)
