r"""Integer causal multi-head attention: the specification of the attention accelerator.

For a token at position \(i\), head \(h\) of \(H\), head size \(d = C / H\):

\[ q, k, v = \mathrm{linear}(x_i), \quad s_j = q_h \cdot k_{j,h}, \quad e_j = 2^{s_j - \max s},
\quad
   c_h = \frac{\sum_{j \le i} e_j v_{j,h}}{\sum_{j \le i} e_j}, \quad y_i = \mathrm{linear}(c) \]

\(\log_2 e / \sqrt d\) is folded into the query projection, so the scores arrive as base-2
logarithms. The exponentials stay unnormalized; one reciprocal a head and token is applied at the
end, to sums instead of to every weight.

Reference: Vaswani et al., "Attention Is All You Need", arXiv:1706.03762; the order of operations
follows FlashAttention's late normalization (Dao et al., arXiv:2205.14135).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..arithmetic import Integers, exact_matmul, requantize
from ..errors import QuantizationError
from ..qformat import IntegerArray, QFormat, as_int64, bits_for
from .exponential import Exponential
from .linear import Linear
from .operator import same_channels
from .reciprocal import Reciprocal
from .rotation import Rotation
from .softmax import Softmax

MAXIMUM_CONTEXT = 4096


@dataclass(frozen=True, eq=False)
class AttentionCache:
    """Keys and values of a sequence's tokens so far; immutable, `extended` returns a longer one.

    Attributes:
        keys: Integers (..., L, K·d) of K key and value heads, as the scores read them.
        values: Integers (..., L, K·d) of the value projection's output format.
    """

    keys: IntegerArray
    values: IntegerArray

    @property
    def length(self) -> int:
        """Tokens L."""
        return self.keys.shape[-2]

    def extended(self, keys: IntegerArray, values: IntegerArray) -> AttentionCache:
        """Return the cache with the rows of N more tokens (..., N, K·d)."""
        # (..., L, K·d), (..., N, K·d) -> (..., L + N, K·d)
        return AttentionCache(
            np.concatenate([self.keys, keys], axis=-2), np.concatenate([self.values, values], axis=-2)
        )


@dataclass(frozen=True)
class CausalAttention:
    """Causal multi-head attention between its projections: queries, keys and values to contexts.

    Equations: the ones above, with
    `c = requantize(Σe·v · r.mantissa, r.exponent + value fraction − context fraction)`,
    `r ~ 1 / Σe`.

    Error, given the numerators: a context differs from `Σe·v / Σe` by at most the reciprocal's
    relative error and half a unit.

    Widths: a score `score.bits`, Σe `softmax.denominator_bits`, Σe·v `weighted_sum_bits`, its
    product with the mantissa the sum of both factors'. `accumulator_table` tells what of them the
    weights use.

    Attributes:
        query, key, value: Formats of what it reads.
        output: Format of the context.
        channels: C.
        num_heads: Heads H; divides C.
        context_length: Longest sequence; a circuit's cache has as many entries.
        reciprocal: The reciprocal of the softmax denominators.
        num_kv_heads: Key and value heads K; divides H. Query head h reads head h // (H / K)
            (Ainslie et al., arXiv:2305.13245). 0 stands for H.
    """

    query: QFormat
    key: QFormat
    value: QFormat
    output: QFormat
    channels: int
    num_heads: int
    context_length: int
    reciprocal: Reciprocal = field(default_factory=Reciprocal)
    num_kv_heads: int = 0

    def __post_init__(self) -> None:
        for name in ("num_heads", "context_length", "num_kv_heads"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise QuantizationError(f"attention {name} must be a whole number, not {getattr(self, name)!r}")
        if self.num_heads < 1 or self.channels % self.num_heads:
            raise QuantizationError(
                f"attention needs num_heads that divide {self.channels} channels, not {self.num_heads}"
            )
        if self.num_kv_heads == 0:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise QuantizationError(
                f"attention needs num_kv_heads that divide {self.num_heads} heads, not {self.num_kv_heads}"
            )
        if not 1 <= self.context_length <= MAXIMUM_CONTEXT:
            raise QuantizationError(
                f"attention context_length must be 1 to {MAXIMUM_CONTEXT}, not {self.context_length}"
            )
        try:
            smallest = self.softmax.exponential.maximum.bit_length() - 1 + self.reciprocal.mantissa_bits
        except ValueError as error:  # the softmax states what it wants in its own words
            raise QuantizationError(f"attention scores of format {self.score} are not usable: {error}") from None
        if smallest + self.value.fraction - self.output.fraction < 0:
            raise QuantizationError(
                f"attention context {self.output} is too fine for values of {self.value}: it would gain bits that no value has"
            )

    @property
    def inputs(self) -> tuple[QFormat, ...]:
        """Formats of what it reads."""
        return self.query, self.key, self.value

    def output_channels(self, query: int, key: int, value: int) -> int:
        """Return the channels of the output."""
        same_channels(self.kv_channels, key, value)
        return same_channels(self.channels, query)

    @property
    def head_dim(self) -> int:
        """Channels of a head d."""
        return self.channels // self.num_heads

    @property
    def kv_channels(self) -> int:
        """Channels of keys and of values, K·d."""
        return self.num_kv_heads * self.head_dim

    @property
    def score(self) -> QFormat:
        """Format of a score: wide enough for any sum of d products."""
        largest = self.head_dim << (self.query.bits + self.key.bits - 2)
        return QFormat(bits_for(-largest, largest, True), self.query.fraction + self.key.fraction)

    @property
    def softmax(self) -> Softmax:
        """The softmax of one head's scores."""
        score = self.score
        return Softmax(score, self.context_length, Exponential(score.fraction), self.reciprocal)

    @property
    def weighted_sum_bits(self) -> int:
        """Signed width of the sum of numerators times values."""
        numerator = self.softmax.exponential.maximum
        largest = self.context_length * numerator << (self.value.bits - 1)
        return bits_for(-largest, largest, True)

    def normalize(self, weighted: Integers, denominator: Integers) -> IntegerArray:
        """Divide weighted sums by their denominators, to the format of the context.

        Args:
            weighted: Sums of numerator times value (...), value's fraction.
            denominator: Sums of numerators, positive, broadcasting against `weighted`.
        """
        scale = self.reciprocal.compute(denominator)
        shift = scale.exponent + (self.value.fraction - self.output.fraction)
        return requantize(as_int64(weighted) * scale.mantissa, shift, self.output)

    def scores(self, query: IntegerArray, key: IntegerArray) -> IntegerArray:
        """Return products (..., H, N, L) of queries (..., N, C) and keys (..., L, K·d)."""
        limit = 1 << (self.query.bits - 1)
        keys = np.swapaxes(self._for_queries(key), -1, -2)  # (..., L, K·d) -> (..., H, d, L)
        # (..., H, N, d) @ (..., H, d, L) -> (..., H, N, L)
        products = exact_matmul(self._split(query), keys, limit, limit)
        return products.astype(np.int64)

    def empty_cache(self, *batch: int) -> AttentionCache:
        """Return the cache of sequences that have no token yet, for inputs (*batch, T, C)."""
        nothing = np.zeros((*batch, 0, self.kv_channels), dtype=np.int64)
        return AttentionCache(nothing, nothing)

    def extend(
        self, query: IntegerArray, key: IntegerArray, value: IntegerArray, cache: AttentionCache
    ) -> tuple[IntegerArray, AttentionCache]:
        """Run the next tokens of sequences whose earlier keys and values are cached.

        However a sequence is cut into parts, the results are those of `compute` on the whole: row i
        of every sum has the same terms.

        Args:
            query: Integers (..., N, C) of format `query`, N >= 1, L + N <= context_length.
            key: Integers (..., N, K·d) of format `key`.
            value: Integers (..., N, K·d) of format `value`.
            cache: Keys and values of the L tokens before, from `empty_cache` or an earlier call.

        Returns:
            Contexts, int64 (..., N, C) of format `output`, and the cache with L + N tokens.

        Raises:
            ValueError: No token, or more than the context holds.
        """
        new = query.shape[-2]
        length = cache.length + new
        if new < 1 or length > self.context_length:
            raise ValueError(
                f"attention sequences have 1 to {self.context_length} tokens, not {length if new else new}"
            )
        cache = cache.extended(key, value)
        # the last of the new tokens sees all: (N, L + N)
        causal = np.tri(new, length, length - new, dtype=bool)
        # (..., N, C), (..., L + N, K·d) -> (..., H, N, L + N)
        numerators = self.softmax.numerators(self.scores(query, cache.keys), causal)
        limit = 1 << (self.value.bits - 1)
        values = self._for_queries(cache.values)  # (..., L + N, K·d) -> (..., H, L + N, d)
        # (..., H, N, L + N) @ (..., H, L + N, d) -> (..., H, N, d)
        weighted = exact_matmul(numerators, values, self.softmax.exponential.maximum, limit)
        context = self.normalize(weighted, numerators.sum(axis=-1, keepdims=True))  # (..., H, N, d)
        return np.swapaxes(context, -2, -3).reshape(query.shape), cache  # -> (..., N, C)

    def compute(self, query: IntegerArray, key: IntegerArray, value: IntegerArray) -> IntegerArray:
        """Return the contexts, int64 (..., T, C), of whole sequences of T <= context_length."""
        return self.extend(query, key, value, self.empty_cache(*query.shape[:-2]))[0]

    def _split(self, x: IntegerArray) -> IntegerArray:
        """Split channels into heads."""
        # (..., T, heads·d) -> (..., T, heads, d) -> (..., heads, T, d)
        return np.swapaxes(x.reshape(*x.shape[:-1], -1, self.head_dim), -2, -3)

    def _for_queries(self, x: IntegerArray) -> IntegerArray:
        """Give each query head its key or value head: (..., L, K·d) -> (..., H, L, d)."""
        heads = self._split(x)  # (..., L, K·d) -> (..., K, L, d)
        group = self.num_heads // self.num_kv_heads
        return heads if group == 1 else np.repeat(heads, group, axis=-3)  # -> (..., H, L, d)


@dataclass(frozen=True, eq=False)
class Attention:
    """Causal multi-head self-attention with its four projections, as in the accelerator.

    Attributes:
        query: Projection (C, C) from the normalized input.
        key, value: Projections (K·d, C) from the normalized input.
        output: Projection (C, C) from the context to the residual format.
        num_heads, context_length, reciprocal: See `CausalAttention`.
        rotations: What turns queries and keys to their positions; None for none.
        core: The operator between the projections.
    """

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    num_heads: int
    context_length: int
    reciprocal: Reciprocal = field(default_factory=Reciprocal)
    rotations: tuple[Rotation, Rotation] | None = None
    core: CausalAttention = field(init=False)

    def __post_init__(self) -> None:
        channels, kv_channels = self.embed_dim, self.key.rows
        head_dim = max(1, channels // max(1, self.num_heads))
        for name, rows in (("query", channels), ("key", kv_channels), ("value", kv_channels), ("output", channels)):
            linear = getattr(self, name)
            if linear.weight.shape != (rows, channels) or kv_channels % head_dim:
                raise QuantizationError(f"attention {name} must be {rows} x {channels}, not {linear.weight.shape}")
        if not self.query.input == self.key.input == self.value.input:
            raise QuantizationError("attention's query, key and value projections must read one format")
        query, key = self.query.output, self.key.output
        if self.rotations is not None:
            for rotation, given in zip(self.rotations, (query, key), strict=True):
                if rotation.input != given:
                    raise QuantizationError(f"a rotation of {rotation.input} is given {given}")
            query, key = (rotation.output for rotation in self.rotations)
        widths = {query.bits, key.bits, self.value.output.bits, self.output.input.bits}
        if widths != {self.query.input.bits}:
            raise QuantizationError(
                f"attention's activations must all be {self.query.input.bits} bits wide, not {sorted(widths)}"
            )
        formats = query, key, self.value.output, self.output.input
        sizes = channels, self.num_heads, self.context_length
        core = CausalAttention(*formats, *sizes, self.reciprocal, kv_channels // head_dim)
        object.__setattr__(self, "core", core)

    @property
    def embed_dim(self) -> int:
        """Channels C."""
        return self.query.columns

    @property
    def head_dim(self) -> int:
        """Channels of a head d."""
        return self.core.head_dim

    @property
    def softmax(self) -> Softmax:
        """The softmax of one head's scores."""
        return self.core.softmax

    @property
    def context(self) -> QFormat:
        """Format of the normalized context, the input of the output projection."""
        return self.output.input

    @property
    def weighted_sum_bits(self) -> int:
        """Signed width of the sum of numerators times values."""
        return self.core.weighted_sum_bits

    def scores(self, x: Integers) -> IntegerArray:
        """Return every head's scores of all pairs of tokens, future ones included.

        Args:
            x: Integers (..., T, C) of the projections' input format.

        Returns:
            Integers (..., H, T, T) of format `softmax.score`, [i, j] of query i and key j.
        """
        return self.core.scores(*self._queries_and_keys(x))

    def _queries_and_keys(self, x: Integers) -> tuple[IntegerArray, IntegerArray]:
        """Return what the scores read of whole sequences (..., T, C)."""
        query, key = self.query.compute(x), self.key.compute(x)
        if self.rotations is None:
            return query, key
        return self.rotations[0].compute(query), self.rotations[1].compute(key)

    def compute(self, x: Integers) -> IntegerArray:
        """Run whole sequences.

        Args:
            x: Integers (..., T, C) of the projections' input format, T <= context_length.

        Returns:
            int64 (..., T, C) of format `output.output`, before the residual is added.

        Raises:
            ValueError: No token, or more than the context holds.
        """
        return self.output.compute(self.core.compute(*self._queries_and_keys(x), self.value.compute(x)))

    def compute_stream(self, x: Integers, restart: np.ndarray) -> IntegerArray:
        """Run a stream of tokens as the accelerator does, sequence after sequence.

        Args:
            x: Integers (N, C), one token a row.
            restart: Booleans (N,): the token starts a new sequence. The first token always does,
                and so does the one after `context_length` tokens of a sequence.

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
        for rotation in self.rotations or ():
            digest.update(repr((rotation.input, rotation.output)).encode())
            for array in (rotation.table.cosine, rotation.table.sine):
                digest.update(array.astype("<i8").tobytes())
        return digest.digest()
