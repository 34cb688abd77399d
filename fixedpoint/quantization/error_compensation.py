r"""Error-compensated rounding (GPTQ): later weights of a row correct the error of earlier ones.

A row of weights w sees inputs x with covariance H = E[(x − μ)(x − μ)ᵀ]. With the error e = w − ŵ,
its output errs by e·x; the mean e·μ goes into the bias, and what is left has the variance e H eᵀ,
which is to be small. Factor H = U D Uᵀ with U unit upper triangular:

\[ e H e^T = \sum_k D_k \Big(e_k + \sum_{j<k} e_j U_{jk}\Big)^2 \]

So in the order of the columns, ŵ_k = round(w_k + Σ_{j<k} e_j U_jk) makes every term as small as a
rounding can. D_k is the part of input k's variance that the later inputs do not predict: the more
the inputs have in common, the more is won over rounding to nearest. Derived in
docs/fixedpoint/quantization.md.

References: Frantar et al., "GPTQ", arXiv:2210.17323; in this form Chee et al., "QuIP",
arXiv:2307.13304. The bias: Nagel et al., arXiv:1906.04721.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..qformat import FloatArray, IntegerArray
from ..row_scales import FRACTION, WeightBits, covering_fractions, weight_range

DAMPING = 0.01  # of the inputs' mean variance, added to each: calibration text is a sample
# Fractions that are tried, above the covering one. Compensated errors grow elsewhere, so the
# covering scale's coarser neighbour counts too.
FINER = (-1, 0, 1, 2, 3, 4)
# Passes over the columns that improve rounded weights; most rows settle after three.
MOST_PASSES = 8
# columns whose errors are fed forward one by one; further ones get them by a matrix product
BLOCK = 64


@dataclass(eq=False)
class Moments:
    """Mean and covariance of vectors (K,), gathered piece by piece.

    Sums are of differences from an origin o near the mean, so that a small variance beside a large
    mean is not lost in rounding.

    Attributes:
        count: Vectors seen.
        origin: o (K,), the mean of the first piece.
        total: Σ (x − o) (K,).
        products: Σ (x − o)(x − o)ᵀ (K, K).
    """

    count: int = 0
    origin: FloatArray = field(default_factory=lambda: np.zeros(0))
    total: FloatArray = field(default_factory=lambda: np.zeros(0))
    products: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))

    def add(self, values: np.ndarray) -> None:
        """Count vectors (..., K)."""
        # Products are summed in the values' precision within a call, in float64 between calls.
        rows = values.reshape(-1, values.shape[-1])  # (..., K) -> (N, K)
        if self.count == 0:
            self.origin = rows.mean(axis=0, dtype=np.float64).astype(rows.dtype)
            self.total, self.products = np.zeros(rows.shape[1]), np.zeros((rows.shape[1], rows.shape[1]))
        rows = rows - self.origin
        self.count += len(rows)
        self.total += rows.sum(axis=0, dtype=np.float64)
        self.products += rows.T @ rows  # (K, N) @ (N, K) -> (K, K)

    @property
    def mean(self) -> FloatArray:
        """The mean μ (K,)."""
        return self.origin + self.total / self.count

    @property
    def covariance(self) -> FloatArray:
        """The covariance (K, K)."""
        offset = self.total / self.count
        return self.products / self.count - np.outer(offset, offset)


class Compensated(NamedTuple):
    """A layer's rounded weights.

    Attributes:
        weight: Real weights (R, K): whole numbers times 2**−fraction.
        bias: Biases (R,) that make the mean output what it was.
        fraction: Fraction of each row (R,).
    """

    weight: FloatArray
    bias: FloatArray
    fraction: IntegerArray


def compensate(
    weight: FloatArray,
    bias: FloatArray,
    weight_bits: WeightBits,
    moments: Moments,
    largest_fraction: FloatArray,
    one_scale: bool = False,
    improve: bool = False,
) -> Compensated:
    """Round weights (R, K), each row at the scale of least output error.

    Args:
        weight: Real weights (R, K).
        bias: Biases (R,), zeros for a layer without.
        weight_bits: Width of a weight, or "ternary".
        moments: Of the layer's inputs.
        largest_fraction: Bound on each row's fraction (R,), for the bias's sake.
        one_scale: All rows share one fraction.
        improve: Change single weights afterwards as long as the output error falls.

    Raises:
        QuantizationError: A weight is not finite, or too large.
    """
    inputs = Feedback.of(moments.covariance)
    covering = covering_fractions(weight, weight_bits)
    bound = np.minimum(largest_fraction, FRACTION.maximum_integer)
    if one_scale:
        covering, bound = np.full_like(covering, covering.min()), np.full_like(bound, bound.min())
    tried = [np.maximum(np.minimum(covering + finer, bound), FRACTION.minimum_integer) for finer in FINER]
    candidates = np.stack(tried).astype(np.int64)  # F times (R,) -> (F, R)
    repeated = np.tile(weight, (len(FINER), 1))  # (R, K) -> (F · R, K)
    # F fractions a row: (F, R) -> (F · R,), and back
    integers, errors = inputs.round(repeated, candidates.reshape(-1), weight_bits)
    if improve:
        integers, errors = inputs.improve(repeated, candidates.reshape(-1), weight_bits, integers)
    by_candidate = errors.reshape(candidates.shape)  # (F · R,) -> (F, R)
    if one_scale:
        by_candidate = np.broadcast_to(by_candidate.sum(axis=1, keepdims=True), candidates.shape)
    best, rows = by_candidate.argmin(axis=0), np.arange(len(weight))
    fraction = candidates[best, rows]
    # (F · R, K) -> (F, R, K) -> (R, K)
    rounded = np.ldexp(integers.reshape(len(FINER), *weight.shape)[best, rows].astype(np.float64), -fraction[:, None])
    # (R, K) @ (K,) -> (R,)
    return Compensated(rounded, bias + (weight - rounded) @ moments.mean, fraction)


@dataclass(frozen=True, eq=False)
class Feedback:
    """The factors of a covariance, columns in the order in which weights are rounded.

    Attributes:
        order: The columns (K,): those of the largest variance first, whose errors the most others
            can compensate.
        upper: U (K, K), unit upper triangular, of the reordered covariance U D Uᵀ.
        variance: D (K,).
        covariance: H (K, K), damped, columns in their own order.
    """

    order: IntegerArray
    upper: FloatArray
    variance: FloatArray
    covariance: FloatArray

    @classmethod
    def of(cls, covariance: FloatArray) -> Feedback:
        """Factor a covariance (K, K), damped, so that errors of a constant input count too."""
        mean_variance = float(np.trace(covariance)) / len(covariance)
        # Inputs that are all constant say nothing: then every weight counts alike, and is rounded
        # to nearest.
        damping = DAMPING * mean_variance if mean_variance > 0 else 1.0
        damped = covariance + damping * np.eye(len(covariance))
        order = np.argsort(-np.diag(damped), kind="stable")
        reordered = damped[np.ix_(order, order)]
        # upper triangular F with F Fᵀ = H
        factor = np.linalg.cholesky(reordered[::-1, ::-1])[::-1, ::-1]
        diagonal = np.diag(factor)
        return cls(order, factor / diagonal, diagonal**2, damped)

    def round(
        self, weight: FloatArray, fraction: IntegerArray, weight_bits: WeightBits
    ) -> tuple[IntegerArray, FloatArray]:
        """Return integers (R, K) of weights at fractions (R,), and output error variances (R,)."""
        lowest, highest = weight_range(weight_bits)
        # (R, K), (R, 1) -> (R, K) -> (K, R): a column at a time
        scaled = np.ldexp(weight, fraction[:, None])[:, self.order].T.copy()
        wanted, error, total = scaled.copy(), np.zeros_like(scaled), np.zeros(len(weight))
        for start in range(0, len(scaled), BLOCK):
            stop = min(start + BLOCK, len(scaled))
            # (B, start) @ (start, R) -> (B, R)
            wanted[start:stop] += self.upper[:start, start:stop].T @ error[:start]
            for column in range(start, stop):
                # (j,) @ (j, R) -> (R,)
                target = wanted[column] + self.upper[start:column, column] @ error[start:column]
                rounded = np.clip(np.floor(target + 0.5), lowest, highest)
                total += self.variance[column] * np.square(target - rounded)
                error[column] = scaled[column] - rounded
                wanted[column] = rounded
        integers = np.empty(weight.shape, dtype=np.int64)
        integers[:, self.order] = wanted.T
        return integers, np.ldexp(total, -2 * fraction)

    def improve(
        self, weight: FloatArray, fraction: IntegerArray, weight_bits: WeightBits, integers: IntegerArray
    ) -> tuple[IntegerArray, FloatArray]:
        """Return integers (R, K) that no change of a single weight improves, and error variances.

        With the others fixed, e H eᵀ is least at the integer nearest to ŵ_k + (e H)_k / H_kk.
        """
        lowest, highest = weight_range(weight_bits)
        best = integers.T.astype(np.float64)  # (R, K) -> (K, R)
        error = np.ldexp(weight, fraction[:, None]).T - best
        slope = self.covariance @ error  # (K, K) @ (K, R) -> (K, R)
        for _ in range(MOST_PASSES):
            before = best.copy()
            for column, row in enumerate(self.covariance):
                target = best[column] + slope[column] / row[column]
                change = np.clip(np.floor(target + 0.5), lowest, highest) - best[column]
                rows = np.flatnonzero(change)
                best[column] += change
                error[column] -= change
                slope[:, rows] -= np.outer(row, change[rows])
            if np.array_equal(best, before):
                break
        # (K, R) * (K, R) -> (R,)
        total = (error * (self.covariance @ error)).sum(axis=0)
        return best.T.astype(np.int64), np.ldexp(total, -2 * fraction)
