r"""Integer causal multi-head attention: the specification of the attention accelerator.

For a token at position \(i\), head \(h\) of \(H\), head size \(d = C / H\):

\[ q, k, v = \mathrm{linear}(x_i), \quad s_j = q_h \cdot k_{j,h}, \quad e_j = 2^{s_j - \max s}, \quad
   c_h = \frac{\sum_{j \le i} e_j v_{j,h}}{\sum_{j \le i} e_j}, \quad y_i = \mathrm{linear}(c) \]

\(\log_2 e / \sqrt d\) is folded into the query projection, so the scores arrive as base-2 logarithms.  The exponentials stay
unnormalized; one reciprocal a head and token is applied at the end, to sums instead of to every weight.

Reference: Vaswani et al., "Attention Is All You Need", arXiv:1706.03762; the order of operations follows FlashAttention's late
normalization (Dao et al., arXiv:2205.14135).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .arithmetic import Integers, exact_matmul, requantize
from .errors import QuantizationError
from .exponential import Exponential
from .linear import Linear
from .qformat import IntegerArray, QFormat, as_int64, bits_for
from .reciprocal import Reciprocal
from .softmax import Softmax

MAXIMUM_CONTEXT = 4096


@dataclass(frozen=True, eq=False)
class KeyValueCache:
    """Keys and values of the tokens that a sequence has had so far; it is not changed, `extended` returns a longer one.

    Attributes:
        keys: Integers (..., L, C) of the key projection's output format.
        values: Integers (..., L, C) of the value projection's output format.
    """

    keys: IntegerArray
    values: IntegerArray

    @property
    def length(self) -> int:
        """Tokens L."""
        return self.keys.shape[-2]

    def extended(self, keys: IntegerArray, values: IntegerArray) -> KeyValueCache:
        """Return the cache with the rows of N more tokens (..., N, C)."""
        return KeyValueCache(np.concatenate([self.keys, keys], axis=-2), np.concatenate([self.values, values], axis=-2))


@dataclass(frozen=True, eq=False)
class Attention:
    """Quantized causal multi-head self-attention with a key-value cache.

    Equations: the ones above, with `c = requantize(Σe·v · r.mantissa, r.exponent + value fraction − context fraction)`, `r ~ 1 / Σe`.

    Error, given the numerators: a context differs from `Σe·v / Σe` by at most the reciprocal's relative error and half a unit.

    Widths: a score `score.bits`, Σe `softmax.denominator_bits`, Σe·v `weighted_sum_bits`, its product with the mantissa the sum of both factors'.
    `accumulator_table` tells what of them the weights use.

    Attributes:
        query, key, value: Projections (C, C) from the normalized input to 8-bit vectors.
        output: Projection (C, C) from the context to the residual format.
        num_heads: Heads H; divides C.
        context_length: Longest sequence; a circuit's cache has as many entries.
        reciprocal: The reciprocal of the softmax denominators.
    """

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    num_heads: int
    context_length: int
    reciprocal: Reciprocal = field(default_factory=Reciprocal)

    def __post_init__(self) -> None:
        channels = self.embed_dim
        for name in ("query", "key", "value", "output"):
            linear = getattr(self, name)
            if linear.weight.shape != (channels, channels):
                raise QuantizationError(f"attention {name} must be {channels} x {channels}, not {linear.weight.shape}")
        if not self.query.input == self.key.input == self.value.input:
            raise QuantizationError("attention's query, key and value projections must read one format")
        widths = {self.query.output.bits, self.key.output.bits, self.value.output.bits, self.output.input.bits}
        if widths != {self.query.input.bits}:
            raise QuantizationError(
                f"attention's activations must all be {self.query.input.bits} bits wide, not {sorted(widths)}"
            )
        for name in ("num_heads", "context_length"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise QuantizationError(f"attention {name} must be a whole number, not {getattr(self, name)!r}")
        if self.num_heads < 1 or channels % self.num_heads:
            raise QuantizationError(f"attention needs num_heads that divide {channels} channels, not {self.num_heads}")
        if not 1 <= self.context_length <= MAXIMUM_CONTEXT:
            raise QuantizationError(
                f"attention context_length must be 1 to {MAXIMUM_CONTEXT}, not {self.context_length}"
            )
        try:
            smallest = self.softmax.exponential.maximum.bit_length() - 1 + self.reciprocal.mantissa_bits
        except ValueError as error:  # the softmax states what it wants in its own words
            raise QuantizationError(f"attention scores of format {self.score} are not usable: {error}") from None
        if smallest + self.value.output.fraction - self.context.fraction < 0:
            raise QuantizationError(
                f"attention context {self.context} is too fine for values of {self.value.output}: it would gain bits that no value has"
            )

    @property
    def embed_dim(self) -> int:
        """Channels C."""
        return self.query.columns

    @property
    def head_dim(self) -> int:
        """Channels of a head d."""
        return self.embed_dim // self.num_heads

    @property
    def score(self) -> QFormat:
        """Format of a score: wide enough for any sum of d products."""
        largest = self.head_dim << (self.query.output.bits + self.key.output.bits - 2)
        return QFormat(bits_for(-largest, largest, True), self.query.output.fraction + self.key.output.fraction)

    @property
    def softmax(self) -> Softmax:
        """The softmax of one head's scores."""
        score = self.score
        return Softmax(score, self.context_length, Exponential(score.fraction), self.reciprocal)

    @property
    def context(self) -> QFormat:
        """Format of the normalized context, the input of the output projection."""
        return self.output.input

    @property
    def weighted_sum_bits(self) -> int:
        """Signed width of the sum of numerators times values."""
        numerator = self.softmax.exponential.maximum
        largest = self.context_length * numerator << (self.value.output.bits - 1)
        return bits_for(-largest, largest, True)

    def normalize(self, weighted: Integers, denominator: Integers) -> IntegerArray:
        """Divide weighted sums by their denominators, to the format `context`.

        Args:
            weighted: Sums of numerator times value (...), value's fraction.
            denominator: Sums of numerators, positive, broadcasting against `weighted`.
        """
        scale = self.reciprocal.compute(denominator)
        shift = scale.exponent + (self.value.output.fraction - self.context.fraction)
        return requantize(as_int64(weighted) * scale.mantissa, shift, self.context)

    def scores(self, x: Integers) -> IntegerArray:
        """Return every head's scores of all pairs of tokens, future ones included.

        Args:
            x: Integers (..., T, C) of the projections' input format.

        Returns:
            Integers (..., H, T, T) of format `score`: row i, column j is query i times key j.
        """
        return self._scores(self.query.compute(x), self.key.compute(x))

    def empty_cache(self, *batch: int) -> KeyValueCache:
        """Return the cache of sequences that have no token yet, for inputs (*batch, T, C)."""
        nothing = np.zeros((*batch, 0, self.embed_dim), dtype=np.int64)
        return KeyValueCache(nothing, nothing)

    def extend(self, x: Integers, cache: KeyValueCache) -> tuple[IntegerArray, KeyValueCache]:
        """Run the next tokens of sequences whose earlier keys and values are cached.

        However a sequence is cut into parts, the results are those of `compute` on the whole: row i of every sum has the same terms.

        Args:
            x: Integers (..., N, C) of the projections' input format, N >= 1, L + N <= context_length.
            cache: Keys and values of the L tokens before, from `empty_cache` or an earlier call.

        Returns:
            int64 (..., N, C) of format `output.output`, before the residual is added, and the cache with L + N tokens.

        Raises:
            ValueError: No token, or more than the context holds.
        """
        new = x.shape[-2]
        length = cache.length + new
        if new < 1 or length > self.context_length:
            raise ValueError(
                f"attention sequences have 1 to {self.context_length} tokens, not {length if new else new}"
            )
        cache = cache.extended(self.key.compute(x), self.value.compute(x))
        causal = np.tri(new, length, length - new, dtype=bool)  # the last of the new tokens sees all
        numerators = self.softmax.numerators(
            self._scores(self.query.compute(x), cache.keys), causal
        )  # (..., H, N, L + N)
        limit = 1 << (self.value.output.bits - 1)
        weighted = exact_matmul(numerators, self._split(cache.values), self.softmax.exponential.maximum, limit)
        context = self.normalize(weighted, numerators.sum(axis=-1, keepdims=True))  # (..., H, N, d)
        merged = np.swapaxes(context, -2, -3).reshape(x.shape)  # (..., N, C)
        return self.output.compute(merged), cache

    def compute(self, x: Integers) -> IntegerArray:
        """Run whole sequences.

        Args:
            x: Integers (..., T, C) of the projections' input format, T <= context_length.

        Returns:
            int64 (..., T, C) of format `output.output`, before the residual is added.

        Raises:
            ValueError: No token, or more than the context holds.
        """
        return self.extend(x, self.empty_cache(*x.shape[:-2]))[0]

    def compute_stream(self, x: Integers, restart: np.ndarray) -> IntegerArray:
        """Run a stream of tokens as the accelerator does, sequence after sequence.

        Args:
            x: Integers (N, C), one token a row.
            restart: Booleans (N,): the token starts a new sequence. The first token always does, and so does the one
                after `context_length` tokens of a sequence.

        Returns:
            int64 (N, C) of format `output.output`.
        """
        results = np.empty(x.shape, dtype=np.int64)
        start = 0
        for index in range(1, len(x) + 1):
            if index == len(x) or restart[index] or index - start == self.context_length:
                results[start:index] = self.compute(x[start:index])
                start = index
        return results

    @cached_property
    def digest(self) -> bytes:
        """The SHA-256 of everything that decides the results: weights, formats, sizes, tables."""
        digest = hashlib.sha256(repr((self.num_heads, self.context_length, self.reciprocal)).encode())
        for linear in (self.query, self.key, self.value, self.output):
            digest.update(repr((linear.input, linear.output, linear.weight_bits)).encode())
            for array in (linear.weight, linear.weight_fraction, linear.bias):
                digest.update(array.astype("<i8").tobytes())
        return digest.digest()

    def _scores(self, query: IntegerArray, key: IntegerArray) -> IntegerArray:
        """Products of queries (..., N, C) and keys (..., L, C) by head: (..., H, N, L)."""
        limit = 1 << (self.query.output.bits - 1)
        products = exact_matmul(self._split(query), np.swapaxes(self._split(key), -1, -2), limit, limit)
        return products.astype(np.int64)

    def _split(self, x: IntegerArray) -> IntegerArray:
        """Split channels into heads: (..., T, C) to (..., H, T, d)."""
        return np.swapaxes(x.reshape(*x.shape[:-1], self.num_heads, self.head_dim), -2, -3)
