"""What an export says about a model: from a model to its manifest and tensors, and back.

`describe` and `build` are each other's inverse. Loading uses that: whatever was read is built,
described again and compared, so a manifest cannot say anything that its model does not say itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from functools import singledispatch
from typing import Any

import numpy as np

from ..errors import QuantizationError
from ..operators.activation import TableActivation
from ..operators.attention import CausalAttention
from ..operators.embedding import Embedding, EmbeddingTable
from ..operators.gumbel import NOISE, ROUNDS
from ..operators.layer_norm import LayerNorm
from ..operators.linear import Linear
from ..operators.operator import Operator, ResidualAdd
from ..operators.product import Product
from ..operators.reciprocal import Reciprocal, ReciprocalSquareRoot
from ..operators.rms_norm import RMSNorm
from ..operators.rotation import FACTOR, Rotation, RotationTable
from ..operators.sampling import MULTIPLIER_BITS
from ..qformat import IntegerArray, QFormat
from ..topology import EMBEDDING, LOGITS, Kind, Step, block_steps, final_norm_step, in_decoder
from ..transformer import Block, Norm, QuantizedTransformer

ROTATION = "rotation"  # of all layers
SCHEMA = "positron-quantized-transformer"
VERSION = 5
ARITHMETIC = {
    "rounding": "half up: (x + (1 << (s - 1))) >> s, toward +infinity on ties",
    "overflow": "saturate",
    "weights": "a row's weight is integer * 2**-weight_fraction; a bias counts units of 2**-(input fraction + weight_fraction)",
    "embedding": "the token's and the position's row are each rounded to the residual format, added, then saturated",
    "rotation": "channels 2i and 2i+1 of a head, x and x', become x·c − x'·s and x·s + x'·c, each sum rounded once",
}
ORDER = {
    "weights.safetensors": "matrices row by row, a row an output, little-endian",
    "memory_files": "one matrix row or vector element a line, hexadecimal, two's complement, element 0 in the least significant bits",
    "activation_table": "the result of the smallest input first, of the largest last",
}


def describe(quantized: QuantizedTransformer) -> tuple[dict[str, Any], dict[str, IntegerArray]]:
    """Return a model's manifest, without digests of files, and its tensors as stored, by name.

    Raises:
        QuantizationError: A tensor does not fit the bits that its layer declares.
    """
    tensors: dict[str, tuple[IntegerArray, int]] = {}
    layers: dict[str, dict[str, Any]] = {}

    for operation in quantized.operations:
        entry, parts = describe_operator(operation.operator)
        if entry:
            layers[operation.name] = entry
        tensors |= {f"{operation.name}.{part}": tensor for part, tensor in parts.items()}

    if quantized.rotation is not None:
        for part, factors in (("cosine", quantized.rotation.cosine), ("sine", quantized.rotation.sine)):
            tensors[f"{ROTATION}.{part}"] = factors, FACTOR.bits
    for name, (array, bits) in tensors.items():
        if not QFormat(bits, 0).holds(array):
            raise QuantizationError(f"tensor {name} does not fit its {bits} signed bits")
    stored = {name: array.astype(_storage_type(bits)) for name, (array, bits) in tensors.items()}
    manifest = {
        "schema": SCHEMA,
        "version": VERSION,
        "arithmetic": ARITHMETIC,
        "order": ORDER,
        "residual": str(quantized.residual),
        "num_layers": len(quantized.blocks),
        "num_heads": quantized.blocks[0].attention.num_heads,
        "num_kv_heads": quantized.blocks[0].attention.core.num_kv_heads,
        "rotary": quantized.rotation is not None,
        "gated": quantized.blocks[0].gate is not None,
        "context_length": quantized.context_length,
        "sampler": {"multiplier_bits": MULTIPLIER_BITS, "noise": {**NOISE, "rounds": [list(one) for one in ROUNDS]}},
        "layers": layers,
        "tensors": {
            name: {
                "shape": list(stored[name].shape),
                "type": stored[name].dtype.name,
                "bits": bits,
                "sha256": tensor_digest(stored[name]),
                "memory": f"{name}.mem",
            }
            for name, (_, bits) in tensors.items()
        },
    }
    return manifest, stored


def build(manifest: dict[str, Any], tensors: dict[str, IntegerArray]) -> QuantizedTransformer:
    """Return the model that a manifest and its tensors (int64) describe; the layers check it.

    Raises:
        QuantizationError: A layer refuses what it was given.
        AttributeError, KeyError, TypeError, ValueError: The manifest lacks something, or has
            something else in its place.
    """
    residual = QFormat.parse(manifest["residual"])

    steps_of_block = block_steps(rotary=manifest["rotary"], gated=manifest["gated"])

    def operator(step: Step) -> Any:
        prefix = f"{ROTATION if step.kind is Kind.ROTATION else step.name}."
        parts = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        return READERS[step.kind](manifest["layers"].get(step.name, {}), parts, residual)

    def block(index: int) -> Block:
        # which tensor enters decides nothing here
        steps = in_decoder(steps_of_block, index, EMBEDDING.name)
        return Block.from_operators(
            {inner.name: operator(step) for inner, step in zip(steps_of_block, steps, strict=True)}
        )

    return QuantizedTransformer(
        embedding=operator(EMBEDDING),
        blocks=tuple(block(index) for index in range(manifest["num_layers"])),
        final_norm=operator(final_norm_step(EMBEDDING.name)),
        logits=operator(LOGITS),
        residual=residual,
    )


Entry = dict[str, Any]
Tensors = dict[str, tuple[IntegerArray, int]]  # integers and their bits, by name


@singledispatch
def describe_operator(operator: Operator) -> tuple[Entry, Tensors]:
    """Return what the manifest says of an operator, and its tensors by their names in it.

    Raises:
        QuantizationError: There is no such entry.
    """
    raise QuantizationError(f"the manifest has no entry for {type(operator).__name__}")


@describe_operator.register
def _(operator: Linear) -> tuple[Entry, Tensors]:
    ternary = operator.weight_bits == 2 and bool(operator.weight.min() >= -1)
    entry = {
        "input": str(operator.input),
        "output": str(operator.output),
        "weight_bits": operator.weight_bits,
        "ternary": ternary,
    }
    return entry, {
        "weight": (operator.weight, operator.weight_bits),
        "weight_fraction": (operator.weight_fraction, 8),
        "bias": (operator.bias, operator.accumulator_bits),
    }


def _linear(entry: Entry, tensors: dict[str, IntegerArray], residual: QFormat) -> Linear:
    formats = QFormat.parse(entry["input"]), QFormat.parse(entry["output"])
    return Linear(*formats, tensors["weight"], entry["weight_bits"], tensors["weight_fraction"], tensors["bias"])


@describe_operator.register(LayerNorm)
@describe_operator.register(RMSNorm)
def _(operator: Norm) -> tuple[Entry, Tensors]:
    entry = {
        "kind": "layer" if isinstance(operator, LayerNorm) else "rms",
        "input": str(operator.input),
        "normalized": str(operator.normalized),
        "scale_format": str(operator.scale_format),
        "output": str(operator.output),
        "epsilon": operator.epsilon,
        "reciprocal_square_root": asdict(operator.reciprocal_square_root),
    }
    tensors: Tensors = {"scale": (operator.scale, operator.scale_format.bits)}
    if isinstance(operator, LayerNorm):
        tensors["shift"] = operator.shift, operator.product_bits
    return entry, tensors


def _norm(entry: Entry, tensors: dict[str, IntegerArray], residual: QFormat) -> Norm:
    parts = {
        "input": QFormat.parse(entry["input"]),
        "scale": tensors["scale"],
        "scale_format": QFormat.parse(entry["scale_format"]),
        "output": QFormat.parse(entry["output"]),
        "epsilon": entry["epsilon"],
        "reciprocal_square_root": ReciprocalSquareRoot(**entry["reciprocal_square_root"]),
    }
    if entry["kind"] == "rms":
        return RMSNorm(**parts)
    return LayerNorm(shift=tensors["shift"], **parts)


@describe_operator.register
def _(operator: Embedding) -> tuple[Entry, Tensors]:
    entry: Entry = {}
    tensors: Tensors = {}
    for name, table in operator.tables.items():
        entry[f"{name}_weight_bits"] = table.weight_bits
        tensors[f"{name}.weight"] = table.weight, table.weight_bits
        tensors[f"{name}.weight_fraction"] = table.weight_fraction, 8
    return entry, tensors


def _embedding(entry: Entry, tensors: dict[str, IntegerArray], residual: QFormat) -> Embedding:
    tables = {
        name: EmbeddingTable(
            tensors[f"{name}.weight"], entry[f"{name}_weight_bits"], tensors[f"{name}.weight_fraction"]
        )
        for name in ("token", "position")
        if f"{name}_weight_bits" in entry
    }
    return Embedding(tables["token"], tables.get("position"), residual)


@describe_operator.register
def _(operator: CausalAttention) -> tuple[Entry, Tensors]:
    entry = {
        "query": str(operator.query),
        "key": str(operator.key),
        "value": str(operator.value),
        "output": str(operator.output),
        "channels": operator.channels,
        "num_heads": operator.num_heads,
        "num_kv_heads": operator.num_kv_heads,
        "context_length": operator.context_length,
        "exponential": asdict(operator.softmax.exponential),
        "reciprocal": asdict(operator.reciprocal),
    }
    return entry, {}


def _attention(entry: Entry, tensors: dict[str, IntegerArray], residual: QFormat) -> CausalAttention:
    query, key, value, output = (QFormat.parse(entry[name]) for name in ("query", "key", "value", "output"))
    channels, num_heads, context_length = (entry[name] for name in ("channels", "num_heads", "context_length"))
    reciprocal = Reciprocal(**entry["reciprocal"])
    sizes = channels, num_heads, context_length
    return CausalAttention(query, key, value, output, *sizes, reciprocal, entry["num_kv_heads"])


@describe_operator.register
def _(operator: TableActivation) -> tuple[Entry, Tensors]:
    entry = {"input": str(operator.input), "output": str(operator.output)}
    return entry, {"table": (operator.table, operator.output.bits)}


def _activation(entry: Entry, tensors: dict[str, IntegerArray], residual: QFormat) -> TableActivation:
    return TableActivation(QFormat.parse(entry["input"]), QFormat.parse(entry["output"]), tensors["table"])


@describe_operator.register
def _(operator: Rotation) -> tuple[Entry, Tensors]:
    return {"input": str(operator.input), "output": str(operator.output)}, {}  # one table for all


def _rotation(entry: Entry, tensors: dict[str, IntegerArray], residual: QFormat) -> Rotation:
    table = RotationTable(tensors["cosine"], tensors["sine"])
    return Rotation(QFormat.parse(entry["input"]), QFormat.parse(entry["output"]), table)


@describe_operator.register
def _(operator: Product) -> tuple[Entry, Tensors]:
    return {name: str(getattr(operator, name)) for name in ("first", "second", "output")}, {}


def _product(entry: Entry, tensors: dict[str, IntegerArray], residual: QFormat) -> Product:
    return Product(*(QFormat.parse(entry[name]) for name in ("first", "second", "output")))


@describe_operator.register
def _(operator: ResidualAdd) -> tuple[Entry, Tensors]:
    return {}, {}


READERS: dict[Kind, Callable[[Entry, dict[str, IntegerArray], QFormat], Any]] = {
    Kind.EMBEDDING: _embedding,
    Kind.NORM: _norm,
    Kind.LINEAR: _linear,
    Kind.ATTENTION: _attention,
    Kind.ACTIVATION: _activation,
    Kind.ROTATION: _rotation,
    Kind.PRODUCT: _product,
    Kind.RESIDUAL_ADD: lambda entry, tensors, residual: ResidualAdd(residual),
}


def tensor_digest(tensor: np.ndarray) -> str:
    """Return the SHA-256 of a tensor's bytes, little-endian, row by row."""
    return hashlib.sha256(tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()).hexdigest()


def _storage_type(bits: int) -> type[np.signedinteger[Any]]:
    return np.int8 if bits <= 8 else np.int16 if bits <= 16 else np.int32 if bits <= 32 else np.int64
