"""Payloads as raw words: the flat bits of a stream's payload as one unsigned integer, as Amaranth lays them out."""

from collections.abc import Iterable, Mapping

from amaranth.hdl import Const, Shape, ShapeCastable, ShapeLike
from amaranth.lib import data

from hdl import CircuitError


def pack(shape: ShapeLike, value) -> int:
    """Return the raw word of one payload.

    Args:
        shape: The payload's shape: a plain shape, a layout, an enumeration, …
        value: What the shape's `const()` takes: an integer, a dictionary for a struct, a list for an array.

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


def unpack(shape: ShapeLike, word: int):
    """Return the payload of a raw word: an integer, a dictionary for a struct, a list for an array; the inverse of `pack`."""
    plain = Shape.cast(shape)
    if not 0 <= word < 1 << plain.width:
        raise CircuitError(f"a raw word of {shape!r} has {plain.width} bits; {word} has not")
    if isinstance(shape, ShapeCastable):
        return _to_python(shape.from_bits(word))
    return Const(word, plain).value


def _to_python(value):
    if isinstance(value, data.Const):
        layout = value.shape()
        if isinstance(layout, data.ArrayLayout):
            return [_to_python(value[index]) for index in range(layout.length)]
        return {name: _to_python(value[name]) for name, _ in layout}
    return value


def pack_all(shape: ShapeLike, values) -> list[int]:
    """Return the raw words of many payloads, much faster than `pack` on each.

    Args:
        shape: The payload's shape.
        values: For a plain shape, integers (a sequence or a one-dimensional array). For a struct, a dictionary from field name to
            that field's values; for an array, a sequence of the elements' values, element by element, not payload by payload.

    Raises:
        CircuitError: A value does not fit, a field is missing or unknown, or the columns differ in length.
    """
    if isinstance(shape, data.StructLayout):
        names = [name for name, _ in shape]
        if not isinstance(values, Mapping) or set(values) != set(names):
            got = sorted(values) if isinstance(values, Mapping) else type(values).__name__
            raise CircuitError(f"a struct payload wants columns {names}, not {got}")
        return _join((shape[name], values[name]) for name in names)
    if isinstance(shape, data.ArrayLayout):
        if len(values) != shape.length:
            raise CircuitError(f"an array payload wants {shape.length} columns, not {len(values)}")
        return _join((shape[index], values[index]) for index in range(shape.length))
    plain = Shape.cast(shape)
    integers = [int(value) for value in values]
    low, high = (
        (-(1 << (plain.width - 1)), (1 << (plain.width - 1)) - 1) if plain.signed else (0, (1 << plain.width) - 1)
    )
    if integers and not (low <= min(integers) and max(integers) <= high):
        raise CircuitError(f"values {min(integers)} to {max(integers)} do not fit a payload of {shape!r}")
    mask = (1 << plain.width) - 1
    return [integer & mask for integer in integers]


def _join(columns: Iterable[tuple[data.Field, object]]) -> list[int]:
    words: list[int] | None = None
    for field, values in columns:
        part = pack_all(field.shape, values)
        if words is None:
            words = [0] * len(part)
        if len(part) != len(words):
            raise CircuitError(f"payload columns differ in length: {len(words)} and {len(part)}")
        words = [word | (bits << field.offset) for word, bits in zip(words, part, strict=True)]
    return words or []
