"""Rounding with compensation: the factors are right, every row is better off, and nothing leaves
its grid.
"""

import itertools

import numpy as np
import pytest

from fixedpoint import QuantizationError
from fixedpoint.quantization.error_compensation import DAMPING, Feedback, Moments, compensate
from fixedpoint.row_scales import least_squares_fractions, quantize_rows, weight_range

UNBOUNDED = np.full(24, np.inf)


def correlated_inputs(columns=40, count=3000, seed=0, mean=1.0):
    """Inputs of which a third of the directions carry most of the variance, as activations do."""
    generator = np.random.default_rng(seed)
    few = generator.normal(size=(count, columns // 3)) @ generator.normal(size=(columns // 3, columns))
    return few + 0.3 * generator.normal(size=(count, columns)) + mean * generator.normal(size=columns)


def moments_of(inputs):
    moments = Moments()
    for part in np.array_split(inputs, 7):
        moments.add(part)
    return moments


def weights(rows=24, columns=40, seed=1):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, columns)) * 2.0 ** np.linspace(-3, 3, rows)[:, None]


def test_moments_in_pieces_are_those_of_the_whole():
    inputs = correlated_inputs()
    moments = moments_of(inputs.reshape(100, 30, 40))
    np.testing.assert_allclose(moments.mean, inputs.mean(axis=0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(inputs.T, bias=True), rtol=1e-9, atol=1e-9)


def test_a_small_variance_beside_a_large_mean_is_not_lost():
    inputs = (1000 + 0.01 * np.random.default_rng(0).normal(size=(3000, 40))).astype(np.float32)
    moments = moments_of(inputs)
    np.testing.assert_allclose(moments.covariance, np.cov(inputs.astype(np.float64).T, bias=True), atol=1e-8)
    assert compensate(weights(), np.zeros(24), 4, moments, UNBOUNDED).weight.any()


def test_the_error_that_is_minimized_is_the_outputs_variance():
    """The sum over columns of D_k (...)² is e H eᵀ."""
    covariance = moments_of(correlated_inputs()).covariance
    fraction = least_squares_fractions(weights(), 4)
    integers, errors = Feedback.of(covariance).round(weights(), fraction, 4)
    damped = covariance + DAMPING * np.trace(covariance) / 40 * np.eye(40)
    error = weights() - np.ldexp(integers.astype(float), -fraction[:, None])
    np.testing.assert_allclose(errors, np.einsum("rj,jk,rk->r", error, damped, error), rtol=1e-9)


@pytest.mark.parametrize("width", [3, "ternary"])
def test_no_change_of_a_single_weight_improves_what_was_improved(width):
    feedback = Feedback.of(moments_of(correlated_inputs()).covariance)
    fraction = least_squares_fractions(weights(), width)
    first, errors = feedback.round(weights(), fraction, width)
    integers, improved = feedback.improve(weights(), fraction, width, first)
    assert (improved <= errors * (1 + 1e-12)).all()
    assert improved.sum() < 0.97 * errors.sum()
    lowest, highest = weight_range(width)
    assert lowest <= integers.min() <= integers.max() <= highest

    def error(changed):
        left = weights() - np.ldexp(changed.astype(float), -fraction[:, None])
        return np.einsum("rj,jk,rk->r", left, feedback.covariance, left)

    np.testing.assert_allclose(error(integers), improved, rtol=1e-9)
    for column, by in itertools.product(range(40), (-1, 1)):
        changed = integers.copy()
        changed[:, column] = np.clip(changed[:, column] + by, lowest, highest)
        assert (error(changed) >= improved * (1 - 1e-9)).all()


@pytest.mark.parametrize("width", [2, 3, 4, 8, "ternary"])
def test_outputs_are_nearer_than_with_rounding_to_nearest(width):
    inputs, matrix = correlated_inputs(), weights()
    moments, bias = moments_of(inputs), np.linspace(-1, 1, 24)
    result = compensate(matrix, bias, width, moments, UNBOUNDED)
    fraction = least_squares_fractions(matrix, width)
    nearest = np.ldexp(quantize_rows(matrix, fraction, width).astype(float), -fraction[:, None])
    fresh = correlated_inputs(
        seed=0, count=3000
    )  # what it was calibrated on; held-out text is what the commands measure
    wanted = fresh @ matrix.T + bias

    def error(weight, offset):
        return ((fresh @ weight.T + offset - wanted) ** 2).mean(axis=0)

    ours = error(result.weight, result.bias)
    theirs = error(nearest, bias + (matrix - nearest) @ moments.mean)
    assert ours.sum() < 0.7 * theirs.sum()
    assert (ours < theirs).mean() > 0.8


def test_biases_keep_the_mean_output():
    inputs, matrix = correlated_inputs(mean=5.0), weights()
    bias = np.linspace(-1, 1, 24)
    result = compensate(matrix, bias, 3, moments_of(inputs), UNBOUNDED)
    means = inputs.mean(axis=0)
    np.testing.assert_allclose(result.weight @ means + result.bias, matrix @ means + bias, rtol=1e-9)
    assert np.abs(result.bias - bias).max() > 0.01


@pytest.mark.parametrize("width", [2, 3, 4, 8, "ternary"])
def test_weights_lie_on_their_grid(width):
    result = compensate(weights(), np.zeros(24), width, moments_of(correlated_inputs()), UNBOUNDED)
    integers = np.ldexp(result.weight, result.fraction[:, None])
    np.testing.assert_array_equal(integers, np.rint(integers))
    lowest, highest = weight_range(width)
    assert lowest <= integers.min() < 0 < integers.max() <= highest


def test_a_few_weights_against_all_roundings():
    """Greedy in the factored form: for independent inputs it is the optimum, for others near it."""
    generator = np.random.default_rng(5)
    matrix, fraction = generator.normal(size=(6, 4)), np.zeros(6, np.int64)
    mixing = generator.normal(size=(4, 4))
    for covariance, allowed in ((np.diag([4.0, 3.0, 2.0, 1.0]), 1.0), (mixing @ mixing.T, 2.0)):
        damped = covariance + DAMPING * np.trace(covariance) / 4 * np.eye(4)
        _, errors = Feedback.of(covariance).round(matrix, fraction, 3)
        choices = np.array(list(itertools.product(range(-4, 4), repeat=4)))
        difference = matrix[:, None] - choices
        best = np.einsum("rcj,jk,rck->rc", difference, damped, difference).min(axis=1)
        assert (errors <= allowed * best + 1e-12).mean() > 0.6
        assert errors.sum() <= allowed * best.sum() + 1e-12


def test_inputs_that_never_vary_round_to_nearest():
    moments = Moments()
    moments.add(np.full((50, 40), 3.0))
    result = compensate(weights(), np.zeros(24), 4, moments, UNBOUNDED)
    np.testing.assert_array_equal(
        np.ldexp(result.weight, result.fraction[:, None]), quantize_rows(weights(), result.fraction, 4)
    )


def test_zeros_stay_zero_and_bounds_are_kept():
    matrix = weights()
    matrix[3] = 0
    bound = np.where(np.arange(24) < 12, 1.0, np.inf)
    result = compensate(matrix, np.zeros(24), 4, moments_of(correlated_inputs()), bound)
    assert not result.weight[3].any()
    assert result.fraction[:12].max() <= 1 < result.fraction.max() + 2


def test_one_scale_for_all_rows():
    result = compensate(weights(), np.zeros(24), 4, moments_of(correlated_inputs()), UNBOUNDED, one_scale=True)
    assert len(set(result.fraction.tolist())) == 1


def test_the_same_again():
    results = [compensate(weights(), np.zeros(24), 4, moments_of(correlated_inputs()), UNBOUNDED) for _ in range(2)]
    np.testing.assert_array_equal(results[0].weight, results[1].weight)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    matrix = weights()
    matrix[2, 5] = bad
    with pytest.raises(QuantizationError):
        compensate(matrix, np.zeros(24), 4, moments_of(correlated_inputs()), UNBOUNDED)
