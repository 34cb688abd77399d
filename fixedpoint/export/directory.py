"""Quantized models on disk: a manifest, the integers, and what circuits and C programs read.

A directory holds

- `manifest.json`: schema and version, arithmetic, the Q-formats of every layer, and each tensor's
  shape, type, SHA-256 and memory file. The manifest carries a SHA-256 of its own content, so an
  edit by hand is noticed;
- `weights.safetensors`: every tensor as integers;
- `NAME.mem`: the same tensor for `$readmemh`, one matrix row or one vector element a line;
- `model.h`: the same model as constants for the C program (`fixedpoint.export.c_program`).

Loading trusts none of it: everything is checked before a model is built.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from ..errors import QuantizationError
from ..files import atomic_directory
from ..qformat import IntegerArray
from ..transformer import QuantizedTransformer
from .c_header import c_header
from .manifest import SCHEMA, VERSION, build, describe, tensor_digest
from .memory_file import memory_file

WEIGHTS = "weights.safetensors"
HEADER = "model.h"


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
        for name, text in _sign(manifest, tensors, quantized):
            (temporary / name).write_text(text, encoding="ascii", newline="\n")
        # save_file would lock others out: mode 0600
        (temporary / WEIGHTS).write_bytes(safetensors.numpy.save(tensors))
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def load_export(directory: str | Path) -> QuantizedTransformer:
    """Read a quantized model and check all of it: schema, digests, shapes, ranges, formats.

    The model that was read must describe itself by the very manifest it was read with, and its
    tensors by the very texts.

    Raises:
        QuantizationError: Something is missing, edited, truncated or of another version; the
            message names it.
    """
    path = Path(directory)
    manifest = _read_manifest(path / "manifest.json")
    try:
        quantized = build(manifest, _read_tensors(path / WEIGHTS, manifest["tensors"]))
        described, stored = describe(quantized)
        for name, text in _sign(described, stored, quantized):
            _check_text(path / name, text)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, QuantizationError):
            raise
        raise QuantizationError(
            f"{path / 'manifest.json'} describes no usable model ({type(error).__name__}: {error}); quantize the model again"
        ) from None
    if described["sha256"] != manifest["sha256"]:
        raise QuantizationError(f"{path / 'manifest.json'} says other things than its model; quantize the model again")
    return quantized


def _sign(
    manifest: dict[str, Any], tensors: dict[str, IntegerArray], quantized: QuantizedTransformer
) -> Iterator[tuple[str, str]]:
    """Yield every text file's name and content; add their digests and its own to the manifest."""
    for name, entry in manifest["tensors"].items():
        text = memory_file(tensors[name], entry["bits"])
        entry["memory_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        yield entry["memory"], text
    text = c_header(quantized)
    manifest["header"] = {"file": HEADER, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    yield HEADER, text
    manifest["sha256"] = _self_digest(manifest)


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
    """Return the checked tensors, int64; memory beyond the file's size needs a valid header."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise QuantizationError(f"cannot read {path}: {error.strerror}; quantize the model again") from None
    try:
        stored = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise QuantizationError(f"{path} is damaged: {error}; quantize the model again") from None
    if stored.keys() != entries.keys():
        raise QuantizationError(
            f"{path} holds other tensors than the manifest: {sorted(stored.keys() ^ entries.keys())[:3]}"
        )
    for name, entry in entries.items():
        tensor = stored[name]
        if list(tensor.shape) != entry["shape"] or tensor.dtype.name != entry["type"]:
            raise QuantizationError(
                f"{path}: tensor {name} is {tensor.dtype}{list(tensor.shape)}, expected {entry['type']}{entry['shape']}"
            )
        if tensor_digest(tensor) != entry["sha256"]:
            raise QuantizationError(f"{path}: tensor {name} does not match its digest; quantize the model again")
    return {name: stored[name].astype(np.int64) for name in entries}


def _check_text(path: Path, text: str) -> None:
    """Compare a text file with what its model says."""
    try:
        same = path.stat().st_size == len(text) and path.read_bytes() == text.encode()
    except OSError as error:
        raise QuantizationError(f"cannot read {path}: {error.strerror}; quantize the model again") from None
    if not same:
        raise QuantizationError(f"{path} does not hold what its model says; quantize the model again")
