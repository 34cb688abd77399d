"""What is claimed about cores beyond the rules of streams: that rows finish, that arithmetic is
what it says, that nothing overflows.
"""

from collections.abc import Callable, Mapping

from amaranth.asserts import AnyConst
from amaranth.hdl import (
    Array,
    Assert,
    Assume,
    Const,
    Cover,
    Elaboratable,
    Module,
    Mux,
    ResetSignal,
    Signal,
    Value,
    signed,
    unsigned,
)
from amaranth.lib import wiring

import fixedpoint
from hdl.parts.arithmetic import saturate, shift_right_half_up_by

from .stream_rules import Environment, has_last

LONG = 64  # bits of a sum that cannot overflow in any proof here


class Finishes(Environment):
    """With inputs always offered and results always taken, every output gives the end of a row at
    least once in `bound` cycles, from whatever state.

    Outputs without a `last` field must give a payload.
    """

    asserts_rules = False

    def __init__(self, core: wiring.Component, bound: int):
        super().__init__(core)
        self.bound = bound

    def claims(self, m: Module) -> None:
        """Claim it of every output."""
        finishes(self, m, self.bound)


class FinishesAfterReset(Finishes):
    """The same for the cycles after one reset, undisturbed."""

    def claims(self, m: Module) -> None:
        """Assume the quiet."""
        super().claims(m)
        undisturbed(self, m)


def undisturbed(environment: Environment, m: Module) -> None:
    """Assume that nobody stalls and that no other reset comes: where only numbers are in question
    the solver has less to choose.
    """
    core = environment.core
    m.d.comb += [Assume(~ResetSignal())]
    m.d.comb += [Assume(getattr(core, name).valid) for name in environment.streams(wiring.In)]
    m.d.comb += [Assume(getattr(core, name).ready) for name in environment.streams(wiring.Out)]


def finishes(environment: Environment, m: Module, bound: int) -> None:
    """Count the cycles without the end of a row, or a transfer of `finishing`, while nobody stalls,
    and assert that they are at most `bound`.
    """
    core = environment.core
    inputs, outputs = environment.streams(wiring.In), environment.streams(wiring.Out)
    flowing = Signal()
    m.d.comb += flowing.eq(
        all_of(getattr(core, name).valid for name in inputs) & all_of(getattr(core, name).ready for name in outputs)
    )
    for name in environment.finishing or outputs:
        payload, end = getattr(core, name).payload, environment.taken[name]
        if has_last(payload) and environment.ends_rows and not environment.finishing:
            end = end & payload.last
        cycles = Signal(range(bound + 2), name=f"{name}_cycles")
        with m.If(~flowing | end):
            m.d.sync += cycles.eq(0)
        with m.Elif(cycles <= bound):
            m.d.sync += cycles.eq(cycles + 1)
        m.d.comb += Assert(cycles <= bound)


def all_of(values) -> Value:
    """Return the conjunction of one-bit values."""
    result = Const(1, 1)
    for value in values:
        result = result & value
    return result


class Loopback(Environment):
    """The first byte that a UART sends to itself arrives as it was, within `bound` cycles, while
    bytes are taken as they come.
    """

    asserts_rules = False

    def __init__(self, core: wiring.Component, bound: int):
        super().__init__(core)
        self.wires = {"rx": "tx"}
        self.bound = bound

    def claims(self, m: Module) -> None:
        """Remember the byte, and wait for it."""
        core, sent = self.core, Signal(8)
        cycles = Signal(range(self.bound + 2))
        with m.If(self.taken["i"] & (self.counts["i"] == 0)):
            m.d.sync += sent.eq(core.i.payload)
        with m.If((self.counts["i"] != 0) & (self.counts["o"] == 0) & (cycles <= self.bound)):
            m.d.sync += cycles.eq(cycles + 1)
        first = self.taken["o"] & (self.counts["o"] == 0)
        m.d.comb += [
            Assume(core.o.ready),
            Assert(~first | (core.o.payload == sent)),
            Assert(cycles <= self.bound),
            Assert(~core.framing_error & ~core.overrun),
        ]


class ReachesEndOfRow(Environment):
    """Some rows can end at `o`: what the other claims assume leaves the core something to do."""

    asserts_rules = False

    def __init__(self, core: wiring.Component, rows: int, row_lengths: Mapping[str, tuple[int, int]] | None = None):
        super().__init__(core, row_lengths)
        self.rows = rows

    def claims(self, m: Module) -> None:
        """Count the ends."""
        ends = Signal(range(self.rows + 1))
        payload = self.core.o.payload
        with m.If(self.taken["o"] & (payload.last if has_last(payload) else 1) & (ends != self.rows)):
            m.d.sync += ends.eq(ends + 1)
        m.d.comb += Cover(ends == self.rows)


class Transaction(Environment):
    """A relation between the payload of some transfer at `i` and the payload of the transfer of the
    same number at `o`.

    The number is the solver's choice among the first eight, stalls are free, so that results may
    not depend on neighbours either.
    """

    asserts_rules = False

    def __init__(
        self,
        core: wiring.Component,
        relation: Callable[[Module, Value, Value], Value],
        allowed: Callable[..., Value] | None = None,
    ):
        super().__init__(core)
        self.relation = relation
        self.allowed = allowed

    def claims(self, m: Module) -> None:
        """Remember the chosen argument, and look at its result."""
        number = AnyConst(3)
        argument = Signal.like(self.core.i.payload, name="argument")
        if self.allowed is not None:
            m.d.comb += Assume(self.allowed(self.core.i.payload))
        with m.If(self.taken["i"] & (self.counts["i"] == number)):
            m.d.sync += argument.eq(self.core.i.payload)
        # A result never leaves in the cycle its argument arrives: every core here has a register
        # between.
        related = self.relation(m, argument, self.core.o.payload)
        with m.If(self.taken["o"] & (self.counts["o"] == number)):
            m.d.comb += Assert(related)


def exponential_bound(parameters: fixedpoint.Exponential, width: int) -> Callable[[Module, Value, Value], Value]:
    """Return the relation that the stated error bound of `fixedpoint.Exponential` allows, exact
    numbers from rational intervals.
    """
    limits = [exponential_limits(parameters, distance) for distance in range(1 << width)]

    def relation(m: Module, distance: Value, result: Value) -> Value:
        lowest = Array(Const(low, parameters.output_bits + 1) for low, _ in limits)
        highest = Array(Const(high, parameters.output_bits + 1) for _, high in limits)
        return (result >= lowest[distance]) & (result <= highest[distance])

    return relation


def exponential_limits(parameters: fixedpoint.Exponential, distance: int) -> tuple[int, int]:
    """Return the least and the greatest integer within the stated bound of `(2**b - 1) * 2**-t`."""
    exact = parameters.maximum * 2.0 ** (-distance * 2.0**-parameters.fraction)
    bound = 0.75
    if parameters.fraction > parameters.table_bits:
        bound += 0.6931471805599453 * parameters.maximum / (1 << (parameters.table_bits + 1))
    return max(0, -int(-(exact - bound) // 1)), int((exact + bound) // 1)


def reciprocal_bound(parameters: fixedpoint.Reciprocal) -> Callable[[Module, Value, Value], Value]:
    """Return the relation
    `|x · mantissa · 2**-exponent − 1| <= 2**-(index_bits + 1) + 2**-mantissa_bits`, in whole
    numbers.
    """
    # in units of 2**-mantissa_bits
    slack = (1 << (parameters.mantissa_bits - parameters.index_bits - 1)) + 1

    def relation(m: Module, argument: Value, result) -> Value:
        one = Signal(unsigned(LONG))
        product = Signal(unsigned(LONG))
        m.d.comb += [one.eq(Const(1, 1) << result.exponent), product.eq(argument * result.mantissa)]
        scaled, margin = product << parameters.mantissa_bits, one * slack
        whole = one << parameters.mantissa_bits
        return (scaled <= whole + margin) & (scaled + margin >= whole)

    return relation


def root_bound(parameters: fixedpoint.ReciprocalSquareRoot) -> Callable[[Module, Value, Value], Value]:
    """Return the relation
    `|sqrt(x) · mantissa · 2**-exponent − 1| <= 2**-index_bits + 2**-mantissa_bits`, squared and in
    whole numbers.
    """
    unit = 1 << parameters.mantissa_bits
    slack = (1 << (parameters.mantissa_bits - parameters.index_bits)) + 1

    def relation(m: Module, argument: Value, result) -> Value:
        one, square = Signal(unsigned(LONG)), Signal(unsigned(LONG))
        m.d.comb += [
            one.eq(Const(1, 1) << (result.exponent << 1)),
            square.eq(argument * (result.mantissa * result.mantissa)),
        ]
        scaled = square << (2 * parameters.mantissa_bits)
        return (scaled <= one * (unit + slack) ** 2) & (scaled >= one * (unit - slack) ** 2)

    return relation


def requantize_definition(target: fixedpoint.QFormat) -> Callable[[Module, Value, Value], Value]:
    """Return the relation of a `Requantize` core of one lane: half up, then saturate, by comparison
    with the range's ends.
    """

    def relation(m: Module, argument: Value, result) -> Value:
        value, places = argument.value[0], Signal(range(32))
        rounded = Signal(signed(len(value) + 16))
        # With 8 fraction bits more than the number has, every shift goes to the right and has a
        # half.
        m.d.comb += [
            places.eq(argument.shift[0] + 8),
            rounded.eq(((value << 8) + (Const(1, 1) << (places - 1)[:5])) >> places),
        ]
        low, high = target.minimum_integer, target.maximum_integer
        return result[0] == Mux(rounded < low, low, Mux(rounded > high, high, rounded))

    return relation


class RequantizeDefinition(Elaboratable):
    """`requantize` as circuits do it (shift twice the number, add one, halve, saturate) equals its
    definition (add half, shift, saturate).

    For every number of `bits` bits and every shift up to `largest_shift`.
    """

    def __init__(self, bits: int, largest_shift: int, output: fixedpoint.QFormat, *, cast=None):
        self.bits, self.largest_shift, self.output = bits, largest_shift, output
        self.cast = cast or shift_right_half_up_by

    def elaborate(self, platform):
        """Build both beside each other."""
        m = Module()
        number = AnyConst(signed(self.bits))
        shift = AnyConst(range(self.largest_shift + 1))
        m.d.comb += Assume(shift <= self.largest_shift)
        half, defined = Signal(unsigned(self.largest_shift + 1)), Signal(signed(self.bits + 2))
        m.d.comb += [
            half.eq((Const(1, 1) << shift) >> 1),
            defined.eq((number + half) >> shift),
            Assert(saturate(self.cast(number, shift), self.output) == saturate(defined, self.output)),
        ]
        return m
