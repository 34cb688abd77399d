"""Export of the float model to ONNX: tokens (batch, length) to logits (batch, length, V)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ..files import atomic_write
from ..rotary import rotation_table
from ..transformer import Transformer
from .onnx_format import GraphBuilder


def export_onnx(model: Transformer, path: str | Path) -> None:
    """Write a model as an ONNX file (opset 17): `tokens`, int64, to `logits`, float32."""
    content = _Exporter(model).build()
    with atomic_write(path, "wb") as file:
        file.write(content)


class _Exporter:
    """Builds the graph, part by part as `model.transformer` does."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.config, self.graph = model, model.config, GraphBuilder()

    def build(self) -> bytes:
        graph, config = self.graph, self.config
        shape = graph.add("Shape", "tokens")
        self.length = graph.add("Gather", shape, self._integers([1]), axis=0)  # (1,)
        x = graph.add("Gather", self._weight("token_embedding"), "tokens")
        if config.position != "rotary":
            x = graph.add("Add", x, self._first_rows(graph.constant("positions", self.model.position_table())))
        length = config.max_seq_len
        mask = graph.constant("mask", np.triu(np.full((length, length), -np.inf, np.float32), 1))
        self.mask = self._first_rows(self._first_rows(mask), axis=1)
        for index in range(config.num_layers):
            name = f"blocks.{index}"
            x = graph.add("Add", x, self._attention(f"{name}.attention", self._norm(f"{name}.attention_norm", x)))
            x = graph.add(
                "Add", x, self._feed_forward(f"{name}.feed_forward", self._norm(f"{name}.feed_forward_norm", x))
            )
        head = "token_embedding" if config.tie_embeddings else "output.weight"
        transposed = graph.constant("head", np.ascontiguousarray(self.model.parameters[head].T))
        graph.add("MatMul", self._norm("final_norm", x), transposed, output="logits")
        return graph.encode(
            "transformer", {"tokens": ["batch", "length"]}, {"logits": ["batch", "length", config.vocab_size]}
        )

    def _weight(self, name: str) -> str:
        return self.graph.constant(name, self.model.parameters[name])

    def _integers(self, values: list[int]) -> str:
        return self.graph.constant("integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def _number(self, value: float) -> str:
        return self.graph.constant(f"number_{value!r}", np.array(value, np.float32))

    def _first_rows(self, table: str, axis: int = 0) -> str:
        """Cut a table to the length of the tokens."""
        return self.graph.add("Slice", table, self._integers([0]), self.length, self._integers([axis]))

    def _linear(self, name: str, x: str) -> str:
        weight = self.graph.constant(
            f"{name}.transposed", np.ascontiguousarray(self.model.parameters[f"{name}.weight"].T)
        )
        y = self.graph.add("MatMul", x, weight)
        return self.graph.add("Add", y, self._weight(f"{name}.bias")) if self.config.use_bias else y

    def _norm(self, name: str, x: str) -> str:
        graph, epsilon = self.graph, self.config.norm_epsilon
        if self.config.norm == "layer":
            scale, shift = self._weight(f"{name}.scale"), self._weight(f"{name}.shift")
            return graph.add("LayerNormalization", x, scale, shift, axis=-1, epsilon=float(epsilon))
        mean_square = graph.add("ReduceMean", graph.add("Mul", x, x), axes=[-1], keepdims=1)
        root = graph.add("Sqrt", graph.add("Add", mean_square, self._number(epsilon)))
        return graph.add("Mul", graph.add("Div", x, root), self._weight(f"{name}.scale"))

    def _heads(self, x: str, heads: int) -> str:
        """Return (batch, heads, length, D) of (batch, length, heads·D)."""
        graph, config = self.graph, self.config
        x = graph.add("Reshape", x, self._integers([0, 0, heads, config.head_dim]))
        return graph.add("Transpose", x, perm=[0, 2, 1, 3])

    def _attention(self, name: str, x: str) -> str:
        graph, config = self.graph, self.config
        query = self._heads(self._linear(f"{name}.query", x), config.num_heads)
        key = self._heads(self._linear(f"{name}.key", x), config.kv_heads)
        value = self._heads(self._linear(f"{name}.value", x), config.kv_heads)
        if config.position == "rotary":
            query, key = self._rotate(query, config.num_heads), self._rotate(key, config.kv_heads)
        if config.kv_heads < config.num_heads:
            group = config.num_heads // config.kv_heads
            shared = self._integers([head // group for head in range(config.num_heads)])
            key, value = graph.add("Gather", key, shared, axis=1), graph.add("Gather", value, shared, axis=1)
        scores = graph.add("MatMul", query, graph.add("Transpose", key, perm=[0, 1, 3, 2]))
        scores = graph.add("Mul", scores, self._number(config.head_dim**-0.5))
        weights = graph.add("Softmax", graph.add("Add", scores, self.mask), axis=-1)
        context = graph.add("Transpose", graph.add("MatMul", weights, value), perm=[0, 2, 1, 3])
        return self._linear(f"{name}.output", graph.add("Reshape", context, self._integers([0, 0, config.embed_dim])))

    def _rotate(self, x: str, heads: int) -> str:
        """Rotate pairs of channels of x (batch, heads, length, D)."""
        graph, config = self.graph, self.config
        table = rotation_table(config.max_seq_len, config.head_dim, config.rotary_base, np.dtype(np.float32))
        cosine = self._first_rows(graph.constant("cosines", np.ascontiguousarray(table.real)))
        sine = self._first_rows(graph.constant("sines", np.ascontiguousarray(table.imag)))
        pairs = graph.add("Reshape", x, self._integers([0, heads, -1, config.head_dim // 2, 2]))
        real = graph.add("Gather", pairs, graph.constant("zero", np.array(0)), axis=-1)
        imaginary = graph.add("Gather", pairs, graph.constant("one", np.array(1)), axis=-1)
        rotated = (
            graph.add("Sub", graph.add("Mul", real, cosine), graph.add("Mul", imaginary, sine)),
            graph.add("Add", graph.add("Mul", real, sine), graph.add("Mul", imaginary, cosine)),
        )
        last = self._integers([-1])
        joined = graph.add("Concat", *(graph.add("Unsqueeze", part, last) for part in rotated), axis=-1)
        return graph.add("Reshape", joined, self._integers([0, heads, -1, config.head_dim]))

    def _feed_forward(self, name: str, x: str) -> str:
        up = self._linear(f"{name}.up", x)
        if self.config.activation == "swiglu":
            hidden = self.graph.add("Mul", self._activation(self._linear(f"{name}.gate", x)), up)
        else:
            hidden = self._activation(up)
        return self._linear(f"{name}.down", hidden)

    def _activation(self, x: str) -> str:
        graph = self.graph
        if self.config.activation.startswith("relu"):
            positive = graph.add("Relu", x)
            return graph.add("Mul", positive, positive) if self.config.activation == "relu_squared" else positive
        if self.config.activation in ("silu", "swiglu"):
            return graph.add("Mul", x, graph.add("Sigmoid", x))
        if self.config.activation == "gelu":
            inner = graph.add("Erf", graph.add("Mul", x, self._number(math.sqrt(0.5))))
        else:
            cube = graph.add("Mul", graph.add("Mul", x, x), x)
            inner = graph.add("Add", x, graph.add("Mul", cube, self._number(0.044715)))
            inner = graph.add("Tanh", graph.add("Mul", inner, self._number(math.sqrt(2 / math.pi))))
        return graph.add("Mul", graph.add("Mul", x, self._number(0.5)), graph.add("Add", inner, self._number(1.0)))
