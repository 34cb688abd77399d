import math
from fractions import Fraction

import numpy as np
import pytest

from fixedpoint import Embedding, EmbeddingTable, QFormat, QuantizationError

OUTPUT = QFormat(16, 10)


def random_embedding(vocabulary=6, context=5, channels=4, bits=8, output=OUTPUT):
    generator = np.random.default_rng(0)
    token = generator.normal(size=(vocabulary, channels)) * 2.0 ** np.linspace(-8, 3, vocabulary)[:, None]
    position = generator.normal(size=(context, channels)) * 2.0 ** np.linspace(2, -9, context)[:, None]
    return (
        token,
        position,
        Embedding(EmbeddingTable.from_float(token, bits), EmbeddingTable.from_float(position, bits), output),
    )


def python_embedding(embedding, token, position):
    """The sum of two rows in Python integers: each cast half up, their sum saturated once."""

    def row(table, index):
        shift = int(table.weight_fraction[index]) - embedding.output.fraction
        return [math.floor(Fraction(w) / Fraction(2) ** shift + Fraction(1, 2)) for w in table.weight[index].tolist()]

    output = embedding.output
    return [
        max(output.minimum_integer, min(output.maximum_integer, a + b))
        for a, b in zip(row(embedding.token, token), row(embedding.position, position), strict=True)
    ]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("output", [OUTPUT, QFormat(8, 2), QFormat(16, 0)], ids=str)
def test_every_token_at_every_position(bits, output):
    _, _, embedding = random_embedding(bits=bits, output=output)
    assert len(set(embedding.token.weight_fraction.tolist())) > 2
    for first in range(5):
        for token in range(6):
            expected = [python_embedding(embedding, token, first + step) for step in range(5 - first)]
            assert embedding.compute(np.full(5 - first, token), first).tolist() == expected


def test_real_results_are_near_the_float_tables():
    token, position, embedding = random_embedding()
    for index in range(5):
        exact = token[index] + position
        result = OUTPUT.dequantize(embedding.compute(np.full(5, index)))
        bound = np.ldexp(0.5, -embedding.token.weight_fraction[index]) + np.ldexp(
            0.5, -embedding.position.weight_fraction
        )
        # least squares may clip the largest
        clipped = np.ldexp(2.0, -embedding.token.weight_fraction[index])
        assert np.abs(result - exact).max() <= bound.max() + clipped + 2 * OUTPUT.resolution


def test_the_sum_saturates_once():
    big, small = np.full((1, 2), 20.0), np.full((1, 2), 20.0)
    embedding = Embedding(EmbeddingTable.from_float(big, 8), EmbeddingTable.from_float(-small, 8), OUTPUT)
    assert embedding.compute(np.array([0])).tolist() == [[0, 0]]
    embedding = Embedding(EmbeddingTable.from_float(big, 8), EmbeddingTable.from_float(small, 8), OUTPUT)
    assert embedding.compute(np.array([0])).tolist() == [[32767, 32767]]


def test_batches():
    _, _, embedding = random_embedding()
    tokens = np.random.default_rng(1).integers(0, 6, size=(3, 2, 5))
    together = embedding.compute(tokens)
    assert together.shape == (3, 2, 5, 4)
    np.testing.assert_array_equal(together[2, 1], embedding.compute(tokens[2, 1]))
    assert embedding.compute(np.zeros((2, 0), dtype=np.int64)).shape == (2, 0, 4)


@pytest.mark.parametrize("token", [-1, 6, 1000])
def test_tokens_are_checked(token):
    with pytest.raises(ValueError, match="0 to 5"):
        random_embedding()[2].compute(np.array([0, token]))


@pytest.mark.parametrize(("length", "first"), [(6, 0), (1, 5), (2, 4), (1, -1)])
def test_positions_are_checked(length, first):
    with pytest.raises(ValueError, match="exceed the context of 5"):
        random_embedding()[2].compute(np.zeros(length, dtype=np.int64), first)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EmbeddingTable(np.zeros(3, dtype=np.int64), 8, np.zeros(3, dtype=np.int64)), "matrix"),
        (lambda: EmbeddingTable(np.zeros((3, 2), dtype=np.int64), 8, np.zeros(2, dtype=np.int64)), "3 rows"),
        (lambda: EmbeddingTable(np.full((1, 2), 128), 8, np.zeros(1, dtype=np.int64)), "does not fit 8 bits"),
        (lambda: EmbeddingTable(np.zeros((1, 2), dtype=np.int64), 9, np.zeros(1, dtype=np.int64)), "2 to 8"),
        (lambda: EmbeddingTable(np.zeros((1, 2), dtype=np.int64), 1, np.zeros(1, dtype=np.int64)), "2 to 8"),
        (lambda: EmbeddingTable(np.zeros((1, 2), dtype=np.int64), 8, np.full(1, -129)), "-128 to 127"),
        (lambda: EmbeddingTable.from_float(np.array([[1.0, np.nan]]), 8), "NaN"),
        (lambda: EmbeddingTable.from_float(np.array([[1.0, np.inf]]), 8), "infinite"),
        (
            lambda: Embedding(
                EmbeddingTable.from_float(np.ones((2, 3)), 8), EmbeddingTable.from_float(np.ones((2, 4)), 8), OUTPUT
            ),
            "differ in width: 3 and 4",
        ),
        (
            lambda: Embedding(
                EmbeddingTable.from_float(np.full((2, 3), 1e9), 8),
                EmbeddingTable.from_float(np.ones((2, 3)), 8),
                OUTPUT,
            ),
            "coarser than the output",
        ),
    ],
)
def test_parameters_are_checked(build, message):
    with pytest.raises(QuantizationError, match=message):
        build()


def test_vanishing_rows_become_zero():
    table = EmbeddingTable.from_float(np.full((2, 3), 1e-44), 8)
    assert QFormat(8, 0).holds(table.weight_fraction)
    assert not table.compute(np.array([0, 1]), OUTPUT).any()
