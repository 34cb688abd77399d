"""Signed multiplication with every pipeline register of a hard multiplier, and two narrow products
from one of them.

An ECP5 multiplier has registers before, inside and behind it. Yosys infers the multiplier but none
of the registers, so on ECP5 the cell is instantiated by hand; everywhere else (simulators, other
families) a behavioural model of the same latency takes its place. A test compares the two.
"""

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..errors import CircuitError
from .parameter_checks import check_whole
from .registers import data_register

OPERAND_BITS = 18  # of a hard multiplier, on ECP5 and Gowin alike; iCE40 has 16


class Multiplier(wiring.Component):
    """A signed product, three stages after its operands, or two.

    Equation: `o = a * b`. Latency: 3 stages; 2 without `input_registers`, for operands that come
    from registers nearby: they must be there 3.5 ns before the clock. Throughput: one product a
    cycle. Registers hold data only and have no reset; they start at zero.
    Resources: one MULT18X18D on ECP5 and no flip-flop; what the tools infer elsewhere.
    Source: Lattice FPGA-TN-02205, "ECP5 and ECP5-5G sysDSP Usage Guide".

    Attributes:
        latency: 3 or 2.
        en: In, 1 bit. Enables every stage.
        a, b: In, signed, 1 to 18 bits.
        o: Out, signed, as wide as both together.
    """

    latency = 3

    def __init__(self, a_bits: int, b_bits: int, input_registers: bool = True):
        for name, bits in (("a_bits", a_bits), ("b_bits", b_bits)):
            check_whole(name, bits, 1, OPERAND_BITS, "a hard multiplier's operand")
        if not isinstance(input_registers, bool):
            raise CircuitError(f"input_registers must be a bool, not {input_registers!r}")
        self.latency = 2 + input_registers
        super().__init__(
            {"en": In(1), "a": In(signed(a_bits)), "b": In(signed(b_bits)), "o": Out(signed(a_bits + b_bits))}
        )

    def elaborate(self, platform: object) -> Module:
        """Build the cell where there is one, else a behavioural model."""
        if getattr(platform, "family", None) == "ecp5":
            return self._cell()
        m = Module()
        a, b = self.a, self.b
        product, result = (data_register(self.o) for _ in range(2))
        with m.If(self.en):
            if self.latency == 3:
                a, b = data_register(self.a), data_register(self.b)
                m.d.sync += [a.eq(self.a), b.eq(self.b)]
            m.d.sync += [product.eq(a * b), result.eq(product)]
        m.d.comb += self.o.eq(result)
        return m

    def _cell(self) -> Module:
        m = Module()
        a, b = Signal(signed(OPERAND_BITS)), Signal(signed(OPERAND_BITS))
        p = Signal(2 * OPERAND_BITS)
        m.d.comb += [a.eq(self.a), b.eq(self.b), self.o.eq(p[: len(self.o)].as_signed())]
        registers = {
            f"p_REG_{stage}_{pin}": f"{pin}0"
            for stage in ("INPUTA", "INPUTB", "PIPELINE", "OUTPUT")[(3 - self.latency) * 2 :]
            for pin in ("CLK", "CE", "RST")
        }
        operands = {f"i_{name}{bit}": value[bit] for name, value in (("A", a), ("B", b)) for bit in range(OPERAND_BITS)}
        m.submodules.cell = Instance(
            "MULT18X18D",
            **registers,
            p_GSR="DISABLED",  # the global set/reset net belongs to the board
            p_SOURCEB_MODE="B_SHIFT",
            p_RESETMODE="SYNC",
            i_CLK0=ClockSignal(),
            i_CE0=self.en,
            i_RST0=Const(0, 1),
            i_SIGNEDA=Const(1, 1),
            i_SIGNEDB=Const(1, 1),
            i_SOURCEA=Const(0, 1),  # operands from the fabric, not from the neighbouring cell
            i_SOURCEB=Const(0, 1),
            **operands,
            **{f"o_P{bit}": p[bit] for bit in range(2 * OPERAND_BITS)},
        )
        return m


def pair_spacing(a_bits: int, weight_bits: int) -> int:
    """Return how far apart two products of `a_bits` and `weight_bits` must lie so that the lower
    one never reaches the upper one.
    """
    return a_bits + weight_bits


def pair_operand(lower: Value, upper: Value, spacing: int) -> Value:
    """Return `(upper << spacing) + lower`, signed, `spacing + len(upper) + 1` bits: two weights as
    one operand of a multiplier.

    No carry chain: below `spacing` stands the sign-extended lower weight, above it the upper one,
    less one if the lower is negative.
    """
    negative = lower[-1]
    bits, borrow = [], negative
    for bit in [*upper, upper[-1]]:
        bits.append(bit ^ borrow)
        borrow = borrow & ~bit
    return Cat(lower, negative.replicate(spacing - len(lower)), *bits).as_signed()


def pair_products(product: Value, spacing: int) -> tuple[Value, Value, Value]:
    """Return x·lower, and two numbers of which x·upper is the sum, from x times a `pair_operand`.

    The lower product is the low `spacing` bits, as a signed number. A negative one has borrowed
    from what stands above, and its sign, which is the third number, gives that back.
    """
    lower = product[:spacing].as_signed()
    return lower, product[spacing:].as_signed(), lower[-1]
