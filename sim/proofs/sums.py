"""Claims that sums are exact: each is compared with the same sum in more bits, for all numbers."""

from collections.abc import Callable

from amaranth.asserts import AnyConst, AnySeq
from amaranth.hdl import Assert, Assume, Const, Elaboratable, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data

import fixedpoint
from hdl.cores.engine import Engine, Operation
from hdl.parts.amaranth_internals import word_at
from hdl.parts.dot_product import AdderTree, Delay
from hdl.parts.multiplier import Multiplier, pair_operand, pair_products, pair_spacing
from hdl.parts.row_statistics import RowStatistics

from .conservation import WholeSums, no_invariants
from .internals import ElaboratedCore
from .liveness import assume_no_stalls
from .stream_rules import Environment

MOST_OWING = 5  # the solver takes many minutes for more
SPARE_BITS = 4  # of a sum that is compared, beyond what the circuit has


class PairsOfProducts(Elaboratable):
    """Two products from one multiplication equal both products, for all operands."""

    def __init__(self, bits: int, weight_bits: int, split: Callable = pair_products):
        self.bits, self.weight_bits, self.split = bits, weight_bits, split

    def elaborate(self, platform: object) -> Module:
        """Build both beside each other."""
        m = Module()
        x = AnyConst(signed(self.bits))
        lower, upper = (Value.cast(AnyConst(signed(self.weight_bits))) for _ in range(2))
        spacing = pair_spacing(self.bits, self.weight_bits)
        both = Signal(signed(self.bits + spacing + self.weight_bits + 1))
        m.d.comb += both.eq(x * pair_operand(lower, upper, spacing))
        low, above, owed = self.split(both, spacing)
        m.d.comb += [Assert(low == x * lower), Assert(above + owed == x * upper)]
        return m


class TreesNeverOverflow(Elaboratable):
    """The sums of adder trees equal sums of more bits, those of up to `MOST_OWING` summands also
    where summands lack ones; a bug cuts off `lost` bits. From register to register there are
    `levels` adders.
    """

    def __init__(self, counts: range, bits: int, lost: int = 0, levels: int = 1):
        self.counts, self.bits, self.lost, self.levels = counts, bits, lost, levels

    def elaborate(self, platform: object) -> Module:
        """Build trees of all the counts."""
        m = Module()
        summands = Signal(data.ArrayLayout(signed(self.bits), max(self.counts)))
        m.d.comb += Value.cast(summands).eq(AnyConst(len(Value.cast(summands))))
        cycles = Signal(range(max(self.counts) + 1))
        m.d.sync += cycles.eq(cycles + (cycles != max(self.counts)))
        ones = Signal(max(self.counts))
        m.d.comb += ones.eq(AnyConst(len(ones)))
        trees = [(count, False) for count in self.counts]
        trees += [(count, True) for count in self.counts if count <= MOST_OWING]
        for count, owing in trees:
            m.submodules[f"tree_{count}_{owing}"] = tree = AdderTree(count, self.bits, owing=owing, levels=self.levels)
            m.d.comb += [tree.en.eq(1), *(tree.i[place].eq(summands[place]) for place in range(count))]
            exact = sum((summands[place] for place in range(1, count)), start=summands[0])
            result = tree.o[: len(tree.o) - self.lost].as_signed()
            if owing:
                m.d.comb += tree.owed.eq(ones[:count])
                exact, result = exact + sum(ones[:count]), result + tree.o_owed
            m.d.comb += Assert((cycles < tree.latency) | (result == exact))
        return m


class SumsAreExact(WholeSums):
    """An engine's results equal sums of products of all activations and all weights; sums have at
    most `terms` words.

    Weights are the memory's, of any contents. The sum is the first one of its kind; words of the
    other kind may lie between.
    """

    asserts_rules = False

    def __init__(self, core: Engine, terms: int):
        super().__init__(core, no_invariants)
        self.terms = terms

    def claims(self, m: Module) -> None:
        """Add up what the commands ask for, and compare."""
        super().claims(m)
        assume_no_stalls(self, m)
        core, command, taken = self.core, self.core.i.payload, self.taken["i"]
        bits, half = core.element_bits, core.element_bits // 2
        word = word_at(self.elaborated.fragment(self.core.internals.words.internals.banks[0]), command.address)
        place = Signal(range(self.terms + 1))
        with m.If(taken):
            m.d.sync += place.eq(Mux(command.last, 0, place + 1))
        m.d.comb += Assume((place < self.terms - 1) | command.last)
        pairs = command.operation == Operation.PAIRS
        elements = [word[lane * bits :][:bits] for lane in range(core.lanes)]
        activations = [command.activations[lane] for lane in range(core.lanes)]
        whole = [x * element.as_signed() for x, element in zip(activations, elements, strict=True)]
        lower = [x * element[:half].as_signed() for x, element in zip(activations, elements, strict=True)]
        upper = [x * element[half:].as_signed() for x, element in zip(activations, elements, strict=True)]
        dots = [
            (core.o.payload.lower[group], Mux(pairs, self._group(lower, group), self._group(whole, group)))
            for group in range(core.groups)
        ]
        dots += [
            (core.o.payload.upper[group], Mux(pairs, self._group(upper, group), 0)) for group in range(core.groups)
        ]
        lanes = [(core.o_lanes.payload[lane], product) for lane, product in enumerate(whole)]
        dot = pairs | (command.operation == Operation.DOT)
        for name, mine, sums in (("o", dot, dots), ("o_lanes", command.operation == Operation.ACCUMULATE, lanes)):
            ended = Signal(8, name=f"{name}_ended")
            m.d.sync += ended.eq(ended + (taken & mine & command.last))
            given = self.taken[name] & (self.counts[name] == 0)
            for position, (result, product) in enumerate(sums):
                exact = Signal(signed(len(Value.cast(result)) + SPARE_BITS), name=f"{name}_exact_{position}")
                with m.If(taken & mine & (ended == 0)):
                    m.d.sync += exact.eq(Mux(command.first, 0, exact) + product)
                m.d.comb += Assert(~given | (result == exact), "a result is the sum of its products")

    def _group(self, products: list[Value], group: int) -> Value:
        """Return the sum of a group's products at the command's tap; 0 if it has no such group."""
        sums = []
        for columns in self.core.columns:
            mine = products[group * columns : (group + 1) * columns]
            sums.append(sum(mine[1:], start=mine[0]) if mine else Const(0, 1))
        chosen = sums[0]
        for tap, total in enumerate(sums[1:], 1):
            chosen = Mux(self.core.i.payload.tap == tap, total, chosen)
        return chosen


class DenominatorsAreExact(Environment):
    """A row's denominator is the sum of its numerators and positive, in the first two rows."""

    asserts_rules = False

    def claims(self, m: Module) -> None:
        """Add up the numerators given."""
        assume_no_stalls(self, m)
        payload, result = self.core.o.payload, self.core.o_denominator.payload
        number, ended = AnyConst(1), Signal(8)
        exact = Signal(unsigned(len(result) + SPARE_BITS))
        with m.If(self.taken["o"]):
            m.d.sync += ended.eq(ended + payload.last)
            with m.If(ended == number):
                m.d.sync += exact.eq(exact + payload.numerator)
        given = self.taken["o_denominator"] & (self.counts["o_denominator"] == number)
        m.d.comb += Assert(~given | ((result == exact) & (result != 0)), "a denominator is the sum of its numerators")


class StatisticsNeverOverflow(Elaboratable):
    """S and v of a row are exact: v = C·Q − S² + epsilon (LayerNorm), C·Q + epsilon (RMSNorm)."""

    def __init__(self, statistics: RowStatistics):
        self.core = statistics
        self.parameters = statistics.parameters

    def elaborate(self, platform: object) -> Module:
        """Build the circuit beside its equation."""
        m = Module()
        core = self.core
        m.submodules.core = elaborated = ElaboratedCore(core)
        parameters, words = self.parameters, self.parameters.channels // core.lanes
        place = Signal(range(words))
        m.d.comb += [
            core.valid.eq(AnySeq(1)),
            Value.cast(core.elements).eq(AnySeq(len(Value.cast(core.elements)))),
            core.first.eq(place == 0),
            core.last.eq(place == words - 1),
        ]
        bits = parameters.variance_bits + SPARE_BITS
        total, squares, variance = (Signal(signed(bits), name=name) for name in ("total", "squares", "variance"))
        sum_now = sum((core.elements[lane] for lane in range(core.lanes)), start=Mux(core.first, 0, total))
        square_now = sum(
            (core.elements[lane] * core.elements[lane] for lane in range(core.lanes)), start=Mux(core.first, 0, squares)
        )
        with m.If(core.valid):
            m.d.sync += [place.eq(Mux(core.last, 0, place + 1)), total.eq(sum_now), squares.eq(square_now)]
        centered = isinstance(parameters, fixedpoint.LayerNorm)
        m.d.comb += variance.eq(
            parameters.channels * square_now + parameters.epsilon - (sum_now * sum_now if centered else 0)
        )
        m.submodules.late = late = Delay(signed(bits), core.settle)
        m.d.comb += [late.en.eq(1), late.i.eq(variance)]
        m.d.comb += Assert(~core.variance_valid | (core.variance == late.o), "v equals its equation")
        if centered:
            # S needs no multiplier
            cycles = elaborated.internals.square_tree.latency + Multiplier.latency - 1
            m.submodules.late_total = late_total = Delay(signed(bits), cycles)
            m.d.comb += [late_total.en.eq(1), late_total.i.eq(sum_now)]
            m.d.comb += Assert(~core.total_valid | (core.total == late_total.o), "S equals its equation")
        return m
