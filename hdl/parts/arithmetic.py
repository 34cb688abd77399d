"""Expressions for use inside cores: the casts of `fixedpoint.arithmetic`, and the product of a hard
multiplier.
"""

from collections.abc import Sequence

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, ValueLike, signed

from fixedpoint import QFormat

from .multiplier import OPERAND_BITS, Multiplier
from .payload import FixedPointShape
from .registers import data_register

LOGIC_BITS = 8  # of an operand, beyond a hard multiplier's, that are multiplied in logic


def shape_of(number_format: QFormat) -> FixedPointShape:
    """Return the Amaranth shape of a format's integers, which knows the format."""
    return FixedPointShape(number_format)


def shift_right_half_up(value: Value, shift: int) -> Value:
    """Return `value / 2**shift`, rounded half up; a negative shift multiplies exactly.

    The result is wide enough for every argument.
    """
    if shift <= 0:
        return value << -shift
    return (value + Const(1 << (shift - 1))) >> shift


def shift_right_half_up_by(value: Value, shift: Value) -> Value:
    """Return `value / 2**shift`, rounded half up, for a shift known only when the circuit runs.

    `floor((x + 2**(s-1)) / 2**s) = floor((floor(2x / 2**s) + 1) / 2)`: one shifter, then one
    incrementer, instead of a second shifter for the half. With s = 0 it returns x. The circuit
    computes modulo nothing: no bit is lost on the left.
    """
    return (((value << 1) >> shift) + 1) >> 1


def saturate(value: Value, number_format: QFormat) -> Value:
    """Return `value` clipped to a format's range.

    A range ends at powers of two, so the bits above it tell whether a value lies in it: no
    comparison, no carry chain.
    """
    value = Value.cast(value)
    shape, bits = value.shape(), number_format.bits
    magnitude_bits, kept_bits = shape.width - shape.signed, bits - number_format.signed
    if magnitude_bits <= kept_bits:
        return value if number_format.signed or not shape.signed else Mux(value[-1], 0, value[:-1])
    sign = value[-1] if shape.signed else Const(0, 1)
    kept, above = value[:kept_bits], value[kept_bits:magnitude_bits]
    if number_format.signed:
        inside = Mux(sign, above.all(), ~above.any())
        return Cat(Mux(inside, kept, (~sign).replicate(kept_bits)), sign).as_signed()
    return Mux(sign, 0, kept | above.any().replicate(kept_bits))


def choose(values: Sequence[Value], index: Value) -> Value:
    """Return `values[index]` by a tree of multiplexers, a level for each bit of the index.

    An `Array` or a `Switch` becomes comparisons of the index, ands and ors: some three times the
    logic.
    """
    values = list(values)
    for bit in index:
        pairs = [values[start : start + 2] for start in range(0, len(values), 2)]
        values = [Mux(bit, pair[1], pair[0]) if len(pair) == 2 else pair[0] for pair in pairs]
    return values[0]


def shift_right_by(value: Value, shift: Value, bits: int) -> Value:
    """Return the lowest bits of `value >> shift`.

    The longest shift comes first, so that each one after it is narrower; in the order of `>>` all
    would be as wide as the value.
    """
    kept = extended(value, bits + (1 << len(shift)) - 1)
    for position in reversed(range(len(shift))):
        distance = 1 << position
        kept = Mux(shift[position], kept[distance:], kept[:-distance])
    return kept


def round_and_saturate(value: Value, shift: int, number_format: QFormat) -> Value:
    """Return `value / 2**shift`, rounded half up and clipped to a signed format's range, from a
    signed value.

    What `saturate(shift_right_half_up(value, shift))` is, but the range is looked at beside the
    addition: a value in range leaves it by rounding only from the maximum, where it stays.
    """
    bits = number_format.bits
    if shift <= 0 or len(value) - shift < bits:
        return saturate(shift_right_half_up(value, shift), number_format)
    kept, half, above, sign = value[shift:][:bits], value[shift - 1], value[shift:][bits - 1 :], value[-1]
    stays = (above.all() | ~above.any()) & ~(~sign & kept[:-1].all() & half)
    return Mux(stays, (kept + half)[:bits], Cat((~sign).replicate(bits - 1), sign)).as_signed()


def add_three(bits: int, *values: Value) -> Value:
    """Return the lowest bits of a sum of three, by one carry chain behind one level of logic."""
    a, b, c = (extended(value, bits) for value in values)
    return (a ^ b ^ c) + (((a & b) | (a & c) | (b & c)) << 1)[:bits]


def extended(value: ValueLike, bits: int) -> Value:
    """Return the lowest bits of a value, by its sign extended where it has fewer."""
    value = Value.cast(value)
    missing = bits - len(value)
    return (
        value[:bits]
        if missing <= 0
        else Cat(value, (value[-1] if value.shape().signed else Const(0, 1)).replicate(missing))
    )


def ternary_depth(count: int, kept: int) -> int:
    """Return the levels of `ternary_sums`."""
    depth = 0
    while count > kept:
        count, depth = max(kept, -(-count // 3)), depth + 1
    return depth


def ternary_sums(m: Module, name: str, values: Sequence[Value], kept: int) -> list[Value]:
    """Add values up until at most `kept` are left, three at a time, with a register behind every
    one of `ternary_depth` levels.
    """
    level = 0
    while len(values) > kept:
        groups = max(kept, -(-len(values) // 3))
        sums = []
        for group in range(groups):
            members = values[group::groups]
            shape = sum(members[1:], start=members[0]).shape()
            register = data_register(Shape.cast(shape), name=f"{name}_{level}_{group}")
            total = add_three(len(register), *members) if len(members) == 3 else sum(members[1:], start=members[0])
            m.d.sync += register.eq(total)
            sums.append(register)
        values, level = sums, level + 1
    return list(values)


def multiply(
    m: Module, name: str, a: ValueLike, b: ValueLike, en: ValueLike = 1, input_registers: bool = True
) -> Signal:
    """Return the product of two values, `Multiplier`'s latency after them: 3 stages, or 2."""
    a_shape, b_shape = Value.cast(a).shape(), Value.cast(b).shape()
    # A hard multiplier is wider than these operands: an unsigned one fits with a sign of 0.
    a_bits, b_bits = (shape.width + (not shape.signed) for shape in (a_shape, b_shape))
    m.submodules[name] = unit = Multiplier(a_bits, b_bits, input_registers)
    m.d.comb += [unit.en.eq(en), unit.a.eq(a), unit.b.eq(b)]
    return unit.o


def wide_multipliers(bits: int) -> int:
    """Return the hard multipliers of `multiply_wide` for so many bits."""
    return 1 if bits <= OPERAND_BITS + LOGIC_BITS else 2


def multiply_wide(m: Module, name: str, wide: Value, narrow: Value, input_registers: bool = True) -> Value:
    """Return the product of a signed value and an unsigned one of up to 17 bits; a stage after
    `multiply`'s latency where the first is wider than a hard multiplier's operand.

    The few bits that are too many are multiplied in logic, some 30 lookup tables each.
    """
    excess = len(wide) - OPERAND_BITS
    if excess <= 0:
        return multiply(m, name, wide, narrow, input_registers=input_registers)
    low_bits = excess if excess <= LOGIC_BITS else OPERAND_BITS - 1
    high = multiply(m, f"{name}_high", wide[low_bits:].as_signed(), narrow, input_registers=input_registers)
    if excess > LOGIC_BITS:
        lows = [multiply(m, f"{name}_low", wide[:low_bits], narrow, input_registers=input_registers)]
    else:
        lows = [Mux(wide[bit], narrow, 0) << bit for bit in range(low_bits)]
        for stage in range(m.submodules[f"{name}_high"].latency):
            step = 2 if len(lows) > 2 else 1
            pairs = [lows[start : start + step] for start in range(0, len(lows), step)]
            lows = []
            for number, pair in enumerate(pairs):
                total = sum(pair[1:], start=pair[0])
                lows.append(data_register(Shape.cast(total.shape()), name=f"{name}_low_{stage}_{number}"))
                m.d.sync += lows[-1].eq(total)
    product = data_register(signed(len(wide) + len(narrow)), name=f"{name}_joined")
    summands = [high << low_bits, *lows]
    m.d.sync += product.eq(add_three(len(product), *summands) if len(summands) == 3 else summands[0] + summands[1])
    return product
