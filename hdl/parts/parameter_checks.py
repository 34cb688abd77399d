"""What every core asks of its parameters, in one wording, before a signal exists."""

from collections.abc import Collection

from amaranth.hdl import Shape, ShapeLike

from ..errors import CircuitError


def check_whole(name: str, value: int, lowest: int = 1, highest: int | None = None, limit: str = "") -> None:
    """Refuse what is no whole number within limits; a bool is none.

    Args:
        name: The parameter's, for the message.
        value: What came.
        lowest: The least value.
        highest: The largest one; None where there is no limit.
        limit: What the largest value is, for the message.

    Raises:
        CircuitError: It is something else.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < lowest or (highest is not None and value > highest):
        wanted = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise CircuitError(f"{name} must be a whole number {wanted}{f' ({limit})' if limit else ''}, not {value!r}")


def check_collection(name: str, value: object) -> None:
    """Refuse what is no collection; a text is none.

    Raises:
        CircuitError: It is something else.
    """
    if not isinstance(value, Collection) or isinstance(value, str):
        raise CircuitError(f"{name} must be a collection, not {value!r}")


def check_shape(name: str, shape: ShapeLike) -> None:
    """Refuse what is no shape, or one without a bit.

    Raises:
        TypeError: It is no shape.
        CircuitError: It has no bit.
    """
    try:
        width = Shape.cast(shape).width
    except TypeError:
        raise TypeError(f"{name} must be an Amaranth shape, not {shape!r}") from None
    if not width:
        raise CircuitError(f"{name} must have at least one bit, not be {shape!r}")
