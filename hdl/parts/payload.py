"""What a payload's numbers mean: a shape that knows its Q-format, and connections that compare such
shapes.

Amaranth's shapes are widths and signs, and its `wiring.connect` compares widths alone: Q4.4 would
reach a port of Q1.7, and scores a port of data.
"""

import enum
from collections.abc import Iterator
from operator import index
from typing import SupportsIndex

from amaranth.hdl import Const, Elaboratable, Fragment, Module, Shape, ShapeCastable, ShapeLike, Signal, Value
from amaranth.lib import data, stream, wiring

from fixedpoint import QFormat

from ..errors import CircuitError
from .amaranth_internals import assignments


class FixedPointShape(ShapeCastable):
    """The shape of a format's integers.

    A signal or field of this shape is a plain signed or unsigned value, so arithmetic is Amaranth's
    own; what remembers the format is the port and the layout. Two of these shapes are equal when
    their formats are.

    Attributes:
        number_format: The format.
    """

    def __init__(self, number_format: QFormat):
        if not isinstance(number_format, QFormat):
            raise TypeError(f"number_format must be a fixedpoint.QFormat, not {type(number_format).__name__}")
        self.number_format = number_format

    def as_shape(self) -> Shape:
        """Return the width and the sign."""
        return Shape(self.number_format.bits, self.number_format.signed)

    def __call__(self, target: Value) -> Value:
        """Return a value of this width as a number with this sign."""
        value, shape = Value.cast(target), self.as_shape()
        if len(value) != shape.width:
            raise CircuitError(f"a value of {len(value)} bits is no number of {self.number_format}")
        if value.shape() == shape:
            return value
        return value.as_signed() if shape.signed else value.as_unsigned()

    def const(self, init: Const | SupportsIndex | None) -> Const:
        """Return a constant from one of the format's integers; None counts as 0.

        Raises:
            CircuitError: The format does not hold it.
        """
        value = 0 if init is None else init.value if isinstance(init, Const) else index(init)
        if not self.number_format.minimum_integer <= value <= self.number_format.maximum_integer:
            raise CircuitError(f"{value} does not fit {self.number_format}")
        return Const(value, self.as_shape())

    def from_bits(self, raw: int) -> int:
        """Return the integer whose two's complement `raw` is."""
        return Const(raw, self.as_shape()).value

    def __eq__(self, other: object) -> bool:
        """Compare formats."""
        return isinstance(other, FixedPointShape) and self.number_format == other.number_format

    def __hash__(self) -> int:
        """Agree with equality."""
        return hash(self.number_format)

    def __repr__(self) -> str:
        """Show the format."""
        return f"FixedPointShape({self.number_format})"


def payload_shape(port: stream.Interface) -> ShapeLike:
    """Return the shape of a stream port's payload as it was declared; the payload itself, where it
    is one number, no longer knows its format.
    """
    return port.signature.members["payload"].shape


def describe(shape: ShapeLike) -> str:
    """Return a shape in short, formats included: `{data: 8 × Q4.4, last: unsigned(1)}`."""
    layout = _layout(shape)
    if isinstance(layout, data.ArrayLayout):
        return f"{layout.length} × {describe(layout.elem_shape)}"
    if layout is not None:
        return f"{{{', '.join(f'{name}: {describe(field.shape)}' for name, field in layout)}}}"
    if isinstance(shape, FixedPointShape):
        return str(shape.number_format)
    if isinstance(shape, enum.EnumMeta):
        return shape.__name__
    return repr(shape if isinstance(shape, ShapeCastable) else Shape.cast(shape))


def difference(one: ShapeLike, other: ShapeLike, name: str = "") -> str | None:
    """Return where two shapes first differ, None if nowhere: names and order of fields, lengths of
    arrays, formats, signs and widths.
    """
    here, there = _layout(one), _layout(other)
    if here is None or there is None:
        same = Shape.cast(one) == Shape.cast(other) if _is_plain(one) and _is_plain(other) else one == other
    else:
        same = type(here) is type(there) and [key for key, _ in here] == [key for key, _ in there]
    if not same:
        return f"{name + ': ' if name else ''}{describe(one)} against {describe(other)}"
    for (key, field), (_, counterpart) in zip(here or (), there or (), strict=True):
        inner = f"{name}[{key}]" if isinstance(key, int) else f"{name}.{key}".lstrip(".")
        if (found := difference(field.shape, counterpart.shape, inner)) is not None:
            return found
        if field.offset != counterpart.offset:
            return f"{inner}: from bit {field.offset} against from bit {counterpart.offset}"
    return None


def connect(m: Module, *interfaces: object, **named: object) -> None:
    """Do what `amaranth.lib.wiring.connect` does, for ports that mean the same.

    Args:
        m: The module.
        *interfaces: Streams or other interfaces, as for `wiring.connect`.
        **named: The same, with names for the messages of `wiring.connect`.

    Raises:
        CircuitError: Two ports differ in a field's name or place, an array's length, a Q-format, a
            sign or a width. To connect them all the same, assign field by field.
        amaranth.lib.wiring.ConnectionError: What `wiring.connect` refuses.
    """
    first, *others = [dict(_ports(one)) for one in (*interfaces, *named.values())] or [{}]
    for other in others:
        for path in first:
            if path in other:
                _refuse_difference(*first[path], *other[path])
    wiring.connect(m, *interfaces, **named)


def check_connections(design: Elaboratable, platform: object = None) -> Fragment:
    """Refuse ports of a whole design that are joined although they differ, as plain
    `wiring.connect` and assignments of whole payloads can do.

    Args:
        design: Anything that elaborates.
        platform: What it is elaborated for.

    Returns:
        The design, elaborated.

    Raises:
        CircuitError: A port of a component is assigned to another one as `connect` refuses; whole
            numbers that no stream carries may differ.
    """
    design = Fragment.get(design, platform)
    parts = list(_fragments(design))
    ports = {}  # by the number that Amaranth gives each signal
    for part in parts:
        for component in part.origins or ():
            for path, member, value in _members(component):
                if isinstance(signal := Value.cast(value), Signal):
                    ports[signal.duid] = (member.shape, ".".join(map(str, (type(component).__name__, *path))))
    for part in parts:
        for statement in assignments(part):
            source, target = statement.rhs, statement.lhs
            if all(isinstance(end, Signal) and end.duid in ports for end in (source, target)):
                _refuse_assignment(*ports[source.duid], *ports[target.duid])
    return design


def _fragments(fragment: Fragment) -> Iterator[Fragment]:
    yield fragment
    for inner, *_ in fragment.subfragments:
        yield from _fragments(inner)


def _members(interface: object) -> Iterator[tuple[tuple[str | int, ...], wiring.Member, object]]:
    """Yield an interface's ports as `Signature.flatten` does; none of what has no signature, which
    `wiring.connect` refuses.
    """
    if isinstance(signature := getattr(interface, "signature", None), wiring.Signature):
        yield from signature.flatten(interface)


def _ports(interface: object) -> Iterator[tuple[tuple[str | int, ...], tuple[ShapeLike, str]]]:
    """Yield an interface's ports: path, then declared shape and the signal's name."""
    for path, member, value in _members(interface):
        yield path, (member.shape, getattr(Value.cast(value), "name", "a constant"))


def _refuse_difference(shape: ShapeLike, name: str, other_shape: ShapeLike, other_name: str) -> None:
    if (found := difference(shape, other_shape)) is not None:
        raise CircuitError(
            f"cannot connect {name} ({describe(shape)}) with {other_name} ({describe(other_shape)}); they differ in {found}"
        )


def _refuse_assignment(shape: ShapeLike, name: str, other_shape: ShapeLike, other_name: str) -> None:
    # Whole numbers of several widths and signs may be assigned to each other, unless they are what
    # a stream carries.
    payloads = name.endswith(".payload") and other_name.endswith(".payload")
    if payloads or not (_is_plain(shape) and _is_plain(other_shape)):
        _refuse_difference(shape, name, other_shape, other_name)


def _is_plain(shape: ShapeLike) -> bool:
    return not isinstance(shape, (ShapeCastable, enum.EnumMeta))


def _layout(shape: ShapeLike) -> data.Layout | None:
    try:
        return data.Layout.cast(shape)
    except TypeError:
        return None
