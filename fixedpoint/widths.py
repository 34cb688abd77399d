r"""The true worst case of every accumulator, from the weights that a model has.

A type declares widths from shapes and formats: \(K\) products of 8 and 4 bits, whatever the weights
are. The weights themselves allow less. A row \(w\) with inputs from \(a\) to \(b\), \(a \le 0 \le
b\), reaches

\[ b \sum_{w_k > 0} w_k + a \sum_{w_k < 0} w_k + \mathrm{bias} \]

and no more, at the input that has \(b\) where the weight is positive and \(a\) where it is
negative. This pass works that out for every sum, product and difference of a model, and refuses
one that could leave the width that its type declares, or 32 bits where the type declares none.

Each operator is looked at alone, for every input that its format allows, as a circuit must bear it.
Inside an operator the ranges of what came before are used: the scores' range follows from the rows
of the query and key projections.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatch

import numpy as np

from .arithmetic import FLOAT32_EXACT, requantize
from .errors import QuantizationError
from .operators.attention import CausalAttention
from .operators.embedding import Embedding
from .operators.gumbel import INDEX_BITS
from .operators.layer_norm import LayerNorm
from .operators.linear import MAXIMUM_ACCUMULATOR_BITS, Linear
from .operators.operator import Operator, ResidualAdd
from .operators.product import Product
from .operators.rms_norm import RMSNorm
from .operators.rotation import Rotation
from .operators.sampling import MULTIPLIER_BITS
from .qformat import IntegerArray, bits_for
from .topology import TOKENS
from .transformer import QuantizedTransformer


@dataclass(frozen=True)
class AccumulatorWidth:
    """The range of one accumulator, over all of its rows, channels or heads.

    Attributes:
        name: The operator's name, as `QuantizedTransformer.forward` observes it, and the quantity
            in it.
        lowest: The smallest value.
        highest: The largest value.
        partial: The largest magnitude of any partial sum, whatever the order of the additions; of a
            product its own.
        declared: Width that the type declares.
        exact: Some input of the operator reaches `lowest` or `highest`; otherwise they are bounds
            that may not be met.
        signed: The declared width counts a sign.
    """

    name: str
    lowest: int
    highest: int
    partial: int
    declared: int
    exact: bool = True
    signed: bool = True

    @property
    def bits(self) -> int:
        """The width that the range needs."""
        return bits_for(self.lowest, self.highest, self.signed)

    @property
    def headroom(self) -> int:
        """Declared bits that are never used; negative means that the accumulator could overflow."""
        return self.declared - self.bits

    @property
    def float32_margin(self) -> int:
        """Bits from the largest partial sum to 2**24; float32 sums are exact from 0 on."""
        return (FLOAT32_EXACT - 1).bit_length() - self.partial.bit_length()


Interval = tuple[IntegerArray, IntegerArray]  # lowest and highest value, element by element


def _width(
    name: str, lowest: int, highest: int, declared: int, exact: bool = True, signed: bool = True
) -> AccumulatorWidth:
    """One value that is no sum of several, or whose largest partial sum is the sum itself."""
    return AccumulatorWidth(name, lowest, highest, max(abs(lowest), abs(highest)), declared, exact, signed)


def _corners(a: Interval, b: Interval) -> Interval:
    """The range of products of two ranges."""
    # four (R,) -> (4, R) -> (R,)
    products = np.stack([a[i] * b[j] for i in (0, 1) for j in (0, 1)])
    return products.min(axis=0), products.max(axis=0)


def linear_range(linear: Linear) -> Interval:
    """Return the smallest and largest accumulator of each row over all inputs, both int64 (R,)."""
    up, down = np.maximum(linear.weight, 0).sum(axis=1), np.minimum(linear.weight, 0).sum(axis=1)
    low, high = linear.input.minimum_integer, linear.input.maximum_integer
    return up * low + down * high + linear.bias, up * high + down * low + linear.bias


def _output_range(linear: Linear) -> Interval:
    """Return the smallest and largest output of each row (R,): requantization is monotone."""
    low, high = linear_range(linear)
    return requantize(low, linear.shift, linear.output), requantize(high, linear.shift, linear.output)


@singledispatch
def output_range(operator: Operator, *inputs: Interval) -> Interval:
    """Return an operator's smallest and largest output, by channel or (), for inputs' ranges."""
    return np.array(operator.output.minimum_integer), np.array(operator.output.maximum_integer)


@output_range.register
def _(operator: Linear, *inputs: Interval) -> Interval:
    return _output_range(operator)


@singledispatch
def operator_widths(operator: Operator, name: str, *inputs: Interval) -> Iterator[AccumulatorWidth]:
    """Yield the accumulators of an operator, if it has any.

    Args:
        operator: The operator.
        name: The tensor that it makes.
        inputs: Range of each tensor that it reads.
    """
    yield from ()


@operator_widths.register
def _linear_widths(operator: Linear, name: str, *inputs: Interval) -> Iterator[AccumulatorWidth]:
    yield _linear_width(name, operator)


def _linear_width(name: str, linear: Linear) -> AccumulatorWidth:
    low, high = linear_range(linear)
    # The bias may come first, last or between: what is reached with it and without it counts.
    partial = np.maximum(np.maximum(high, high - linear.bias), -np.minimum(low, low - linear.bias)).max()
    return AccumulatorWidth(name, int(low.min()), int(high.max()), int(partial), linear.accumulator_bits)


@operator_widths.register(LayerNorm)
@operator_widths.register(RMSNorm)
def _norm_widths(norm: LayerNorm | RMSNorm, name: str, *inputs: Interval) -> Iterator[AccumulatorWidth]:
    channels, low, high = norm.channels, norm.input.minimum_integer, norm.input.maximum_integer
    square = low * low
    yield _width(f"{name}.square_sum", 0, channels * square, norm.square_sum_bits, signed=False)
    scaled = channels * channels * square + norm.epsilon
    if isinstance(norm, LayerNorm):
        yield _width(f"{name}.sum", channels * low, channels * high, norm.sum_bits)
        yield _width(f"{name}.scaled_square_sum", norm.epsilon, scaled, norm.variance_bits, signed=False)
        # A convex function of the row: its maximum has every element at a rail, m of them at one:
        # m·(C − m)·(high − low)².
        variance = channels * channels // 4 * (high - low) ** 2 + norm.epsilon
        yield _width(f"{name}.variance", norm.epsilon, variance, norm.variance_bits, signed=False)
        largest, spread = (channels - 1) * (high - low), channels - 1
        difference = -largest, largest
    else:
        yield _width(f"{name}.variance", norm.epsilon, scaled, norm.variance_bits, signed=False)
        difference, spread = (channels * low, channels * high), channels
    yield _width(f"{name}.difference", *difference, norm.difference_bits)
    root = norm.reciprocal_square_root
    mantissa = int(root.table.max())
    yield _width(
        f"{name}.root_product",
        difference[0] * mantissa,
        difference[1] * mantissa,
        norm.difference_bits + root.mantissa_bits,
        exact=False,
    )
    reached = math.floor(math.ldexp(math.sqrt(spread) * root.largest_ratio, norm.normalized.fraction) + 0.5)
    normalized = (
        np.int64(max(-reached, norm.normalized.minimum_integer)),
        np.int64(min(reached, norm.normalized.maximum_integer)),
    )
    products = _corners((np.full(channels, normalized[0]), np.full(channels, normalized[1])), (norm.scale, norm.scale))
    partial = int(np.abs(products).max())
    if isinstance(norm, LayerNorm):
        products = products[0] + norm.shift, products[1] + norm.shift
    lowest, highest = int(products[0].min()), int(products[1].max())
    partial = max(partial, abs(lowest), abs(highest))
    yield AccumulatorWidth(f"{name}.product", lowest, highest, partial, norm.product_bits, exact=False)


@operator_widths.register
def _attention_widths(
    attention: CausalAttention, name: str, query: Interval, key: Interval, value: Interval
) -> Iterator[AccumulatorWidth]:
    name = name.removesuffix(".context")
    by_head = (attention.num_heads, attention.head_dim)
    group = attention.num_heads // attention.num_kv_heads

    def of_queries(ends: IntegerArray) -> IntegerArray:
        """Return the keys' ranges for the queries that read them, (H·d,)."""
        # (K·d,) -> (K, d) -> (H, d) -> (H·d,)
        by_kv_head = np.broadcast_to(ends, attention.kv_channels).reshape(-1, attention.head_dim)
        return np.repeat(by_kv_head, group, axis=0).reshape(-1)

    low, high = (np.broadcast_to(ends, attention.channels) for ends in query)
    products = _corners((low, high), (of_queries(key[0]), of_queries(key[1])))
    low, high = (ends.reshape(by_head) for ends in products)  # (H·d,) -> (H, d)
    partial = max(int(np.maximum(high, 0).sum(axis=1).max()), int(np.maximum(-low, 0).sum(axis=1).max()))
    yield AccumulatorWidth(
        f"{name}.scores", int(low.sum(axis=1).min()), int(high.sum(axis=1).max()), partial, attention.score.bits, False
    )
    softmax, length = attention.softmax, attention.context_length
    numerator = softmax.exponential.maximum
    yield _width(f"{name}.denominator", numerator, length * numerator, softmax.denominator_bits, signed=False)
    # The largest score has a full numerator, and equal tokens all have it: one to `length` full
    # numerators of the extreme value.
    ends = (int(value[0].min()), int(value[1].max()))
    reached = [count * numerator * end for count in (1, length) for end in ends]
    yield _width(f"{name}.weighted_sum", min(reached), max(reached), attention.weighted_sum_bits)
    mantissa = int(attention.reciprocal.table.max())
    yield _width(
        f"{name}.context_product",
        min(reached) * mantissa,
        max(reached) * mantissa,
        attention.weighted_sum_bits + attention.reciprocal.mantissa_bits,
        exact=False,
    )


@operator_widths.register
def _rotation_widths(rotation: Rotation, name: str, x: Interval) -> Iterator[AccumulatorWidth]:
    lowest, highest = int(x[0].min()), int(x[1].max())
    largest = max(-lowest, highest)
    # Both products of a sum reach their bound only where both channels of a pair do.
    factors = np.abs(rotation.table.cosine) + np.abs(rotation.table.sine)
    reached = largest * int(factors.max())
    yield AccumulatorWidth(f"{name}.sum", -reached, reached, reached, rotation.sum_bits, exact=False)


@operator_widths.register
def _product_widths(product: Product, name: str, first: Interval, second: Interval) -> Iterator[AccumulatorWidth]:
    low, high = _corners(first, second)
    yield _width(f"{name}.product", int(low.min()), int(high.max()), product.product_bits, exact=False)


@operator_widths.register
def _residual_widths(add: ResidualAdd, name: str, stream: Interval, update: Interval) -> Iterator[AccumulatorWidth]:
    residual, (low, high) = add.output, update  # the stream may hold whatever its format does
    lowest, highest = residual.minimum_integer + int(low.min()), residual.maximum_integer + int(high.max())
    yield _width(name, lowest, highest, residual.bits + 1)


def _embedding_width(embedding: Embedding, context_length: int) -> AccumulatorWidth:
    tokens = embedding.token.compute(np.arange(len(embedding.token.weight)), embedding.output)
    positions = np.zeros_like(tokens[:1])
    if embedding.position is not None:
        positions = embedding.position.compute(np.arange(context_length), embedding.output)
    lowest = int((tokens.min(axis=0) + positions.min(axis=0)).min())
    highest = int((tokens.max(axis=0) + positions.max(axis=0)).max())
    partial = max(abs(lowest), abs(highest), int(np.abs(tokens).max()), int(np.abs(positions).max()))
    return AccumulatorWidth("embedding", lowest, highest, partial, MAXIMUM_ACCUMULATOR_BITS)


def _widths(quantized: QuantizedTransformer) -> Iterator[AccumulatorWidth]:
    yield _embedding_width(quantized.embedding, quantized.context_length)
    ranges: dict[str, Interval] = {}
    for operation in quantized.operations:
        inputs = [ranges[name] for name in operation.inputs if name != TOKENS]
        yield from operator_widths(operation.operator, operation.name, *inputs)
        ranges[operation.name] = output_range(operation.operator, *inputs)
    low, high = _output_range(quantized.logits)
    largest, bits = (1 << MULTIPLIER_BITS) - 1, quantized.logits.output.bits
    lowest, highest = int(low.min()) * largest, int(high.max()) * largest
    yield _width("sampling.product", lowest, highest, bits + MULTIPLIER_BITS, exact=False)
    yield _width("sampling.index", 0, quantized.vocab_size - 1, INDEX_BITS, signed=False)


def accumulator_table(quantized: QuantizedTransformer) -> tuple[AccumulatorWidth, ...]:
    """Return the range and width of every accumulator of a model, in the order of the computation.

    Raises:
        QuantizationError: An accumulator could overflow; the message names each and the bits that
            it needs.
    """
    rows = tuple(_widths(quantized))
    overflowing = [f"{row.name} needs {row.bits} bits and has {row.declared}" for row in rows if row.headroom < 0]
    if overflowing:
        raise QuantizationError(f"accumulators could overflow: {'; '.join(overflowing)}")
    return rows
