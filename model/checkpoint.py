"""Checkpoints: `NAME_config.json` and `NAME_weights.npz`, checked in full before loading."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from .config import ModelConfig
from .errors import InputError
from .files import atomic_write, read_json, write_json
from .parameters import parameter_shapes
from .transformer import Transformer

FORMAT = "positron-checkpoint"
VERSION = 1


class CheckpointManager:
    """Saves and loads models. All methods can be called on the class."""

    @staticmethod
    def save(model: Transformer, directory: str | Path, name: str = "model") -> None:
        """Write `NAME_config.json` and `NAME_weights.npz` into a directory, made if missing."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_npz(folder / f"{name}_weights.npz", model.parameters)
        content = {"format": FORMAT, "version": VERSION, "dtype": str(model.dtype), "model": model.config.to_dict()}
        write_json(folder / f"{name}_config.json", content)

    @staticmethod
    def load(model: Transformer, directory: str | Path, name: str = "model") -> Transformer:
        """Replace a model's parameters by saved ones, and return the model.

        Raises:
            InputError: A file is missing or damaged, or the configuration is another one. The model
                is then unchanged.
        """
        config = _read_config(directory, name)
        if config != model.config:
            ours, theirs = model.config.to_dict(), config.to_dict()
            different = [f"{key} {theirs[key]!r} instead of {ours[key]!r}" for key in ours if ours[key] != theirs[key]]
            raise InputError(f"the checkpoint {name} in {directory} is of another model: it has {', '.join(different)}")
        _load_weights(model, directory, name)
        return model


class ModelBuilder:
    """Builds models from checkpoints."""

    @staticmethod
    def from_checkpoint(directory: str | Path, name: str = "model") -> Transformer:
        """Return a saved model.

        Raises:
            InputError: A file is missing, damaged, edited, or written by a newer version.
        """
        config = _read_config(directory, name)
        shapes = parameter_shapes(config)
        path = Path(directory) / f"{name}_weights.npz"
        # before memory is taken for a model that the file may not fill
        check_npz_header(path, shapes)
        model = Transformer(config)
        _load_weights(model, directory, name)
        return model


def _read_config(directory: str | Path, name: str) -> ModelConfig:
    path = Path(directory) / f"{name}_config.json"
    if not path.exists():
        raise InputError(f"{path} does not exist; there is no checkpoint {name!r} in {directory}")
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise InputError(f"{path} is not a checkpoint's configuration (format {content.get('format')!r})")
    if content.get("version") != VERSION:
        raise InputError(f"{path} has version {content.get('version')!r}; this program reads version {VERSION}")
    values = content.get("model")
    if not isinstance(values, dict):
        raise InputError(f"{path} lacks the model's configuration; it was edited")
    try:
        return ModelConfig.from_dict(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _load_weights(model: Transformer, directory: str | Path, name: str) -> None:
    path = Path(directory) / f"{name}_weights.npz"
    arrays = read_npz(path, {key: array.shape for key, array in model.parameters.items()}, model.dtype)
    for key, array in arrays.items():
        model.parameters[key] = array


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a SHA-256 over names, types, shapes and values of arrays."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        state.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        state.update(array.tobytes())
    return state.hexdigest()


def write_npz(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as an uncompressed .npz file, atomically; equal arrays give equal bytes."""
    with atomic_write(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # its date is fixed, unlike that of np.savez
            with archive.open(entry, "w", force_zip64=True) as part:
                np.lib.format.write_array(part, np.ascontiguousarray(array), allow_pickle=False)


def check_npz_header(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the names and sizes of an .npz file's arrays with what is wanted; read no values.

    Raises:
        InputError: The file is missing, damaged, or holds other arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError) as error:
        raise InputError(f"{path} is damaged or incomplete ({error}); copy or train it again") from None
    missing, extra = sorted(shapes.keys() - sizes.keys()), sorted(sizes.keys() - shapes.keys())
    if missing or extra:
        parts = [
            f"lacks {', '.join(missing[:5])}" if missing else "",
            f"has unknown {', '.join(extra[:5])}" if extra else "",
        ]
        raise InputError(f"{path} does not fit the configuration: it {' and '.join(filter(None, parts))}")
    total = Path(path).stat().st_size
    for name, shape in shapes.items():
        entry = sizes[name]
        # A header takes 128 bytes or a little more; 8 bytes is the largest item.
        if (
            entry.compress_type != zipfile.ZIP_STORED
            or entry.file_size > total
            or entry.file_size > 8 * math.prod(shape) + 4096
        ):
            raise InputError(f"{path} is damaged: {name} claims {entry.file_size:,} bytes for shape {shape}")


def read_npz(
    path: str | Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype | None = None
) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file after checking names, shapes and type.

    Args:
        path: A file of `write_npz` or `np.savez`.
        shapes: The arrays that must be there, no others.
        dtype: The type of all of them, or None for any number type.

    Raises:
        InputError: The file is missing, damaged, or holds something else.
    """
    check_npz_header(path, shapes)
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name, shape in shapes.items():
                with archive.open(f"{name}.npy") as part:
                    arrays[name] = _read_array(part, shape, f"{path}: {name}")
                    part.read()  # to the end, where the checksum is compared
    except InputError:
        raise
    except (
        OSError,
        zipfile.BadZipFile,
        ValueError,
        EOFError,
        KeyError,
        NotImplementedError,
        zlib.error,
        struct.error,
        SyntaxError,
        RuntimeError,
    ) as error:
        raise InputError(f"{path} is damaged or incomplete ({error}); copy or train it again") from None
    for name, array in arrays.items():
        wrong_kind = array.dtype.kind not in "fiu" if dtype is None else array.dtype != dtype
        if wrong_kind:
            raise InputError(f"{path}: {name} has type {array.dtype}, not {dtype or 'a number'}")
    return arrays


def _read_array(part: IO[bytes], shape: tuple[int, ...], where: str) -> np.ndarray:
    """Read one .npy stream whose header must say `shape`; nothing is allocated for another."""
    version = np.lib.format.read_magic(part)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    found, fortran_order, dtype = reader(part)
    if found != shape or fortran_order or dtype.hasobject:
        raise InputError(f"{where} has shape {found}, not {shape}; the file does not fit the configuration")
    data = part.read(dtype.itemsize * math.prod(shape))
    return np.frombuffer(data, dtype).reshape(shape).copy()  # (size,) -> shape
