# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""The dot-product engine: a memory as wide as there are multipliers, and the two kinds of
sums of products of transformers.

    address ─ memory ─ register ─ operands ─┐                       ┌─ tapped trees ─ sum ─ FIFO ─ o
                                            ├─ multipliers ─ split ─┤
    activations ──────────── registers ─────┘                       └─ one sum a lane ─ o_lanes

*Dot product*: each group of lanes sums its products in trees tapped at each tile's columns, then
over the slices of a row, so that several rows, or several heads of one row, come out at once.
*Accumulate*: each lane sums its own products over many words, which weighs the rows of a matrix
(attention's values) without transposing it.
"""

import reprlib
from collections.abc import Collection, Sequence

from amaranth.hdl import Assert, Cat, Format, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from fixedpoint import QuantizationError
from fixedpoint.operators.dot_product_engine import DotProductEngine, Operation

from ..errors import CircuitError
from ..parts.copies import Copies
from ..parts.dot_product import AdderTree, Delay, LaneProducts
from ..parts.internals import Internals
from ..parts.multiplier import OPERAND_BITS, pair_operand, pair_products, pair_spacing
from ..parts.parameter_checks import check_whole
from ..parts.payload import connect, payload_shape
from ..parts.registers import data_register
from ..parts.requantize import WIDEST_INPUT
from ..parts.stream_parts import CreditQueue

ELEMENT_BITS = 8  # of weights, keys and values; two 4-bit weights
LANES_PER_COPY = 16  # of a control bit that all lanes look at
# from a command to its operands: memory, the memory's register, the operands' register
FETCH_STAGES = 3


class Engine(wiring.Component):
    """Dot products and weighted sums of memory words, one word a cycle.

    Equations, with activations a and word w of L elements each; group g of tap t is its
    `columns[t]` lanes from `g * columns[t]`:

    - DOT: `o.lower[g] = sum over words, sum over lanes of group g of a * w`, `o.upper = 0`.
    - PAIRS: the same for the lower halves of w in `o.lower` and for the upper halves in `o.upper`.
    - ACCUMULATE: `o_lanes[l] = sum over words of a[l] * w[l]`.
    - WRITE: `memory[address] = a`, as many low bits as an element has; later commands read it.

    `first` starts a sum and `last` gives it out, so a sum extends over one or more commands, of one
    operation and tap. A sum that was begun must be ended before another of its kind: sums of lanes
    begin at zero because the one before was taken, not because of `first`. Elements, weights and
    activations are signed. No sum overflows while no sum has more than `terms` words.

    Latency: 11 clock edges and one for each level of the trees, `ceil(log2)` of each tap's columns
    over those of the tap before, from a command taken to its result given; 8 for ACCUMULATE.
    Throughput: one command a cycle, `lanes` products, twice as many in PAIRS: every multiplier
    works in every cycle. Nothing stalls the pipeline: results wait in a FIFO, and a command is
    taken only if there is room for a result. A sum of lanes waits in the lanes' own registers; the
    first command of another such sum is not taken before.

    Resources: `lanes` hard multipliers; `depth` words of block RAM, with a register behind it.

    Source: two weights to a multiplier: Fu, Wu, Sirasao, "8-Bit Dot-Product Acceleration", Xilinx
    WP487, 2017.

    Attributes:
        lanes: Multipliers.
        columns: Lanes of a group, for each tap; each divides the next, the last divides `lanes`.
        depth: Words of memory.
        terms: Words that a sum may extend over.
        activation_bits, element_bits: Signed widths.
        operations: What the engine can do; hardware for the rest is left out.
        init: The first words of the memory, unsigned; the rest is zero.
        latency, lanes_latency: See above.
        i: In, stream of {operation, tap, first, last, address, activations}.
        o: Out, stream of {lower, upper}: arrays of a sum a group, 0 in places beyond the tap's
            groups. Only with DOT or PAIRS; `upper` only with PAIRS.
        o_lanes: Out, stream of arrays of a sum a lane. Only with ACCUMULATE.
    """

    def __init__(
        self,
        lanes: int,
        columns: Sequence[int],
        depth: int,
        terms: int,
        *,
        activation_bits: int = 8,
        element_bits: int = ELEMENT_BITS,
        operations: Collection[Operation] = tuple(Operation),
        init: Sequence[int] = (),
    ):
        collections: dict[str, object] = {"columns": columns, "operations": operations, "init": init}
        for name, value in collections.items():
            if not isinstance(value, Collection) or isinstance(value, str):
                raise CircuitError(f"{name} must be a collection, not {value!r}")
        numbers = {"lanes": lanes, "depth": depth, "terms": terms}
        for name, number in {**numbers, "activation_bits": activation_bits, "element_bits": element_bits}.items():
            check_whole(name, number)
        try:
            self.parameters = DotProductEngine(lanes, tuple(columns), terms, activation_bits, element_bits)
        except QuantizationError as error:
            raise CircuitError(str(error)) from None
        self.lanes, self.columns, self.depth, self.terms = lanes, tuple(columns), depth, terms
        self.activation_bits, self.element_bits = activation_bits, element_bits
        self.operations = frozenset(operations)
        self.init = list(init)
        self._check()
        self.pairs = Operation.PAIRS in self.operations
        self.whole = bool(self.operations & {Operation.DOT, Operation.ACCUMULATE})
        self.spacing = pair_spacing(activation_bits, element_bits // 2)
        b_bits = self.spacing + element_bits // 2 + 1 if self.pairs else element_bits
        if b_bits > OPERAND_BITS or activation_bits > OPERAND_BITS:
            raise CircuitError(
                f"activation_bits {activation_bits} with {'pairs of ' if self.pairs else ''}{element_bits} element_bits "
                f"need operands of {max(b_bits, activation_bits)} bits; a multiplier takes {OPERAND_BITS}"
            )
        self._products = LaneProducts(lanes, activation_bits, b_bits)
        product_bits, pair_sum_bits = self.parameters.product_bits, self.parameters.pair_sum_bits
        dot = bool(self.operations & {Operation.DOT, Operation.PAIRS})
        wide = Operation.DOT in self.operations
        self._trees = self._make_trees(product_bits if wide else self.spacing) if dot else []
        self._upper_trees = self._make_trees(self.spacing) if self.pairs else []
        self.tree_latency = sum(level[0].latency for level in self._trees)
        sum_bits = self.parameters.group_sum_bits if wide else pair_sum_bits
        widest = max(self.parameters.lane_sum_bits, sum_bits if dot else 0)
        if widest > WIDEST_INPUT:
            raise CircuitError(
                f"terms of {terms} words need sums of {widest} bits; at most {WIDEST_INPUT} can be requantized"
            )
        self.groups = self.parameters.groups

        members = {
            "operation": Operation,
            "tap": range(len(self.columns)),
            "first": 1,
            "last": 1,
            "address": range(depth),
            "activations": data.ArrayLayout(signed(activation_bits), lanes),
        }
        ports = {"i": In(stream.Signature(data.StructLayout(members)))}
        if dot:
            results = {"lower": data.ArrayLayout(signed(sum_bits), self.groups)}
            if self.pairs:
                results["upper"] = data.ArrayLayout(signed(pair_sum_bits), self.groups)
            ports["o"] = Out(stream.Signature(data.StructLayout(results)))
        if Operation.ACCUMULATE in self.operations:
            ports["o_lanes"] = Out(stream.Signature(data.ArrayLayout(signed(self.parameters.lane_sum_bits), lanes)))
        super().__init__(ports)

    def _check(self) -> None:
        unknown = [one for one in self.operations if not isinstance(one, Operation)]
        if unknown or not self.operations - {Operation.WRITE}:
            raise CircuitError(
                f"operations must be some of Operation and more than WRITE, not {sorted(map(str, self.operations))}"
            )
        if Operation.PAIRS in self.operations and self.element_bits % 2:
            raise CircuitError(f"element_bits must be even for pairs of weights, not {self.element_bits}")
        if Operation.WRITE in self.operations and self.activation_bits < self.element_bits:
            raise CircuitError(
                f"activations of {self.activation_bits} bits cannot be written as elements of {self.element_bits} bits"
            )
        if len(self.init) > self.depth or any(
            not isinstance(word, int) or not 0 <= word < 1 << self.lanes * self.element_bits for word in self.init
        ):
            wanted = f"{self.depth} words of {self.lanes * self.element_bits} bits, unsigned"
            raise CircuitError(f"init must be at most {wanted}, not {reprlib.repr(list(self.init))}")

    def _make_trees(self, bits: int) -> list[list[AdderTree]]:
        """Return for each tap the trees that sum up the one before."""
        levels, width = [], 1
        for columns in self.columns:
            levels.append([AdderTree(columns // width, bits) for _ in range(self.lanes // columns)])
            bits, width = bits + levels[-1][0].latency, columns
        return levels

    @property
    def dot_stages(self) -> int:
        """Cycles from a command to its sum: fetching, multipliers, split, trees, selection of the
        tap, slices.
        """
        return FETCH_STAGES + self._products.latency + 1 + self.tree_latency + 2

    @property
    def latency(self) -> int:
        """Clock edges from a DOT or PAIRS command taken to its result given: to its sum, and 2
        through the FIFO.
        """
        return self.dot_stages + 2

    @property
    def lanes_latency(self) -> int:
        """Clock edges from an ACCUMULATE command taken to its sums given."""
        return FETCH_STAGES + self._products.latency + 1 + 1

    def cycles(self, commands: int) -> int:
        """Return the clock edges from the first of so many commands taken to the result of the last
        given, without stalls.
        """
        return commands - 1 + self.latency

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        lanes = self.lanes

        # Memory, with a register behind it: block RAM answers late in a cycle.
        element = signed(self.element_bits)
        word = data.ArrayLayout(element, lanes)
        m.submodules.words = words = memory.Memory(
            shape=word,
            depth=self.depth,
            init=[word.from_bits(bits) for bits in self.init],
            attrs={"ram_style": "block"},
        )
        # An asynchronous port and a register behind it are what synthesis makes into the block
        # RAM's own synchronous port.  So written, it sees that the port rests while a word is
        # written, and adds no multiplexer for what a read of the same word would give.
        read_port = words.read_port(domain="comb")
        command, taken, writing = self.i.payload, Signal(), Signal()
        answer, elements = data_register(word), data_register(word)
        m.d.comb += [taken.eq(self.i.valid & self.i.ready), read_port.addr.eq(command.address)]
        with m.If(~writing):
            m.d.sync += answer.eq(read_port.data)
        m.d.sync += elements.eq(answer)
        if Operation.WRITE in self.operations:
            write_port = words.write_port()
            m.d.comb += [
                writing.eq(self.i.valid & (command.operation == Operation.WRITE)),
                write_port.en.eq(writing),
                write_port.addr.eq(command.address),
            ]
            m.d.comb += [
                write_port.data[lane].eq(command.activations[lane][: self.element_bits]) for lane in range(lanes)
            ]

        # What is in the pipeline, beside the numbers.
        tag = data.StructLayout({"dot": 1, "lanes": 1, "pairs": 1, "tap": command.tap.shape(), "first": 1, "last": 1})
        m.submodules.tags = tags = Delay(tag, self.dot_stages)
        m.d.comb += [
            tags.en.eq(1),
            tags.i.dot.eq(taken & ((command.operation == Operation.DOT) | (command.operation == Operation.PAIRS))),
            tags.i.lanes.eq(taken & (command.operation == Operation.ACCUMULATE)),
            tags.i.pairs.eq(command.operation == Operation.PAIRS),
            tags.i.tap.eq(command.tap),
            tags.i.first.eq(command.first),
            tags.i.last.eq(command.last),
        ]
        # in their own order, the same each time
        missing = [one for one in Operation if one not in self.operations]
        for operation in missing:
            m.d.sync += Assert(
                ~taken | (command.operation != operation), Format(f"this engine was made without {operation.name}")
            )

        # Multiply: the activations wait as long as the memory takes.
        activations = [
            data_register(command.activations.shape(), name=f"activations_{stage}") for stage in range(FETCH_STAGES)
        ]
        m.d.sync += activations[0].eq(command.activations)
        offered = self._copies(m, "offered", self.i.valid)
        for lane in range(lanes):
            with m.If(offered[lane]):  # multipliers that have nothing to do rest
                m.d.sync += activations[1][lane].eq(activations[0][lane])
        m.d.sync += activations[2].eq(activations[1])
        m.submodules.products = products = self._products
        m.d.comb += [products.en.eq(1), products.a.eq(activations[-1])]
        # Block RAMs and multipliers lie in columns all over the chip: the wires between them take a
        # cycle of their own.
        operands = data_register(products.b.shape())
        m.d.comb += products.b.eq(operands)
        in_pairs = self._copies(m, "fetched", tags.taps[FETCH_STAGES - 2].pairs)
        half = self.element_bits // 2
        for lane in range(lanes):
            bits = elements[lane].as_unsigned()
            pair = pair_operand(bits[:half], bits[half:], self.spacing) if self.pairs else None
            m.d.sync += operands[lane].eq(self._either(in_pairs[lane], pair, elements[lane]))

        # Split: the whole product, or the lower and the upper one of a pair.
        lower_bits = self.parameters.product_bits if self.whole else self.spacing
        lower = data_register(data.ArrayLayout(signed(lower_bits), lanes))
        upper = data_register(data.ArrayLayout(signed(self.spacing), lanes))
        in_pairs = self._copies(m, "multiplied", tags.taps[FETCH_STAGES + products.latency - 1].pairs)
        for lane in range(lanes):
            low, high = pair_products(products.o[lane], self.spacing)
            m.d.sync += lower[lane].eq(self._either(in_pairs[lane], low, products.o[lane]))
            if self.pairs:
                m.d.sync += upper[lane].eq(high)

        lanes_free = Signal(init=1)
        self.internals = Internals(words=words, tags=tags, lanes_free=lanes_free)
        if Operation.ACCUMULATE in self.operations:
            stages = tags.taps[FETCH_STAGES + products.latency :]
            self._accumulate_lanes(m, lower, stages[0], stages[1], taken, lanes_free)
        room = Signal(init=1)
        if self._trees:
            self._dot_product(m, lower, upper, tags, taken, room)
        # A word can always be written, so what writes does not wait for the credits' sum.
        with m.Switch(command.operation):
            with m.Case(Operation.WRITE):
                m.d.comb += self.i.ready.eq(1)
            with m.Case(Operation.ACCUMULATE):
                m.d.comb += self.i.ready.eq(lanes_free | ~command.first)
            with m.Default():
                m.d.comb += self.i.ready.eq(room)
        return m

    def _either(self, in_pairs: Value, pair: Value | None, whole: Value) -> Value:
        """Return what belongs to a pair of weights or to a whole element; an engine that has only
        one of them does not choose.
        """
        return Mux(in_pairs, pair, whole) if self.pairs and self.whole else pair if self.pairs else whole

    def _copies(self, m: Module, name: str, bit: Signal) -> list:
        """Return for each lane what `bit` was a cycle before."""
        m.submodules[name] = copies = Copies(1, -(-self.lanes // LANES_PER_COPY))
        m.d.comb += copies.i.eq(bit)
        return [copies.o[lane // LANES_PER_COPY] for lane in range(self.lanes)]

    def _accumulate_lanes(
        self, m: Module, products: Signal, before: data.View, tag: data.View, taken: Signal, free: Signal
    ) -> None:
        """Sum up products lane by lane, `tag` saying what they are and `before` what the next ones
        are.
        """
        # Cleared after reset and when they have been taken, so that the first product needs no
        # multiplexer in front of every adder.  The next product is many cycles away then, so there
        # is time for two registers on the way to all lanes.
        sums = data_register(self.o_lanes.payload.shape())
        given = Signal(init=1)
        m.d.sync += given.eq(self.o_lanes.valid & self.o_lanes.ready)
        clear, add = self._copies(m, "clear", given), self._copies(m, "add", before.lanes)
        self.internals.given, self.internals.clear, self.internals.add = given, m.submodules.clear, m.submodules.add
        for lane in range(self.lanes):
            with m.If(clear[lane]):
                m.d.sync += sums[lane].eq(0)
            with m.Elif(add[lane]):
                m.d.sync += sums[lane].eq(sums[lane] + products[lane])
        m.d.comb += self.o_lanes.payload.eq(sums)
        with m.If(tag.lanes & tag.last):
            m.d.sync += self.o_lanes.valid.eq(1)
        with m.Elif(self.o_lanes.ready):
            m.d.sync += self.o_lanes.valid.eq(0)
        # The sums belong to whoever has issued the last word, until they are taken.
        command = self.i.payload
        with m.If(taken & (command.operation == Operation.ACCUMULATE) & command.last):
            m.d.sync += free.eq(0)
        with m.Elif(self.o_lanes.valid & self.o_lanes.ready):
            m.d.sync += free.eq(1)

    def _dot_product(self, m: Module, lower: Signal, upper: Signal, tags: Delay, taken: Signal, room: Signal) -> None:
        """Sum up products within groups of lanes, then slice by slice, and keep the results until
        they are taken.
        """
        chosen_soon, slice_sum = tags.taps[self.dot_stages - 2], tags.o
        payload = payload_shape(self.o)
        sums = data_register(payload)
        for name, products, levels in (("lower", lower, self._trees), ("upper", upper, self._upper_trees)):
            if not levels:
                continue
            taps = self._tapped(m, name, [products[lane] for lane in range(self.lanes)], levels)
            # One of the taps, then zeros.
            chosen = data_register(data.ArrayLayout(levels[-1][0].o.shape(), self.groups), name=f"{name}_chosen")
            with m.Switch(chosen_soon.tap):
                for number, results in enumerate(taps):
                    with m.Case(number):
                        padded = results + [0] * (self.groups - len(results))
                        if name == "upper":
                            padded = [Mux(chosen_soon.pairs, result, 0) for result in padded]
                        m.d.sync += [chosen[group].eq(result) for group, result in enumerate(padded)]
            total = getattr(sums, name)
            m.submodules[f"{name}_tags"] = selected = Copies(2, self.groups)
            m.d.comb += selected.i.eq(Cat(chosen_soon.dot, chosen_soon.first))
            for group in range(self.groups):
                dot, first = selected.o[group]
                with m.If(dot):
                    m.d.sync += total[group].eq(Mux(first, 0, total[group]) + chosen[group])

        # A credit is a free place for a result; there are enough to keep the pipeline full.
        places = self.latency + 1
        m.submodules.results = results = CreditQueue(payload, places)
        m.d.comb += [results.write.eq(slice_sum.dot & slice_sum.last), results.data.eq(sums)]
        connect(m, results.o, wiring.flipped(self.o))
        credits = Signal(range(places + 1), init=places)
        spend = Signal()
        m.d.comb += spend.eq(tags.i.dot & tags.i.last)
        gain = self.o.valid & self.o.ready
        m.d.sync += credits.eq(credits + gain - spend)
        m.d.comb += room.eq(credits != 0)
        self.internals.results, self.internals.credits = results, credits

    def _tapped(self, m: Module, name: str, level: list, levels: list[list[AdderTree]]) -> list[list]:
        """Return each tap's group sums, all of them `tree_latency` cycles after the products."""
        taps, remaining = [], self.tree_latency
        for number, trees in enumerate(levels):
            for place, tree in enumerate(trees):
                m.submodules[f"{name}_{number}_{place}"] = tree
                m.d.comb += tree.en.eq(1)
                m.d.comb += [tree.i[index].eq(level[place * tree.count + index]) for index in range(tree.count)]
            level = [tree.o for tree in trees]
            remaining -= trees[0].latency
            waiting = level
            for stage in range(remaining):
                late = [
                    data_register(value, name=f"{name}_{number}_{stage}_{place}") for place, value in enumerate(waiting)
                ]
                m.d.sync += [after.eq(value) for after, value in zip(late, waiting, strict=True)]
                waiting = late
            taps.append(waiting)
        return taps
