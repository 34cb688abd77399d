"""The part of the ONNX file format that writing graphs needs, encoded without the onnx package.

Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import struct

import numpy as np

FLOAT, INT8, INT64, DOUBLE = 1, 3, 7, 11  # TensorProto.DataType
# AttributeProto.AttributeType
ATTRIBUTE_FLOAT, ATTRIBUTE_INT, ATTRIBUTE_STRING, ATTRIBUTE_INTS = 1, 2, 3, 7
VARINT, BYTES, FIXED32 = 0, 2, 5  # wire types
IR_VERSION = 8
OPSET = 17  # the first with LayerNormalization

TYPES = {"float32": (FLOAT, "<f4"), "int8": (INT8, "|i1"), "int64": (INT64, "<i8"), "float64": (DOUBLE, "<f8")}

Dimension = int | str


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers as two's complement in 64 bits
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _field(number: int, value: int | float | str | bytes) -> bytes:
    """Encode one field: integers as varint, floats as 32 bits, the rest with its length."""
    if isinstance(value, int):
        return _varint(number << 3 | VARINT) + _varint(value)
    if isinstance(value, float):
        return _varint(number << 3 | FIXED32) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | BYTES) + _varint(len(data)) + data


def _attribute(name: str, value: int | float | str | list[int]) -> bytes:
    encoded = _field(1, name)
    if isinstance(value, list):
        return encoded + b"".join(_field(8, item) for item in value) + _field(20, ATTRIBUTE_INTS)
    if isinstance(value, int):
        return encoded + _field(3, value) + _field(20, ATTRIBUTE_INT)
    if isinstance(value, float):
        return encoded + _field(2, value) + _field(20, ATTRIBUTE_FLOAT)
    return encoded + _field(4, value) + _field(20, ATTRIBUTE_STRING)


def _tensor(name: str, array: np.ndarray) -> bytes:
    kind, code = TYPES[array.dtype.name]
    dims = b"".join(_field(1, size) for size in array.shape)
    return dims + _field(2, kind) + _field(8, name) + _field(9, np.ascontiguousarray(array, code).tobytes())


def _value(name: str, kind: int, shape: list[Dimension]) -> bytes:
    dims = b"".join(_field(1, _field(2, size) if isinstance(size, str) else _field(1, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims)))


class GraphBuilder:
    """Collects nodes and constants, and encodes them as a model file."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: dict[str, np.ndarray] = {}
        self._count = 0

    def constant(self, name: str, array: np.ndarray) -> str:
        """Add a constant unless it is there, and return its name."""
        self._constants.setdefault(name, array)
        return name

    def add(self, operation: str, *inputs: str, output: str = "", **attributes: int | float | str | list[int]) -> str:
        """Add a node with one output, and return the output's name."""
        self._count += 1
        output = output or f"{operation.lower()}_{self._count}"
        parts = [_field(1, name) for name in inputs] + [
            _field(2, output),
            _field(3, f"node_{self._count}"),
            _field(4, operation),
        ]
        parts += [_field(5, _attribute(name, value)) for name, value in attributes.items()]
        self._nodes.append(b"".join(parts))
        return output

    def encode(self, name: str, inputs: dict[str, list[Dimension]], outputs: dict[str, list[Dimension]]) -> bytes:
        """Return the file's bytes; inputs are int64, outputs float32."""
        graph = [_field(1, node) for node in self._nodes] + [_field(2, name)]
        graph += [_field(5, _tensor(key, array)) for key, array in self._constants.items()]
        graph += [_field(11, _value(key, INT64, shape)) for key, shape in inputs.items()]
        graph += [_field(12, _value(key, FLOAT, shape)) for key, shape in outputs.items()]
        operators = _field(1, "") + _field(2, OPSET)
        return _field(1, IR_VERSION) + _field(2, "positron") + _field(7, b"".join(graph)) + _field(8, operators)
