import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from fixedpoint_builders import NORMED, random_attention, random_linear

from fixedpoint import Attention, Linear, QFormat, QuantizationError, Reciprocal


def cast(value, shift, target):
    rounded = math.floor(Fraction(value) / Fraction(2) ** shift + Fraction(1, 2))
    return max(target.minimum_integer, min(target.maximum_integer, rounded))


def python_linear(layer, x):
    return [
        cast(int(bias) + sum(int(w) * v for w, v in zip(row, x, strict=True)), int(shift), layer.output)
        for row, bias, shift in zip(layer.weight, layer.bias, layer.shift, strict=True)
    ]


def python_exponential(distance, fraction):
    """255 · 2**−t by a table of 256 entries and a shift, in Python numbers."""
    drop = fraction - 8
    index = (distance + (1 << drop >> 1)) >> drop if drop > 0 else distance << -drop
    entry, whole = math.floor(255 * 2 ** (-(index % 256) / 256) + 0.5), index // 256
    return math.floor(Fraction(entry, 2**whole) + Fraction(1, 2))


def python_reciprocal(value):
    position = value.bit_length() - 1
    index = (value << 10 >> position) - 1024
    return math.floor(2**16 / (1 + (index + 0.5) / 1024) + 0.5), position + 16


def python_attention(attention, tokens):
    """One sequence, one token at a time with a cache of keys and values, from the module's
    equations in scalars.
    """
    heads = attention.num_heads
    size = attention.query.columns // heads
    score_fraction = attention.query.output.fraction + attention.key.output.fraction
    keys, values, results = [], [], []
    for x in tokens:
        query = python_linear(attention.query, x)
        keys.append(python_linear(attention.key, x))
        values.append(python_linear(attention.value, x))
        context = []
        for head in range(heads):
            mine = range(head * size, (head + 1) * size)
            scores = [sum(query[c] * key[c] for c in mine) for key in keys]
            numerators = [python_exponential(max(scores) - score, score_fraction) for score in scores]
            mantissa, exponent = python_reciprocal(sum(numerators))
            for c in mine:
                weighted = sum(e * value[c] for e, value in zip(numerators, values, strict=True))
                shift = exponent + attention.value.output.fraction - attention.output.input.fraction
                context.append(cast(weighted * mantissa, shift, attention.output.input))
        results.append(python_linear(attention.output, context))
    return results


def extend(attention, x, cache):
    """Run the next tokens through the projections and the core."""
    projected = (layer.compute(x) for layer in (attention.query, attention.key, attention.value))
    context, longer = attention.core.extend(*projected, cache)
    return attention.output.compute(context), longer


def random_tokens(generator, *shape):
    return np.clip(np.rint(40 * generator.normal(size=shape)), -128, 127).astype(np.int64)


@pytest.mark.parametrize(
    ("channels", "num_heads", "context_length", "weight_bits"),
    [(12, 3, 7, 8), (8, 1, 5, 4), (8, 8, 9, 8), (1, 1, 9, 8), (16, 2, 20, 2)],
)
def test_equals_scalar_python(channels, num_heads, context_length, weight_bits):
    generator = np.random.default_rng(channels + num_heads)
    attention = random_attention(generator, channels, num_heads, context_length, weight_bits)
    tokens = random_tokens(generator, 3, context_length, channels)
    tokens[0, 0], tokens[0, -1] = 127, -128
    results = attention.compute(tokens)
    assert results.tolist() == [python_attention(attention, sequence) for sequence in tokens.tolist()]
    assert len(np.unique(results)) > 3


def test_extreme_scores_equal_scalar_python():
    """Saturated queries and keys: a softmax that is one-hot, and one whose scores all tie at the
    rail.
    """
    generator = np.random.default_rng(9)
    attention = random_attention(generator)
    loud = replace(attention, query=replace(attention.query, weight_fraction=attention.query.weight_fraction - 6))
    tokens = random_tokens(generator, 1, 7, 12)
    assert loud.compute(tokens).tolist() == [python_attention(loud, tokens[0].tolist())]
    same = np.repeat(tokens[:, :1], 7, axis=1)
    assert loud.compute(same).tolist() == [python_attention(loud, same[0].tolist())]
    # The first softmax is one-hot, the second an average of equal values, whatever their number.
    assert np.median(np.count_nonzero(loud.softmax.numerators(loud.scores(tokens[0])), axis=-1)) == 1
    assert np.isin(loud.query.compute(tokens), (-128, 127)).mean() > 0.9
    assert (loud.compute(same) == loud.compute(same)[:, :1]).all()


@pytest.mark.parametrize("fractions", [(-4, -2, 3, 3), (10, 9, 0, 1), (5, 4, 5, 9), (2, 6, -3, -2)])
def test_other_formats_equal_scalar_python(fractions):
    generator = np.random.default_rng(10)
    query, key, value, context = (QFormat(8, fraction) for fraction in fractions)
    attention = random_attention(generator)
    attention = replace(
        attention,
        query=replace(attention.query, output=query),
        key=replace(attention.key, output=key),
        value=replace(attention.value, output=value),
        output=replace(attention.output, input=context),
    )
    tokens = random_tokens(generator, 2, 7, 12)
    assert attention.compute(tokens).tolist() == [python_attention(attention, sequence) for sequence in tokens.tolist()]


def test_batches_and_single_sequences_agree():
    generator = np.random.default_rng(1)
    attention = random_attention(generator)
    tokens = random_tokens(generator, 2, 3, 7, 12)
    together = attention.compute(tokens)
    assert together.shape == tokens.shape
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(together[index], attention.compute(tokens[index]))


def test_later_tokens_do_not_matter():
    generator = np.random.default_rng(2)
    attention = random_attention(generator)
    tokens = random_tokens(generator, 7, 12)
    results = attention.compute(tokens)
    for position in range(7):
        changed = tokens.copy()
        changed[position] = -128
        np.testing.assert_array_equal(attention.compute(changed)[:position], results[:position])
        assert (attention.compute(changed)[position] != results[position]).any()
        np.testing.assert_array_equal(attention.compute(tokens[: position + 1]), results[: position + 1])


@pytest.mark.parametrize("parts", [[1] * 7, [3, 4], [6, 1], [1, 2, 3, 1], [7]], ids=str)
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
def test_cached_parts_equal_the_whole_sequence(parts, batch):
    generator = np.random.default_rng(9)
    attention = random_attention(generator)
    tokens = random_tokens(generator, *batch, 7, 12)
    tokens[..., 3, :], tokens[..., 4, :] = 127, -128
    cache, results = attention.core.empty_cache(*batch), []
    for part in np.split(tokens, np.cumsum(parts)[:-1], axis=-2):
        result, cache = extend(attention, part, cache)
        results.append(result)
    assert cache.length == 7
    np.testing.assert_array_equal(np.concatenate(results, axis=-2), attention.compute(tokens))


def test_a_cache_is_not_changed_and_can_be_continued_twice():
    generator = np.random.default_rng(10)
    attention = random_attention(generator)
    tokens = random_tokens(generator, 5, 12)
    _, start = extend(attention, tokens[:3], attention.core.empty_cache())
    kept = start.keys.copy(), start.values.copy()
    first, longer = extend(attention, tokens[3:], start)
    second, _ = extend(attention, tokens[3:], start)
    assert (start.length, longer.length) == (3, 5)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(start.keys, kept[0])
    np.testing.assert_array_equal(start.values, kept[1])
    other, _ = extend(attention, tokens[3:], extend(attention, tokens[1:3], attention.core.empty_cache())[1])
    assert (first != other).any()


def test_a_full_cache_takes_no_token():
    generator = np.random.default_rng(11)
    attention = random_attention(generator)
    _, cache = extend(attention, random_tokens(generator, 7, 12), attention.core.empty_cache())
    with pytest.raises(ValueError, match="1 to 7 tokens, not 8"):
        extend(attention, random_tokens(generator, 1, 12), cache)
    with pytest.raises(ValueError, match="1 to 7 tokens, not 0"):
        extend(attention, random_tokens(generator, 0, 12), attention.core.empty_cache())


def test_scores_are_products_of_heads():
    generator = np.random.default_rng(3)
    attention = random_attention(generator)
    tokens = random_tokens(generator, 4, 12)
    query = np.array([python_linear(attention.query, x) for x in tokens.tolist()])
    key = np.array([python_linear(attention.key, x) for x in tokens.tolist()])
    for head in range(3):
        mine = slice(4 * head, 4 * head + 4)
        np.testing.assert_array_equal(attention.scores(tokens)[head], query[:, mine] @ key[:, mine].T)


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_is_sequence_after_sequence(seed):
    generator = np.random.default_rng(seed)
    attention = random_attention(generator, context_length=5)
    tokens = random_tokens(generator, 23, 12)
    restart = generator.random(23) < 0.2
    sequences, current = [], []
    for token, starts in zip(tokens.tolist(), restart.tolist(), strict=True):
        if current and (starts or len(current) == 5):
            sequences.append(current)
            current = []
        current.append(token)
    sequences.append(current)
    assert len({len(sequence) for sequence in sequences}) > 1
    expected = [row for sequence in sequences for row in python_attention(attention, sequence)]
    assert attention.compute_stream(tokens, restart).tolist() == expected


def test_a_stream_wraps_at_the_context_and_may_restart_at_every_token():
    generator = np.random.default_rng(5)
    attention = random_attention(generator, context_length=4)
    tokens = random_tokens(generator, 8, 12)
    wrapped = attention.compute_stream(tokens, np.zeros(8, dtype=bool))
    np.testing.assert_array_equal(wrapped, attention.compute(tokens.reshape(2, 4, 12)).reshape(8, 12))
    single = attention.compute_stream(tokens, np.ones(8, dtype=bool))
    np.testing.assert_array_equal(single, attention.compute(tokens[:, None, :])[:, 0])
    # A restart exactly where the context ends starts one sequence, not two.
    both = np.zeros(8, dtype=bool)
    both[[0, 4]] = True
    np.testing.assert_array_equal(attention.compute_stream(tokens, both), wrapped)
    assert attention.compute_stream(tokens[:0], both[:0]).shape == (0, 12)


def rail_attention(context_length, head_dim=4):
    """Projections that copy their input, to drive scores and sums to their rails."""
    copy = Linear(
        QFormat(8, 0),
        QFormat(8, 0),
        np.eye(head_dim, dtype=np.int64),
        8,
        np.zeros(head_dim, dtype=np.int64),
        np.zeros(head_dim, dtype=np.int64),
    )
    return Attention(copy, copy, copy, copy, 1, context_length)


@pytest.mark.parametrize(("context_length", "head_dim"), [(1, 1), (3, 4), (64, 32), (257, 5)])
def test_widths_hold_the_extremes_and_are_needed(context_length, head_dim):
    attention = rail_attention(context_length, head_dim)
    worst = np.full((context_length, head_dim), -128)
    scores = attention.scores(worst)
    assert attention.softmax.score.holds(scores)
    assert not QFormat(attention.softmax.score.bits - 1, 0).holds(scores)
    numerators = attention.softmax.numerators(scores[0])
    assert (numerators == 255).all()
    total = 255 * context_length * -128  # all numerators full, all values at the lower rail
    assert QFormat(attention.weighted_sum_bits, 0).holds(total)
    assert not QFormat(attention.weighted_sum_bits - 1, 0).holds(total)
    results = attention.compute(worst)
    # −128 · D / D, half up, is −128 within the reciprocal's error.
    assert np.abs(results + 128).max() <= 1


def test_normalization_divides_within_its_bound():
    attention = rail_attention(64)
    generator = np.random.default_rng(6)
    denominator = generator.integers(255, 64 * 255, size=(4000, 1))
    weighted = np.rint(denominator * generator.uniform(-127, 127, size=(4000, 1))).astype(np.int64)
    exact = weighted / denominator
    error = np.abs(attention.core.normalize(weighted, denominator) - exact)
    assert (error <= 0.5 + (2**-11 + 2**-16) * np.abs(exact)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, g: {"num_heads": 5}, "divide 12"),
        (lambda a, g: {"num_heads": 0}, "divide 12"),
        (lambda a, g: {"num_heads": -3}, "divide 12"),
        (lambda a, g: {"context_length": 0}, "1 to 4096"),
        (lambda a, g: {"context_length": 4097}, "1 to 4096"),
        (lambda a, g: {"key": random_linear(g, 12, 11, NORMED, QFormat(8, 4))}, "key must be 12 x 12"),
        (lambda a, g: {"query": random_linear(g, 11, 12, NORMED, QFormat(8, 4))}, "query must be 12 x 12"),
        (lambda a, g: {"key": replace(a.key, input=QFormat(8, 4))}, "one format"),
        (lambda a, g: {"key": replace(a.key, output=QFormat(7, 4))}, "8 bits wide"),
        (lambda a, g: {"output": replace(a.output, input=QFormat(7, 4))}, "8 bits wide"),
        (
            lambda a, g: {
                "query": replace(a.query, output=QFormat(8, 30)),
                "key": replace(a.key, output=QFormat(8, 11)),
            },
            "-30 to 40",
        ),
        (lambda a, g: {"output": replace(a.output, input=QFormat(8, 29))}, "too fine"),
    ],
)
def test_parameters_are_checked(change, message):
    generator = np.random.default_rng(7)
    attention = random_attention(generator)
    with pytest.raises(QuantizationError, match=message):
        replace(attention, **change(attention, generator))


@pytest.mark.parametrize("length", [0, 8])
def test_lengths_are_checked(length):
    with pytest.raises(ValueError, match=f"1 to 7 tokens, not {length}"):
        random_attention(np.random.default_rng(8)).compute(np.zeros((length, 12), dtype=np.int64))


def test_the_digest_sees_every_part():
    attention = random_attention(np.random.default_rng(0))
    assert attention.digest == random_attention(np.random.default_rng(0)).digest

    def nudged(layer, name):
        array = getattr(layer, name).copy()
        array.flat[-1] -= 1 if array.flat[-1] > -100 else -1
        return replace(layer, **{name: array})

    others = [
        replace(attention, **{part: nudged(getattr(attention, part), name)})
        for part in ("query", "key", "value", "output")
        for name in ("weight", "weight_fraction", "bias")
    ]
    others += [
        replace(attention, num_heads=2),
        replace(attention, context_length=6),
        replace(attention, reciprocal=Reciprocal(9, 16)),
        replace(attention, key=replace(attention.key, output=QFormat(8, 3))),
    ]
    digests = {other.digest for other in [attention, *others]}
    assert len(digests) == len(others) + 1
