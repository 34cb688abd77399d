"""A quantized model as constants of C: the header `model.h` of the C program.

The types of the constants are declared in `fixedpoint/export/native/transformer.c`. The header says
what the model is, formats and tables, and leaves all arithmetic, every shift too, to the program.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import singledispatch

import numpy as np

from ..arithmetic import Integers
from ..errors import QuantizationError
from ..operators.activation import TableActivation
from ..operators.attention import CausalAttention
from ..operators.embedding import EmbeddingTable
from ..operators.exponential import Exponential
from ..operators.gumbel import noise_table
from ..operators.layer_norm import LayerNorm
from ..operators.linear import Linear
from ..operators.operator import Operator, ResidualAdd
from ..operators.product import Product
from ..operators.reciprocal import Reciprocal, ReciprocalSquareRoot
from ..operators.rms_norm import RMSNorm
from ..operators.rotation import Rotation
from ..qformat import QFormat
from ..topology import EMBEDDING, LOGITS
from ..transformer import Norm, Operation, QuantizedTransformer

LARGEST_ACTIVATION_BITS = 16
LARGEST_SUM_BITS = 32  # as the accumulators of linear layers
VECTOR = 16  # numbers that a vector instruction takes at once; rows of weights are whole vectors
NUMBERS_PER_LINE = 32  # of vectors; a matrix has a row a line


def c_header(quantized: QuantizedTransformer) -> str:
    """Return the text of `model.h`: plain integers, ASCII, the same text for the same model.

    Raises:
        QuantizationError: An activation is wider than the program's 16 bits, or an attention's sum
            than its 32.
    """
    return Header().build(quantized)


class Header:
    """Writes arrays in the order in which they are met, and every table of functions once."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.written: set[str] = set()
        self.caches = 0

    def build(self, quantized: QuantizedTransformer) -> str:
        """Return the text."""
        for operation in quantized.operations:
            _check_widths(operation)
        body = [step for step in quantized.operations if step.step not in (EMBEDDING, LOGITS)]
        place, count = _places(body)
        sizes = {
            "LAYERS": len(quantized.blocks),
            "HEADS": quantized.blocks[0].attention.num_heads,
            "KV_HEADS": quantized.blocks[0].attention.core.num_kv_heads,
            "CHANNELS": quantized.final_norm.channels,
            "WIDEST": _padded(max(operation.channels for operation in quantized.operations)),
            "CONTEXT": quantized.context_length,
            "VOCABULARY": quantized.vocab_size,
            "TENSORS": count,
            "OPERATIONS": len(body),
            "VECTOR": VECTOR,
            "ATTENTION_TABLE_BITS": quantized.blocks[0].attention.softmax.exponential.table_bits,
            "ATTENTION_OUTPUT_BITS": quantized.blocks[0].attention.softmax.exponential.output_bits,
        }
        self.parts.append(
            "/* A quantized transformer, written by Positron. Included by transformer.c, which declares the types. */"
        )
        kinds = {type(operation.operator) for operation in body}
        for kind, name in ((Rotation, "rotation"), (Product, "product")):
            if kind in kinds:  # the compiler would warn of a function without a caller
                self.parts += [f"#define USES_{name.upper()}", f"static function apply_{name};"]
        self.parts.append(f"enum {{ {', '.join(f'{name} = {value}' for name, value in sizes.items())} }};")
        layers = (operation.operator for operation in quantized.operations)
        shapes = sorted({_shape(layer) for layer in layers if isinstance(layer, Linear)})
        self.parts.append(f"#define LINEAR_SHAPES(define) {' '.join(f'define{shape}' for shape in shapes)}")
        self.parts.append(f"static function {', '.join(_linear_function(shape) for shape in shapes)};")
        self.parts.append(f"static const format residual = {_format(quantized.residual)};")
        self.parts.append("static int16_t tensors[TENSORS][WIDEST];")
        self.exponential("attention_exponential", quantized.blocks[0].attention.softmax.exponential)
        self.array("noise_table", "int32_t", noise_table())
        self.embedding("token_embedding", quantized.embedding.token)
        self.embedding("position_embedding", quantized.embedding.position)
        rows = []
        for operation in body:
            name = operation.name.replace(".", "_")
            function, parameters = c_operation(operation.operator, self, name, operation.channels)
            inputs = _braces([f"tensors[{place[tensor]}]" for tensor in operation.inputs], " ")
            rows.append(_braces([function, parameters, inputs, f"tensors[{place[operation.name]}]"], " "))
        self.parts.append(f"static const operation operations[OPERATIONS] = {_braces(rows)};")
        self.parts.append(f"static const linear logits = {self.linear('logits', quantized.logits)};")
        self.parts.append(f"static function *const apply_logits = {_linear_function(_shape(quantized.logits))};")
        self.parts.append(f"static int16_t *const embedded = tensors[{place[EMBEDDING.name]}];")
        self.parts.append(f"static const int16_t *const last = tensors[{place[body[-1].name]}];")
        return "\n".join(self.parts) + "\n"

    def define(self, kind: str, name: str, value: str) -> str:
        """Write a constant and return its address."""
        self.parts.append(f"static const {kind} {name} = {value};")
        return f"&{name}"

    def array(self, name: str, kind: str, values: Integers) -> str:
        """Write an array, once, and return its name."""
        if name not in self.written:
            self.written.add(name)
            rows = (
                values if values.ndim == 2 else np.split(values, range(NUMBERS_PER_LINE, len(values), NUMBERS_PER_LINE))
            )
            lines = ",\n".join(",".join(map(str, row.tolist())) for row in rows)
            self.parts.append(f"static const {kind} {name}[{values.size}] = {{\n{lines}}};")
        return name

    def exponential(self, name: str, function: Exponential) -> None:
        """Write the table of an exponential."""
        entries = self.array(f"{name}_entries", "int32_t", function.table)
        self.parts.append(
            f"static const exponential_table {name} = {{{function.table_bits}, {function.output_bits}, {entries}}};"
        )

    def reciprocal(self, function: Reciprocal | ReciprocalSquareRoot) -> str:
        """Write the table of a reciprocal and return the value that has it."""
        kind = "reciprocal" if isinstance(function, Reciprocal) else "reciprocal_square_root"
        name = f"{kind}_{function.index_bits}_{function.mantissa_bits}"
        return f"{{{function.index_bits}, {function.mantissa_bits}, {self.array(name, 'int32_t', function.table)}}}"

    def embedding(self, name: str, table: EmbeddingTable | None) -> None:
        """Write an embedding table; without one, its place says so."""
        if table is None:
            self.parts.append(f"static const embedding_table {name} = {{NULL, NULL}};")
            return
        weight = self.array(f"{name}_weight", "int8_t", table.weight)
        fraction = self.array(f"{name}_fraction", "int8_t", table.weight_fraction)
        self.parts.append(f"static const embedding_table {name} = {{{weight}, {fraction}}};")

    def linear(self, name: str, layer: Linear) -> str:
        """Write a layer's arrays and return its value."""
        padding = (0, 0), (0, -layer.columns % VECTOR)
        return _braces(
            [
                _format(layer.input),
                _format(layer.output),
                self.array(f"{name}_weight", "int8_t", np.pad(layer.weight, padding)),
                self.array(f"{name}_fraction", "int8_t", layer.weight_fraction),
                self.array(f"{name}_bias", "int32_t", layer.bias),
            ]
        )

    def norm(self, name: str, layer: Norm) -> str:
        """Write a norm's arrays and return its value."""
        centered = isinstance(layer, LayerNorm)
        return _braces(
            [
                str(int(centered)),
                *(_format(item) for item in (layer.input, layer.normalized, layer.scale_format, layer.output)),
                f"INT64_C({layer.epsilon})",
                self.reciprocal(layer.reciprocal_square_root),
                self.array(f"{name}_scale", "int16_t", layer.scale),
                self.array(f"{name}_shift", "int64_t", layer.shift) if isinstance(layer, LayerNorm) else "NULL",
            ]
        )


@singledispatch
def c_operation(operator: Operator, header: Header, name: str, channels: int) -> tuple[str, str]:
    """Write the constants of an operator; return its function in C, and its parameters there.

    Args:
        operator: The operator.
        header: Takes the definitions.
        name: Of the operation, as an identifier of C.
        channels: Of its result.

    Raises:
        QuantizationError: The program has no such operator.
    """
    raise QuantizationError(f"the C program has no {type(operator).__name__}")


@c_operation.register
def _(operator: Linear, header: Header, name: str, channels: int) -> tuple[str, str]:
    return _linear_function(_shape(operator)), header.define("linear", name, header.linear(name, operator))


@c_operation.register(LayerNorm)
@c_operation.register(RMSNorm)
def _(operator: Norm, header: Header, name: str, channels: int) -> tuple[str, str]:
    return "apply_norm", header.define("norm", name, header.norm(name, operator))


@c_operation.register
def _(operator: TableActivation, header: Header, name: str, channels: int) -> tuple[str, str]:
    entries = header.array(f"{name}_entries", "int16_t", operator.table)
    members = [str(channels), str(operator.input.minimum_integer), entries]
    return "apply_activation", header.define("activation", name, _braces(members))


@c_operation.register
def _(operator: CausalAttention, header: Header, name: str, channels: int) -> tuple[str, str]:
    formats = map(_format, (*operator.inputs, operator.output))
    members = [str(header.caches), *formats, header.reciprocal(operator.reciprocal)]
    header.caches += 1
    return "apply_attention", header.define("attention", name, _braces(members))


@c_operation.register
def _(operator: Rotation, header: Header, name: str, channels: int) -> tuple[str, str]:
    factors = {"rotation_cosine": operator.table.cosine, "rotation_sine": operator.table.sine}
    arrays = [header.array(part, "int16_t", values) for part, values in factors.items()]
    members = [str(channels), _format(operator.input), _format(operator.output), *arrays]
    return "apply_rotation", header.define("rotation", name, _braces(members))


@c_operation.register
def _(operator: Product, header: Header, name: str, channels: int) -> tuple[str, str]:
    members = [str(channels), *map(_format, (operator.first, operator.second, operator.output))]
    return "apply_product", header.define("product", name, _braces(members))


@c_operation.register
def _(operator: ResidualAdd, header: Header, name: str, channels: int) -> tuple[str, str]:
    return "apply_residual_add", "NULL"


def _check_widths(operation: Operation) -> None:
    """Refuse what is wider than the program's types."""
    operator = operation.operator
    if operator.output.bits > LARGEST_ACTIVATION_BITS:
        raise QuantizationError(
            f"{operation.name} has {operator.output.bits} bits; the C program takes {LARGEST_ACTIVATION_BITS}"
        )
    if isinstance(operator, CausalAttention) and operator.weighted_sum_bits > LARGEST_SUM_BITS:
        raise QuantizationError(
            f"{operation.name} sums weighted values in {operator.weighted_sum_bits} bits; the C program takes {LARGEST_SUM_BITS}"
        )


def _padded(columns: int) -> int:
    return columns + -columns % VECTOR


def _shape(layer: Linear) -> tuple[int, int]:
    """Return the rows of a layer and the padded length of each."""
    return layer.rows, _padded(layer.columns)


def _linear_function(shape: tuple[int, int]) -> str:
    """Return the name of the function that multiplies by matrices of a shape."""
    return f"apply_linear_{shape[0]}_{shape[1]}"


def _places(operations: Sequence[Operation]) -> tuple[dict[str, int], int]:
    """Return each tensor's buffer and their number; a buffer is reused after its last reader."""
    last = {name: index for index, operation in enumerate(operations) for name in operation.inputs}
    place, count = {EMBEDDING.name: 0}, 1
    free: list[int] = []
    for index, operation in enumerate(operations):
        if not free:
            free.append(count)
            count += 1
        place[operation.name] = free.pop()
        free += [place[name] for name in dict.fromkeys(operation.inputs) if last[name] == index]
    return place, count


def _format(item: QFormat) -> str:
    return f"{{{item.bits}, {item.fraction}}}"


def _braces(members: Iterable[str], separator: str = "\n ") -> str:
    return "{" + f",{separator}".join(members) + "}"
