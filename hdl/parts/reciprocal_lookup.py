"""Reciprocals and reciprocal square roots in three cycles, for what is waited for."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

import fixedpoint

from .arithmetic import shift_right_by
from .internals import Internals
from .parameter_checks import check_whole
from .reciprocal import WIDEST_ARGUMENT
from .registers import data_register
from .table import BlockTable


def leading(flags: list[Value]) -> tuple[Value, Value]:
    """Return whether one of 2**n flags is set, and the index of the last one that is, n bits."""
    if len(flags) == 1:
        return flags[0], Const(0, 0)
    half = len(flags) // 2
    (low, low_index), (high, high_index) = leading(flags[:half]), leading(flags[half:])
    return low | high, Cat(Mux(high, high_index, low_index), high)


class ReciprocalLookup(wiring.Component):
    """`fixedpoint.Reciprocal` or `fixedpoint.ReciprocalSquareRoot` as a circuit without a
    handshake.

    Equation: `mantissa * 2**-(digit + mantissa_bits)` is `1 / i` or `1 / sqrt(i)`, i >= 1. The
    argument counts as digits of one bit, of two for the root; `digit` is the number of the leading
    one that is not zero.

    Latency: 3 cycles: find the leading digit; read the table with the bits that follow it, which
    one shifter selects; the block RAM's own register. Throughput: one a cycle. A result stays until
    the next one comes. Resources: a priority encoder and a shifter of `index_bits` bits, one table
    of `2**index_bits` entries in block RAM, no multiplier.

    Attributes:
        latency: 3.
        valid: In, 1 bit. An argument arrives.
        i: In, unsigned, `width` bits.
        mantissa: Out, unsigned, `mantissa_bits` bits.
        digit: Out, unsigned.
    """

    latency = 1 + BlockTable.latency

    def __init__(self, function: fixedpoint.Reciprocal | fixedpoint.ReciprocalSquareRoot, width: int):
        if not isinstance(function, (fixedpoint.Reciprocal, fixedpoint.ReciprocalSquareRoot)):
            raise TypeError(f"function must be a fixedpoint.Reciprocal or ReciprocalSquareRoot, not {function!r}")
        check_whole("a reciprocal's width", width, 1, WIDEST_ARGUMENT)
        self.function, self.width = function, width
        self._root = isinstance(function, fixedpoint.ReciprocalSquareRoot)
        self.digits = -(-width // (1 + self._root))
        super().__init__(
            {
                "valid": In(1),
                "i": In(unsigned(width)),
                "mantissa": Out(unsigned(function.mantissa_bits)),
                "digit": Out(range(self.digits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        function, digit_bits = self.function, 1 + self._root

        bits = [self.i[start : start + digit_bits].any() for start in range(0, self.width, digit_bits)]
        found = [data_register(self.digit, name=f"digit_{stage}") for stage in range(self.latency)]
        held = data_register(self.i)
        read = Signal(2)
        m.d.sync += read.eq(Cat(self.valid, read))
        with m.If(self.valid):
            missing = (1 << ceil_log2(self.digits)) - self.digits
            m.d.sync += [held.eq(self.i), found[0].eq(leading([*bits, *[Const(0, 1)] * missing])[1])]
        m.d.sync += [found[1].eq(found[0]), found[2].eq(found[1])]

        # The root's table begins with a quarter that never is read: its index has the leading
        # digit in it, the reciprocal's only what follows.
        unread = [0] * function.start if isinstance(function, fixedpoint.ReciprocalSquareRoot) else []
        m.submodules.table = values = BlockTable(unread + function.table.tolist(), function.mantissa_bits)
        below = function.index_bits - (digit_bits if self._root else 0)
        # Both registers of the table load twice: what the second read gives is the same again, or
        # the next one's.
        m.d.comb += [
            values.en.eq(read.any()),
            values.address.eq(
                shift_right_by(held << below, Cat(Const(0, int(self._root)), found[0]), len(values.address))
            ),
            self.mantissa.eq(values.o),
            self.digit.eq(found[2]),
        ]
        self.internals = Internals(read=read)
        return m
