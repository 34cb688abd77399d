"""What an export says about a model: from a model to its manifest and tensors, and back.

`describe` and `build` are each other's inverse. Loading uses that: whatever was read is built, described again and compared, so a
manifest cannot say anything that its model does not say itself.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np

from .activation import TableActivation
from .attention import Attention
from .embedding import Embedding, EmbeddingTable
from .errors import QuantizationError
from .layer_norm import LayerNorm
from .linear import Linear
from .qformat import IntegerArray, QFormat
from .reciprocal import Reciprocal, ReciprocalSquareRoot
from .rms_norm import RMSNorm
from .sampling import EXPONENTIAL, MULTIPLIER_BITS
from .transformer import Block, Norm, QuantizedTransformer

SCHEMA = "positron-quantized-transformer"
VERSION = 3
ARITHMETIC = {
    "rounding": "half up: (x + (1 << (s - 1))) >> s, toward +infinity on ties",
    "overflow": "saturate",
    "weights": "a row's weight is integer * 2**-weight_fraction; a bias counts units of 2**-(input fraction + weight_fraction)",
    "embedding": "the token's and the position's row are each rounded to the residual format, added, then saturated",
}
ORDER = {
    "weights.safetensors": "matrices row by row, a row an output, little-endian",
    "memory_files": "one matrix row or vector element a line, hexadecimal, two's complement, element 0 in the least significant bits",
    "activation_table": "the result of the smallest input first, of the largest last",
}
NORM_NAMES = ("attention_norm", "feed_forward_norm")
PROJECTION_NAMES = ("query", "key", "value", "output")


def describe(quantized: QuantizedTransformer) -> tuple[dict[str, Any], dict[str, IntegerArray]]:
    """Return a model's manifest, without the digests of files, and its tensors by name in the types that they are stored in.

    Raises:
        QuantizationError: A tensor does not fit the bits that its layer declares.
    """
    tensors: dict[str, tuple[IntegerArray, int]] = {}
    layers: dict[str, dict[str, Any]] = {}

    def add_linear(name: str, linear: Linear) -> None:
        layers[name] = {
            "input": str(linear.input),
            "output": str(linear.output),
            "weight_bits": linear.weight_bits,
            "ternary": linear.weight_bits == 2 and bool(linear.weight.min() >= -1),
        }
        tensors[f"{name}.weight"] = linear.weight, linear.weight_bits
        tensors[f"{name}.weight_fraction"] = linear.weight_fraction, 8
        tensors[f"{name}.bias"] = linear.bias, linear.accumulator_bits

    def add_norm(name: str, norm: Norm) -> None:
        layers[name] = {
            "kind": "layer" if isinstance(norm, LayerNorm) else "rms",
            "input": str(norm.input),
            "normalized": str(norm.normalized),
            "scale_format": str(norm.scale_format),
            "output": str(norm.output),
            "epsilon": norm.epsilon,
            "reciprocal_square_root": asdict(norm.reciprocal_square_root),
        }
        tensors[f"{name}.scale"] = norm.scale, norm.scale_format.bits
        if isinstance(norm, LayerNorm):
            tensors[f"{name}.shift"] = norm.shift, norm.product_bits

    for name in ("token", "position"):
        table: EmbeddingTable = getattr(quantized.embedding, name)
        layers[f"embedding.{name}"] = {"weight_bits": table.weight_bits}
        tensors[f"embedding.{name}.weight"] = table.weight, table.weight_bits
        tensors[f"embedding.{name}.weight_fraction"] = table.weight_fraction, 8
    for index, block in enumerate(quantized.blocks):
        prefix = f"blocks.{index}"
        for name in NORM_NAMES:
            add_norm(f"{prefix}.{name}", getattr(block, name))
        layers[f"{prefix}.attention"] = {
            "exponential": asdict(block.attention.softmax.exponential),
            "reciprocal": asdict(block.attention.reciprocal),
        }
        for name in PROJECTION_NAMES:
            add_linear(f"{prefix}.attention.{name}", getattr(block.attention, name))
        add_linear(f"{prefix}.up", block.up)
        layers[f"{prefix}.activation"] = {"input": str(block.activation.input), "output": str(block.activation.output)}
        tensors[f"{prefix}.activation.table"] = block.activation.table, block.activation.output.bits
        add_linear(f"{prefix}.down", block.down)
    add_norm("final_norm", quantized.final_norm)
    add_linear("logits", quantized.logits)

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
        "context_length": quantized.context_length,
        "sampler": {"multiplier_bits": MULTIPLIER_BITS, "exponential": asdict(EXPONENTIAL)},
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
    """Return the model that a manifest and its tensors (int64) describe; the layers check their own ranges and joints.

    Raises:
        QuantizationError: A layer refuses what it was given.
        AttributeError, KeyError, TypeError, ValueError: The manifest lacks something, or has something else in its place.
    """
    layers = manifest["layers"]
    residual = QFormat.parse(manifest["residual"])

    def linear(name: str) -> Linear:
        entry = layers[name]
        return Linear(
            input=QFormat.parse(entry["input"]),
            output=QFormat.parse(entry["output"]),
            weight=tensors[f"{name}.weight"],
            weight_bits=entry["weight_bits"],
            weight_fraction=tensors[f"{name}.weight_fraction"],
            bias=tensors[f"{name}.bias"],
        )

    def norm(name: str) -> Norm:
        entry = layers[name]
        parts = {
            "input": QFormat.parse(entry["input"]),
            "scale": tensors[f"{name}.scale"],
            "scale_format": QFormat.parse(entry["scale_format"]),
            "output": QFormat.parse(entry["output"]),
            "epsilon": entry["epsilon"],
            "reciprocal_square_root": ReciprocalSquareRoot(**entry["reciprocal_square_root"]),
        }
        if entry["kind"] == "rms":
            return RMSNorm(**parts)
        return LayerNorm(shift=tensors[f"{name}.shift"], **parts)

    def table(name: str) -> EmbeddingTable:
        weight, fraction = tensors[f"{name}.weight"], tensors[f"{name}.weight_fraction"]
        return EmbeddingTable(weight, layers[name]["weight_bits"], fraction)

    def block(prefix: str) -> Block:
        query, key, value, output = (linear(f"{prefix}.attention.{name}") for name in PROJECTION_NAMES)
        activation = layers[f"{prefix}.activation"]
        return Block(
            attention_norm=norm(f"{prefix}.attention_norm"),
            attention=Attention(
                query,
                key,
                value,
                output,
                manifest["num_heads"],
                manifest["context_length"],
                Reciprocal(**layers[f"{prefix}.attention"]["reciprocal"]),
            ),
            feed_forward_norm=norm(f"{prefix}.feed_forward_norm"),
            up=linear(f"{prefix}.up"),
            activation=TableActivation(
                QFormat.parse(activation["input"]),
                QFormat.parse(activation["output"]),
                tensors[f"{prefix}.activation.table"],
            ),
            down=linear(f"{prefix}.down"),
        )

    return QuantizedTransformer(
        embedding=Embedding(table("embedding.token"), table("embedding.position"), residual),
        blocks=tuple(block(f"blocks.{index}") for index in range(manifest["num_layers"])),
        final_norm=norm("final_norm"),
        logits=linear("logits"),
        residual=residual,
    )


def tensor_digest(tensor: np.ndarray) -> str:
    """Return the SHA-256 of a tensor's bytes, little-endian, row by row."""
    return hashlib.sha256(tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()).hexdigest()


def _storage_type(bits: int) -> type[np.signedinteger[Any]]:
    return np.int8 if bits <= 8 else np.int16 if bits <= 16 else np.int32 if bits <= 32 else np.int64
