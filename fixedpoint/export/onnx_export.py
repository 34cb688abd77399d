r"""Export of the integer model to ONNX, equal to the specification bit for bit.

The graph maps tokens (batch, length) to logits (batch, length, V). Its tensors carry real values,
all multiples of their format's resolution, as in any quantized network:

- a linear layer is `DequantizeLinear` of int8 weights with one power-of-two scale a row, `MatMul`
  and `Add`, and a cast to the output's format;
- a cast is `Floor(x · 2**f + 1/2)`, `Clip`, and back to real values. `QuantizeLinear` is not it:
  that rounds half to even, the specification half up;
- norms, softmax and reciprocals do their whole-number steps in the same way, with the
  specification's tables.

All of it is float64, in which every sum of these integers is exact, in any order. Float32 would
nearly always do as well, but a runtime may replace a dequantized float32 product by one that rounds
its activations once more (onnxruntime's MatMulNBits does, unasked), and none does that to float64.
"""

from __future__ import annotations

import math
from functools import singledispatch
from pathlib import Path

import numpy as np

from model.files import atomic_write
from model.formats.onnx_format import DOUBLE, FLOAT, INT64, Dimension, GraphBuilder

from ..arithmetic import FLOAT64_EXACT
from ..errors import QuantizationError
from ..operators.activation import TableActivation
from ..operators.attention import CausalAttention
from ..operators.embedding import Embedding, EmbeddingTable
from ..operators.layer_norm import LayerNorm
from ..operators.linear import Linear
from ..operators.operator import Operator, ResidualAdd
from ..operators.product import Product
from ..operators.reciprocal import Reciprocal, ReciprocalSquareRoot
from ..operators.rotation import FACTOR, Rotation
from ..operators.row_norm import RowNorm
from ..qformat import IntegerArray, QFormat
from ..topology import LOGITS, TOKENS
from ..transformer import Norm, QuantizedTransformer

# scales are float32, which holds 8 bits times a power of two well beyond that
LARGEST_EXPONENT = 100
# added to scores of the future; their exponentials are then 0, and float64 still holds the sum
BEYOND_ALL_SCORES = -(2.0**50)


def export_onnx(quantized: QuantizedTransformer, path: str | Path) -> None:
    """Write a model as an ONNX file (opset 17), whole or not at all.

    Input `tokens`, int64; output `logits`, float32, multiples of `2**-fraction`.

    Raises:
        QuantizationError: A layer has numbers that the graph's floats do not hold exactly.
    """
    content = _Exporter(quantized).build()
    with atomic_write(path, "wb") as file:
        file.write(content)


class _Exporter:
    """Builds the graph in the order of `QuantizedTransformer.forward`."""

    def __init__(self, quantized: QuantizedTransformer) -> None:
        self.quantized, self.graph = quantized, GraphBuilder()
        self.residual = quantized.residual

    def build(self) -> bytes:
        graph, quantized = self.graph, self.quantized
        shape = graph.add("Shape", "tokens")
        self.length = graph.add("Gather", shape, self._integers([1]), axis=0)  # (1,)
        future = np.triu(np.full((quantized.context_length,) * 2, BEYOND_ALL_SCORES), 1)
        self.mask = self._first_rows(self._first_rows(graph.constant("future", future)), axis=1)
        tensors = {TOKENS: "tokens"}
        for operation in quantized.operations:
            inputs = [tensors[name] for name in operation.inputs]
            tensors[operation.name] = onnx_nodes(operation.operator, self, operation.name, *inputs)
        graph.add("Cast", tensors[LOGITS.name], to=FLOAT, output="logits")
        outputs: dict[str, list[Dimension]] = {"logits": ["batch", "length", quantized.vocab_size]}
        return graph.encode("quantized_transformer", {"tokens": ["batch", "length"]}, outputs)

    # Constants

    def _integers(self, values: list[int]) -> str:
        return self.graph.constant("integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def _number(self, value: float) -> str:
        return self.graph.constant(f"number_{float(value)!r}", np.array(float(value)))

    def _powers(self, name: str, exponents: IntegerArray) -> str:
        return self.graph.constant(name, np.ldexp(1.0, exponents))

    # Real values and integers

    def _scaled(self, x: str, exponent: int) -> str:
        """Return x · 2**exponent."""
        return self.graph.add("Mul", x, self._number(math.ldexp(1.0, exponent))) if exponent else x

    def _index(self, x: str) -> str:
        return self.graph.add("Cast", x, to=INT64)

    def _half_up(self, x: str) -> str:
        return self.graph.add("Floor", self.graph.add("Add", x, self._number(0.5)))

    def _clip(self, integers: str, target: QFormat) -> str:
        return self.graph.add(
            "Clip", integers, self._number(target.minimum_integer), self._number(target.maximum_integer)
        )

    def _saturated(self, integers: str, target: QFormat) -> str:
        """Return the real values of integers that saturate to `target`."""
        return self._scaled(self._clip(integers, target), -target.fraction)

    # Layers

    def _first_rows(self, table: str, axis: int = 0) -> str:
        """Cut a table to the length of the tokens."""
        return self.graph.add("Slice", table, self._integers([0]), self.length, self._integers([axis]))

    def _dequantized(self, name: str, weight: IntegerArray, fraction: IntegerArray, axis: int) -> str:
        if fraction.min() < -LARGEST_EXPONENT or fraction.max() > LARGEST_EXPONENT:
            raise QuantizationError(
                f"{name} has rows with fractions of {fraction.min()} to {fraction.max()}; ONNX's scales allow ±{LARGEST_EXPONENT}"
            )
        scale = self.graph.constant(f"{name}.weight_scale", np.ldexp(np.float32(1), -fraction).astype(np.float32))
        stored = self.graph.constant(f"{name}.weight", np.ascontiguousarray(weight, dtype=np.int8))
        return self.graph.add("Cast", self.graph.add("DequantizeLinear", stored, scale, axis=axis), to=DOUBLE)

    def _table(self, name: str, table: EmbeddingTable) -> str:
        """Return an embedding's rows in whole units of the residual stream."""
        rows = self._dequantized(name, table.weight, table.weight_fraction, axis=0)
        return self._half_up(self._scaled(rows, self.residual.fraction))

    def embedding(self, name: str, layer: Embedding, tokens: str) -> str:
        """Add an embedding."""
        token = self.graph.add("Gather", self._table(f"{name}.token", layer.token), tokens)
        if layer.position is not None:
            position = self._first_rows(self._table(f"{name}.position", layer.position))
            token = self.graph.add("Add", token, position)
        return self._saturated(token, layer.output)

    def linear(self, name: str, layer: Linear, x: str) -> str:
        """Add a linear layer."""
        # A sum has at most 32 bits and is shifted left by at most 28; where half a unit could then
        # be lost, the result saturates anyway.
        weight = self._dequantized(name, layer.weight.T, layer.weight_fraction, axis=1)
        bias = np.ldexp(layer.bias.astype(np.float64), -layer.weight_fraction - layer.input.fraction)
        y = self.graph.add("Add", self.graph.add("MatMul", x, weight), self.graph.constant(f"{name}.bias", bias))
        return self._saturated(self._half_up(self._scaled(y, layer.output.fraction)), layer.output)

    def residual_add(self, name: str, layer: ResidualAdd, x: str, y: str) -> str:
        """Add a saturating addition of two numbers in the stream's format."""
        residual = layer.output
        total = self.graph.add("Add", x, y)
        return self.graph.add("Clip", total, self._number(residual.minimum), self._number(residual.maximum))

    def activation(self, name: str, function: TableActivation, x: str) -> str:
        """Add a table."""
        whole = self._scaled(x, function.input.fraction)
        index = self._index(self.graph.add("Sub", whole, self._number(function.input.minimum_integer)))
        table = self.graph.constant(f"{name}.table", function.output.dequantize(function.table))
        return self.graph.add("Gather", table, index)

    def _floor_log2(self, x: str, bits: int) -> str:
        """Return floor(log2 x), int64 (..., 1), of x (..., 1) >= 1: the powers it reaches."""
        reached = self.graph.add("GreaterOrEqual", x, self._powers(f"powers_{bits}", np.arange(1, bits)))
        return self.graph.add("ReduceSum", self._index(reached), self._integers([-1]), keepdims=1)

    def _entry(self, function: Reciprocal | ReciprocalSquareRoot, x: str, position: str, bits: int) -> str:
        """Return x's table entry; `position` is its leading one's, for a root the even below."""
        graph, root = self.graph, isinstance(function, ReciprocalSquareRoot)
        kept = function.index_bits - 2 if root else function.index_bits
        shifts = graph.add("Gather", self._powers(f"shifts_{kept}_{bits}", kept - np.arange(bits)), position)
        leading = graph.add("Floor", graph.add("Mul", x, shifts))
        index = self._index(graph.add("Sub", leading, self._number(1 << kept)))
        table = f"{'root' if root else 'reciprocal'}_{function.index_bits}_{function.mantissa_bits}"
        return graph.add("Gather", graph.constant(table, function.table.astype(np.float64)), index)

    def norm(self, name: str, layer: Norm, x: str) -> str:
        """Add a norm."""
        graph, function, bits = self.graph, layer.reciprocal_square_root, layer.variance_bits
        # the differences times a mantissa come next, with 47 bits at most
        if 1 << bits > FLOAT64_EXACT:
            raise QuantizationError(f"{name} has a variance of {bits} bits; float64 holds 53 exactly")
        whole, axis = self._scaled(x, layer.input.fraction), self._integers([-1])
        squares = graph.add("ReduceSum", graph.add("Mul", whole, whole), axis, keepdims=1)
        difference = graph.add("Mul", whole, self._number(layer.channels))
        variance = graph.add("Mul", squares, self._number(layer.channels))
        if isinstance(layer, LayerNorm):
            total = graph.add("ReduceSum", whole, axis, keepdims=1)
            difference = graph.add("Sub", difference, total)
            variance = graph.add("Sub", variance, graph.add("Mul", total, total))
        variance = graph.add("Add", variance, self._number(layer.epsilon))
        # of int64: rounds down
        half = graph.add("Div", self._floor_log2(variance, bits), self._integers([2]))
        mantissa = self._entry(function, variance, graph.add("Mul", half, self._integers([2])), bits)
        fraction = layer.normalized.fraction - function.mantissa_bits
        scale = graph.add("Gather", self._powers(f"scales_{fraction}_{bits}", fraction - np.arange(bits)), half)
        normalized = self._half_up(graph.add("Mul", graph.add("Mul", difference, mantissa), scale))
        gamma = graph.constant(f"{name}.scale", layer.scale.astype(np.float64))
        product = graph.add("Mul", self._clip(normalized, layer.normalized), gamma)
        if isinstance(layer, LayerNorm):
            product = graph.add("Add", product, graph.constant(f"{name}.shift", layer.shift.astype(np.float64)))
        return self._saturated(self._half_up(self._scaled(product, -layer.output_shift)), layer.output)

    def attention(self, name: str, layer: CausalAttention, query: str, key: str, value: str) -> str:
        """Add attention between its projections."""
        graph, function, bits = self.graph, layer.reciprocal, layer.softmax.denominator_bits
        if 1 << (layer.weighted_sum_bits + function.mantissa_bits) > FLOAT64_EXACT:
            raise QuantizationError(f"{name} has weighted sums of {layer.weighted_sum_bits} bits, too wide for float64")
        query = self._heads(query, layer, layer.num_heads, layer.query)
        key, value = (
            self._for_queries(self._heads(tensor, layer, layer.num_kv_heads, source), layer)
            for tensor, source in ((key, layer.key), (value, layer.value))
        )
        scores = graph.add("MatMul", query, graph.add("Transpose", key, perm=[0, 1, 3, 2]))
        scores = graph.add("Add", scores, self.mask)
        largest = graph.add("ReduceMax", scores, axes=[-1], keepdims=1)
        numerators = self._exponential(layer, graph.add("Sub", largest, scores))
        denominator = graph.add("ReduceSum", numerators, self._integers([-1]), keepdims=1)
        position = self._floor_log2(denominator, bits)
        mantissa = self._entry(function, denominator, position, bits)
        fraction = layer.output.fraction - layer.value.fraction - function.mantissa_bits
        scale = graph.add("Gather", self._powers(f"scales_{fraction}_{bits}", fraction - np.arange(bits)), position)
        weighted = graph.add("Mul", graph.add("MatMul", numerators, value), mantissa)
        context = self._saturated(self._half_up(graph.add("Mul", weighted, scale)), layer.output)
        merged = graph.add("Transpose", context, perm=[0, 2, 1, 3])
        return graph.add("Reshape", merged, self._integers([0, 0, layer.channels]))

    def rotation(self, name: str, layer: Rotation, x: str) -> str:
        """Add rotary positions."""
        graph, pairs = self.graph, layer.table.head_dim // 2
        split = graph.add("Reshape", x, self._integers([0, 0, -1, pairs, 2]))
        even, odd = (graph.add("Gather", split, self._integers([part]), axis=4) for part in (0, 1))
        cosine, sine = (
            self._first_rows(self._factors(part, values))
            for part, values in (("cosine", layer.table.cosine), ("sine", layer.table.sine))
        )

        def sum_of(operation: str, first: str, second: str) -> str:
            return graph.add(operation, graph.add("Mul", even, first), graph.add("Mul", odd, second))

        turned = graph.add("Concat", sum_of("Sub", cosine, sine), sum_of("Add", sine, cosine), axis=4)
        rounded = self._saturated(self._half_up(self._scaled(turned, layer.output.fraction)), layer.output)
        return graph.add("Reshape", rounded, graph.add("Shape", x))

    def _factors(self, part: str, values: IntegerArray) -> str:
        """Return cosines or sines (T, 1, d / 2, 1), which hold for all heads."""
        # (T, d / 2) -> (T, 1, d / 2, 1)
        exact = np.ldexp(values.astype(np.float64), -FACTOR.fraction)[:, None, :, None]
        return self.graph.constant(f"rotation.{part}", exact)

    def product(self, name: str, layer: Product, first: str, second: str) -> str:
        """Add the product of two tensors."""
        exact = self.graph.add("Mul", first, second)
        return self._saturated(self._half_up(self._scaled(exact, layer.output.fraction)), layer.output)

    def _for_queries(self, x: str, layer: CausalAttention) -> str:
        """Return each query head's key or value head (batch, heads, length, head size)."""
        if layer.num_kv_heads == layer.num_heads:
            return x
        shared = np.arange(layer.num_heads) // (layer.num_heads // layer.num_kv_heads)
        return self.graph.add("Gather", x, self._integers(shared.tolist()), axis=1)

    def _heads(self, x: str, layer: CausalAttention, num_heads: int, source: QFormat) -> str:
        """Return integers by head of real values."""
        # (batch, length, channels) -> (batch, heads, length, head size)
        split = self.graph.add("Reshape", x, self._integers([0, 0, num_heads, layer.head_dim]))
        return self._scaled(self.graph.add("Transpose", split, perm=[0, 2, 1, 3]), source.fraction)

    def _exponential(self, layer: CausalAttention, distance: str) -> str:
        """2**-distance by table and shift, as `Exponential.compute`."""
        graph, function = self.graph, layer.softmax.exponential
        zero_from = function.output_bits + 1
        nearest = graph.add("Min", distance, self._number(math.ldexp(zero_from, max(function.fraction, 0))))
        index = self._half_up(self._scaled(nearest, -function.shift))
        whole = graph.add("Floor", self._scaled(index, -function.table_bits))
        part = self._index(graph.add("Sub", index, self._scaled(whole, function.table_bits)))
        table = f"exponential_{function.table_bits}_{function.output_bits}"
        entry = graph.add("Gather", graph.constant(table, function.table.astype(np.float64)), part)
        places = self._index(graph.add("Min", whole, self._number(zero_from)))
        shifts = self._powers(f"exponential_shifts_{zero_from}", -np.arange(zero_from + 1))
        return self._half_up(graph.add("Mul", entry, graph.add("Gather", shifts, places)))


@singledispatch
def onnx_nodes(operator: Operator, exporter: _Exporter, name: str, *inputs: str) -> str:
    """Add an operator's nodes to the graph and return the name of its result.

    Args:
        operator: The operator.
        exporter: Holds the graph, and what several operators need.
        name: The tensor that it makes.
        inputs: The graph's names of the tensors that it reads: real values (batch, length,
            channels), or tokens.
    """
    raise QuantizationError(f"{name}: there is no ONNX form of {type(operator).__name__}")


onnx_nodes.register(Embedding, lambda operator, exporter, name, x: exporter.embedding(name, operator, x))
onnx_nodes.register(Linear, lambda operator, exporter, name, x: exporter.linear(name, operator, x))
onnx_nodes.register(RowNorm, lambda operator, exporter, name, x: exporter.norm(name, operator, x))
onnx_nodes.register(TableActivation, lambda operator, exporter, name, x: exporter.activation(name, operator, x))
onnx_nodes.register(Rotation, lambda operator, exporter, name, x: exporter.rotation(name, operator, x))
onnx_nodes.register(Product, lambda operator, exporter, name, *inputs: exporter.product(name, operator, *inputs))
onnx_nodes.register(
    ResidualAdd, lambda operator, exporter, name, *inputs: exporter.residual_add(name, operator, *inputs)
)
onnx_nodes.register(
    CausalAttention, lambda operator, exporter, name, *inputs: exporter.attention(name, operator, *inputs)
)
