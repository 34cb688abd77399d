# amaranth: UnusedElaboratable=no
# (a datapath may be built only to ask for its latency)
"""The dot-product engine behind its memory: multipliers, adder trees, sums.

    word ────────┐               ┌─ trees of lower products ─┐
                 ├─ multipliers ─┼─ trees of upper products ─┴─ tap ─ sum over words ─ o
    activations ─┘               └─ one sum a lane ─ o_lanes

Nothing here has a handshake or an enable: results come a fixed number of cycles after the command
that ends their sum, for one cycle.
"""

from collections.abc import Collection

from amaranth.hdl import Assert, Cat, Const, Module, Mux, Shape, ShapeLike, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from fixedpoint.operators.dot_product_engine import DotProductEngine, Operation

from ..errors import CircuitError
from ..parts.copies import Copies
from ..parts.dot_product import AdderTree, Delay, LaneProducts, add_owed
from ..parts.internals import Internals
from ..parts.multiplier import OPERAND_BITS, pair_operand, pair_products, pair_spacing
from ..parts.parameter_checks import check_collection, check_whole
from ..parts.registers import data_register
from ..parts.requantize import WIDEST_INPUT

LANES_PER_COPY = 16  # of a control bit that all lanes look at


class EngineDatapath(wiring.Component):
    """Sums of products of activations and memory words, a word a cycle.

    Equations: `fixedpoint.operators.dot_product_engine.DotProductEngine`'s, of commands that come
    with the word they read; no WRITE. `dot` without `pairs` is DOT, both are PAIRS, `accumulate` is
    ACCUMULATE, none of them is a pause. A sum goes from `first` to `last`, and commands of the
    other kind, or pauses, may lie between; the order of results is that of `last`.

    Latency: 5 clock edges and those of the trees, from a command to `o`; 4 to `o_lanes`. The trees
    from a tap to the next one have `ceil(log2(fan-in) / levels)`. Throughput: one command a cycle,
    but the sum of a lane is cleared in the cycle in which it is given: the first command of one
    comes `lanes_gap` cycles after the last command of the one before, or later.

    Resources: `lanes` hard multipliers. The operands go into the multipliers' own registers; the
    logic that makes a pair one operand lies before them, so `word` should come from registers that
    are free to be placed nearby, not from block RAM.

    Source: two weights to a multiplier: Fu, Wu, Sirasao, "8-Bit Dot-Product Acceleration", Xilinx
    WP487, 2017.

    Attributes:
        parameters: Lanes, taps, widths.
        operations: What it can do; hardware for the rest is left out. WRITE is ignored.
        weight_bits: Of a weight of a pair: the lower one is an element's lowest bits, the upper one
            the next ones. None for half of an element.
        levels: Adders from register to register in the trees.
        latency, lanes_latency, lanes_gap: See above.
        i: In, {dot, pairs, accumulate, tap, first, last}: a command.
        pairs_next: In, 1 bit: `i.pairs` of the next cycle, for there it goes to all lanes. Only
            with PAIRS and another operation.
        word: In, array of `lanes` elements, unsigned bits; with the command.
        activations: In, array of `lanes` signed numbers; with the command.
        o: Out, {valid, lower, upper}: arrays of a sum a group, 0 beyond the tap's groups, for the
            one cycle with `valid`. Only with DOT or PAIRS; `upper` only with PAIRS.
        o_lanes: Out, {valid, sums}: an array of a sum a lane, likewise. Only with ACCUMULATE.

    Internals:
        A lane's product x·((upper << s) + lower) holds both products of a pair. Two trees sum up
        the lower ones, as signed numbers of s bits, and what stands above them; each negative lower
        product has borrowed one from there. The upper trees give these ones back through the carry
        inputs of their adders: of n summands with a one each, n - 1 adders take n - 1, and the last
        one goes into the sum over words. A whole product is cut in the same way, and put together
        again at the tap.
    """

    lanes_latency = LaneProducts.latency + 1
    lanes_gap = 2

    def __init__(
        self,
        parameters: DotProductEngine,
        operations: Collection[Operation],
        *,
        weight_bits: int | None = None,
        levels: int = 1,
    ):
        if not isinstance(parameters, DotProductEngine):
            raise TypeError(f"parameters must be a DotProductEngine, not {type(parameters).__name__}")
        check_collection("operations", operations)
        unknown = [one for one in operations if not isinstance(one, Operation)]
        if unknown or not set(operations) - {Operation.WRITE}:
            raise CircuitError(
                f"operations must be some of Operation and more than WRITE, not {sorted(map(str, operations))}"
            )
        self.parameters, self.operations = parameters, frozenset(operations)
        self.pairs, self.dots = Operation.PAIRS in self.operations, Operation.DOT in self.operations
        self.accumulates = Operation.ACCUMULATE in self.operations
        self.whole, self.sums = self.dots or self.accumulates, self.dots or self.pairs
        activation_bits, element_bits = parameters.activation_bits, parameters.element_bits
        if weight_bits is None:
            if self.pairs and element_bits % 2:
                raise CircuitError(f"element_bits must be even for pairs of weights, not {element_bits}")
            weight_bits = element_bits // 2
        if self.pairs:
            check_whole("weight_bits", weight_bits, 1, element_bits // 2, "half of an element")
        self.weight_bits = weight_bits
        self.spacing = pair_spacing(activation_bits, weight_bits)
        b_bits = max(self.spacing + weight_bits + 1 if self.pairs else 0, element_bits if self.whole else 0)
        if b_bits > OPERAND_BITS or activation_bits > OPERAND_BITS:
            raise CircuitError(
                f"activation_bits {activation_bits} with {'pairs of ' if self.pairs else ''}{element_bits} element_bits "
                f"need operands of {max(b_bits, activation_bits)} bits; a multiplier takes {OPERAND_BITS}"
            )
        # Of what stands above a lane's lower product.
        self._upper_bits = max(self.spacing, parameters.product_bits - self.spacing + 1)
        check_whole("levels", levels)
        self.levels = levels
        fan_ins = (wide // narrow for narrow, wide in zip((1, *parameters.columns), parameters.columns, strict=False))
        self.tree_latency = sum(-(-ceil_log2(fan_in) // levels) for fan_in in fan_ins)
        self.latency = LaneProducts.latency + self.tree_latency + 2
        self.sum_bits = (
            parameters.group_sum_bits if self.dots else parameters.group_sum_bits - element_bits + weight_bits
        )
        self.upper_sum_bits = parameters.group_sum_bits - element_bits + weight_bits
        widest = max(parameters.lane_sum_bits, self.sum_bits if self.sums else 0)
        if widest > WIDEST_INPUT:
            raise CircuitError(
                f"terms of {parameters.terms} words need sums of {widest} bits; at most {WIDEST_INPUT} can be requantized"
            )
        self._products = LaneProducts(parameters.lanes, activation_bits, b_bits)
        flags = {name: Shape.cast(1) for name in ("dot", "pairs", "accumulate", "first", "last")}
        self._tag = data.StructLayout({**flags, "tap": range(len(parameters.columns))})
        ports: dict[str, wiring.Member] = {
            "i": In(self._tag),
            "word": In(data.ArrayLayout(element_bits, parameters.lanes)),
            "activations": In(data.ArrayLayout(signed(activation_bits), parameters.lanes)),
        }
        if self.pairs and self.whole:
            ports["pairs_next"] = In(1)
        if self.sums:
            results: dict[str, ShapeLike] = {
                "valid": 1,
                "lower": data.ArrayLayout(signed(self.sum_bits), parameters.groups),
            }
            if self.pairs:
                results["upper"] = data.ArrayLayout(signed(self.upper_sum_bits), parameters.groups)
            ports["o"] = Out(data.StructLayout(results))
        if self.accumulates:
            sums = data.ArrayLayout(signed(parameters.lane_sum_bits), parameters.lanes)
            ports["o_lanes"] = Out(data.StructLayout({"valid": 1, "sums": sums}))
        super().__init__(ports)

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        lanes, spacing, multiplied = self.parameters.lanes, self.spacing, LaneProducts.latency
        # What is in the pipeline, beside the numbers.
        m.submodules.tags = tags = Delay(self._tag, self.latency if self.sums else self.lanes_latency)
        m.d.comb += [tags.en.eq(1), tags.i.eq(self.i)]
        self.internals = Internals(tags=tags)
        asked = {Operation.PAIRS: self.i.dot & self.i.pairs, Operation.ACCUMULATE: self.i.accumulate}
        asked[Operation.DOT] = self.i.dot & ~self.i.pairs
        for operation in sorted(asked.keys() - self.operations):
            m.d.sync += Assert(~asked[operation], f"this engine was made without {operation.name}")

        # Multiply.
        m.submodules.products = products = self._products
        m.d.comb += [products.en.eq(1), products.a.eq(self.activations)]
        in_pairs: list = [None] * lanes
        if self.pairs and self.whole:
            self.internals.announced = announced = Signal()
            m.d.sync += [
                announced.eq(self.pairs_next),
                Assert(~(self.i.dot | self.i.accumulate) | (announced == self.i.pairs), "pairs_next was not pairs"),
            ]
            in_pairs = self._copies(m, "in_pairs", self.pairs_next)
        for lane in range(lanes):
            bits, width = self.word[lane], self.weight_bits
            operand = bits.as_signed()
            if self.pairs:
                pair = pair_operand(bits[:width], bits[width : 2 * width], spacing)
                operand = Mux(in_pairs[lane], pair, operand) if self.whole else pair
            m.d.comb += products.b[lane].eq(operand)

        if self.accumulates:
            self._accumulate(m, tags.taps[multiplied - 1], tags.taps[multiplied + 1])
        if self.sums:
            lower = [product[: self.parameters.product_bits].as_signed() for product in products.o]
            upper = []
            if self.pairs:
                split = [pair_products(product, spacing) for product in products.o]
                lower = [low for low, *_ in split]
                upper = [(above[: self._upper_bits].as_signed(), owed) for _, above, owed in split]
            self._sum_groups(m, lower, upper, tags)
        return m

    def _copies(self, m: Module, name: str, bit: Value) -> list:
        """Return for each lane what `bit` was a cycle before."""
        m.submodules[name] = copies = Copies(1, -(-self.parameters.lanes // LANES_PER_COPY))
        m.d.comb += copies.i.eq(bit)
        return [copies.o[lane // LANES_PER_COPY] for lane in range(self.parameters.lanes)]

    def _accumulate(self, m: Module, soon: data.View, now: data.View) -> None:
        """Sum up products lane by lane; `soon` is the tag of those of the next cycle, `now` that of
        the sums.
        """
        # Cleared after reset and when they are given, so that the first product needs no
        # multiplexer in front of every adder.
        sums = data_register(self.o_lanes.sums.shape())
        fresh, ending = Signal(init=1), Signal()
        m.d.sync += [fresh.eq(0), ending.eq(soon.accumulate & soon.last)]
        clear, add = self._copies(m, "clear", fresh | ending), self._copies(m, "add", soon.accumulate)
        for lane in range(self.parameters.lanes):
            product = self._products.o[lane][: self.parameters.product_bits].as_signed()
            with m.If(clear[lane]):
                m.d.sync += sums[lane].eq(0)
            with m.Elif(add[lane]):
                m.d.sync += sums[lane].eq(sums[lane] + product)
        m.d.comb += [self.o_lanes.valid.eq(now.accumulate & now.last), self.o_lanes.sums.eq(sums)]
        m.d.sync += Assert(~self.o_lanes.valid | ~add[0], "a sum of lanes began while the one before was given")
        self.internals.fresh, self.internals.ending = fresh, ending
        self.internals.clear, self.internals.add = m.submodules.clear, m.submodules.add

    def _sum_groups(self, m: Module, lower: list[Value], upper: list[tuple[Value, Value]], tags: Delay) -> None:
        """Sum up products within groups of lanes, then over words."""
        groups, spacing = self.parameters.groups, self.spacing
        lower_taps = self._tapped(m, "lower", [(product, Const(0, 1)) for product in lower])
        upper_taps = self._tapped(m, "upper", upper)
        # One of the taps; then the sum over words.  Each group has copies of what they look at.
        tap_bits = Value.cast(tags.i.tap)
        m.submodules.tap = tap = Copies(len(tap_bits) + 1, groups)
        m.submodules.sum = total = Copies(2, groups)
        before, at_tap = tags.taps[self.latency - 3], tags.taps[self.latency - 2]
        m.d.comb += [tap.i.eq(Cat(before.pairs, before.tap)), total.i.eq(Cat(at_tap.dot, at_tap.first))]
        m.d.comb += self.o.valid.eq(tags.o.dot & tags.o.last)
        for group in range(groups):
            in_pairs, number = tap.o[group][0], tap.o[group][1:]
            dot, first = total.o[group]
            chosen, _ = self._chosen(lower_taps, group, number)
            if upper_taps:
                above, owed = self._chosen(upper_taps, group, number)
                if self.dots:
                    # A whole product's two parts; in pairs they stay apart.
                    high = chosen[min(spacing, len(chosen) - 1) :].as_signed()
                    high = add_owed(high, Mux(in_pairs, 0, above), owed & ~in_pairs)
                    chosen = Cat(chosen[:spacing], high).as_signed()
                    above, owed = Mux(in_pairs, above, 0), owed & in_pairs
                self._over_words(m, "upper", group, above, owed, dot, first)
            self._over_words(m, "lower", group, chosen, None, dot, first)

    def _over_words(
        self, m: Module, name: str, group: int, chosen: Value, owed: Value | None, dot: Value, first: Value
    ) -> None:
        """Add a group's sum of a word, a cycle after it was chosen, to that of the words before."""
        result = getattr(self.o, name)[group]
        part = data_register(Shape.cast(chosen.shape()), name=f"{name}_chosen_{group}")
        total = data_register(Shape.cast(result.shape()), name=f"{name}_total_{group}")
        carry = None
        m.d.sync += part.eq(chosen)
        before = Mux(first, 0, total)
        if owed is not None:
            carry = data_register(name=f"{name}_owed_{group}")
            m.d.sync += carry.eq(owed)
        with m.If(dot):
            m.d.sync += total.eq(before + part if carry is None else add_owed(before, part, carry))
        m.d.comb += result.eq(total)

    def _chosen(self, taps: list[list[tuple[Value, Value]]], group: int, number: Value) -> tuple[Value, Value]:
        """Return a group's sum, and the one that it lacks, at the tap of a number; 0 if the tap has
        no such group.
        """
        widest = len(taps[-1][0][0])
        total, owed = Const(0, signed(widest)), Const(0, 1)
        for tap, results in enumerate(taps):
            if group < len(results):
                here = number == tap if len(taps) > 1 else Const(1, 1)
                total = Mux(here, results[group][0], total)
                owed = Mux(here, results[group][1], owed)
        return total, owed

    def _tapped(self, m: Module, name: str, level: list[tuple[Value, Value]]) -> list[list[tuple[Value, Value]]]:
        """Return each tap's group sums and the ones that they lack, all of them `tree_latency`
        cycles after the products; no taps without products.
        """
        taps, remaining, width = [], self.tree_latency, 1
        for number, columns in enumerate(self.parameters.columns if level else ()):
            fan_in, results = columns // width, []
            for place in range(len(level) // fan_in):
                products = level[place * fan_in : (place + 1) * fan_in]
                tree = AdderTree(fan_in, len(products[0][0]), owing=name == "upper", levels=self.levels)
                m.submodules[f"{name}_{number}_{place}"] = tree
                m.d.comb += tree.en.eq(1)
                m.d.comb += [tree.i[index].eq(product) for index, (product, _) in enumerate(products)]
                if tree.owing:
                    m.d.comb += [tree.owed[index].eq(owed) for index, (_, owed) in enumerate(products)]
                results.append((tree.o, tree.o_owed if tree.owing else Const(0, 1)))
            remaining, width, level = remaining - tree.latency, columns, results
            taps.append(
                [self._late(m, f"{name}_{number}_{place}", *pair, remaining) for place, pair in enumerate(level)]
            )
        return taps

    def _late(self, m: Module, name: str, total: Value, owed: Value, stages: int) -> tuple[Value, Value]:
        """Return a sum and the one that it lacks some stages later."""
        both = Cat(total, owed)
        for stage in range(stages):
            after = data_register(len(both), name=f"{name}_late_{stage}")
            m.d.sync += after.eq(both)
            both = after
        return both[:-1].as_signed(), both[-1]
