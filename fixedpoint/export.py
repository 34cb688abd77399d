"""Quantized models on disk: a manifest, the integers, and memory files for hardware.

A directory holds

- `manifest.json`: schema and version, arithmetic, the Q-formats of every layer, and each tensor's shape, type, SHA-256 and memory
  file. The manifest carries a SHA-256 of its own content, so an edit by hand is noticed;
- `weights.npz`: every tensor as integers, no pickle;
- `NAME.mem`: the same tensor for `$readmemh` (IEEE 1364-2005 §17.2.9): one matrix row, or one vector element, a line, element 0 in
  the least significant bits.

Loading trusts none of it: everything is checked before a model is built.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .activation import TableActivation
from .attention import Attention
from .embedding import Embedding, EmbeddingTable
from .errors import QuantizationError
from .files import atomic_directory
from .layer_norm import LayerNorm
from .linear import Linear
from .qformat import IntegerArray, QFormat
from .reciprocal import Reciprocal, ReciprocalSquareRoot
from .transformer import Block, QuantizedTransformer

SCHEMA = "positron-quantized-transformer"
VERSION = 1
ARITHMETIC = {
    "rounding": "half up: (x + (1 << (s - 1))) >> s",
    "overflow": "saturate",
    "memory_files": "one matrix row or vector element a line, hexadecimal, two's complement, element 0 in the least significant bits",
}
NORM_NAMES = ("attention_norm", "feed_forward_norm")
PROJECTION_NAMES = ("query", "key", "value", "output")


def save_export(quantized: QuantizedTransformer, directory: str | Path) -> dict[str, Any]:
    """Write a quantized model to a directory, all of it or nothing.

    Args:
        quantized: The model.
        directory: Where to; an earlier export there is replaced, and so is an empty directory.

    Returns:
        The manifest.

    Raises:
        QuantizationError: The directory holds something else, which would be lost.
    """
    path = Path(directory)
    if path.exists() and not (path / "manifest.json").is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise QuantizationError(f"{path} exists and holds no export; choose another directory or remove it")
    manifest, tensors = describe(quantized)
    with atomic_directory(directory) as temporary:
        for name, entry in manifest["tensors"].items():
            text = memory_file(tensors[name], entry["bits"])
            entry["memory_sha256"] = hashlib.sha256(text.encode()).hexdigest()
            (temporary / entry["memory"]).write_text(text, encoding="ascii", newline="\n")
        manifest["sha256"] = _self_digest(manifest)
        np.savez(temporary / "weights.npz", **tensors)  # type: ignore[arg-type]  # a name could be a keyword of savez; ours have dots
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def describe(quantized: QuantizedTransformer) -> tuple[dict[str, Any], dict[str, IntegerArray]]:
    """Return a model's manifest, without the digests of files, and its tensors by name."""
    tensors: dict[str, tuple[IntegerArray, int]] = {}
    layers: dict[str, dict[str, Any]] = {}

    def add_linear(name: str, linear: Linear) -> None:
        layers[name] = {"input": str(linear.input), "output": str(linear.output), "weight_bits": linear.weight_bits}
        tensors[f"{name}.weight"] = linear.weight, linear.weight_bits
        tensors[f"{name}.weight_fraction"] = linear.weight_fraction, 8
        tensors[f"{name}.bias"] = linear.bias, linear.accumulator_bits

    def add_norm(name: str, norm: LayerNorm) -> None:
        layers[name] = {
            "input": str(norm.input),
            "scale_format": str(norm.scale_format),
            "output": str(norm.output),
            "epsilon": norm.epsilon,
            "reciprocal_square_root": asdict(norm.reciprocal_square_root),
        }
        tensors[f"{name}.scale"] = norm.scale, norm.scale_format.bits
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
        layers[f"{prefix}.attention"] = {"reciprocal": asdict(block.attention.reciprocal)}
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
        "residual": str(quantized.residual),
        "num_layers": len(quantized.blocks),
        "num_heads": quantized.blocks[0].attention.num_heads,
        "context_length": quantized.context_length,
        "layers": layers,
        "tensors": {
            name: {
                "shape": list(stored[name].shape),
                "type": stored[name].dtype.name,
                "bits": bits,
                "sha256": _tensor_digest(stored[name]),
                "memory": f"{name}.mem",
            }
            for name, (_, bits) in tensors.items()
        },
    }
    return manifest, stored


def load_export(directory: str | Path) -> QuantizedTransformer:
    """Read a quantized model and check all of it: schema, digests, shapes, ranges, and that the layers' formats join.

    The model that was read must describe itself by the very manifest it was read with, and its tensors by the very memory files.

    Raises:
        QuantizationError: Something is missing, edited, truncated or of another version; the message names it.
    """
    path = Path(directory)
    manifest = _read_manifest(path / "manifest.json")
    try:
        tensors = _read_tensors(path / "weights.npz", manifest["tensors"])
        quantized = _build(manifest, tensors)
        described, stored = describe(quantized)
        for name, entry in described["tensors"].items():
            text = memory_file(stored[name], entry["bits"])
            entry["memory_sha256"] = hashlib.sha256(text.encode()).hexdigest()
            _check_memory(path / entry["memory"], text)
        described["sha256"] = _self_digest(described)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, QuantizationError):
            raise
        raise QuantizationError(
            f"{path / 'manifest.json'} describes no usable model ({type(error).__name__}: {error}); quantize the model again"
        ) from None
    if described["sha256"] != manifest["sha256"]:
        raise QuantizationError(f"{path / 'manifest.json'} says other things than its model; quantize the model again")
    return quantized


def memory_file(tensor: np.ndarray, bits: int) -> str:
    """Return a tensor's `$readmemh` text: a row (matrix) or element (vector) a line, element 0 in the least significant bits."""
    rows = tensor.reshape(len(tensor), -1).astype(np.int64) & ((1 << bits) - 1)
    digits = -(-bits * rows.shape[1] // 4)
    lines = []
    for row in rows.tolist():
        word = 0
        for element in reversed(row):
            word = word << bits | element
        lines.append(f"{word:0{digits}x}")
    return "\n".join(lines) + "\n"


def _storage_type(bits: int) -> type[np.signedinteger[Any]]:
    return np.int8 if bits <= 8 else np.int16 if bits <= 16 else np.int32 if bits <= 32 else np.int64


def _tensor_digest(tensor: np.ndarray) -> str:
    return hashlib.sha256(tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()).hexdigest()


def _self_digest(manifest: dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QuantizationError(f"cannot read {path}: {error.strerror}; make it with `positron quantize`") from None
    except (ValueError, RecursionError) as error:
        raise QuantizationError(f"{path} is not a manifest: {error}; quantize the model again") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise QuantizationError(f"{path} is not a {SCHEMA} manifest; quantize the model again")
    if manifest.get("version") != VERSION:
        raise QuantizationError(
            f"{path} has version {manifest.get('version')!r}; this program reads {VERSION}: quantize the model again"
        )
    if manifest.get("sha256") != _self_digest(manifest):
        raise QuantizationError(f"{path} was changed after it was written; quantize the model again")
    return manifest


def _read_tensors(path: Path, entries: dict[str, Any]) -> dict[str, IntegerArray]:
    """Read and check the tensors; nothing larger than the file itself is ever allocated."""
    tensors: dict[str, IntegerArray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if members.keys() != entries.keys() or len(members) != len(archive.infolist()):
                raise QuantizationError(
                    f"{path} holds other tensors than the manifest: {sorted(members.keys() ^ entries.keys())[:3]}"
                )
            for name, entry in entries.items():
                tensor = _read_tensor(archive, members[name])
                if list(tensor.shape) != entry["shape"] or tensor.dtype.name != entry["type"]:
                    raise QuantizationError(
                        f"{path}: tensor {name} is {tensor.dtype}{list(tensor.shape)}, expected {entry['type']}{entry['shape']}"
                    )
                if _tensor_digest(tensor) != entry["sha256"]:
                    raise QuantizationError(
                        f"{path}: tensor {name} does not match its digest; quantize the model again"
                    )
                tensors[name] = tensor.astype(np.int64)
    except OSError as error:
        raise QuantizationError(f"cannot read {path}: {error.strerror or error}; quantize the model again") from None
    except (zipfile.BadZipFile, EOFError, RuntimeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, QuantizationError):
            raise
        raise QuantizationError(f"{path} is damaged: {error}; quantize the model again") from None
    return tensors


def _read_tensor(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read one `.npy` member, which must hold exactly the integers that its header claims.

    Members are stored uncompressed, so that neither a header nor a compressor can claim more than the file holds.
    """
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise ValueError(f"{member.filename} is compressed")
    with archive.open(member) as stream:
        content = io.BytesIO(stream.read())
    version = np.lib.format.read_magic(content)
    if version != (1, 0):
        raise ValueError(f"{member.filename} has .npy version {version}, expected (1, 0)")
    shape, fortran_order, kind = np.lib.format.read_array_header_1_0(content)
    values = content.read()
    if kind.kind != "i" or fortran_order or len(values) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{member.filename} does not hold the {shape} integers that it claims")
    return np.frombuffer(values, dtype=kind).reshape(shape)


def _check_memory(path: Path, text: str) -> None:
    """Compare a memory file with the text that its tensor has."""
    try:
        same = path.stat().st_size == len(text) and path.read_bytes() == text.encode()
    except OSError as error:
        raise QuantizationError(f"cannot read {path}: {error.strerror}; quantize the model again") from None
    if not same:
        raise QuantizationError(f"{path} does not hold its tensor; quantize the model again")


def _build(manifest: dict[str, Any], tensors: dict[str, IntegerArray]) -> QuantizedTransformer:
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

    def norm(name: str) -> LayerNorm:
        entry = layers[name]
        return LayerNorm(
            input=QFormat.parse(entry["input"]),
            scale=tensors[f"{name}.scale"],
            scale_format=QFormat.parse(entry["scale_format"]),
            shift=tensors[f"{name}.shift"],
            output=QFormat.parse(entry["output"]),
            epsilon=entry["epsilon"],
            reciprocal_square_root=ReciprocalSquareRoot(**entry["reciprocal_square_root"]),
        )

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
