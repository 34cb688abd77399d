# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""The dot-product engine: a memory as wide as there are multipliers, and the two kinds of
sums of products of transformers.

    address ─ memory ───┐             ┌─ FIFO ───── o
                        ├─ datapath ──┤
    activations ────────┘             └─ register ─ o_lanes

*Dot product*: each group of lanes sums its products in trees tapped at each tile's columns, then
over the slices of a row, so that several rows, or several heads of one row, come out at once.
*Accumulate*: each lane sums its own products over many words, which weighs the rows of a matrix
(attention's values) without transposing it.
"""

from collections.abc import Collection, Sequence
from itertools import pairwise

from amaranth.hdl import Assert, Cat, Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from fixedpoint import QuantizationError
from fixedpoint.operators.dot_product_engine import DotProductEngine, Operation

from ..errors import CircuitError
from ..parts.banked_memory import BankedMemory, check_words
from ..parts.copies import Copies
from ..parts.dot_product import Delay
from ..parts.internals import Internals
from ..parts.parameter_checks import check_collection, check_whole
from ..parts.payload import connect, payload_shape
from ..parts.registers import data_register
from ..parts.stream_parts import CreditQueue
from .engine_datapath import LANES_PER_COPY, EngineDatapath

ELEMENT_BITS = 8  # of weights, keys and values; two 4-bit weights


class Engine(wiring.Component):
    """Dot products and weighted sums of memory words, one word a cycle.

    Equations, with activations a and word w of L elements each; group g of tap t is its
    `columns[t]` lanes from `g * columns[t]`:

    - DOT: `o.lower[g] = sum over words, sum over lanes of group g of a * w`, `o.upper = 0`.
    - PAIRS: the same for the lower halves of w in `o.lower` and for the upper halves in `o.upper`.
    - ACCUMULATE: `o_lanes[l] = sum over words of a[l] * w[l]`.
    - WRITE: `memory[address] = a`, as many low bits as an element has; later commands read it.

    `first` starts a sum and `last` gives it out, so a sum extends over one or more commands, of one
    operation and tap. A sum that was begun must be ended before another of its kind. Elements,
    weights and activations are signed. No sum overflows while no sum has more than `terms` words.

    Latency: 10 clock edges and one for each level of the trees, `ceil(log2)` of each tap's columns
    over those of the tap before, from a command taken to its result given; 8 for ACCUMULATE. One
    more with a memory of several banks, which is one of more than 512 words.
    Throughput: one command a cycle, `lanes` products, twice as many in PAIRS: every multiplier
    works in every cycle. A command is taken only if there is room for its result, and the first one
    of a sum of lanes only when the sum before has been taken.

    Resources: `lanes` hard multipliers; `depth` words of a `BankedMemory`.

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
        fetch_stages: Clock edges from a command taken to its word at the multipliers.
        latency, lanes_latency: See above.
        i: In, stream of {operation, tap, first, last, address, activations}.
        o: Out, stream of {lower, upper}: arrays of a sum a group, 0 in places beyond the tap's
            groups. Only with DOT or PAIRS; `upper` only with PAIRS.
        o_lanes: Out, stream of arrays of a sum a lane. Only with ACCUMULATE.

    Internals:
        Nothing stalls the pipeline: results wait in a FIFO, a sum of lanes in a register. Sums of
        lanes begin at zero because the one before was taken, not because of `first`.
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
        check_collection("columns", columns)
        check_collection("operations", operations)
        numbers = {"lanes": lanes, "depth": depth, "terms": terms}
        for name, number in {**numbers, "activation_bits": activation_bits, "element_bits": element_bits}.items():
            check_whole(name, number)
        check_words(init, depth, lanes * element_bits)
        try:
            self.parameters = DotProductEngine(lanes, tuple(columns), terms, activation_bits, element_bits)
        except QuantizationError as error:
            raise CircuitError(str(error)) from None
        if Operation.WRITE in operations and activation_bits < element_bits:
            raise CircuitError(
                f"activations of {activation_bits} bits cannot be written as elements of {element_bits} bits"
            )
        self.lanes, self.columns, self.depth, self.terms = lanes, tuple(columns), depth, terms
        self.activation_bits, self.element_bits = activation_bits, element_bits
        self.operations = frozenset(operations)
        self.init = list(init)
        self._datapath = path = EngineDatapath(self.parameters, operations)
        writes = int(Operation.WRITE in self.operations)
        self._words = BankedMemory(lanes * element_bits, depth, self.init, write_parts=writes)
        self.pairs, self.groups = path.pairs, self.parameters.groups
        # A bank alone has no register of the word, which here lies between it and the multipliers.
        self.fetch_stages = self._words.latency + (self._words.banks == 1)
        self.latency = self.fetch_stages + path.latency + CreditQueue.latency
        self.lanes_latency = self.fetch_stages + path.lanes_latency + 1

        members = {
            "operation": Operation,
            "tap": range(len(self.columns)),
            "first": 1,
            "last": 1,
            "address": range(depth),
            "activations": data.ArrayLayout(signed(activation_bits), lanes),
        }
        ports = {"i": In(stream.Signature(data.StructLayout(members)))}
        if path.sums:
            results = {name: path.o.shape()[name].shape for name in ("lower", "upper")[: 1 + self.pairs]}
            ports["o"] = Out(stream.Signature(data.StructLayout(results)))
        if path.accumulates:
            ports["o_lanes"] = Out(stream.Signature(path.o_lanes.sums.shape()))
        super().__init__(ports)

    def cycles(self, commands: int) -> int:
        """Return the clock edges from the first of so many commands taken to the result of the last
        given, without stalls.
        """
        return commands - 1 + self.latency

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        m.submodules.words, m.submodules.datapath = words, path = self._words, self._datapath
        command, taken = self.i.payload, Signal()
        m.d.comb += [taken.eq(self.i.valid & self.i.ready), words.address.eq(command.address)]
        if Operation.WRITE in self.operations:
            elements = [command.activations[lane][: self.element_bits] for lane in range(self.lanes)]
            m.d.comb += [
                words.write_enable.eq(self.i.valid & (command.operation == Operation.WRITE)),
                words.write_address.eq(command.address),
                words.write_data.eq(Cat(*elements)),
            ]
        else:
            m.d.sync += Assert(~taken | (command.operation != Operation.WRITE), "this engine was made without WRITE")
        word = words.word
        if words.banks == 1:
            word = data_register(self._words.width, name="word")
            m.d.sync += word.eq(words.word)

        # The command and its activations wait as long as the memory takes.
        m.submodules.fetching = fetching = Delay(path.i.shape(), self.fetch_stages)
        tag = fetching.i
        m.d.comb += [
            fetching.en.eq(1),
            tag.dot.eq(taken & ((command.operation == Operation.DOT) | (command.operation == Operation.PAIRS))),
            tag.accumulate.eq(taken & (command.operation == Operation.ACCUMULATE)),
            tag.pairs.eq(taken & (command.operation == Operation.PAIRS)),
            tag.tap.eq(command.tap),
            tag.first.eq(command.first),
            tag.last.eq(command.last),
        ]
        activations = [
            data_register(command.activations.shape(), name=f"activations_{stage}")
            for stage in range(self.fetch_stages)
        ]
        m.d.sync += activations[0].eq(command.activations)
        m.submodules.offered = offered = Copies(1, -(-self.lanes // LANES_PER_COPY))
        m.d.comb += offered.i.eq(self.i.valid)
        for lane in range(self.lanes):
            # Multipliers that have nothing to do rest.
            with m.If(offered.o[lane // LANES_PER_COPY]):
                m.d.sync += activations[1][lane].eq(activations[0][lane])
        m.d.sync += [after.eq(before) for before, after in pairwise(activations[1:])]
        m.d.comb += [path.i.eq(fetching.o), path.word.as_value().eq(word), path.activations.eq(activations[-1])]
        if path.pairs and path.whole:
            m.d.comb += path.pairs_next.eq(fetching.taps[-2].pairs)

        lanes_free, room = Signal(init=1), Signal(init=1)
        self.internals = Internals(words=words, fetching=fetching, datapath=path, lanes_free=lanes_free)
        if path.accumulates:
            self._hold_lane_sums(m, taken, lanes_free)
        if path.sums:
            self._queue_results(m, tag, room)
        # A word can always be written, so what writes does not wait for the credits' sum.
        with m.Switch(command.operation):
            with m.Case(Operation.WRITE):
                m.d.comb += self.i.ready.eq(1)
            with m.Case(Operation.ACCUMULATE):
                m.d.comb += self.i.ready.eq(lanes_free | ~command.first)
            with m.Default():
                m.d.comb += self.i.ready.eq(room)
        return m

    def _hold_lane_sums(self, m: Module, taken: Signal, free: Signal) -> None:
        """Keep the sums of lanes until they are taken; `free` says that a sum may begin."""
        sums, given, command = data_register(self.o_lanes.payload.shape()), Signal(), self.i.payload
        m.d.comb += [given.eq(self.o_lanes.valid & self.o_lanes.ready), self.o_lanes.payload.eq(sums)]
        with m.If(self._datapath.o_lanes.valid):
            m.d.sync += [sums.eq(self._datapath.o_lanes.sums), self.o_lanes.valid.eq(1)]
        with m.Elif(given):
            m.d.sync += self.o_lanes.valid.eq(0)
        # The register belongs to whoever has issued the last word, until the sums are taken.
        with m.If(taken & (command.operation == Operation.ACCUMULATE) & command.last):
            m.d.sync += free.eq(0)
        with m.Elif(given):
            m.d.sync += free.eq(1)

    def _queue_results(self, m: Module, tag: data.View, room: Signal) -> None:
        """Keep sums of groups until they are taken; `room` says that one may be asked for."""
        # A credit is a free place for a result; there are enough to keep the pipeline full.
        places = self.latency + 1
        m.submodules.results = results = CreditQueue(payload_shape(self.o), places)
        m.d.comb += [results.write.eq(self._datapath.o.valid), results.data.lower.eq(self._datapath.o.lower)]
        if self.pairs:
            m.d.comb += results.data.upper.eq(self._datapath.o.upper)
        connect(m, results.o, wiring.flipped(self.o))
        credits = Signal(range(places + 1), init=places)
        spend = Signal()
        m.d.comb += spend.eq(tag.dot & tag.last)
        gain = self.o.valid & self.o.ready
        m.d.sync += credits.eq(credits + gain - spend)
        m.d.comb += room.eq(credits != 0)
        self.internals.results, self.internals.credits = results, credits
