"""Attention of the specification, prepared for speed: whole sequences, and one token at a time with
cached keys and values.

The rearrangements, all exact:
- Query, key and value are one product. A row of zeros with an offset of 1 after each head's values
  makes the softmax denominators come out of the product with the values.
- The scores are made negative and transposed (key, query), in steps of half a table entry of the
  exponential: a minimum over the first axis, which NumPy finds four times as fast as one over the
  last, a subtraction, and one table give the numerators.
- The reciprocal of every possible denominator is one table.
- Rotary positions are a product of complex numbers, of queries and keys together.

Sizes: B sequences, T tokens, H = K·G heads in groups of G with a key and value head, d channels a
head, C = H·d, W = K·(2·d + 1) numbers of a token that later ones read: keys, then each head's
values and 1.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..operators.attention import Attention
from ..operators.rotation import FACTOR, RotationTable
from .layers import Buffers, Floats, Product, exact_dtype, exponential_table, reciprocal_table, round_half_up, whole

MASKED = 2.0**30  # a distance beyond any table; in range of an int32


class PreparedAttention:
    """An attention ready to run; see the module.

    Args:
        attention: The specification.
    """

    def __init__(self, attention: Attention) -> None:
        core = self.core = attention.core
        self.channels, self.kv_channels = core.channels, core.kv_channels
        # An axis of one for G costs a tenth of the speed of one token.
        group = core.num_heads // core.num_kv_heads
        self.heads = (core.num_kv_heads,) if group == 1 else (core.num_kv_heads, group)
        self.kv_heads = self.heads[:1] if group == 1 else (core.num_kv_heads, 1)
        # (B, T, K, G, ·) -> (B, K, G, T, ·)
        self.by_head = (0, 2, 1, 3) if group == 1 else (0, 2, 3, 1, 4)
        exponential, value_bits = core.softmax.exponential, core.value.bits
        score = core.head_dim << (core.query.bits + core.key.bits - 2)
        denominator = core.context_length * exponential.maximum
        self.dtype = exact_dtype(max(2 * score, denominator << (value_bits - 1)))
        shift, self.numerators = exponential_table(exponential, self.dtype)
        self.last = len(self.numerators) - 1
        self.query_scale = self.dtype.type(-(2.0**-shift))
        # A context far coarser than the values is 0 throughout, however much coarser.
        finer = min(core.value.fraction - core.output.fraction, value_bits + 2)
        mantissa = core.reciprocal.mantissa_bits
        exact_dtype(
            (denominator << (value_bits - 1 + mantissa)) + (1 << max(denominator.bit_length() + mantissa + finer, 0))
        )
        self.reciprocals = reciprocal_table(core.reciprocal, denominator) * 2.0**-finer
        self.projections = Product([attention.query, attention.key, attention.value])
        self._add_ones()
        self.output = Product([attention.output])
        self.turned = 0  # channels of queries and keys that have rotary positions
        if attention.rotations is not None:
            channels = (self.channels, self.kv_channels)
            self.turned = sum(channels)
            gains = [2.0 ** (one.output.fraction - one.input.fraction) for one in attention.rotations]
            self.gain = np.repeat(gains, channels)
            self.factors = _rotation_factors(attention.rotations[0].table, self.turned)

    def _add_ones(self) -> None:
        """Put a column that makes 1 after each head's values."""
        product, size = self.projections, self.core.head_dim
        ends = np.arange(self.channels + self.kv_channels + size, product.rows + 1, size)
        product.weight, product.offset = (
            np.insert(product.weight, ends, 0, axis=1),
            np.insert(product.offset, ends, 1, axis=0),
        )
        if product.highest.ndim:
            product.lowest, product.highest = (np.insert(limit, ends, 1) for limit in (product.lowest, product.highest))

    def new_cache(self, batch: int) -> Floats:
        """Return memory for keys, values and ones of `batch` sequences, (B, context_length, W)."""
        return np.zeros((batch, self.core.context_length, self.projections.rows - self.channels), self.dtype)

    def heads_of(self, rows: Floats, heads: tuple[int, ...]) -> Floats:
        """Return a view (B, *heads, T, ·) of queries, keys or values (B, T, ·)."""
        # (B, T, ·) -> (B, T, *heads, ·) -> (B, *heads, T, ·)
        return rows.reshape(*rows.shape[:2], *heads, -1, copy=False).transpose(self.by_head)

    def compute(
        self, x: Floats, batch: int, buffers: Buffers, cache: Floats | None = None, position: int = 0
    ) -> Floats:
        """Return the outputs (B·T, C) of rows x (B·T, C); arguments as `PreparedBlock.forward`."""
        # (B·T, C) -> (B, T, C + W)
        projected = self.projections.compute(x, buffers, "projected").reshape(batch, -1, self.projections.rows)
        self.rotate(projected[..., : self.turned], position, buffers)
        projected = projected.astype(self.dtype, copy=False)
        query, known = projected[..., : self.channels], projected[..., self.channels :]
        query *= self.query_scale
        if cache is not None:
            end = position + projected.shape[1]
            cache[:, position:end] = known
            known = cache[:, :end]
        keys, values = known[..., : self.kv_channels], known[..., self.kv_channels :]
        keys, values = self.heads_of(keys, self.kv_heads), self.heads_of(values, self.kv_heads)
        context = self.attend(self.heads_of(query, self.heads), keys, values, buffers)
        # (B, T, C) -> (B·T, C)
        return self.output.compute(context.reshape(x.shape), buffers, "update")

    def rotate(self, x: Floats, position: int, buffers: Buffers) -> None:
        """Turn queries and keys x (B, T, `turned`) in place; they stand at `position` and after."""
        if not self.turned:
            return
        pairs = buffers.array("pairs", np.complex128, *x.shape[:-1], self.turned // 2)
        wide = pairs.view(np.float64)
        np.multiply(x, self.gain, out=wide)
        pairs *= self.factors[position : position + x.shape[1]]
        round_half_up(wide, self.core.query, x)

    def attend(self, query: Floats, keys: Floats, values: Floats, buffers: Buffers) -> Floats:
        """Return the contexts (B, Tq, C) of the last Tq of Tk tokens.

        Args:
            query: (B, K, G, Tq, d), times `query_scale`; here and below without the axis of G for
                G = 1.
            keys: (B, K, 1, Tk, d), Tk >= Tq.
            values: With ones, (B, K, 1, Tk, d + 1).
            buffers: The result is overwritten by the next call with these.
        """
        batch, length, size = len(query), *query.shape[-2:]
        scores = buffers.array("scores", self.dtype, batch, *self.heads, keys.shape[-2], length)
        # (B, K, 1, Tk, d) @ (B, K, G, d, Tq) -> (B, K, G, Tk, Tq)
        np.matmul(keys, query.swapaxes(-1, -2), out=scores)
        if length > 1:  # later keys are beyond any distance
            scores[..., -length:, :] += _later_keys(length)
        scores -= np.minimum.reduce(scores, axis=-2, keepdims=True)
        np.minimum(scores, self.last, out=scores)
        numerators = self.numerators.take(whole(scores, buffers))
        weighted = buffers.array("weighted", self.dtype, batch, length, *self.heads, size + 1)
        # (B, K, G, Tq, Tk) @ (B, K, 1, Tk, d + 1) -> (B, K, G, Tq, d + 1), stored with Tq second
        np.matmul(numerators.swapaxes(-1, -2), values, out=weighted.transpose(self.by_head))
        wide = buffers.array("wide context", np.float64, batch, length, *self.heads, size)
        np.copyto(wide, weighted[..., :size])
        wide *= self.reciprocals.take(weighted[..., size:].astype(np.int64))
        context = buffers.array("context", np.float32, batch, length, self.channels)
        # (B, Tq, K, G, d) -> (B, Tq, C)
        round_half_up(wide, self.core.output, context.reshape(wide.shape))
        return context


@lru_cache(maxsize=8)
def _rotation_factors(table: RotationTable, channels: int) -> np.ndarray:
    """Return the factors of pairs of channels, complex (T, channels / 2)."""
    factors = (table.cosine + 1j * table.sine) * FACTOR.resolution
    return np.tile(factors, channels // table.head_dim)


@lru_cache(maxsize=8)
def _later_keys(length: int) -> np.ndarray:
    """Return the mask (keys, queries) of negative scores: `MASKED` where the key comes later."""
    return np.tril(np.full((length, length), MASKED, np.float32), -1)
