# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its schedule)
"""Matrix-vector product: a quantized linear layer as a stream core."""

from itertools import pairwise

from amaranth.hdl import Assert, Format, Module, Signal, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from fixedpoint import Linear

from .arithmetic import shape_of
from .dot_product import AdderTree, Delay, LaneProducts
from .errors import CircuitError
from .requantize import RowRequantize


class MatrixVector(wiring.Component):
    """`fixedpoint.Linear` as a circuit: vectors of K elements in, vectors of R elements out.

    Equation: `o[r] = requantize(bias[r] + sum_k weight[r, k] * i[k], shift[r])`.

    A memory word holds `lanes` weights; a row is read in S = ceil(K / lanes) words. The vector stands in a ring of registers that turns by
    `lanes` elements a cycle, so that the multipliers always read the same place.

    Latency from the first element taken to the last result given, without stalls: K + R·S + `pipeline` − 1 clock edges, where
    `pipeline = 8 + ceil(log2 lanes)`.  The next vector is taken from R·S + 1 cycles after the last element of the one before it.
    Resources: `lanes` hard multipliers; R·S words of `lanes` weights in block RAM.

    Attributes:
        parameters: The layer.
        lanes: Multipliers, at most K.
        i: In, stream of {data: input format, last}: K elements, `last` on the K-th.
        o: Out, stream of {data: output format, last}: R elements, `last` on the R-th.
    """

    def __init__(self, parameters: Linear, lanes: int):
        if not isinstance(lanes, int) or not 1 <= lanes <= parameters.columns:
            raise CircuitError(f"lanes must be 1 to {parameters.columns} (the matrix's columns), not {lanes!r}")
        self.parameters = parameters
        self.lanes = lanes
        self.slices = -(-parameters.columns // lanes)
        self._products = LaneProducts(lanes, parameters.input.bits, parameters.weight_bits)
        self._tree = AdderTree(lanes, parameters.input.bits + parameters.weight_bits)
        self._requantize = RowRequantize([parameters])
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": shape_of(parameters.input), "last": 1}))),
                "o": Out(stream.Signature(data.StructLayout({"data": shape_of(parameters.output), "last": 1}))),
            }
        )

    @property
    def pipeline(self) -> int:
        """Moves from a weight's address to the result: memory, multipliers, tree, accumulator, requantization."""
        return 1 + self._products.latency + self._tree.latency + 1 + self._requantize.latency

    def cycles(self, vectors: int = 1) -> int:
        """Return the clock edges from the first element taken to the last result given, for vectors offered without a pause."""
        period = self.parameters.columns + self.parameters.rows * self.slices
        return vectors * period + self.pipeline - 1

    def weight_words(self) -> list[int]:
        """Return the weight memory: row by row, slice by slice, element 0 in the least significant bits.

        The ring holds the vector in its last K places, so the padding of a last short slice comes first.
        """
        bits = self.parameters.weight_bits
        padding = self.slices * self.lanes - self.parameters.columns
        words = []
        for row in self.parameters.weight.tolist():
            padded = [0] * padding + row
            for start in range(0, len(padded), self.lanes):
                word = 0
                for place, weight in enumerate(padded[start : start + self.lanes]):
                    word |= (weight & ((1 << bits) - 1)) << (place * bits)
                words.append(word)
        return words

    def elaborate(self, platform):
        """Build the circuit."""
        m = Module()
        parameters, lanes, slices = self.parameters, self.lanes, self.slices
        columns, rows = parameters.columns, parameters.rows
        places = slices * lanes

        word = data.ArrayLayout(signed(parameters.weight_bits), lanes)
        init = [word.from_bits(bits) for bits in self.weight_words()]
        m.submodules.weights = weights = memory.Memory(
            shape=word, depth=rows * slices, init=init, attrs={"ram_style": "block"}
        )
        port = weights.read_port()
        m.submodules.products = products = self._products
        m.submodules.tree = tree = self._tree
        m.submodules.requantize = requantize = self._requantize

        # The whole pipeline stands still while a result waits.
        move = Signal()
        m.d.comb += move.eq(~self.o.valid | self.o.ready)

        # Control: take K elements, then issue R·S words.
        loading = Signal(init=1)
        taken = Signal(range(columns))
        address = Signal(range(rows * slices))
        row = Signal(range(rows))
        part = Signal(range(slices))
        ring = [Signal(shape_of(parameters.input), name=f"ring_{place}", reset_less=True) for place in range(places)]
        last_part, last_word = part == slices - 1, address == rows * slices - 1
        m.d.comb += self.i.ready.eq(loading)
        with m.If(loading):
            with m.If(self.i.valid):
                m.d.sync += [here.eq(after) for here, after in pairwise(ring)]
                m.d.sync += [ring[-1].eq(self.i.payload.data), taken.eq(taken + 1)]
                m.d.sync += Assert(
                    self.i.payload.last == (taken == columns - 1),
                    Format("matrix-vector input: last is {} on element {}", self.i.payload.last, taken),
                )
                with m.If(taken == columns - 1):
                    m.d.sync += [taken.eq(0), loading.eq(0)]
        with m.Elif(move):
            m.d.sync += [address.eq(address + 1), part.eq(part + 1)]
            with m.If(last_part):
                m.d.sync += [part.eq(0), row.eq(row + 1)]
            with m.If(last_word):
                m.d.sync += [address.eq(0), row.eq(0), loading.eq(1)]
            if slices > 1:
                m.d.sync += [ring[place].eq(ring[(place + lanes) % places]) for place in range(places)]

        # What is in the pipeline, beside the numbers.
        tag = data.StructLayout({"valid": 1, "first": 1, "last": 1, "row": unsigned(len(row)), "end": 1})
        m.submodules.tags = tags = Delay(tag, self.pipeline)
        m.d.comb += [
            tags.en.eq(move),
            tags.i.valid.eq(~loading),
            tags.i.first.eq(part == 0),
            tags.i.last.eq(last_part),
            tags.i.row.eq(row),
            tags.i.end.eq(last_word),
        ]

        # Multiply one slice a move.
        operands = Signal(data.ArrayLayout(shape_of(parameters.input), lanes), reset_less=True)
        with m.If(move):  # keeps the ring's elements beside the weights, which take a move to be read
            m.d.sync += [operands[lane].eq(ring[lane]) for lane in range(lanes)]
        m.d.comb += [
            port.en.eq(move),
            port.addr.eq(address),
            products.en.eq(move),
            products.a.eq(operands),
            products.b.eq(port.data),
            tree.en.eq(move),
            tree.i.eq(products.o),
        ]

        # Add up a row's slices.
        sliced = tags.taps[1 + products.latency + tree.latency]
        total = Signal(signed(parameters.accumulator_bits), reset_less=True)
        with m.If(move & sliced.valid):
            with m.If(sliced.first):
                m.d.sync += total.eq(tree.o)
            with m.Else():
                m.d.sync += total.eq(total + tree.o)
        whole = tags.taps[2 + products.latency + tree.latency]
        m.d.comb += [requantize.en.eq(move), requantize.i.eq(total), requantize.row.eq(whole.row)]

        m.d.comb += [
            self.o.valid.eq(tags.o.valid & tags.o.last),
            self.o.payload.data.eq(requantize.o),
            self.o.payload.last.eq(tags.o.end),
        ]
        return m
