"""Registers of data, which need no reset."""

from amaranth.hdl import ShapeLike, Signal, Value, ValueCastable


def data_register(like: Value | ValueCastable | ShapeLike = 1, *, name: str | None = None) -> Signal | ValueCastable:
    """Return a register without a reset, for data that is not read before it has been written.

    A valid bit or a counter, which do have a reset, says when it counts. Without one, the reset net
    takes no routing to thousands of flip-flops, and synthesis may use the register inside a block
    RAM or a multiplier; Yosys would make the reset of a register behind a read port a block RAM's
    own, which on silicon reads zero at times. It starts at zero after configuration.

    Args:
        like: Its shape, or a value of the same shape and initial value.
        name: Its name; None for that of the variable it is assigned to.
    """
    if isinstance(like, (Value, ValueCastable)):
        return Signal.like(like, name=name, reset_less=True, src_loc_at=1)
    return Signal(like, name=name, reset_less=True, src_loc_at=1)
