"""Weights in a file of `torch.save` (PyTorch 1.6 or later), read without PyTorch and without
running its pickle.

The file is a zip archive: `NAME/data.pkl` describes the tensors, `NAME/data/KEY` holds the numbers
of one storage each.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .pickles import read_pickle

DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",  # the upper half of a float32
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
DAMAGE = (
    OSError, zipfile.BadZipFile, zlib.error, struct.error, ValueError, EOFError, KeyError, NotImplementedError,
    RuntimeError,
)  # fmt: skip
LARGEST_DESCRIPTION = 1 << 28


@dataclass(frozen=True)
class StorageType:
    """The type of a storage's numbers, which a pickle names and never calls."""

    name: str

    def __call__(self, *arguments: Any) -> Any:
        """Refuse."""
        raise InputError(f"it calls torch.{self.name}")


@dataclass(frozen=True)
class Storage:
    """Numbers in the archive.

    Attributes:
        type: A name of `DTYPES`.
        key: Of the record.
        count: How many numbers.
    """

    type: str
    key: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_checkpoint(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the weights in a file of `torch.save`, and the model's arguments.

    Args:
        path: A state dict, or a dictionary with the state dict as `model` and perhaps arguments as
            `model_args`, as nanoGPT writes it. Nothing else in it is read.

    Returns:
        Arrays by name, bfloat16 as float32; the arguments, {} where there are none.

    Raises:
        InputError: The file is missing, damaged, or holds anything but tensors and plain values.
    """
    if Path(path).is_dir():
        raise InputError(f"{path} is a directory; a file is wanted")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(entries) != 1:
                raise InputError(f"{path} is a zip archive without the data.pkl of torch.save")
            if archive.getinfo(entries[0]).file_size > LARGEST_DESCRIPTION:
                raise InputError(f"{path}: {entries[0]} is larger than any model's description")
            content = read_pickle(archive.read(entries[0]), f"{path}: {entries[0]}", _find, _record)
            state = content.get("model", content) if isinstance(content, Mapping) else None
            arguments = content.get("model_args", {}) if isinstance(content, Mapping) else {}
            if not isinstance(state, Mapping) or not isinstance(arguments, Mapping):
                raise InputError(f"{path} holds no weights: wanted a state dict, or one as its entry 'model'")
            folder = entries[0].removesuffix("data.pkl")
            return _arrays(archive, folder, state, str(path)), dict(arguments)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except InputError:
        raise
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{path} is no whole file of torch.save ({str(error)[:100]}); PyTorch before 1.6 wrote others: load and save it again"
        ) from None
    except DAMAGE as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {str(error)[:100]})") from None


def _find(name: str) -> Callable[..., Any]:
    """Return what makes the values that the pickles of weights name."""
    module, _, function = name.partition(" ")
    makers: dict[str, Callable[..., Any]] = {
        "torch._utils _rebuild_tensor_v2": _tensor,
        "torch._utils _rebuild_parameter": _parameter,
        "collections OrderedDict": _dictionary,
    }
    if name in makers:
        return makers[name]
    if module == "torch" and function in DTYPES:
        return StorageType(function)
    raise InputError(f"it asks for {name.replace(' ', '.')}, which weights do not need")


def _dictionary(*arguments: Any) -> dict[Any, Any]:
    return dict(*arguments)


def _parameter(tensor: Any, *arguments: Any) -> Any:
    return tensor


def _record(identifier: Any) -> Storage:
    """Return the storage that a persistent identifier stands for."""
    kind, storage_type, key, _, count = identifier
    if kind != "storage" or not isinstance(storage_type, StorageType) or not isinstance(key, str):
        raise InputError("it holds a record that is no storage")
    return Storage(storage_type.name, key, _size(count))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *arguments: Any) -> Tensor:
    """Return a tensor that lies within its storage."""
    sizes, steps = tuple(map(_size, shape)), tuple(map(_size, strides))
    if not isinstance(storage, Storage) or len(sizes) != len(steps):
        raise InputError("it describes a tensor without a storage, or with other strides than sizes")
    count = math.prod(sizes)
    last = _size(offset) + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    if count > storage.count or (count and last >= storage.count):
        raise InputError(f"a tensor of shape {sizes} reaches beyond its storage of {storage.count:,} numbers")
    return Tensor(storage, offset, sizes, steps)


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise InputError(f"it gives {value!r} as a size")
    return value


def _arrays(archive: zipfile.ZipFile, folder: str, state: Mapping[Any, Any], where: str) -> dict[str, np.ndarray]:
    """Read the numbers of all tensors in a state dict, each storage once."""
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise InputError(f"{where} was saved with the most significant byte first; save it on another machine")
    storages: dict[Storage, np.ndarray] = {}
    arrays = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise InputError(f"{where}: {str(name)[:100]!r} among the weights is no tensor")
        storage = tensor.storage
        if storage not in storages:
            storages[storage] = _numbers(archive, f"{folder}data/{storage.key}", storage, where)
        values = storages[storage]
        steps = [step * values.itemsize for step in tensor.strides]
        view = np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, steps, writeable=False)
        arrays[name] = _widened(view) if storage.type == "BFloat16Storage" else view.copy()
    return arrays


def _numbers(archive: zipfile.ZipFile, entry: str, storage: Storage, where: str) -> np.ndarray:
    info, dtype = archive.getinfo(entry), np.dtype(DTYPES[storage.type])
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != storage.count * dtype.itemsize:
        raise InputError(f"{where} is damaged: {entry} has {info.file_size:,} bytes, not {storage.count} {dtype}")
    return np.frombuffer(archive.read(entry), dtype)


def _widened(values: np.ndarray) -> np.ndarray:
    """Return bfloat16 numbers as float32."""
    return (values.astype(np.uint32) << 16).view(np.float32)
