"""Claims that a circuit computes what its specification says, within its error bounds."""

from collections.abc import Callable
from typing import Any

from amaranth.asserts import AnyConst
from amaranth.hdl import Array, Assert, Assume, Const, Elaboratable, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import wiring

import fixedpoint
from hdl.parts.arithmetic import saturate, shift_right_half_up_by

from .stream_rules import Environment

LONG = 64  # bits of a sum that cannot overflow in any proof here

# Relation: (module, argument, result) → the result is right. Condition: argument → it is allowed.
Relation = Callable[[Module, Any, Any], Value]
Condition = Callable[[Any], Value]


class Transaction(Environment):
    """A relation between the payload of some transfer at `i` and the payload of the transfer of the
    same number at `o`.

    The number is the solver's choice among the first eight, stalls are free, so that results may
    not depend on neighbours either.
    """

    asserts_rules = False

    def __init__(self, core: wiring.Component, relation: Relation, allowed: Condition | None = None):
        super().__init__(core)
        self.relation = relation
        self.allowed = allowed

    def claims(self, m: Module) -> None:
        """Store the chosen argument and check its result."""
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


def exponential_bound(parameters: fixedpoint.Exponential, width: int) -> Relation:
    """Return the relation of `fixedpoint.Exponential`'s error bound, from rational intervals."""
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


def reciprocal_bound(parameters: fixedpoint.Reciprocal) -> Relation:
    """Return the relation
    `|x · mantissa · 2**-exponent − 1| <= 2**-(index_bits + 1) + 2**-mantissa_bits`, in integers.
    """
    # in units of 2**-mantissa_bits
    slack = (1 << (parameters.mantissa_bits - parameters.index_bits - 1)) + 1

    def relation(m: Module, argument: Any, result: Any) -> Value:
        one = Signal(unsigned(LONG))
        product = Signal(unsigned(LONG))
        m.d.comb += [one.eq(Const(1, 1) << result.exponent), product.eq(argument * result.mantissa)]
        scaled, margin = product << parameters.mantissa_bits, one * slack
        whole = one << parameters.mantissa_bits
        return (scaled <= whole + margin) & (scaled + margin >= whole)

    return relation


def root_bound(parameters: fixedpoint.ReciprocalSquareRoot) -> Relation:
    """Return the relation
    `|sqrt(x) · mantissa · 2**-exponent − 1| <= 2**-index_bits + 2**-mantissa_bits`, squared, in
    integers.
    """
    unit = 1 << parameters.mantissa_bits
    slack = (1 << (parameters.mantissa_bits - parameters.index_bits)) + 1

    def relation(m: Module, argument: Any, result: Any) -> Value:
        one, square = Signal(unsigned(LONG)), Signal(unsigned(LONG))
        m.d.comb += [
            one.eq(Const(1, 1) << (result.exponent << 1)),
            square.eq(argument * (result.mantissa * result.mantissa)),
        ]
        scaled = square << (2 * parameters.mantissa_bits)
        return (scaled <= one * (unit + slack) ** 2) & (scaled >= one * (unit - slack) ** 2)

    return relation


def requantize_definition(target: fixedpoint.QFormat) -> Relation:
    """Return the relation of a one-lane `Requantize`: half up, saturated by comparison."""

    def relation(m: Module, argument: Any, result: Any) -> Value:
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

    def __init__(
        self,
        bits: int,
        largest_shift: int,
        output: fixedpoint.QFormat,
        *,
        cast: Callable[[Value, Value], Value] = shift_right_half_up_by,
    ):
        self.bits, self.largest_shift, self.output = bits, largest_shift, output
        self.cast = cast

    def elaborate(self, platform: object) -> Module:
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
