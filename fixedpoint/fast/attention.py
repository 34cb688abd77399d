"""Attention of the specification, prepared for speed: whole sequences, and one token at a time with
cached keys and values.

The rearrangements, all exact:
- Query, key and value are one product. A row of zeros with an offset of 1 after each head's values
  makes the softmax denominators come out of the product with the values.
- The scores are made negative and transposed (key, query), in steps of half a table entry of the
  exponential: a minimum over the first axis, which NumPy finds four times as fast as one over the
  last, a subtraction, and one table give the numerators.
- The reciprocal of every possible denominator is one table.

Sizes: B sequences, T tokens, H heads, d channels a head, C = H·d.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..operators.attention import Attention
from .layers import Buffers, Floats, Product, exact_dtype, exponential_table, reciprocal_table, whole

MASKED = 2.0**30  # a distance beyond any table; in range of an int32


class PreparedAttention:
    """An attention ready to run; see the module.

    Args:
        attention: The specification.
    """

    def __init__(self, attention: Attention) -> None:
        self.heads, self.head_dim, self.channels = attention.num_heads, attention.head_dim, attention.embed_dim
        self.length = attention.context_length
        exponential, value_bits = attention.softmax.exponential, attention.value.output.bits
        score = self.head_dim << (attention.query.output.bits + attention.key.output.bits - 2)
        denominator = self.length * exponential.maximum
        self.dtype = exact_dtype(max(2 * score, denominator << (value_bits - 1)))
        shift, self.numerators = exponential_table(exponential, self.dtype)
        self.last = len(self.numerators) - 1
        self.query_scale = self.dtype.type(-(2.0**-shift))
        # A context far coarser than the values is 0 throughout, however much coarser.
        finer = min(attention.value.output.fraction - attention.context.fraction, value_bits + 2)
        mantissa = attention.reciprocal.mantissa_bits
        exact_dtype(
            (denominator << (value_bits - 1 + mantissa)) + (1 << max(denominator.bit_length() + mantissa + finer, 0))
        )
        self.reciprocals = reciprocal_table(attention.reciprocal, denominator) * 2.0**-finer
        self.lowest, self.highest = float(attention.context.minimum_integer), float(attention.context.maximum_integer)
        self.projections = Product([attention.query, attention.key, attention.value])
        self._arrange()
        self.output = Product([attention.output])

    def _arrange(self) -> None:
        """Put the projections' columns in order: all queries, then for each head its keys, its
        values, and 1.
        """
        head = np.arange(self.head_dim)
        one = 3 * self.channels
        order = [np.arange(self.channels)]
        for start in range(0, self.channels, self.head_dim):
            order += [self.channels + start + head, 2 * self.channels + start + head, np.array([one])]
        columns = np.concatenate(order)
        product = self.projections
        zeros = np.zeros((self.channels, 1), product.weight.dtype)
        product.weight = np.hstack([product.weight, zeros])[:, columns].copy()
        product.offset = np.concatenate([product.offset, np.ones(1, product.offset.dtype)])[columns]

    def new_cache(self, batch: int) -> Floats:
        """Return memory for the keys, values and ones of `batch` sequences, (B, H, context_length,
        2·d + 1).
        """
        return np.zeros((batch, self.heads, self.length, 2 * self.head_dim + 1), self.dtype)

    def project(self, x: Floats, batch: int, buffers: Buffers) -> tuple[Floats, Floats]:
        """Return queries (B, H, T, d), scaled for `numerators`, and keys, values and ones (B, H, T,
        2·d + 1) of rows x (B·T, C).
        """
        # (B·T, C) -> (B·T, 3·C + H)
        projected = self.projections.compute(x, buffers, "projected").astype(self.dtype, copy=False)
        projected[:, : self.channels] *= self.query_scale
        by_token = projected.reshape(batch, len(x) // batch, -1)  # (B, T, 3·C + H)
        # (B, T, C) -> (B, T, H, d) and (B, T, 2·C + H) -> (B, T, H, 2·d + 1)
        query = by_token[..., : self.channels].reshape(batch, -1, self.heads, self.head_dim, copy=False)
        rest = by_token[..., self.channels :].reshape(batch, -1, self.heads, 2 * self.head_dim + 1, copy=False)
        return query.swapaxes(1, 2), rest.swapaxes(1, 2)

    def attend(self, query: Floats, known: Floats, buffers: Buffers) -> Floats:
        """Return the contexts (B, Tq, C) of the last Tq of Tk tokens.

        Args:
            query: From `project`, (B, H, Tq, d).
            known: From `project` or a cache, (B, H, Tk, 2·d + 1), Tk >= Tq.
            buffers: The result is overwritten by the next call with these.
        """
        keys, values = known[..., : self.head_dim], known[..., self.head_dim :]
        batch, heads, length, size = query.shape
        scores = buffers.array("scores", self.dtype, batch, heads, keys.shape[-2], length)
        np.matmul(keys, query.swapaxes(-1, -2), out=scores)  # (B, H, Tk, Tq)
        if length > 1:  # later keys are beyond any distance
            scores[..., -length:, :] += _later_keys(length)
        scores -= np.minimum.reduce(scores, axis=-2, keepdims=True)
        np.minimum(scores, self.last, out=scores)
        numerators = self.numerators.take(whole(scores, buffers))
        weighted = buffers.array("weighted", self.dtype, batch, length, heads, size + 1)
        # (B, H, Tq, Tk) @ (B, H, Tk, d + 1) -> (B, H, Tq, d + 1), stored as (B, Tq, H, d + 1)
        np.matmul(numerators.swapaxes(-1, -2), values, out=weighted.swapaxes(1, 2))
        wide = buffers.array("wide context", np.float64, batch, length, heads, size)
        np.copyto(wide, weighted[..., :size])
        wide *= self.reciprocals.take(weighted[..., size:].astype(np.int64))
        wide += 0.5
        np.floor(wide, out=wide)
        wide.clip(self.lowest, self.highest, out=wide)
        context = buffers.array("context", np.float32, batch, length, self.channels)
        np.copyto(context, wide.reshape(context.shape))  # (B, Tq, H, d) -> (B, Tq, C)
        return context


@lru_cache(maxsize=8)
def _later_keys(length: int) -> np.ndarray:
    """Return what is added to the negative scores (keys, queries): `MASKED` where the key comes
    later.
    """
    return np.tril(np.full((length, length), MASKED, np.float32), -1)
