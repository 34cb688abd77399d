"""One token of one sequence through a prepared transformer, with few NumPy calls.

A row of 128 numbers costs NumPy less time than the call does, so what limits the speed is the
number of calls (about a microsecond each). The products and norms of `layers` are here on
vectors, with the sums of a norm in Python's floats, which hold these integers exactly as well.
"""

from __future__ import annotations

import math

import numpy as np

from .attention import PreparedAttention
from .layers import Buffers, Float32, Float64, Floats, PreparedNorm, Product


class TokenProduct:
    """A `Product` for one row x (K,)."""

    def __init__(self, product: Product) -> None:
        self.weight, self.offset, self.saturates = product.weight, product.offset, product.saturates
        self.lowest, self.highest = product.lowest, product.highest
        self.result: Floats = np.empty_like(product.offset)

    def accumulate(self, x: Floats) -> Floats:
        """Return `x · weight + offset` (R,), not rounded; the next call overwrites it."""
        result = self.result
        np.matmul(x, self.weight, out=result)  # (K,) @ (K, R) -> (R,)
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
    """A `PreparedAttention` for one token of one sequence.

    Args:
        attention: Computes the context from the cache.
        cache: Of a batch of one, (1, context_length, W).
        buffers: Memory for what comes between.
    """

    def __init__(self, attention: PreparedAttention, cache: Floats, buffers: Buffers) -> None:
        self.attention, self.cache, self.buffers = attention, cache, buffers
        self.projections, self.output = TokenProduct(attention.projections), TokenProduct(attention.output)
        projected = self.projections.result[None, None]  # (1, 1, C + W)
        self.turned = projected[..., : attention.turned]
        self.query = attention.heads_of(projected[..., : attention.channels], attention.heads)
        self.known = projected[0, 0, attention.channels :]
        self.keys = attention.heads_of(cache[..., : attention.kv_channels], attention.kv_heads)
        self.values = attention.heads_of(cache[..., attention.kv_channels :], attention.kv_heads)

    def compute(self, x: Floats, position: int) -> Floats:
        """Return the output (C,) for the row at `position`, after adding to the cache."""
        attention = self.attention
        self.projections.compute(x)
        attention.rotate(self.turned, position, self.buffers)
        query = np.multiply(self.query, attention.query_scale, dtype=attention.dtype)
        self.cache[0, position] = self.known
        end = position + 1
        context = attention.attend(query, self.keys[..., :end, :], self.values[..., :end, :], self.buffers)
        return self.output.compute(context[0, 0])
