"""Files as `torch.save` writes them, made without PyTorch, and their pickles opcode by opcode."""

import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

STORAGES = {"float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "int64": "LongStorage"}


@dataclass
class BFloat16:
    """An array whose upper halves are to be stored."""

    array: np.ndarray


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(module, function):
    return f"c{module}\n{function}\n".encode()


def whole(value):
    return b"J" + struct.pack("<i", value)


class Writer:
    """Makes the pickle of a value, and collects the storages."""

    def __init__(self):
        self.storages = []

    def value(self, value):
        match value:
            case None:
                return b"N"
            case bool():
                return b"\x88" if value else b"\x89"
            case int():
                return whole(value)
            case float():
                return b"G" + struct.pack(">d", value)
            case str():
                return text(value)
            case tuple():
                return b"(" + b"".join(map(self.value, value)) + b"t"
            case list():
                return b"](" + b"".join(map(self.value, value)) + b"e"
            case dict():
                items = b"".join(self.value(key) + self.value(item) for key, item in value.items())
                if isinstance(value, OrderedDict):  # with the attribute of a state dict
                    made = name("collections", "OrderedDict") + b")R(" + items + b"u"
                    return made + b"}" + text("_metadata") + name("collections", "OrderedDict") + b")Rsb"
                return b"}(" + items + b"u"
            case BFloat16():
                return self.tensor((value.array.view(np.uint32) >> 16).astype(np.uint16), "BFloat16Storage")
            case np.ndarray():
                return self.tensor(value, STORAGES[str(value.dtype)])
        raise TypeError(value)

    def tensor(self, array, storage, strides=None, offset=0, count=None, shape=None):
        key = str(len(self.storages))
        # a matrix is stored as its transpose, and the tensor is a view of that
        self.storages.append(np.asarray(array, order="C").T.tobytes("F") if strides is None else array.tobytes())
        steps = (
            [step // array.itemsize for step in np.asarray(array, order="C").strides] if strides is None else strides
        )
        identifier = b"(" + text("storage") + name("torch", storage) + text(key) + text("cpu")
        identifier += whole(array.size if count is None else count) + b"tQ"
        shape = array.shape if shape is None else shape
        arguments = identifier + whole(offset) + self.value(tuple(shape)) + self.value(tuple(steps)) + b"\x89"
        arguments += name("collections", "OrderedDict") + b")R"
        return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def torch_file(path, value, folder="archive", compression=zipfile.ZIP_STORED):
    """Write a value as `torch.save` does; bytes are a pickle."""
    writer = Writer()
    data = value if isinstance(value, bytes) else b"\x80\x02" + writer.value(value) + b"."
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", data)
        archive.writestr(f"{folder}/byteorder", "little")
        for key, numbers in enumerate(writer.storages):
            archive.writestr(f"{folder}/data/{key}", numbers)
        archive.writestr(f"{folder}/version", "3\n")
    return path
