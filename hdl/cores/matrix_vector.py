# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its cycles)
"""Matrix-vector product: a quantized linear layer as a stream core."""

from itertools import pairwise

import numpy as np
from amaranth.hdl import Assert, Format, Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from fixedpoint import Linear

from ..parts.arithmetic import shape_of
from ..parts.dot_product import Delay
from ..parts.internals import Internals
from ..parts.multiplier import OPERAND_BITS, pair_spacing
from ..parts.parameter_checks import check_whole
from ..parts.registers import data_register
from ..parts.requantize import RowRequantize
from .engine import Engine, Operation
from .tile import Tile


class MatrixVector(wiring.Component):
    """`fixedpoint.Linear` as a circuit: vectors of K elements in, vectors of R elements out, one
    element a cycle at most.

    Equation: `o[r] = requantize(bias[r] + sum_k weight[r, k] * i[k], shift[r])`.

    Latency: `cycles(V)` = V·(K + W) + `pipeline` − 1 clock edges from the first element of V
    vectors taken to the last result given, without stalls; W = `tile.num_words(R, K)`, that is
    R·ceil(K / lanes) without pairs and sharing; `pipeline` = 17 + ceil(log2 `tile.columns`) + rows
    of the last tile, one more with W > 512. Throughput: a vector in K + W cycles.
    Resources: `lanes` hard multipliers; W words of `lanes` weights, or pairs of weights, in block
    RAM; K·8 flip-flops for the ring.

    Source: two weights to a multiplier: Fu, Wu, Sirasao, "8-Bit Dot-Product Acceleration", Xilinx
    WP487, 2017.

    Attributes:
        parameters: The layer.
        lanes: Multipliers, at most K.
        tile: How the matrix is cut.
        i: In, stream of {data: input format, last}: K elements, `last` on the K-th.
        o: Out, stream of {data: output format, last}: R elements, `last` on the R-th.

    Internals:
        A memory word holds `tile.rows` rows times `tile.columns` columns. A ring of registers
        has the vector and rotates by `tile.columns` a cycle, so that multipliers read fixed ones.
        Weights of up to 4 bits go in pairs, two to a multiplier, and short rows share the lanes;
        results leave one at a time, so a tile has no more rows than a row has slices.
    """

    def __init__(self, parameters: Linear, lanes: int):
        if not isinstance(parameters, Linear):
            raise TypeError(f"parameters must be a fixedpoint.Linear, not {type(parameters).__name__}")
        check_whole("lanes", lanes, 1, parameters.columns, "the matrix's columns")
        self.parameters = parameters
        self.lanes = lanes
        self.tile = serial_tile(parameters, lanes)
        self.slices = self.tile.slices(parameters.columns)
        words = self.weight_words()
        self._engine = Engine(
            lanes,
            (self.tile.columns,),
            len(words),
            self.slices,
            activation_bits=parameters.input.bits,
            element_bits=parameters.weight_bits << self.tile.pairs,
            operations=(Operation.PAIRS if self.tile.pairs else Operation.DOT,),
            init=words,
        )
        self._requantize = RowRequantize([parameters])
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": shape_of(parameters.input), "last": 1}))),
                "o": Out(stream.Signature(data.StructLayout({"data": shape_of(parameters.output), "last": 1}))),
            }
        )

    @property
    def pipeline(self) -> int:
        """Clock edges from the last word's address to the last result: engine, its results'
        register, requantization, results beside each other.
        """
        last_rows = (self.parameters.rows - 1) % self.tile.rows + 1
        return self._engine.latency + 1 + self._requantize.latency + last_rows - 1

    def cycles(self, vectors: int = 1) -> int:
        """Return the clock edges from the first element taken to the last result given, for vectors
        offered without a pause.
        """
        period = self.parameters.columns + self.tile.num_words(*self.parameters.weight.shape)
        return vectors * period + self.pipeline - 1

    def weight_words(self) -> list[int]:
        """Return the weight memory; a row's last slice is whole, the padding stands before its
        first.

        The ring holds the vector in its last K places, and what stands before them is multiplied by
        zero.
        """
        padding = self.slices * self.tile.columns - self.parameters.columns
        return self.tile.words(np.pad(self.parameters.weight, ((0, 0), (padding, 0))), self.parameters.weight_bits)

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        parameters, tile, slices = self.parameters, self.tile, self.slices
        columns, rows = parameters.columns, parameters.rows
        places = slices * tile.columns
        m.submodules.engine = engine = self._engine
        m.submodules.requantize = requantize = self._requantize

        # Control: take K elements, then issue a command for every word.
        loading = Signal(init=1)
        taken = Signal(range(columns))
        address = Signal(range(engine.depth))
        part = Signal(range(slices))
        ring = [data_register(shape_of(parameters.input), name=f"ring_{place}") for place in range(places)]
        last_part = part == slices - 1
        m.d.comb += [self.i.ready.eq(loading), engine.i.valid.eq(~loading)]
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
        with m.Elif(engine.i.ready):
            m.d.sync += [address.eq(address + 1), part.eq(part + 1)]
            with m.If(last_part):
                m.d.sync += part.eq(0)
            with m.If(address == engine.depth - 1):
                m.d.sync += [address.eq(0), loading.eq(1)]
            if slices > 1:
                m.d.sync += [ring[place].eq(ring[(place + tile.columns) % places]) for place in range(places)]
        command = engine.i.payload
        m.d.comb += [
            command.operation.eq(Operation.PAIRS if tile.pairs else Operation.DOT),
            command.first.eq(part == 0),
            command.last.eq(last_part),
            command.address.eq(address),
        ]
        m.d.comb += [command.activations[lane].eq(ring[lane % tile.columns]) for lane in range(self.lanes)]

        # A tile's rows leave one after the other; those beyond the matrix are dropped.
        results = [*engine.o.payload.lower, *(engine.o.payload.upper if tile.pairs else ())]
        held = [data_register(signed(parameters.accumulator_bits), name=f"held_{place}") for place in range(tile.rows)]
        left = Signal(range(tile.rows + 1))
        row = Signal(range(rows))
        enable = Signal()  # the cast's pipeline stalls while a result waits
        feeding, last_row = (left != 0) & enable, row == rows - 1
        m.d.comb += [
            enable.eq(~self.o.valid | self.o.ready),
            engine.o.ready.eq((left == 0) | (enable & ((left == 1) | last_row))),
        ]
        with m.If(feeding):
            m.d.sync += [here.eq(after) for here, after in pairwise(held)]
            m.d.sync += [left.eq(left - 1), row.eq(row + 1)]
            with m.If(last_row):
                m.d.sync += [left.eq(0), row.eq(0)]
        with m.If(engine.o.valid & engine.o.ready):
            m.d.sync += [here.eq(result) for here, result in zip(held, results, strict=True)]
            m.d.sync += left.eq(tile.rows)

        m.submodules.tags = tags = Delay(data.StructLayout({"valid": 1, "last": 1}), requantize.latency)
        m.d.comb += [
            tags.en.eq(enable),
            tags.i.valid.eq(left != 0),
            tags.i.last.eq(last_row),
            requantize.en.eq(enable),
            requantize.i.eq(held[0]),
            requantize.row.eq(row),
            self.o.valid.eq(tags.o.valid),
            self.o.payload.data.eq(requantize.o),
            self.o.payload.last.eq(tags.o.last),
        ]
        counters = {"taken": taken, "address": address, "part": part, "left": left, "row": row}
        self.internals = Internals(engine=engine, loading=loading, **counters, tags=tags)
        return m


def serial_tile(parameters: Linear, lanes: int) -> Tile:
    """Return the tile of the fewest words whose results can leave one a cycle; of equals the one
    with the fewest rows.
    """
    rows, columns = parameters.weight.shape
    operand_bits = pair_spacing(parameters.input.bits, parameters.weight_bits) + parameters.weight_bits + 1
    tiles = [
        Tile(lanes, width, pairs)
        for pairs in (False, True)[: 1 + (operand_bits <= OPERAND_BITS)]
        for width in range(lanes, 0, -1)
        if lanes % width == 0
    ]
    # One row a word always keeps up.
    steady = [tile for tile in tiles if tile.rows <= tile.slices(columns)]
    return min(steady, key=lambda tile: (tile.num_words(rows, columns), tile.rows))
