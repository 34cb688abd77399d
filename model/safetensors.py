"""The safetensors file format: named arrays with a JSON header, no code.

A file is the header's length as 8 bytes (little-endian), the header, and the arrays' bytes one after the other. The header maps each
name to `dtype`, `shape` and `data_offsets`, and `__metadata__` to texts. Specification: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .config import ModelConfig
from .errors import InputError
from .files import atomic_write
from .parameters import parameter_shapes
from .transformer import Transformer

TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "BOOL": "|b1",
}
NAMES = {np.dtype(code): name for name, code in TYPES.items()}
LARGEST_HEADER = 100_000_000  # the limit of the reference implementation
CONFIG_KEY = "positron_config"


def write_safetensors(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays, atomically.

    Raises:
        InputError: An array's type has no name in the format.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, array in arrays.items():
        if array.dtype.newbyteorder("<") not in NAMES:
            raise InputError(f"{name} has type {array.dtype}, which safetensors cannot hold")
        header[name] = {
            "dtype": NAMES[array.dtype.newbyteorder("<")],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of 8
    with atomic_write(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())


def read_safetensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays and the metadata of a file.

    Raises:
        InputError: The file is missing or damaged, or holds types that NumPy lacks.
    """
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(LARGEST_HEADER, size - 8):
                raise InputError(
                    f"{path} is not a whole safetensors file: its header claims {length:,} of {size:,} bytes"
                )
            header = json.loads(file.read(length).decode("utf-8"))
            data = file.read()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a directory; a file is wanted") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not a safetensors file: its header is damaged ({error})") from None
    if not isinstance(header, dict):
        raise InputError(f"{path} is not a safetensors file: its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise InputError(f"{path} has damaged metadata")
    arrays: dict[str, np.ndarray] = {}
    expected = 0
    for name, entry in sorted(header.items(), key=lambda item: str(item[1])):
        arrays[name] = _array(path, name, entry, data)
        expected += arrays[name].nbytes
    if expected != len(data):
        raise InputError(
            f"{path} holds {len(data):,} bytes of arrays, its header describes {expected:,}; it is damaged"
        )
    return arrays, {str(key): str(value) for key, value in metadata.items()}


def _array(path: str | Path, name: str, entry: object, data: bytes) -> np.ndarray:
    """Return one array after checking its header entry."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if dtype in ("BF16", "F8_E4M3", "F8_E5M2"):
        raise InputError(f"{path}: {name} has type {dtype}, which NumPy lacks; convert the file to F32")
    numbers = [value for part in (shape, offsets) if isinstance(part, list) for value in part]
    valid = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2 and dtype in TYPES
    if not valid or not all(type(number) is int and number >= 0 for number in numbers):
        raise InputError(f"{path} has a damaged header entry for {name}")
    assert isinstance(shape, list)
    assert isinstance(offsets, list)
    start, stop = offsets
    code = np.dtype(TYPES[str(dtype)])
    if stop > len(data) or stop - start != math.prod(shape) * code.itemsize:
        raise InputError(
            f"{path}: {name} claims bytes {start} to {stop} of {len(data):,} for shape {tuple(shape)}; the file is damaged"
        )
    return np.frombuffer(data[start:stop], code).reshape(shape).copy()


def save_safetensors(model: Transformer, path: str | Path) -> None:
    """Write a model with its configuration in one file."""
    write_safetensors(path, model.parameters, {"format": "pt", CONFIG_KEY: json.dumps(model.config.to_dict())})


def load_safetensors(path: str | Path) -> Transformer:
    """Return a model of `save_safetensors`.

    Raises:
        InputError: The file is missing, damaged, or not of this project.
    """
    arrays, metadata = read_safetensors(path)
    try:
        values = json.loads(metadata[CONFIG_KEY])
    except (KeyError, ValueError, RecursionError):
        raise InputError(
            f"{path} holds no configuration of this project; GPT-2 weights are read by model.gpt2"
        ) from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds a damaged configuration")
    config = ModelConfig.from_dict(values)
    check_shapes(arrays, parameter_shapes(config), str(path))
    model = Transformer(config)
    for name, array in arrays.items():
        model.parameters[name] = array
    return model


def check_shapes(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compare names and shapes with what is wanted.

    Raises:
        InputError: One is missing, unknown, or of another shape.
    """
    missing, extra = sorted(shapes.keys() - arrays.keys()), sorted(arrays.keys() - shapes.keys())
    if missing or extra:
        raise InputError(f"{where} does not fit the configuration: missing {missing[:5]}, unknown {extra[:5]}")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise InputError(f"{where}: {name} has shape {arrays[name].shape}, not {shape}")
        if arrays[name].dtype.kind not in "f":
            raise InputError(f"{where}: {name} has type {arrays[name].dtype}, not a floating-point type")
