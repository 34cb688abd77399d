"""A quantized model as constants of C: the header that the program in `fixedpoint/native` is compiled with.

The types of the constants are declared in `fixedpoint/native/transformer.c`. The header says what the model is, formats and tables, and leaves
all arithmetic, every shift too, to the program.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .arithmetic import Integers
from .embedding import EmbeddingTable
from .errors import QuantizationError
from .exponential import Exponential
from .layer_norm import LayerNorm
from .linear import Linear
from .qformat import QFormat
from .reciprocal import Reciprocal, ReciprocalSquareRoot
from .sampling import EXPONENTIAL
from .transformer import Block, Norm, QuantizedTransformer

LARGEST_ACTIVATION_BITS = 16
LARGEST_SUM_BITS = 32  # as the accumulators of linear layers
NUMBERS_PER_LINE = 32  # of vectors; a matrix has a row a line


def c_header(quantized: QuantizedTransformer) -> str:
    """Return the text of `model.h`: plain integers, ASCII, the same text for the same model.

    Raises:
        QuantizationError: An activation is wider than the program's 16 bits, or an attention's sum than its 32.
    """
    return _Header().build(quantized)


class _Header:
    """Writes arrays in the order in which they are met, and every table of functions once."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.written: set[str] = set()

    def build(self, quantized: QuantizedTransformer) -> str:
        blocks = quantized.blocks
        for index, block in enumerate(blocks):
            widest = max(block.up.input.bits, block.up.output.bits, block.activation.output.bits)
            if widest > LARGEST_ACTIVATION_BITS:
                raise QuantizationError(
                    f"block {index} has activations of {widest} bits; the C program takes {LARGEST_ACTIVATION_BITS}"
                )
            if block.attention.weighted_sum_bits > LARGEST_SUM_BITS:
                raise QuantizationError(
                    f"block {index} sums weighted values in {block.attention.weighted_sum_bits} bits; the C program takes {LARGEST_SUM_BITS}"
                )
        sizes = {
            "LAYERS": len(blocks),
            "HEADS": blocks[0].attention.num_heads,
            "CHANNELS": quantized.final_norm.channels,
            "HIDDEN": max(block.up.rows for block in blocks),
            "CONTEXT": quantized.context_length,
            "VOCABULARY": quantized.vocab_size,
        }
        self.parts.append(
            "/* A quantized transformer, written by Positron. Included by transformer.c, which declares the types. */"
        )
        self.parts.append(f"enum {{ {', '.join(f'{name} = {value}' for name, value in sizes.items())} }};")
        self.parts.append(f"static const format residual = {_format(quantized.residual)};")
        self._exponential("attention_exponential", blocks[0].attention.softmax.exponential)
        self._exponential("sampling_exponential", EXPONENTIAL)
        for name in ("token", "position"):
            self._embedding(f"{name}_embedding", getattr(quantized.embedding, name))
        members = [self._block(f"block_{index}", block) for index, block in enumerate(blocks)]
        self.parts.append(f"static const block blocks[LAYERS] = {_braces(members)};")
        self.parts.append(f"static const norm final_norm = {self._norm('final_norm', quantized.final_norm)};")
        self.parts.append(f"static const linear logits = {self._linear('logits', quantized.logits)};")
        return "\n".join(self.parts) + "\n"

    def _array(self, name: str, kind: str, values: Integers) -> str:
        if name not in self.written:
            self.written.add(name)
            rows = (
                values if values.ndim == 2 else np.split(values, range(NUMBERS_PER_LINE, len(values), NUMBERS_PER_LINE))
            )
            lines = ",\n".join(",".join(map(str, row.tolist())) for row in rows)
            self.parts.append(f"static const {kind} {name}[{values.size}] = {{\n{lines}}};")
        return name

    def _exponential(self, name: str, function: Exponential) -> None:
        entries = self._array(f"{name}_entries", "int32_t", function.table)
        self.parts.append(
            f"static const exponential_table {name} = {{{function.table_bits}, {function.output_bits}, {entries}}};"
        )

    def _reciprocal(self, function: Reciprocal | ReciprocalSquareRoot) -> str:
        kind = "reciprocal" if isinstance(function, Reciprocal) else "reciprocal_square_root"
        name = f"{kind}_{function.index_bits}_{function.mantissa_bits}"
        return f"{{{function.index_bits}, {function.mantissa_bits}, {self._array(name, 'int32_t', function.table)}}}"

    def _embedding(self, name: str, table: EmbeddingTable) -> None:
        weight = self._array(f"{name}_weight", "int8_t", table.weight)
        fraction = self._array(f"{name}_fraction", "int8_t", table.weight_fraction)
        self.parts.append(f"static const embedding_table {name} = {{{weight}, {fraction}}};")

    def _linear(self, name: str, layer: Linear) -> str:
        return _braces(
            [
                _format(layer.input),
                _format(layer.output),
                str(layer.rows),
                str(layer.columns),
                self._array(f"{name}_weight", "int8_t", layer.weight),
                self._array(f"{name}_fraction", "int8_t", layer.weight_fraction),
                self._array(f"{name}_bias", "int32_t", layer.bias),
            ]
        )

    def _norm(self, name: str, layer: Norm) -> str:
        centered = isinstance(layer, LayerNorm)
        return _braces(
            [
                str(int(centered)),
                *(_format(item) for item in (layer.input, layer.normalized, layer.scale_format, layer.output)),
                f"INT64_C({layer.epsilon})",
                self._reciprocal(layer.reciprocal_square_root),
                self._array(f"{name}_scale", "int16_t", layer.scale),
                self._array(f"{name}_shift", "int64_t", layer.shift) if isinstance(layer, LayerNorm) else "NULL",
            ]
        )

    def _block(self, name: str, block: Block) -> str:
        attention = block.attention
        return _braces(
            [
                self._norm(f"{name}_attention_norm", block.attention_norm),
                *(
                    self._linear(f"{name}_{part}", getattr(attention, part))
                    for part in ("query", "key", "value", "output")
                ),
                self._reciprocal(attention.reciprocal),
                self._norm(f"{name}_feed_forward_norm", block.feed_forward_norm),
                self._linear(f"{name}_up", block.up),
                self._array(f"{name}_activation", "int16_t", block.activation.table),
                self._linear(f"{name}_down", block.down),
            ]
        )


def _format(item: QFormat) -> str:
    return f"{{{item.bits}, {item.fraction}}}"


def _braces(members: Iterable[str]) -> str:
    return "{" + ",\n ".join(members) + "}"
