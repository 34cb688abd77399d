"""One token of one sequence through a prepared transformer, with few NumPy calls.

A row of 128 numbers costs NumPy less time than the call does, so what limits the speed is the
number of calls (about a microsecond each). The same operations as in `layers` and
`attention`, on vectors, with the sums of a norm in Python's own floats, which hold these
whole numbers exactly as well.
"""

from __future__ import annotations

import math

import numpy as np

from .attention import PreparedAttention
from .layers import Float32, Float64, Floats, PreparedNorm, Product


class TokenProduct:
    """A `Product` for one row x (K,)."""

    def __init__(self, product: Product) -> None:
        self.weight, self.offset, self.saturates = product.weight, product.offset, product.saturates
        self.lowest, self.highest = product.lowest, product.highest
        self.result: Floats = np.empty_like(product.offset)

    def accumulate(self, x: Floats) -> Floats:
        """Return `x · weight + offset`, neither rounded nor clipped; the next call overwrites
        it.
        """
        result = self.result
        np.matmul(x, self.weight, out=result)
        np.add(result, self.offset, out=result)
        return result

    def compute(self, x: Floats) -> Floats:
        """Return the outputs (R,); the next call overwrites them."""
        result = self.accumulate(x)
        np.floor(result, out=result)
        if self.saturates:
            np.minimum(result, self.highest, out=result)
            np.maximum(result, self.lowest, out=result)
        return result


class TokenNorm:
    """A `PreparedNorm` for one row x (C,) in float64."""

    def __init__(self, norm: PreparedNorm) -> None:
        self.prepared = norm
        self.channels, self.epsilon, self.centred = norm.channels, norm.epsilon, norm.centred
        self.ones = norm.ones
        self.bits = 52 - norm.mantissa_shift
        self.roots: list[float] = norm.table.tolist()
        self.gain, self.offset = norm.gain.astype(np.float64), norm.offset.astype(np.float64)
        self.lowest, self.highest = norm.output_lowest, norm.output_highest
        self.wide: Float64 = np.empty(norm.channels)
        self.result: Float32 = np.empty(norm.channels, np.float32)

    def compute(self, x: Float64) -> Float32:
        """Return the normalized row; the next call overwrites it."""
        wide = self.wide
        if not self.prepared.exact:
            np.copyto(self.result, self.prepared.norm.compute(x.astype(np.int64)))
            return self.result
        total = float(x.dot(self.ones)) if self.centred else 0.0
        mantissa, exponent = math.frexp(self.channels * float(x.dot(x)) - total * total + self.epsilon)
        root = self.roots[((exponent - 2) << self.bits) + int(math.ldexp(mantissa, self.bits + 1))]
        np.multiply(x, root * self.channels, out=wide)
        np.add(wide, 0.5 - root * total, out=wide)
        np.floor(wide, out=wide)
        if self.prepared.saturates:
            np.clip(wide, self.prepared.lowest, self.prepared.highest, out=wide)
        np.multiply(wide, self.gain, out=wide)
        np.add(wide, self.offset, out=wide)
        np.floor(wide, out=wide)
        np.minimum(wide, self.highest, out=wide)
        np.maximum(wide, self.lowest, out=wide)
        np.copyto(self.result, wide)
        return self.result


class TokenAttention:
    """A `PreparedAttention` for one token; `cache` is that of one sequence (H, context_length,
    2·d + 1).
    """

    def __init__(self, attention: PreparedAttention, cache: Floats) -> None:
        heads, size = attention.heads, attention.head_dim
        self.numerators, self.reciprocals = attention.numerators, attention.reciprocals
        self.query_scale, self.dtype = attention.query_scale, attention.dtype
        self.lowest, self.highest = attention.lowest, attention.highest
        self.cache, self.keys, self.values = cache, cache[..., :size], cache[..., size:]
        self.projections, self.output = TokenProduct(attention.projections), TokenProduct(attention.output)
        projected = self.projections.result
        self.query = projected[: attention.channels].reshape(heads, size, 1)
        self.known = projected[attention.channels :].reshape(heads, 2 * size + 1)
        self.weighted: Floats = np.empty((heads, 1, size + 1), self.dtype)
        self.sums, self.denominators = self.weighted[:, 0, :size], self.weighted[:, 0, size:]
        self.wide: Float64 = np.empty((heads, size))
        self.context: Float32 = np.empty(attention.channels, np.float32)
        self.context_heads = self.context.reshape(heads, size)

    def compute(self, x: Floats, position: int) -> Floats:
        """Return the output (C,) for the row at `position`, and put its keys and values into the
        cache.
        """
        self.projections.compute(x)
        query = np.multiply(self.query, self.query_scale, dtype=self.dtype)
        self.cache[:, position] = self.known
        scores = np.matmul(self.keys[:, : position + 1], query)  # (H, t, 1)
        np.subtract(scores, np.minimum.reduce(scores, 1, keepdims=True), out=scores)
        numerators = self.numerators.take(scores.astype(np.int64), mode="clip")
        np.matmul(numerators.swapaxes(1, 2), self.values[:, : position + 1], out=self.weighted)
        wide = self.wide
        np.multiply(self.sums, self.reciprocals.take(self.denominators.astype(np.int64)), out=wide)
        np.add(wide, 0.5, out=wide)
        np.floor(wide, out=wide)
        np.minimum(wide, self.highest, out=wide)
        np.maximum(wide, self.lowest, out=wide)
        np.copyto(self.context_heads, wide)
        return self.output.compute(self.context)
