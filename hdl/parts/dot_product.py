# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""Multipliers and adders side by side: the arithmetic shared by the matrix-vector core and the
attention circuit.

Nothing here has a handshake. Every register loads only while `en` is high, so that the core around
it can stall the whole pipeline with one signal, and results appear a fixed number of stages after
their operands.

Registers of data have no reset: what they hold counts only when the core's own control says so, and
a reset net to thousands of flip-flops costs routing that the data needs.
"""

from itertools import pairwise

from amaranth.hdl import Cat, Const, Module, Shape, ShapeLike, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..errors import CircuitError
from .multiplier import Multiplier
from .parameter_checks import check_whole
from .registers import data_register


class LaneProducts(wiring.Component):
    """One signed multiplier a lane, with all of its registers on.

    Equation: `o[l] = a[l] * b[l]`. Latency: 3 stages, `Multiplier`'s. Throughput: `lanes`
    products a cycle. Resources: a hard multiplier a lane (ECP5: a MULT18X18D, 18 bits or less).

    Attributes:
        lanes: Number of multipliers.
        latency: 3.
        en: In, 1 bit. Enables every stage.
        a, b: In, arrays of `lanes` operands.
        o: Out, array of `lanes` products.
    """

    latency = Multiplier.latency

    def __init__(self, lanes: int, a_bits: int, b_bits: int):
        check_whole("lanes", lanes)
        self.lanes = lanes
        self._multipliers = [Multiplier(a_bits, b_bits) for _ in range(lanes)]
        super().__init__(
            {
                "en": In(1),
                "a": In(data.ArrayLayout(signed(a_bits), lanes)),
                "b": In(data.ArrayLayout(signed(b_bits), lanes)),
                "o": Out(data.ArrayLayout(signed(a_bits + b_bits), lanes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        for lane, multiplier in enumerate(self._multipliers):
            m.submodules[f"lane_{lane}"] = multiplier
            m.d.comb += [
                multiplier.en.eq(self.en),
                multiplier.a.eq(self.a[lane]),
                multiplier.b.eq(self.b[lane]),
                self.o[lane].eq(multiplier.o),
            ]
        return m


class AdderTree(wiring.Component):
    """The sum of an array, by a tree of adders with registers between its levels.

    Equation: `o = sum(i)`. Latency: `ceil(ceil(log2(count)) / levels)` stages. Throughput: one a
    cycle. No overflow: the result is `ceil(log2(count))` bits wider than an element.

    Owing, each summand may lack one: `o + o_owed = sum(i) + sum(owed)`. The ones go into the carry
    inputs of the adders, which are one fewer than the summands; the last one is left.

    Attributes:
        count: Number of summands.
        owing: Whether summands may lack one.
        levels: Adders from register to register; before the first ones there may be fewer.
        latency: Stages from summands to sum.
        en: In, 1 bit. Enables every stage.
        i: In, array of `count` signed elements.
        o: Out, signed sum.
        owed: In, array of `count` bits. Only if owing.
        o_owed: Out, 1 bit. Only if owing.
    """

    def __init__(self, count: int, bits: int, *, owing: bool = False, levels: int = 1):
        check_whole("an adder tree's count", count)
        check_whole("an adder tree's bits", bits)
        if not isinstance(owing, bool):
            raise CircuitError(f"owing must be a bool, not {owing!r}")
        check_whole("an adder tree's levels", levels)
        self.count, self.owing, self.levels = count, owing, levels
        self.latency = -(-ceil_log2(count) // levels)
        total = signed(bits + ceil_log2(count))
        ports = {"en": In(1), "i": In(data.ArrayLayout(signed(bits), count)), "o": Out(total)}
        if owing:
            ports |= {"owed": In(data.ArrayLayout(1, count)), "o_owed": Out(1)}
        super().__init__(ports)

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        level = [self.i[index] for index in range(self.count)]
        owed = [self.owed[index] for index in range(self.count)] if self.owing else []
        while len(level) > 1:
            sums, left_over = [], []
            registered = ceil_log2(len(level)) % self.levels == 1 % self.levels
            for left in range(0, len(level), 2):
                pair, ones = level[left : left + 2], owed[left : left + 2]
                total = add_owed(pair[0], pair[1], ones[0]) if len(ones) == 2 else sum(pair[1:], start=pair[0])
                name = f"{len(level)}_{left}"
                sums.append(self._after(m, total, f"sum_{name}") if registered else total)
                left_over += [self._after(m, one, f"owed_{name}") if registered else one for one in ones[-1:]]
            level, owed = sums, left_over
        m.d.comb += self.o.eq(level[0])
        if self.owing:
            m.d.comb += self.o_owed.eq(owed[0])
        return m

    def _after(self, m: Module, value: Value, name: str) -> Value:
        """Return what a value was a stage before."""
        register = data_register(Shape.cast(value.shape()), name=name)
        with m.If(self.en):
            m.d.sync += register.eq(value)
        return register


def add_owed(one: Value, other: Value, owed: Value) -> Value:
    """Return `one + other + owed` as one adder with a carry input; two of them would be made of
    three summands written down as such.

    Args:
        one: Signed.
        other: Signed.
        owed: A bit.

    Returns:
        A bit more than the wider one has.
    """
    return (Cat(Const(1, 1), one).as_signed() + Cat(owed, other).as_signed())[1:].as_signed()


class Delay(wiring.Component):
    """A value, `stages` enabled cycles later, beside a pipeline of that latency. Starts at zero.

    Attributes:
        stages: The delay.
        en: In, 1 bit. Enables every stage.
        i, o: In and Out, of the given shape.
        taps: The value after 0, 1, … `stages` stages; taps[0] is `i`.
    """

    def __init__(self, shape: ShapeLike, stages: int):
        check_whole("a delay's stages", stages, 0)
        self.stages = stages
        super().__init__({"en": In(1), "i": In(shape), "o": Out(shape)})
        self.taps = [self.i] + [Signal(shape, name=f"after_{stage + 1}") for stage in range(stages)]

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        with m.If(self.en):
            m.d.sync += [later.eq(earlier) for earlier, later in pairwise(self.taps)]
        m.d.comb += self.o.eq(self.taps[-1])
        return m
