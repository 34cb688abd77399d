"""Models as safetensors files (named arrays, a JSON header) through the `safetensors` library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..checks import refuse
from ..config import ModelConfig
from ..errors import InputError
from ..files import atomic_write
from ..parameters import parameter_shapes
from ..transformer import Transformer

CONFIG_KEY = "positron_config"
# Types of the format that NumPy lacks have other first letters: BF16, F8_E4M3, F4, ...
NUMPY_TYPES = ("F64", "F32", "F16", "C64", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


def write_safetensors(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays, atomically; equal arrays give equal bytes with at most one metadata entry.

    Raises:
        InputError: An array's type has no name in the format.
    """
    # The library takes the bytes as they lie in memory. `ascontiguousarray` would give a scalar an
    # axis.
    dense = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    try:
        data = save(dense, dict(metadata) if metadata else None)
    except SafetensorError as error:
        types = ", ".join(sorted({str(array.dtype) for array in dense.values()}))
        raise InputError(f"{path}: safetensors cannot hold these arrays, of type {types}: {error}") from None
    with atomic_write(path, "wb") as file:
        file.write(data)


def read_safetensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays and the metadata of a file.

    Raises:
        InputError: The file is missing or damaged, or holds types that NumPy lacks.
    """
    if Path(path).is_dir():
        raise InputError(f"{path} is a directory; a file is wanted")
    arrays: dict[str, np.ndarray] = {}
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - it cannot be iterated over
                type_name = file.get_slice(name).get_dtype()
                if type_name not in NUMPY_TYPES:
                    raise InputError(f"{path}: {name} has type {type_name}, which NumPy lacks; convert the file to F32")
                arrays[name] = file.get_tensor(name)
            return arrays, dict(file.metadata() or {})
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except PermissionError:
        raise InputError(f"{path} cannot be read: permission denied") from None
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}") from None


def save_safetensors(model: Transformer, path: str | Path) -> None:
    """Write a model with its configuration in one file."""
    write_safetensors(path, model.parameters, {CONFIG_KEY: json.dumps(model.config.to_dict())})


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
            f"{path} holds no configuration of this project; GPT-2 weights are read by model.formats.gpt2"
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
    problems = [
        f"{name} has shape {arrays[name].shape}, not {shape}"
        for name, shape in shapes.items()
        if arrays[name].shape != shape
    ]
    problems += [
        f"{name} has type {array.dtype}, not a floating-point type"
        for name, array in arrays.items()
        if array.dtype.kind != "f"
    ]
    refuse(*(f"{where}: {problem}" for problem in problems[:1]), *problems[1:])
