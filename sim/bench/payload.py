"""Payloads as raw words: a payload's bits, laid out as Amaranth does, as an unsigned integer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from amaranth.hdl import Const, Shape, ShapeCastable, ShapeLike
from amaranth.lib import data

from hdl import CircuitError

WORD_BITS = 32


def pack(shape: ShapeLike, value: Any) -> int:
    """Return the raw word of one payload.

    Args:
        shape: The payload's shape: a plain shape, a layout, an enumeration, …
        value: What the shape's `const()` takes: an integer, a dictionary for a struct, a list for
            an array.

    Raises:
        CircuitError: The value does not fit the shape (Amaranth alone would cut it off).
    """
    plain = Shape.cast(shape)
    constant = shape.const(value) if isinstance(shape, ShapeCastable) else Const(value, plain)
    word = Const.cast(constant).value & ((1 << plain.width) - 1)
    kept = unpack(shape, word)
    if kept != value:
        raise CircuitError(f"{value!r} does not fit a payload of {shape!r}; it would become {kept!r}")
    return word


def unpack(shape: ShapeLike, word: int) -> Any:
    """Return the payload of a raw word, in the form that `pack` takes."""
    plain = Shape.cast(shape)
    if not 0 <= word < 1 << plain.width:
        raise CircuitError(f"a raw word of {shape!r} has {plain.width} bits; {word} has not")
    if isinstance(shape, ShapeCastable):
        return _to_python(shape.from_bits(word))
    return Const(word, plain).value


def _to_python(value: Any) -> Any:
    if isinstance(value, data.Const):
        layout = value.shape()
        if isinstance(layout, data.ArrayLayout):
            return [_to_python(value[index]) for index in range(layout.length)]
        return {name: _to_python(value[name]) for name, _ in layout}
    return value


def pack_all(shape: ShapeLike, values: Any) -> list[int]:
    """Return the raw words of many payloads, much faster than `pack` on each.

    Args:
        shape: The payload's shape.
        values: For a plain shape, integers (a sequence or a one-dimensional array). For a struct, a
            dictionary from field name to that field's values; for an array, a sequence of the
            elements' values, element by element, not payload by payload.

    Raises:
        CircuitError: A value does not fit, a field is missing or unknown, or the columns differ in
            length.
    """
    words = pack_words(shape, values)
    size = words.shape[1] * words.itemsize
    memory = words.astype("<u4").tobytes()
    return [int.from_bytes(memory[size * index : size * (index + 1)], "little") for index in range(len(words))]


def pack_words(shape: ShapeLike, values: Any) -> np.ndarray:
    """Return the same as `pack_all` in pieces of 32 bits, for millions of payloads.

    Args, Raises: As for `pack_all`.

    Returns:
        uint32 (payloads, ceil(width / 32)), a payload's lowest piece first.
    """
    leaves = list(_leaves(shape, values, 0))
    count = len(leaves[0].values) if leaves else 0
    words = np.zeros((count, -(-Shape.cast(shape).width // WORD_BITS)), dtype=np.uint32)
    for leaf in leaves:
        if len(leaf.values) != count:
            raise CircuitError(f"payload columns differ in length: {count} and {len(leaf.values)}")
        for place, piece in leaf.pieces():
            whole, shift = divmod(place, WORD_BITS)
            shifted = piece << np.uint64(shift)
            words[:, whole] |= shifted.astype(np.uint32)  # the lower half
            if shift and whole + 1 < words.shape[1]:
                words[:, whole + 1] |= (shifted >> np.uint64(WORD_BITS)).astype(np.uint32)
    return words


@dataclass(frozen=True, eq=False)
class _Leaf:
    """A number in a payload: shape, lowest bit, and values, int64 or Python's integers."""

    shape: Shape
    offset: int
    values: np.ndarray

    def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the values in pieces of up to 32 bits as uint64, each with its lowest bit."""
        for start in range(0, self.shape.width, WORD_BITS):
            mask = (1 << min(WORD_BITS, self.shape.width - start)) - 1
            yield self.offset + start, ((self.values >> start) & mask).astype(np.uint64)


def _leaves(shape: ShapeLike, values: Any, offset: int) -> Iterator[_Leaf]:
    if isinstance(shape, data.StructLayout):
        names = [name for name, _ in shape]
        if not isinstance(values, Mapping) or set(values) != set(names):
            got = sorted(values) if isinstance(values, Mapping) else type(values).__name__
            raise CircuitError(f"a struct payload wants columns {names}, not {got}")
        for name in names:
            yield from _leaves(shape[name].shape, values[name], offset + shape[name].offset)
        return
    if isinstance(shape, data.ArrayLayout):
        if len(values) != shape.length:
            raise CircuitError(f"an array payload wants {shape.length} columns, not {len(values)}")
        for index in range(shape.length):
            yield from _leaves(shape[index].shape, values[index], offset + shape[index].offset)
        return
    plain = Shape.cast(shape)
    low, high = (
        (-(1 << (plain.width - 1)), (1 << (plain.width - 1)) - 1) if plain.signed else (0, (1 << plain.width) - 1)
    )
    integers = values if isinstance(values, np.ndarray) else np.array([int(value) for value in values], dtype=object)
    if len(integers) and not (low <= integers.min() and integers.max() <= high):
        raise CircuitError(f"values {integers.min()} to {integers.max()} do not fit a payload of {shape!r}")
    yield _Leaf(plain, offset, integers.astype(object if plain.width >= np.iinfo(np.int64).bits else np.int64))
